//! What clients are told about users, roles and permissions, in etcd's words.

use pintle_proto::store_v1::AuthFailure;
use tonic::Code;

/// A refusal that concerns users, roles or permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthError(pub(crate) AuthFailure);

impl AuthError {
    /// Code and text on the wire. A failure of a newer version that this one does not know denies.
    fn wire(self) -> (Code, &'static str) {
        use Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated, Unknown};
        match self.0 {
            AuthFailure::UserNameEmpty => (InvalidArgument, "etcdserver: user name is empty"),
            AuthFailure::RoleNameEmpty => (InvalidArgument, "etcdserver: role name is empty"),
            AuthFailure::Login => (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
            AuthFailure::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
            AuthFailure::InvalidChange => (InvalidArgument, "etcdserver: invalid auth management"),
            AuthFailure::OldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
            AuthFailure::NoRootUser => (FailedPrecondition, "etcdserver: root user does not exist"),
            AuthFailure::NoRootRole => (FailedPrecondition, "etcdserver: root user does not have root role"),
            AuthFailure::UserExists => (FailedPrecondition, "etcdserver: user name already exists"),
            AuthFailure::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
            AuthFailure::RoleExists => (FailedPrecondition, "etcdserver: role name already exists"),
            AuthFailure::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
            AuthFailure::RoleNotGranted => (FailedPrecondition, "etcdserver: role is not granted to the user"),
            AuthFailure::PermissionNotGranted => {
                (FailedPrecondition, "etcdserver: permission is not granted to the role")
            }
            AuthFailure::NotEnabled => (FailedPrecondition, "etcdserver: authentication is not enabled"),
            AuthFailure::PermissionDenied | AuthFailure::Unspecified => {
                (PermissionDenied, "etcdserver: permission denied")
            }
            AuthFailure::InvalidToken => (Unauthenticated, "etcdserver: invalid auth token"),
            AuthFailure::NoPasswordUser => {
                (Unknown, "auth: authentication failed, password was given for no password user")
            }
            AuthFailure::PasswordTooLong => (Unknown, "bcrypt: password length exceeds 72 bytes"),
        }
    }

    /// The gRPC status code etcd sends with the text.
    pub fn code(self) -> Code {
        self.wire().0
    }
}

impl std::fmt::Display for AuthError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.wire().1)
    }
}

impl std::error::Error for AuthError {}
