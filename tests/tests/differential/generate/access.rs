//! Users, roles, permissions and logins: behind the switch `auth`.

use pintle_proto::authpb::permission::Type;
use pintle_proto::authpb::{Permission, UserAddOptions};
use pintle_proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
    AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest, AuthStatusRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest,
};

use super::{Generator, ROOT, Step};
use crate::step::Call;
use crate::world::World;

impl Generator {
    /// Root half of the time, so that enough is allowed; also users that do not exist.
    pub(super) fn user(&mut self) -> String {
        if self.once_in(2) { ROOT.to_owned() } else { format!("user{}", self.random.below(4)) }
    }

    fn role(&mut self) -> String {
        if self.once_in(10) { ROOT.to_owned() } else { format!("role{}", self.random.below(3)) }
    }

    fn name(&mut self, name: String) -> String {
        if self.once_in(60) { String::new() } else { name }
    }

    pub(super) fn access(&mut self, world: &World) -> Step {
        let (user, role) = (self.user(), self.role());
        let (user, role) = (self.name(user), self.name(role));
        let caller = if self.once_in(4) { self.user() } else { ROOT.to_owned() };
        let (key, range_end) = self.interval();
        let call = match self.random.below(24) {
            // Enabled from now on, with what that needs, and a login.
            0 => {
                let root = || ROOT.to_owned();
                let enable = [
                    Call::UserAdd(AuthUserAddRequest { name: root(), password: password(ROOT), ..Default::default() }),
                    Call::UserGrant(AuthUserGrantRoleRequest { user: root(), role: root() }),
                    Call::AuthEnable(AuthEnableRequest {}),
                    Call::Authenticate(AuthenticateRequest { name: root(), password: password(ROOT) }),
                ];
                self.next.extend(enable.map(|call| Step::CallAs(root(), call)));
                Call::AuthStatus(AuthStatusRequest {})
            }
            1 if world.auth_enabled => Call::AuthDisable(AuthDisableRequest {}),
            1..5 => {
                let password = if self.once_in(5) { "wrong".to_owned() } else { password(&user) };
                Call::Authenticate(AuthenticateRequest { name: user, password })
            }
            5 => {
                let options = self.once_in(4).then_some(UserAddOptions { no_password: true });
                let password = if options.is_some() { String::new() } else { password(&user) };
                Call::UserAdd(AuthUserAddRequest { name: user, password, options, ..Default::default() })
            }
            6 => Call::UserGet(AuthUserGetRequest { name: user }),
            7 => Call::UserList(AuthUserListRequest {}),
            8 if user != ROOT || self.once_in(4) => Call::UserDelete(AuthUserDeleteRequest { name: user }),
            9 => {
                let password = password(&user);
                Call::UserPassword(AuthUserChangePasswordRequest { name: user, password, ..Default::default() })
            }
            10..13 => Call::UserGrant(AuthUserGrantRoleRequest { user, role }),
            13 => Call::UserRevoke(AuthUserRevokeRoleRequest { name: user, role }),
            14 | 15 => Call::RoleAdd(AuthRoleAddRequest { name: role }),
            16 => Call::RoleGet(AuthRoleGetRequest { role }),
            17 => Call::RoleList(AuthRoleListRequest {}),
            18 => Call::RoleDelete(AuthRoleDeleteRequest { role }),
            19..22 => {
                let perm_type = self.random.of(&[Type::Read, Type::Write, Type::Readwrite]).into();
                let perm = (!self.once_in(30)).then_some(Permission { perm_type, key, range_end });
                Call::RoleGrant(AuthRoleGrantPermissionRequest { name: role, perm })
            }
            22 => Call::RoleRevoke(AuthRoleRevokePermissionRequest { role, key, range_end }),
            _ => Call::AuthStatus(AuthStatusRequest {}),
        };
        Step::CallAs(caller, call)
    }
}

fn password(user: &str) -> String {
    format!("password of {user}")
}
