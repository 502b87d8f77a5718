//! Users, roles and whether they are asked for: the replicated state, its changes, and its rows in the database.
//!
//! Pure (I4): a change is a function of the state and the request; passwords arrive hashed, keys are chosen by who proposes.
//! All checks of a change come before its first write.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use pintle_proto::authpb::permission::Type;
use pintle_proto::authpb::{Permission, Role};
use pintle_proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest,
};
use pintle_proto::store_v1::auth_change::Change;
use pintle_proto::store_v1::{AuthFailure, AuthRecord, Caller, UserRecord};
use prost::Message;

use super::failure::AuthError;
use super::intervals::IntervalSet;
use crate::mvcc::key::Interval;
use crate::mvcc::record::{decode_checked, encode_checked};

/// The user and the role that may do everything.
const ROOT: &str = "root";

/// Key of [`AuthRecord`] in the meta family; users and roles follow their prefix.
pub(crate) const PREFIX: &[u8] = b"auth";
pub(crate) const HEAD_KEY: &[u8] = b"auth";
pub(crate) const USER_PREFIX: &[u8] = b"auth/user/";
pub(crate) const ROLE_PREFIX: &[u8] = b"auth/role/";

/// Rows of the meta family to write; `None` removes one.
pub(crate) type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Cheap to clone: users and roles are shared.
#[derive(Clone, Debug)]
pub(crate) struct AuthState {
    pub enabled: bool,
    /// Starts at 1, as in etcd.
    pub revision: u64,
    pub token_key: Bytes,
    users: BTreeMap<String, Arc<User>>,
    roles: BTreeMap<String, Arc<Role>>,
}

#[derive(Debug)]
struct User {
    record: UserRecord,
    /// Worked out when first asked for; a user is replaced when one of its roles changes.
    permissions: OnceLock<Arc<Permissions>>,
}

/// What the roles of a user add up to.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    read: IntervalSet,
    write: IntervalSet,
}

/// What a caller may do.
#[derive(Clone, Debug)]
pub(crate) enum Grant {
    /// Everything.
    Root,
    User(Arc<Permissions>),
}

/// What a change came to: the rows that changed, or why not. The outer error is a request that cannot be read.
type Changed = Result<Result<Rows, AuthFailure>, prost::DecodeError>;

