//! `auth`, `user` and `role`: who may do what.

use std::ffi::OsString;

use bytes::Bytes;
use pintle_proto::authpb::{Permission, UserAddOptions, permission};
use pintle_proto::etcdserverpb as e;

use super::client::Client;
use super::grammar::{AuthCommand, PermissionArgs, RoleCommand, UserCommand};
use super::print::{self, Answer};
use super::{Context, Done, Failure, bytes, exactly, go, password, text};

pub async fn auth(context: &Context, command: AuthCommand) -> Done {
    let refuse = |command: &str| format!("auth {command} command does not accept any arguments");
    match command {
        AuthCommand::Enable(args) => {
            let [] = exactly(&args.words, &refuse("enable"))?;
            enable(&context.client().await?).await?;
            print::out("Authentication Enabled\n")
        }
        AuthCommand::Disable(args) => {
            let [] = exactly(&args.words, &refuse("disable"))?;
            context.client().await?.ask(e::AuthDisableRequest {}).await?;
            print::out("Authentication Disabled\n")
        }
        AuthCommand::Status(args) => {
            let [] = exactly(&args.words, &refuse("status"))?;
            let answer = context.client().await?.ask(e::AuthStatusRequest {}).await?;
            let (enabled, revision) = (answer.enabled, answer.auth_revision);
            let text = format!("Authentication Status: {enabled}\nAuthRevision: {revision}");
            context.printer.tell_only(text, &answer)
        }
    }
}

/// Also gives the user root its role, without which nobody could ever disable it.
async fn enable(client: &Client) -> Done {
    match client.ask(e::AuthEnableRequest {}).await {
        Err(error) if error.says("etcdserver: root user does not have root role") => (),
        done => return Ok(done.map(drop)?),
    }
    let root = || "root".to_owned();
    client.ask(e::AuthRoleAddRequest { name: root() }).await?;
    client.ask(e::AuthUserGrantRoleRequest { user: root(), role: root() }).await?;
    client.ask(e::AuthEnableRequest {}).await?;
    Ok(())
}

pub async fn user(context: &Context, command: UserCommand) -> Done {
    let name_of = |words: &[OsString], command: &str| -> Result<String, Failure> {
        let [name] = exactly(words, &format!("user {command} command requires user name as its argument"))?;
        Ok(name)
    };
    match command {
        UserCommand::Add { words, interactive, new_user_password, no_password } => {
            let given = name_of(&words, "add")?;
            let (name, password) = newcomer(given, interactive, new_user_password, no_password)?;
            let options = Some(UserAddOptions { no_password });
            let request = e::AuthUserAddRequest { name: name.clone(), password, options, ..Default::default() };
            let answer = context.client().await?.ask(request).await?;
            context.printer.tell(format!("User {name} created"), &answer)
        }
        UserCommand::Delete(args) => {
            let name = name_of(&args.words, "delete")?;
            let answer = context.client().await?.ask(e::AuthUserDeleteRequest { name: name.clone() }).await?;
            context.printer.tell(format!("User {name} deleted"), &answer)
        }
        UserCommand::Get { words, detail } => get(context, name_of(&words, "get")?, detail).await,
        UserCommand::List(args) => {
            let [] = exactly(&args.words, "user list command requires no arguments")?;
            let answer = context.client().await?.ask(e::AuthUserListRequest {}).await?;
            context.printer.tell_only(answer.users.join("\n"), &answer)
        }
        UserCommand::Passwd { words, interactive } => {
            let name = name_of(&words, "passwd")?;
            let password = if interactive { password::ask_twice(&name)? } else { piped()? };
            let request = e::AuthUserChangePasswordRequest { name, password, ..Default::default() };
            let answer = context.client().await?.ask(request).await?;
            context.printer.tell("Password updated".to_owned(), &answer)
        }
        UserCommand::GrantRole(args) => {
            let why = "user grant command requires user name and role name as its argument";
            let [user, role] = exactly(&args.words, why)?;
            let request = e::AuthUserGrantRoleRequest { user: user.clone(), role: role.clone() };
            let answer = context.client().await?.ask(request).await?;
            context.printer.tell(format!("Role {role} is granted to user {user}"), &answer)
        }
        UserCommand::RevokeRole(args) => {
            let why = "user revoke-role requires user name and role name as its argument";
            let [name, role] = exactly(&args.words, why)?;
            let request = e::AuthUserRevokeRoleRequest { name: name.clone(), role: role.clone() };
            let answer = context.client().await?.ask(request).await?;
            context.printer.tell(format!("Role {role} is revoked from user {name}"), &answer)
        }
    }
}

