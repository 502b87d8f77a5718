//! When a bootstrap token is to be deleted. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use pintle_api::tokens::bootstrap::{self, EXPIRATION, Life, NAMESPACE, SECRET_TYPE};

use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// No bootstrap token, without an end, or being deleted already.
    Keep,
    /// To be looked at again after this long.
    After(Duration),
    /// It is over, for this reason.
    Delete(&'static str),
}

pub fn next(secret: &Secret, now: Timestamp) -> Next {
    let ours = secret.type_.as_deref() == Some(SECRET_TYPE) && secret.metadata.namespace.as_deref() == Some(NAMESPACE);
    if !ours || secret.metadata.deletion_timestamp.is_some() {
        return Next::Keep;
    }
    let expiration = secret.data.as_ref().and_then(|data| data.get(EXPIRATION));
    match bootstrap::life(expiration.map_or(&[][..], |bytes| bytes.0.as_slice()), now) {
        Life::Endless => Next::Keep,
        Life::Left(left) => Next::After(left.min(limits::TOKEN_LOOK)),
        Life::Over => Next::Delete("expired"),
        // Authentication refuses it as well, so nobody can use it.
        Life::Unreadable => Next::Delete("its expiration is unreadable"),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use serde_json::json;

    pub fn secret(name: &str, kind: &str, expiration: Option<&str>) -> Secret {
        let value =
            json!({"metadata": {"namespace": NAMESPACE, "name": name, "uid": format!("{name}-uid")}, "type": kind});
        let mut secret: Secret = serde_json::from_value(value).expect("secret");
        let entry = |end: &str| (EXPIRATION.to_owned(), k8s_openapi::ByteString(end.as_bytes().to_vec()));
        secret.data = expiration.map(|end| [entry(end)].into());
        secret
    }
}

#[cfg(test)]
mod tests {
    use super::testing::secret;
    use super::*;

    #[track_caller]
    fn check(secret: &Secret, want: Next) {
        let now: Timestamp = "2027-01-15T08:00:00Z".parse().expect("time");
        assert_eq!(next(secret, now), want);
    }

    #[test]
    fn a_token_is_looked_at_when_it_ends_and_deleted_then() {
        let token = |end: &str| secret("t", SECRET_TYPE, Some(end));
        check(&token("2027-01-15T08:00:07Z"), Next::After(Duration::from_secs(7)));
        check(&token("2029-01-15T08:00:00Z"), Next::After(limits::TOKEN_LOOK));
        check(&token("2027-01-15T08:00:00Z"), Next::Delete("expired"));
        check(&token("2020-01-15T08:00:00Z"), Next::Delete("expired"));
    }

    #[test]
    fn an_end_that_nobody_can_read_has_come_and_one_that_is_not_there_never_comes() {
        check(&secret("t", SECRET_TYPE, Some("tomorrow")), Next::Delete("its expiration is unreadable"));
        check(&secret("t", SECRET_TYPE, Some("")), Next::Keep);
        check(&secret("t", SECRET_TYPE, None), Next::Keep);
    }

    #[test]
    fn other_secrets_and_those_on_their_way_out_are_left_alone() {
        let old = Some("2020-01-15T08:00:00Z");
        check(&secret("t", "Opaque", old), Next::Keep);
        let mut elsewhere = secret("t", SECRET_TYPE, old);
        elsewhere.metadata.namespace = Some("default".to_owned());
        check(&elsewhere, Next::Keep);
        let mut leaving = secret("t", SECRET_TYPE, old);
        leaving.metadata.deletion_timestamp = Some(pintle_client::object::time_now());
        check(&leaving, Next::Keep);
    }
}
