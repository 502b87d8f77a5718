//! Users and roles of the source. They are not copied, since passwords cannot be read: the commands that make them anew are told.

use pintle_proto::authpb::{Permission, Role, User};
use pintle_proto::etcdserverpb as e;
use pintle_store::bolt::{Bolt, BoltError};
use prost::Message;

use crate::store::ctl::client::{CallError, Client};
use crate::store::ctl::go;

/// Users, and roles, that are told of one by one.
const TOLD: usize = 1000;

#[derive(Debug, Default)]
pub struct Auth {
    pub enabled: bool,
    /// Names, and whether they have no password.
    pub users: Vec<(String, bool, Vec<String>)>,
    pub roles: Vec<(String, Vec<Permission>)>,
    /// Why they are not known.
    pub hidden: Option<String>,
}

impl Auth {
    /// What a running etcd lets its user see.
    pub async fn of_etcd(client: &Client) -> Self {
        match Self::ask(client).await {
            Ok(auth) => auth,
            Err(error) => Self { hidden: Some(error.to_string()), ..Self::default() },
        }
    }

    async fn ask(client: &Client) -> Result<Self, CallError> {
        let mut auth = Self::default();
        for name in client.ask(e::AuthRoleListRequest {}).await?.roles.into_iter().take(TOLD) {
            let role = client.ask(e::AuthRoleGetRequest { role: name.clone() }).await?;
            auth.roles.push((name, role.perm));
        }
        for name in client.ask(e::AuthUserListRequest {}).await?.users.into_iter().take(TOLD) {
            let user = client.ask(e::AuthUserGetRequest { name: name.clone() }).await?;
            auth.users.push((name, false, user.roles));
        }
        // Of 3.4 it cannot be asked, but there a password is taken only where it is on.
        let told = client.ask(e::AuthStatusRequest {}).await;
        auth.enabled = client.is_known().await || told.is_ok_and(|status| status.enabled);
        Ok(auth)
    }

    pub fn of_file(bolt: &Bolt) -> Result<Self, BoltError> {
        let mut auth = Self::default();
        for item in bolt.bucket(b"auth")?.into_iter().flatten() {
            let (key, value) = item?;
            auth.enabled |= key == b"authEnabled"[..] && value == [1][..];
        }
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        for item in bolt.bucket(b"authUsers")?.into_iter().flatten().take(TOLD) {
            let (key, value) = item?;
            match User::decode(value) {
                Ok(user) => {
                    let keyless = user.options.is_some_and(|options| options.no_password);
                    auth.users.push((text(&key), keyless, user.roles));
                }
                Err(error) => auth.hidden = Some(format!("user {}: {error}", text(&key))),
            }
        }
        for item in bolt.bucket(b"authRoles")?.into_iter().flatten().take(TOLD) {
            let (key, value) = item?;
            match Role::decode(value) {
                Ok(role) => auth.roles.push((text(&key), role.key_permission)),
                Err(error) => auth.hidden = Some(format!("role {}: {error}", text(&key))),
            }
        }
        Ok(auth)
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.roles.is_empty() && !self.enabled && self.hidden.is_none()
    }

    /// What a shell has to run at the target; each asks for what only its user knows.
    pub fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        // A role of this name is there before anybody makes one.
        for (name, permissions) in self.roles.iter().filter(|(name, _)| name != "root") {
            let role = shell(name.as_bytes());
            commands.push(format!("pintle store role add {role}"));
            for permission in permissions {
                let kind = permission.perm_type().as_str_name().to_lowercase();
                let range = range(&permission.key, &permission.range_end);
                commands.push(format!("pintle store role grant-permission {role} {kind} {range}"));
            }
        }
        for (name, keyless, roles) in &self.users {
            let user = shell(name.as_bytes());
            let how = if *keyless { " --no-password" } else { "" };
            commands.push(format!("pintle store user add {user}{how}"));
            commands.extend(
                roles.iter().map(|role| format!("pintle store user grant-role {user} {}", shell(role.as_bytes()))),
            );
        }
        if self.enabled {
            commands.push("pintle store auth enable".to_owned());
        }
        commands
    }
}

/// A range of keys as arguments of `grant-permission`.
fn range(key: &[u8], end: &[u8]) -> String {
    match end {
        [] => shell(key),
        [0] if key == [0] || key.is_empty() => "'' --prefix".to_owned(),
        [0] => format!("{} --from-key", shell(key)),
        end if go::prefix_end(key) == end => format!("{} --prefix", shell(key)),
        end => format!("{} {}", shell(key), shell(end)),
    }
}

/// Bytes as a word of a shell.
fn shell(bytes: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_./:@%+,=".contains(byte);
    match bytes {
        [] => "''".to_owned(),
        bytes if bytes.iter().all(plain) => String::from_utf8_lossy(bytes).into_owned(),
        bytes => format!("$'{}'", bytes.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_roles_are_told_as_commands() {
        let permission = |kind: i32, key: &'static str, end: &'static str| Permission {
            perm_type: kind,
            key: key.into(),
            range_end: end.into(),
        };
        let permissions = vec![
            permission(0, "a", ""),
            permission(1, "a/", "a0"),
            permission(2, "b c", "\0"),
            permission(2, "\0", "\0"),
            permission(0, "a", "c"),
        ];
        let auth = Auth {
            enabled: true,
            users: vec![("root".into(), false, vec!["root".into()]), ("o'x".into(), true, vec![])],
            roles: vec![("root".into(), vec![]), ("r".into(), permissions)],
            hidden: None,
        };
        let want = "\
role add r
role grant-permission r read a
role grant-permission r write a/ --prefix
role grant-permission r readwrite $'b c' --from-key
role grant-permission r readwrite '' --prefix
role grant-permission r read a c
user add root
user grant-role root root
user add $'o\\'x' --no-password
auth enable";
        assert_eq!(auth.commands().join("\n").replace("pintle store ", ""), want);
    }
}