/// The first word of standard input.
fn piped() -> Result<String, Failure> {
    let line = password::line().map_err(|error| Failure::bad_args(format!("failed to read password: {error}")))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Name and password of a user to be added.
fn newcomer(given: String, interactive: bool, flag: String, none: bool) -> Result<(String, String), Failure> {
    if none {
        return Ok((given, String::new()));
    }
    if !flag.is_empty() {
        return Ok((given, flag));
    }
    match given.split_once(':') {
        Some(("", _)) => Err(Failure::bad_args("empty user name is not allowed")),
        Some((name, password)) => Ok((name.to_owned(), password.to_owned())),
        None if interactive => {
            let password = password::ask_twice(&given)?;
            Ok((given, password))
        }
        None => Ok((given, piped()?)),
    }
}

async fn get(context: &Context, name: String, detail: bool) -> Done {
    let client = context.client().await?;
    let answer = client.ask(e::AuthUserGetRequest { name: name.clone() }).await?;
    if !detail {
        let roles: String = answer.roles.iter().map(|role| format!(" {role}")).collect();
        return context.printer.tell_only(format!("User: {name}\nRoles:{roles}"), &answer);
    }
    print::out(format!("User: {name}\n"))?;
    for role in &answer.roles {
        print::out("\n")?;
        let allowed = client.ask(e::AuthRoleGetRequest { role: role.clone() }).await?;
        context.printer.print(&Answer::Role(role, &allowed))?;
    }
    Ok(())
}

pub async fn role(context: &Context, command: RoleCommand) -> Done {
    let name_of = |words: &[OsString], command: &str| -> Result<String, Failure> {
        let [name] = exactly(words, &format!("role {command} command requires role name as its argument"))?;
        Ok(name)
    };
    match command {
        RoleCommand::Add(args) => {
            let name = name_of(&args.words, "add")?;
            let answer = context.client().await?.ask(e::AuthRoleAddRequest { name: name.clone() }).await?;
            context.printer.tell(format!("Role {name} created"), &answer)
        }
        RoleCommand::Delete(args) => {
            let role = name_of(&args.words, "delete")?;
            let answer = context.client().await?.ask(e::AuthRoleDeleteRequest { role: role.clone() }).await?;
            context.printer.tell(format!("Role {role} deleted"), &answer)
        }
        RoleCommand::Get(args) => {
            let role = name_of(&args.words, "get")?;
            let answer = context.client().await?.ask(e::AuthRoleGetRequest { role: role.clone() }).await?;
            context.printer.print(&Answer::Role(&role, &answer))
        }
        RoleCommand::List(args) => {
            let [] = exactly(&args.words, "role list command requires no arguments")?;
            let answer = context.client().await?.ask(e::AuthRoleListRequest {}).await?;
            context.printer.print(&Answer::Roles(&answer))
        }
        RoleCommand::GrantPermission(args) => grant(context, &args).await,
        RoleCommand::RevokePermission(args) => revoke(context, &args).await,
    }
}

async fn grant(context: &Context, args: &PermissionArgs) -> Done {
    let [role, kind, key, ..] = &args.words[..] else {
        let why = "role grant command requires role name, permission type, and key [endkey] as its argument";
        return Err(Failure::bad_args(why));
    };
    let kind = match text(kind).to_uppercase().as_str() {
        "READ" => permission::Type::Read,
        "WRITE" => permission::Type::Write,
        "READWRITE" => permission::Type::Readwrite,
        _ => return Err(Failure::bad_args(format!("invalid permission type: {}", text(kind)))),
    };
    let (key, range_end) = range(key, args.words.get(3), args)?;
    let (role, perm) = (text(role), Permission { perm_type: kind.into(), key, range_end });
    let request = e::AuthRoleGrantPermissionRequest { name: role.clone(), perm: Some(perm) };
    let answer = context.client().await?.ask(request).await?;
    context.printer.tell(format!("Role {role} updated"), &answer)
}

async fn revoke(context: &Context, args: &PermissionArgs) -> Done {
    let [role, named, ..] = &args.words[..] else {
        let why = "role revoke-permission command requires role name and key [endkey] as its argument";
        return Err(Failure::bad_args(why));
    };
    let (key, range_end) = range(named, args.words.get(2), args)?;
    let (role, named) = (text(role), text(named));
    let told = match &range_end[..] {
        [] => format!("Permission of key {named} is revoked from role {role}"),
        [0] => format!("Permission of range [{named}, <open ended> is revoked from role {role}"),
        end => {
            let end = String::from_utf8_lossy(end);
            format!("Permission of range [{named}, {end}) is revoked from role {role}")
        }
    };
    let request = e::AuthRoleRevokePermissionRequest { role, key, range_end };
    let answer = context.client().await?.ask(request).await?;
    context.printer.tell(told, &answer)
}

/// First key and end of what a permission is about.
fn range(key: &OsString, end: Option<&OsString>, args: &PermissionArgs) -> Result<(Bytes, Bytes), Failure> {
    let (prefix, from_key, open) = (args.prefix, args.from_key, Bytes::from_static(b"\0"));
    let key = bytes(key);
    if prefix && from_key && (key.is_empty() || end.is_none()) {
        return Err(Failure::bad_args("--from-key and --prefix flags are mutually exclusive"));
    }
    if key.is_empty() {
        return Ok((open.clone(), if prefix || from_key { open } else { Bytes::new() }));
    }
    let unexpected = |flag: &str| Failure::bad_args(format!("unexpected endkey argument with --{flag} flag"));
    let end = match end {
        Some(_) if prefix => return Err(unexpected("prefix")),
        Some(_) if from_key => return Err(unexpected("from-key")),
        Some(end) => bytes(end),
        None if prefix => go::prefix_end(&key).into(),
        None if from_key => open,
        None => Bytes::new(),
    };
    Ok((key, end))
}
