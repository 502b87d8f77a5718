//! `etcdserverpb.Auth`: users, roles, logins.

use pintle_proto::etcdserverpb::auth_server::Auth as AuthService;
use pintle_proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
    AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest, AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse,
    AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
    AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest,
    AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
};
use tonic::{Request, Response, Status};

use super::{acting, require_leader, require_voter};
use crate::store::Store;

pub(super) struct Auth {
    store: Store,
}

impl Auth {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// The store as the caller may use it, and what was asked.
    fn admit<T>(&self, request: Request<T>) -> Result<(Store, T), Status> {
        require_leader(&self.store, request.metadata())?;
        require_voter(&self.store)?;
        Ok((acting(&self.store, &request), request.into_inner()))
    }
}

/// The service: calls whose answer is a header as a table, the others as they are.
macro_rules! service {
    (
        changes { $($call:ident($request:ident) -> $response:ident = |$store:ident, $asked:ident| $run:expr;)* }
        $($others:tt)*
    ) => {
        #[tonic::async_trait]
        impl AuthService for Auth {
            $(
                async fn $call(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let ($store, $asked) = self.admit(request)?;
                    Ok(Response::new($response { header: $run.await? }))
                }
            )*
            $($others)*
        }
    };
}

service! {
    changes {
        auth_enable(AuthEnableRequest) -> AuthEnableResponse = |store, _asked| store.auth_enable();
        auth_disable(AuthDisableRequest) -> AuthDisableResponse = |store, _asked| store.auth_disable();
        user_add(AuthUserAddRequest) -> AuthUserAddResponse = |store, asked| store.user_add(asked);
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse = |store, asked| store.user_delete(asked);
        user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse =
            |store, asked| store.user_change_password(asked);
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse =
            |store, asked| store.user_grant_role(asked);
        user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse =
            |store, asked| store.user_revoke_role(asked);
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse = |store, asked| store.role_add(asked);
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse = |store, asked| store.role_delete(asked);
        role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse =
            |store, asked| store.role_grant_permission(asked);
        role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse =
            |store, asked| store.role_revoke_permission(asked);
    }

    async fn auth_status(&self, request: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        let (store, _) = self.admit(request)?;
        let (header, enabled, auth_revision) = store.auth_status().await?;
        Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let (store, AuthenticateRequest { name, password }) = self.admit(request)?;
        let (header, token) = store.authenticate(name, password).await?;
        Ok(Response::new(AuthenticateResponse { header, token }))
    }

    async fn user_get(&self, request: Request<AuthUserGetRequest>) -> Result<Response<AuthUserGetResponse>, Status> {
        let (store, asked) = self.admit(request)?;
        let (header, roles) = store.user_get(&asked.name).await?;
        Ok(Response::new(AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        let (store, _) = self.admit(request)?;
        let (header, users) = store.user_list().await?;
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn role_get(&self, request: Request<AuthRoleGetRequest>) -> Result<Response<AuthRoleGetResponse>, Status> {
        let (store, asked) = self.admit(request)?;
        let (header, perm) = store.role_get(&asked.role).await?;
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        let (store, _) = self.admit(request)?;
        let (header, roles) = store.role_list().await?;
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }
}
