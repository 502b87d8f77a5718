//! What a Secret that asks for a service account's token still lacks. Pure.
//!
//! Rule: upstream's tokens controller. A token that is there is never replaced: somebody may be using it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use pintle_api::tokens::legacy::{ACCOUNT_NAME, ACCOUNT_UID, CERTIFICATE, Claims, NAMESPACE, SECRET_TYPE, TOKEN};

#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Complete, not ours, or not to be written any more.
    Done,
    /// Its service account is gone, or another one has its name by now.
    Delete,
    /// To be stored like this, with a token that claims `token`, if it has none yet.
    Write { secret: Box<Secret>, token: Option<Claims> },
}

/// Name of the service account that `secret` wants a token of; `None` if it wants none.
pub fn account_name(secret: &Secret) -> Option<&str> {
    let ours = secret.type_.as_deref() == Some(SECRET_TYPE);
    annotation(secret, ACCOUNT_NAME).filter(|_| ours)
}

/// True if `account` is the one that `secret` is of, or may become it because it names no uid yet.
pub fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    annotation(secret, ACCOUNT_UID).is_none_or(|uid| account.metadata.uid.as_deref() == Some(uid))
}

/// The next step of `secret`; `account` is what has the name of its service account now, `certificate` the cluster's
/// authority.
pub fn next(secret: &Secret, account: Option<&ServiceAccount>, certificate: &str) -> Next {
    let Some(name) = account_name(secret).filter(|_| secret.metadata.deletion_timestamp.is_none()) else {
        return Next::Done;
    };
    let Some(account) = account.filter(|account| is_of(secret, account)) else { return Next::Delete };
    // Whoever made it immutable wanted it as it is; an account on its way out gets no new tokens.
    if secret.immutable == Some(true) || account.metadata.deletion_timestamp.is_some() {
        return Next::Done;
    }
    fill(secret, name, account.metadata.uid.as_deref().unwrap_or_default(), certificate)
}

fn fill(secret: &Secret, name: &str, uid: &str, certificate: &str) -> Next {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let mut filled = secret.clone();
    filled.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.to_owned(), uid.to_owned());
    let data = filled.data.get_or_insert_default();
    data.insert(CERTIFICATE.to_owned(), ByteString(certificate.as_bytes().to_vec()));
    if is_empty(data, NAMESPACE) {
        data.insert(NAMESPACE.to_owned(), ByteString(namespace.as_bytes().to_vec()));
    }
    let claims = || Claims::new(namespace, secret.metadata.name.as_deref().unwrap_or_default(), name, uid);
    let token = is_empty(data, TOKEN).then(claims);
    if token.is_none() && filled == *secret {
        return Next::Done;
    }
    Next::Write { secret: Box::new(filled), token }
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let value = secret.metadata.annotations.as_ref()?.get(key)?;
    Some(value.as_str()).filter(|value| !value.is_empty())
}

fn is_empty(data: &BTreeMap<String, ByteString>, key: &str) -> bool {
    data.get(key).is_none_or(|value| value.0.is_empty())
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Map, Value, json};

    pub fn account(uid: &str) -> ServiceAccount {
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "bot", "uid": uid}})).expect("account")
    }

    /// Secret `a/t` of account `bot`, with the uid `of` if given, and `data` as words `key=value`.
    pub fn secret(of: Option<&str>, data: &str) -> Secret {
        let mut annotations = json!({ (ACCOUNT_NAME): "bot" });
        if let Some(uid) = of {
            annotations[ACCOUNT_UID] = uid.into();
        }
        let entries = data.split_whitespace().filter_map(|word| word.split_once('='));
        let data: Map<String, Value> =
            entries.map(|(key, value)| (key.into(), STANDARD.encode(value).into())).collect();
        let metadata = json!({"namespace": "a", "name": "t", "uid": "t-uid", "resourceVersion": "7",
            "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata, "type": SECRET_TYPE, "data": data})).expect("secret")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{account, secret};
    use super::*;

    /// The step as text: `done`, `delete`, or what is written, with `!` for a token that has to be signed.
    fn step(secret: &Secret, account: Option<&ServiceAccount>) -> String {
        let (secret, token) = match next(secret, account, "CA") {
            Next::Done => return "done".to_owned(),
            Next::Delete => return "delete".to_owned(),
            Next::Write { secret, token } => (secret, token),
        };
        let mut words = vec![format!("uid={}", annotation(&secret, ACCOUNT_UID).unwrap_or_default())];
        for (key, value) in secret.data.iter().flatten() {
            words.push(format!("{key}={}", String::from_utf8_lossy(&value.0)));
        }
        words
            .extend(token.map(|claims| {
                format!("!{}/{}/{}/{}", claims.namespace, claims.secret, claims.sub, claims.account_uid)
            }));
        words.join(" ")
    }

    #[track_caller]
    fn check(secret: &Secret, account: Option<&ServiceAccount>, want: &str) {
        assert_eq!(step(secret, account), want);
    }

    #[test]
    fn an_empty_secret_gets_everything() {
        let want = "uid=u1 ca.crt=CA namespace=a !a/t/system:serviceaccount:a:bot/u1";
        check(&secret(None, ""), Some(&account("u1")), want);
        check(&secret(Some("u1"), "token="), Some(&account("u1")), &want.replace(" !", " token= !"));
    }

    #[test]
    fn what_is_there_stays_and_only_what_is_missing_is_written() {
        check(&secret(Some("u1"), "token=T ca.crt=CA namespace=a"), Some(&account("u1")), "done");
        check(&secret(Some("u1"), "token=T ca.crt=CA namespace=mine x=y"), Some(&account("u1")), "done");
        let want = "uid=u1 ca.crt=CA namespace=a token=T";
        check(&secret(Some("u1"), "token=T ca.crt=OLD namespace=a"), Some(&account("u1")), want);
        check(&secret(Some("u1"), "token=T ca.crt=CA"), Some(&account("u1")), want);
        check(&secret(None, "token=T ca.crt=CA namespace=a"), Some(&account("u1")), want);
    }

    #[test]
    fn a_secret_goes_with_its_account() {
        check(&secret(Some("u1"), "token=T"), None, "delete");
        check(&secret(None, ""), None, "delete");
        check(&secret(Some("u1"), "token=T"), Some(&account("u2")), "delete");
    }

    #[test]
    fn others_secrets_and_those_that_cannot_be_written_are_left_alone() {
        let mut other = secret(None, "");
        other.type_ = Some("Opaque".to_owned());
        check(&other, None, "done");
        let mut nameless = secret(None, "");
        nameless.metadata.annotations = None;
        check(&nameless, None, "done");
        let mut leaving = secret(None, "");
        leaving.metadata.deletion_timestamp = Some(pintle_client::object::time_now());
        check(&leaving, None, "done");
        let mut immutable = secret(None, "");
        immutable.immutable = Some(true);
        check(&immutable, Some(&account("u1")), "done");
        check(&immutable, None, "delete");
        let mut ending = account("u1");
        ending.metadata.deletion_timestamp = Some(pintle_client::object::time_now());
        check(&secret(None, ""), Some(&ending), "done");
    }
}
