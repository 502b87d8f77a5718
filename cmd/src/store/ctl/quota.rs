//! `quota`: how much may be under a prefix, and how much a user may ask for.

use bytes::Bytes;
use pintle_proto::store_v1::{
    PrefixQuota, PrefixUsage, Quota, QuotaListRequest, QuotaListResponse, QuotaName, QuotaRemoveRequest,
    QuotaSetRequest, UserQuota, quota, quota_name,
};
use serde_json::{Value, json};

use super::grammar::{QuotaCommand, QuotaNameArgs, QuotaSetArgs};
use super::print::{self, Format};
use super::{Context, Done, Failure, bytes, go};

const HEADINGS: &[&str] = &["QUOTA", "KEYS", "MOST", "BYTES", "MOST", "REQUESTS/S", "BYTES/S"];

pub async fn run(context: &Context, command: QuotaCommand) -> Done {
    let client = context.client().await?;
    match command {
        QuotaCommand::Set(args) => {
            let quota = Some(quota(&args)?);
            let revision = client.ask(QuotaSetRequest { quota }).await?.revision;
            told(context, "quota set", revision)
        }
        QuotaCommand::Remove(args) => {
            let name = Some(name(&args)?);
            let revision = client.ask(QuotaRemoveRequest { name }).await?.revision;
            told(context, "quota removed", revision)
        }
        QuotaCommand::List(_) => list(context, &client.ask(QuotaListRequest {}).await?),
    }
}

fn told(context: &Context, text: &str, revision: i64) -> Done {
    match context.printer.format {
        Format::Json => print::out(format!("{}\n", json!({ "revision": revision }))),
        _ => print::out(format!("{text}\n")),
    }
}

/// One of both.
enum Of {
    Prefix(Bytes),
    User(String),
}

fn of(words: &[std::ffi::OsString], user: Option<&String>) -> Result<Of, Failure> {
    match (words, user) {
        ([prefix], None) => Ok(Of::Prefix(bytes(prefix))),
        ([], Some(user)) => Ok(Of::User(user.clone())),
        _ => Err(Failure::bad_args("quota needs a prefix, which may be empty, or --of-user")),
    }
}

fn quota(args: &QuotaSetArgs) -> Result<Quota, Failure> {
    let QuotaSetArgs { words, of_user, keys, bytes, requests } = args;
    let (keys, bytes, requests) = (*keys, *bytes, *requests);
    let of = match of(words, of_user.as_ref())? {
        Of::Prefix(_) if requests.is_some() => return Err(Failure::bad_args("--requests is for --of-user")),
        Of::User(_) if keys.is_some() => return Err(Failure::bad_args("--keys is for a prefix")),
        Of::Prefix(prefix) => quota::Of::Prefix(PrefixQuota { prefix, keys, bytes }),
        Of::User(user) => quota::Of::User(UserQuota { user, requests, bytes }),
    };
    if (keys, bytes, requests) == (None, None, None) {
        return Err(Failure::bad_args("quota needs a limit: --keys, --bytes or --requests"));
    }
    Ok(Quota { of: Some(of) })
}

fn name(args: &QuotaNameArgs) -> Result<QuotaName, Failure> {
    let of = match of(&args.words, args.of_user.as_ref())? {
        Of::Prefix(prefix) => quota_name::Of::Prefix(prefix),
        Of::User(user) => quota_name::Of::User(user),
    };
    Ok(QuotaName { of: Some(of) })
}

fn list(context: &Context, answer: &QuotaListResponse) -> Done {
    match context.printer.format {
        Format::Json => print::out(format!("{}\n", as_json(answer))),
        Format::Simple | Format::Table => {
            let rows = rows(answer);
            print::out(match context.printer.format {
                Format::Table => print::table(HEADINGS, &rows),
                _ => rows.iter().map(|row| format!("{}\n", row.join(", "))).collect(),
            })
        }
        Format::Fields | Format::Protobuf => Err(Failure::bad_feature("quota list prints simple, table and json")),
    }
}

fn rows(answer: &QuotaListResponse) -> Vec<Vec<String>> {
    let most = |limit: Option<u64>| limit.map_or_else(String::new, |limit| limit.to_string());
    let prefix = |usage: &PrefixUsage| {
        let PrefixQuota { prefix, keys, bytes } = usage.quota.clone().unwrap_or_default();
        let used = |number: i64| if usage.counted { number.to_string() } else { "counting".to_owned() };
        let name = format!("prefix {}", go::quote(&prefix));
        vec![name, used(usage.keys), most(keys), used(usage.bytes), most(bytes), String::new(), String::new()]
    };
    let user = |UserQuota { user, requests, bytes }: &UserQuota| {
        let name = format!("user {}", go::quote(user.as_bytes()));
        vec![name, String::new(), String::new(), String::new(), String::new(), most(*requests), most(*bytes)]
    };
    answer.prefixes.iter().map(prefix).chain(answer.users.iter().map(user)).collect()
}

fn as_json(answer: &QuotaListResponse) -> Value {
    let prefix = |usage: &PrefixUsage| {
        let PrefixQuota { prefix, keys, bytes } = usage.quota.clone().unwrap_or_default();
        json!({
            "prefix": String::from_utf8_lossy(&prefix), "keys": keys, "bytes": bytes,
            "used_keys": usage.keys, "used_bytes": usage.bytes, "counted": usage.counted,
        })
    };
    let user = |quota: &UserQuota| json!({ "user": quota.user, "requests": quota.requests, "bytes": quota.bytes });
    json!({
        "revision": answer.revision,
        "prefixes": answer.prefixes.iter().map(prefix).collect::<Vec<_>>(),
        "users": answer.users.iter().map(user).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_of_a_prefix_or_of_a_user_and_limits_something() {
        let args = |words: &[&str], user: Option<&str>| QuotaSetArgs {
            words: words.iter().map(std::ffi::OsString::from).collect(),
            of_user: user.map(str::to_owned),
            keys: None,
            bytes: Some(5),
            requests: None,
        };
        let prefix = quota(&args(&["/a/"], None)).expect("a quota");
        let want = PrefixQuota { prefix: Bytes::from_static(b"/a/"), keys: None, bytes: Some(5) };
        assert_eq!(prefix.of, Some(quota::Of::Prefix(want)));
        assert!(quota(&args(&[], Some("u"))).is_ok() && quota(&args(&[""], None)).is_ok());
        for wrong in [
            args(&[], None),
            args(&["/a/", "/b/"], None),
            args(&["/a/"], Some("u")),
            QuotaSetArgs { bytes: None, ..args(&["/a/"], None) },
            QuotaSetArgs { requests: Some(1), ..args(&["/a/"], None) },
            QuotaSetArgs { keys: Some(1), ..args(&[], Some("u")) },
        ] {
            assert_eq!(quota(&wrong).expect_err("refused").code, 128, "{wrong:?}");
        }
    }
}
