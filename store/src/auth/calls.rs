//! The calls of the Auth service on a [`Store`]: logins, and changes of users and roles.

use bytes::Bytes;
use pintle_proto::authpb::Permission;
use pintle_proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest, ResponseHeader,
};
use pintle_proto::store_v1::auth_change::Change;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::{AuthChange, AuthFailure};
use prost::Message;

use super::failure::AuthError;
use super::{Actor, Grant, token};
use crate::error::StoreError;
use crate::store::Store;

/// The header that goes with an answer.
type Header = Option<ResponseHeader>;

fn refusal(failure: AuthFailure) -> StoreError {
    AuthError(failure).into()
}

/// A request that is carried in the log as it is.
macro_rules! encoded {
    ($variant:ident, $request:expr) => {
        Change::$variant(Bytes::from($request.encode_to_vec()))
    };
}

impl Store {
    /// From now on callers must be known and allowed. Needs the user `root` with the role `root`.
    pub async fn auth_enable(&self) -> Result<Header, StoreError> {
        self.change_auth(Change::Enable(token::new_key()?.into())).await
    }

    pub async fn auth_disable(&self) -> Result<Header, StoreError> {
        self.change_auth(Change::Disable(true)).await
    }

    /// Whether callers must be known, and how often users and roles changed.
    pub async fn auth_status(&self) -> Result<(Header, bool, u64), StoreError> {
        self.read_barrier().await?;
        self.permitted(Grant::administer)?;
        let state = self.auth();
        Ok((self.header(self.revision()), state.enabled, state.revision))
    }

    /// Logs a user in; the token is good on every member.
    pub async fn authenticate(&self, name: String, password: String) -> Result<(Header, String), StoreError> {
        self.read_barrier().await?;
        let state = self.auth();
        if !state.enabled {
            return Err(refusal(AuthFailure::NotEnabled));
        }
        let user = state.user(&name);
        if user.is_some_and(|user| user.no_password) {
            return Err(refusal(AuthFailure::NoPasswordUser));
        }
        let hash = user.map(|user| user.password_hash.clone());
        let credential_revision = user.map_or(0, |user| user.credential_revision);
        if !self.passwords().matches(password, hash).await? {
            return Err(refusal(AuthFailure::Login));
        }
        // Made with what was compared: if the password changed meanwhile, the token is void from the start.
        let token = self.tokens().mint(&state, &name, credential_revision)?;
        Ok((self.header(self.revision()), token))
    }

    pub async fn user_add(&self, mut request: AuthUserAddRequest) -> Result<Header, StoreError> {
        self.may_administer().await?;
        if request.name.is_empty() {
            return Err(refusal(AuthFailure::UserNameEmpty));
        }
        let password = std::mem::take(&mut request.password);
        request.hashed_password = match request.options.is_some_and(|options| options.no_password) {
            true => String::new(),
            false => self.passwords().hash(password).await?,
        };
        self.change_auth(encoded!(UserAdd, request)).await
    }

    /// The roles of a user. Everybody may ask for their own.
    pub async fn user_get(&self, name: &str) -> Result<(Header, Vec<String>), StoreError> {
        self.read_barrier().await?;
        if !matches!(self.actor(), Actor::User(caller) if caller.name == name) {
            self.permitted(Grant::administer)?;
        } else {
            self.permitted(|_| Ok(()))?;
        }
        let state = self.auth();
        let user = state.user(name).ok_or_else(|| refusal(AuthFailure::UserNotFound))?;
        Ok((self.header(self.revision()), user.roles.clone()))
    }

    pub async fn user_list(&self) -> Result<(Header, Vec<String>), StoreError> {
        self.may_administer().await?;
        Ok((self.header(self.revision()), self.auth().users()))
    }

    pub async fn user_delete(&self, request: AuthUserDeleteRequest) -> Result<Header, StoreError> {
        self.change_auth(encoded!(UserDelete, request)).await
    }

    pub async fn user_change_password(&self, mut request: AuthUserChangePasswordRequest) -> Result<Header, StoreError> {
        self.may_administer().await?;
        let password = std::mem::take(&mut request.password);
        request.hashed_password = match self.auth().user(&request.name) {
            None => return Err(refusal(AuthFailure::UserNotFound)),
            Some(user) if user.no_password => String::new(),
            Some(_) => self.passwords().hash(password).await?,
        };
        self.change_auth(encoded!(UserChangePassword, request)).await
    }

    pub async fn user_grant_role(&self, request: AuthUserGrantRoleRequest) -> Result<Header, StoreError> {
        self.change_auth(encoded!(UserGrantRole, request)).await
    }

    pub async fn user_revoke_role(&self, request: AuthUserRevokeRoleRequest) -> Result<Header, StoreError> {
        self.change_auth(encoded!(UserRevokeRole, request)).await
    }

    pub async fn role_add(&self, request: AuthRoleAddRequest) -> Result<Header, StoreError> {
        self.change_auth(encoded!(RoleAdd, request)).await
    }

    /// The permissions of a role. Everybody may ask for the roles they have.
    pub async fn role_get(&self, name: &str) -> Result<(Header, Vec<Permission>), StoreError> {
        self.read_barrier().await?;
        let state = self.auth();
        let held = matches!(self.actor(), Actor::User(caller)
            if state.user(&caller.name).is_some_and(|user| user.roles.iter().any(|role| role == name)));
        self.permitted(|grant| if held { Ok(()) } else { grant.administer() })?;
        let role = state.role(name).ok_or_else(|| refusal(AuthFailure::RoleNotFound))?;
        Ok((self.header(self.revision()), role.key_permission.clone()))
    }

    pub async fn role_list(&self) -> Result<(Header, Vec<String>), StoreError> {
        self.may_administer().await?;
        Ok((self.header(self.revision()), self.auth().roles()))
    }

    pub async fn role_delete(&self, request: AuthRoleDeleteRequest) -> Result<Header, StoreError> {
        self.change_auth(encoded!(RoleDelete, request)).await
    }

    pub async fn role_grant_permission(&self, request: AuthRoleGrantPermissionRequest) -> Result<Header, StoreError> {
        self.change_auth(encoded!(RoleGrantPermission, request)).await
    }

    pub async fn role_revoke_permission(&self, request: AuthRoleRevokePermissionRequest) -> Result<Header, StoreError> {
        self.change_auth(encoded!(RoleRevokePermission, request)).await
    }

    /// Refuses what only administrators may, by what the cluster knew when this was asked: changes that are not in the store's log
    /// are judged here alone.
    pub(crate) async fn may_administer(&self) -> Result<(), StoreError> {
        self.read_barrier().await?;
        self.permitted(Grant::administer)
    }

    async fn change_auth(&self, change: Change) -> Result<Header, StoreError> {
        let operation = Operation::Auth(AuthChange { change: Some(change) });
        let (_, revision) = self.propose(operation, None).await?;
        Ok(self.header(revision))
    }
}
