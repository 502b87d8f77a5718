//! Bootstrap tokens: how a new machine first speaks to the cluster, to ask for a certificate and nothing else.
//!
//! `ID.SECRET` is kept in secret `kube-system/bootstrap-token-ID`. Read from the cache only: strangers send these, and
//! must not be able to make the store work.

use jiff::Timestamp;
use pintle_api::tokens::bootstrap::{self, EXPIRATION, NAMESPACE, SECRET_TYPE};

use super::{RefusedToken, authenticated, constant_time_eq, secret_data as data};
use crate::authz::live::{Live, SECRETS, is_terminating, text};
use crate::types::UserInfo;

pub(crate) const BOOTSTRAPPERS: &str = "system:bootstrappers";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
/// Longest extra group accepted.
const GROUP_MAX: usize = 256;

/// Id and secret if this has the form of a bootstrap token.
pub(crate) fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == ID_LENGTH && secret.len() == SECRET_LENGTH && plain(id) && plain(secret)).then_some((id, secret))
}

pub(crate) fn identify(live: &dyn Live, id: &str, secret: &str, now: i64) -> Result<UserInfo, RefusedToken> {
    let refuse = |why: &'static str| RefusedToken::Bootstrap { id: id.to_owned(), why };
    let object = live.get(SECRETS, NAMESPACE, &format!("bootstrap-token-{id}")).ok_or_else(|| refuse("unknown"))?;
    if is_terminating(&object) || text(&object, "/type") != SECRET_TYPE {
        return Err(refuse("not a live bootstrap token secret"));
    }
    let same_secret = constant_time_eq(&data(&object, "token-secret"), secret.as_bytes());
    let same_id = constant_time_eq(&data(&object, "token-id"), id.as_bytes());
    if !same_secret || !same_id {
        return Err(refuse("wrong secret"));
    }
    let now = Timestamp::from_second(now).unwrap_or(Timestamp::MAX);
    if bootstrap::life(&data(&object, EXPIRATION), now).is_over() {
        return Err(refuse("expired"));
    }
    if data(&object, "usage-bootstrap-authentication") != b"true" {
        return Err(refuse("not meant for authentication"));
    }
    let groups = extra_groups(&data(&object, "auth-extra-groups")).ok_or_else(|| refuse("names a group it may not"))?;
    let name = format!("system:bootstrap:{id}");
    let groups = std::iter::once(BOOTSTRAPPERS.to_owned()).chain(groups).collect();
    Ok(authenticated(UserInfo { name, groups, ..UserInfo::default() }))
}

/// `None` if any of them is not below `system:bootstrappers:`.
fn extra_groups(list: &[u8]) -> Option<Vec<String>> {
    let list = std::str::from_utf8(list).ok()?;
    let names = list.split(',').map(str::trim).filter(|group| !group.is_empty());
    names.map(|group| is_bootstrap_group(group).then(|| group.to_owned())).collect()
}

fn is_bootstrap_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    group.len() <= GROUP_MAX
        && rest.bytes().last().is_some_and(plain)
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use super::*;
    use crate::authz::live::tests::Fixed;

    const NOW: i64 = 1_800_000_000;

    fn live(changes: &[(&str, &str)]) -> Fixed {
        let mut fields = vec![
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:pintle"),
        ];
        fields.retain(|(key, _)| changes.iter().all(|(changed, _)| changed != key));
        fields.extend(changes);
        let data: serde_json::Map<String, Value> =
            fields.into_iter().map(|(key, value)| (key.to_owned(), STANDARD.encode(value).into())).collect();
        Fixed::default().with(
            SECRETS,
            json!({"metadata": {"namespace": NAMESPACE, "name": "bootstrap-token-abcdef"}, "type": SECRET_TYPE, "data": data}),
        )
    }

    #[test]
    fn a_good_token_is_a_bootstrapper() {
        let user = identify(&live(&[]), "abcdef", "0123456789abcdef", NOW).expect("accepted");
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:pintle", "system:authenticated"]);
        assert!(identify(&live(&[("expiration", "2027-01-15T08:00:01Z")]), "abcdef", "0123456789abcdef", NOW).is_ok());
    }

    #[test]
    fn everything_else_is_refused() {
        let secret = "0123456789abcdef";
        assert!(identify(&live(&[]), "abcdef", "0123456789abcdeg", NOW).is_err());
        assert!(identify(&live(&[]), "zzzzzz", secret, NOW).is_err());
        for change in [
            ("expiration", "2027-01-15T08:00:00Z"),
            ("expiration", "never"),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:"),
            ("token-id", "ghijkl"),
        ] {
            assert!(identify(&live(&[change]), "abcdef", secret, NOW).is_err(), "{change:?}");
        }
    }

    #[test]
    fn the_form_is_checked_before_anything_is_looked_up() {
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in ["abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde/", ""] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