impl Default for AuthState {
    fn default() -> Self {
        Self { enabled: false, revision: 1, token_key: Bytes::new(), users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl AuthState {
    /// Reads the rows whose keys begin with [`PREFIX`].
    pub fn load<'a>(rows: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> io::Result<Self> {
        let mut state = Self::default();
        for (key, value) in rows {
            if let Some(name) = key.strip_prefix(USER_PREFIX) {
                let record = decode_checked(value, "user record")?;
                state.users.insert(text(name)?, Arc::new(User::new(record)));
            } else if let Some(name) = key.strip_prefix(ROLE_PREFIX) {
                state.roles.insert(text(name)?, Arc::new(decode_checked(value, "role record")?));
            } else if key == HEAD_KEY {
                let AuthRecord { enabled, revision, token_key } = decode_checked(value, "auth record")?;
                (state.enabled, state.revision, state.token_key) = (enabled, revision, token_key);
            }
        }
        Ok(state)
    }

    pub fn change(&mut self, change: &Change) -> Changed {
        let raw = |raw: &Bytes| raw.clone();
        Ok(match change {
            Change::Enable(key) => self.enable(key),
            Change::Disable(_) => self.disable(),
            Change::UserAdd(request) => self.user_add(AuthUserAddRequest::decode(raw(request))?),
            Change::UserDelete(request) => self.user_delete(&AuthUserDeleteRequest::decode(raw(request))?.name),
            Change::UserChangePassword(request) => {
                self.change_password(AuthUserChangePasswordRequest::decode(raw(request))?)
            }
            Change::UserGrantRole(request) => self.grant_role(&AuthUserGrantRoleRequest::decode(raw(request))?),
            Change::UserRevokeRole(request) => self.revoke_role(&AuthUserRevokeRoleRequest::decode(raw(request))?),
            Change::RoleAdd(request) => self.role_add(AuthRoleAddRequest::decode(raw(request))?.name),
            Change::RoleDelete(request) => self.role_delete(&AuthRoleDeleteRequest::decode(raw(request))?.role),
            Change::RoleGrantPermission(request) => {
                self.grant_permission(AuthRoleGrantPermissionRequest::decode(raw(request))?)
            }
            Change::RoleRevokePermission(request) => {
                self.revoke_permission(&AuthRoleRevokePermissionRequest::decode(raw(request))?)
            }
        })
    }

    /// What `caller` may do now.
    pub fn grant(&self, caller: &Caller) -> Result<Grant, AuthError> {
        if caller.name.is_empty() {
            return Err(AuthError(AuthFailure::UserNameEmpty));
        }
        if caller.auth_revision != 0 && caller.auth_revision < self.revision {
            return Err(AuthError(AuthFailure::OldRevision));
        }
        let user = self.users.get(&caller.name).ok_or(AuthError(AuthFailure::PermissionDenied))?;
        if caller.credential_revision != 0 && caller.credential_revision != user.record.credential_revision {
            return Err(AuthError(AuthFailure::InvalidToken));
        }
        Ok(match user.has_role(ROOT) {
            true => Grant::Root,
            false => Grant::User(Arc::clone(user.permissions.get_or_init(|| Arc::new(self.permissions(&user.record))))),
        })
    }

    /// True if nobody can log in, because the state was restored from a file, which has no key to sign logins with.
    pub fn lacks_key(&self) -> bool {
        self.enabled && self.token_key.is_empty()
    }

    /// What the record of a user holds.
    pub fn user(&self, name: &str) -> Option<&UserRecord> {
        self.users.get(name).map(|user| &user.record)
    }

    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(Arc::as_ref)
    }

    pub fn users(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    pub fn roles(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    fn permissions(&self, user: &UserRecord) -> Permissions {
        let granted = || {
            let roles = user.roles.iter().filter_map(|name| self.roles.get(name));
            roles.flat_map(|role| &role.key_permission)
        };
        let of = |kind: Type| {
            let holds = move |permission: &&Permission| [kind, Type::Readwrite].contains(&permission.perm_type());
            granted().filter(holds).map(|permission| Interval::new(&permission.key, &permission.range_end)).collect()
        };
        Permissions { read: of(Type::Read), write: of(Type::Write) }
    }

    fn enable(&mut self, key: &Bytes) -> Result<Rows, AuthFailure> {
        if self.enabled && self.token_key.is_empty() && !key.is_empty() {
            self.token_key = key.clone(); // restored: it is not in the file
            return Ok(self.rows(&[], &[]));
        }
        if self.enabled {
            return Ok(Rows::new());
        }
        let root = self.users.get(ROOT).ok_or(AuthFailure::NoRootUser)?;
        if !root.has_role(ROOT) {
            return Err(AuthFailure::NoRootRole);
        }
        // Another key each time: no login outlives the time in which nobody was asked.
        (self.enabled, self.token_key) = (true, key.clone());
        Ok(self.rows(&[], &[]))
    }

    fn disable(&mut self) -> Result<Rows, AuthFailure> {
        if !self.enabled {
            return Ok(Rows::new());
        }
        self.enabled = false;
        Ok(self.changed(&[], &[]))
    }

    fn user_add(&mut self, request: AuthUserAddRequest) -> Result<Rows, AuthFailure> {
        let AuthUserAddRequest { name, options, hashed_password, .. } = request;
        if name.is_empty() {
            return Err(AuthFailure::UserNameEmpty);
        }
        if self.users.contains_key(&name) {
            return Err(AuthFailure::UserExists);
        }
        let no_password = options.is_some_and(|options| options.no_password);
        let password_hash = if no_password { String::new() } else { hashed_password };
        let credential_revision = self.revision + 1;
        let record = UserRecord { password_hash, no_password, roles: Vec::new(), credential_revision };
        self.users.insert(name.clone(), Arc::new(User::new(record)));
        Ok(self.changed(&[&name], &[]))
    }

    fn user_delete(&mut self, name: &str) -> Result<Rows, AuthFailure> {
        if self.enabled && name == ROOT {
            return Err(AuthFailure::InvalidChange);
        }
        self.users.remove(name).ok_or(AuthFailure::UserNotFound)?;
        Ok(self.changed(&[name], &[]))
    }

    fn change_password(&mut self, request: AuthUserChangePasswordRequest) -> Result<Rows, AuthFailure> {
        let mut record = self.user(&request.name).ok_or(AuthFailure::UserNotFound)?.clone();
        if !record.no_password {
            // Asked for while the user had no password.
            if request.hashed_password.is_empty() {
                return Err(AuthFailure::InvalidChange);
            }
            record.password_hash = request.hashed_password;
        }
        record.credential_revision = self.revision + 1;
        self.set_user(&request.name, record);
        Ok(self.changed(&[&request.name], &[]))
    }

    fn grant_role(&mut self, request: &AuthUserGrantRoleRequest) -> Result<Rows, AuthFailure> {
        let mut record = self.user(&request.user).ok_or(AuthFailure::UserNotFound)?.clone();
        // The role of root is there without having been made.
        if request.role != ROOT && !self.roles.contains_key(&request.role) {
            return Err(AuthFailure::RoleNotFound);
        }
        let Err(place) = record.roles.binary_search(&request.role) else { return Ok(Rows::new()) };
        record.roles.insert(place, request.role.clone());
        self.set_user(&request.user, record);
        Ok(self.changed(&[&request.user], &[]))
    }

    fn revoke_role(&mut self, request: &AuthUserRevokeRoleRequest) -> Result<Rows, AuthFailure> {
        if self.enabled && request.name == ROOT && request.role == ROOT {
            return Err(AuthFailure::InvalidChange);
        }
        let mut record = self.user(&request.name).ok_or(AuthFailure::UserNotFound)?.clone();
        let place = record.roles.binary_search(&request.role).map_err(|_| AuthFailure::RoleNotGranted)?;
        record.roles.remove(place);
        self.set_user(&request.name, record);
        Ok(self.changed(&[&request.name], &[]))
    }

    fn role_add(&mut self, name: String) -> Result<Rows, AuthFailure> {
        if name.is_empty() {
            return Err(AuthFailure::RoleNameEmpty);
        }
        if self.roles.contains_key(&name) {
            return Err(AuthFailure::RoleExists);
        }
        let role = Role { name: Bytes::from(name.clone()), key_permission: Vec::new() };
        self.roles.insert(name.clone(), Arc::new(role));
        Ok(self.changed(&[], &[&name]))
    }

    fn role_delete(&mut self, name: &str) -> Result<Rows, AuthFailure> {
        if self.enabled && name == ROOT {
            return Err(AuthFailure::InvalidChange);
        }
        self.roles.remove(name).ok_or(AuthFailure::RoleNotFound)?;
        let holders = self.holders(name);
        for user in &holders {
            let mut record = self.users[user].record.clone();
            record.roles.retain(|role| role != name);
            self.set_user(user, record);
        }
        let holders: Vec<&str> = holders.iter().map(String::as_str).collect();
        Ok(self.changed(&holders, &[name]))
    }

    fn grant_permission(&mut self, request: AuthRoleGrantPermissionRequest) -> Result<Rows, AuthFailure> {
        let permission = request.perm.ok_or(AuthFailure::PermissionNotGiven)?;
        if permission.key.is_empty()
            || Interval::new(&permission.key, &permission.range_end) == Interval::Empty
            || Type::try_from(permission.perm_type).is_err()
        {
            return Err(AuthFailure::InvalidChange);
        }
        let name = request.name.as_str();
        let mut role = self.role(name).ok_or(AuthFailure::RoleNotFound)?.clone();
        let order = |permission: &Permission| (permission.key.clone(), permission.range_end.clone());
        match role.key_permission.binary_search_by_key(&order(&permission), order) {
            Ok(place) => role.key_permission[place] = permission,
            Err(place) => role.key_permission.insert(place, permission),
        }
        self.set_role(name, role);
        Ok(self.changed(&[], &[name]))
    }

    fn revoke_permission(&mut self, request: &AuthRoleRevokePermissionRequest) -> Result<Rows, AuthFailure> {
        let name = request.role.as_str();
        let mut role = self.role(name).ok_or(AuthFailure::RoleNotFound)?.clone();
        let named =
            |permission: &Permission| permission.key == request.key && permission.range_end == request.range_end;
        let place = role.key_permission.iter().position(named).ok_or(AuthFailure::PermissionNotGranted)?;
        role.key_permission.remove(place);
        self.set_role(name, role);
        Ok(self.changed(&[], &[name]))
    }

    fn set_user(&mut self, name: &str, record: UserRecord) {
        self.users.insert(name.to_owned(), Arc::new(User::new(record)));
    }

    /// Replaces a role, and who has it: what they may do is worked out anew.
    fn set_role(&mut self, name: &str, role: Role) {
        self.roles.insert(name.to_owned(), Arc::new(role));
        for user in self.holders(name) {
            let record = self.users[&user].record.clone();
            self.set_user(&user, record);
        }
    }

    fn holders(&self, role: &str) -> Vec<String> {
        self.users.iter().filter(|(_, user)| user.has_role(role)).map(|(name, _)| name.clone()).collect()
    }

    /// Counts a change; the rows that are other now.
    fn changed(&mut self, users: &[&str], roles: &[&str]) -> Rows {
        self.revision += 1;
        self.rows(users, roles)
    }

    fn rows(&self, users: &[&str], roles: &[&str]) -> Rows {
        let head = AuthRecord { enabled: self.enabled, revision: self.revision, token_key: self.token_key.clone() };
        let users =
            users.iter().map(|name| ([USER_PREFIX, name.as_bytes()].concat(), self.user(name).map(encode_checked)));
        let roles =
            roles.iter().map(|name| ([ROLE_PREFIX, name.as_bytes()].concat(), self.role(name).map(encode_checked)));
        users.chain(roles).chain([(HEAD_KEY.to_vec(), Some(encode_checked(&head)))]).collect()
    }
}

impl User {
    fn new(record: UserRecord) -> Self {
        Self { record, permissions: OnceLock::new() }
    }

    fn has_role(&self, role: &str) -> bool {
        self.record.roles.iter().any(|one| one == role)
    }
}

impl Grant {
    pub fn read(&self, interval: &Interval) -> Result<(), AuthError> {
        self.permit(|permissions| permissions.read.covers(interval))
    }

    pub fn write(&self, interval: &Interval) -> Result<(), AuthError> {
        self.permit(|permissions| permissions.write.covers(interval))
    }

    /// Whether what concerns the whole cluster may be done.
    pub fn administer(&self) -> Result<(), AuthError> {
        self.permit(|_| false)
    }

    fn permit(&self, permits: impl FnOnce(&Permissions) -> bool) -> Result<(), AuthError> {
        match self {
            Self::Root => Ok(()),
            Self::User(permissions) if permits(permissions) => Ok(()),
            Self::User(_) => Err(AuthError(AuthFailure::PermissionDenied)),
        }
    }
}

fn text(raw: &[u8]) -> io::Result<String> {
    String::from_utf8(raw.to_vec()).map_err(|_| crate::mvcc::record::corrupt("name of a user or role"))
}
