//! Service account tokens out of Secrets against the live cluster.
//!
//! Such a token never expires. Always holds: it is good only while its Secret is there with this very token in it, and the
//! service account is the one it was made for; whoever deletes either withdraws it at once.

use pintle_api::tokens::legacy::{INVALID_SINCE, SECRET_TYPE, TOKEN};
use serde_json::Value;

use super::service_account::account_identity;
use super::{RefusedToken, TokenUser, constant_time_eq, secret_data};
use crate::authz::live::{Live, Res, SECRETS, SERVICE_ACCOUNTS, is_terminating, text, uid_of};
use crate::tokens::Issuer;

pub(crate) async fn identify(
    issuer: &Issuer,
    live: &dyn Live,
    token: &str,
    audiences: &[String],
) -> Result<TokenUser, RefusedToken> {
    let (claims, audiences) = issuer.check_legacy(token, audiences)?;
    let in_secret = |secret: &Value| holds(secret, token);
    if let Err(why) = look(live, SECRETS, &claims.namespace, &claims.secret, &in_secret).await {
        return Err(RefusedToken::Legacy { secret: claims.secret, why });
    }
    let the_same = |account: &Value| {
        let same = uid_of(account) == claims.account_uid && !is_terminating(account);
        if same { Ok(()) } else { Err("replaced or being deleted") }
    };
    if look(live, SERVICE_ACCOUNTS, &claims.namespace, &claims.account, &the_same).await.is_err() {
        return Err(RefusedToken::Gone { what: "service account", name: claims.account });
    }
    let mut user = account_identity(&claims.namespace, &claims.account);
    user.uid = claims.account_uid;
    Ok(TokenUser { user, audiences })
}

/// Whether `secret` vouches for `token`, and if not, why.
fn holds(secret: &Value, token: &str) -> Result<(), &'static str> {
    if is_terminating(secret) || text(secret, "/type") != SECRET_TYPE {
        return Err("not a live secret of a service account token");
    }
    if !constant_time_eq(&secret_data(secret, TOKEN), token.as_bytes()) {
        return Err("holds another token");
    }
    let labels = secret.pointer("/metadata/labels");
    match labels.and_then(|labels| labels.get(INVALID_SINCE)).and_then(Value::as_str) {
        None | Some("") => Ok(()),
        Some(_) => Err("marked invalid"),
    }
}

/// Judges the object as the cache has it, and if that is not good enough once more as the store has it: it may have been
/// written a moment ago. The signature was checked before, so strangers cannot make the store work.
async fn look(
    live: &dyn Live,
    res: Res,
    namespace: &str,
    name: &str,
    judge: &(dyn Fn(&Value) -> Result<(), &'static str> + Sync),
) -> Result<(), &'static str> {
    if live.get(res, namespace, name).is_some_and(|object| judge(&object).is_ok()) {
        return Ok(());
    }
    match live.fresh(res, namespace, name).await {
        Some(object) => judge(&object),
        None => Err("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use pintle_api::tokens::{jwt, legacy};
    use serde_json::json;

    use super::*;
    use crate::authn::Authenticator;
    use crate::authz::Authorizer;
    use crate::authz::live::tests::Fixed;
    use crate::tokens::tests::{claims, fresh_pem, issuer_with};

    /// A cluster's issuer, and the key of the controller that fills Secrets.
    fn made() -> (Issuer, jwt::Keys) {
        let pem = fresh_pem();
        let keys = jwt::Keys::from_pem(&pem, &[]).expect("keys");
        (issuer_with(pem), keys)
    }

    fn of_bot() -> legacy::Claims {
        legacy::Claims::new("a", "bot-token", "bot", "sa-uid")
    }

    fn account(uid: &str) -> Value {
        json!({"metadata": {"namespace": "a", "name": "bot", "uid": uid}})
    }

    fn secret(token: &str) -> Value {
        json!({"metadata": {"namespace": "a", "name": "bot-token"}, "type": SECRET_TYPE,
            "data": {"token": STANDARD.encode(token)}})
    }

    /// Shows the token of `claims` to a cluster that `build` makes around it.
    async fn ask(claims: &legacy::Claims, build: impl FnOnce(&str) -> Fixed) -> Result<TokenUser, RefusedToken> {
        let (issuer, keys) = made();
        let token = keys.sign(claims).expect("sign");
        identify(&issuer, &build(&token), &token, &issuer.audiences).await
    }

    fn good(token: &str) -> Fixed {
        Fixed::default().with(SECRETS, secret(token)).with(SERVICE_ACCOUNTS, account("sa-uid"))
    }

    #[tokio::test]
    async fn a_token_that_is_in_its_secret_is_its_account() {
        let found = ask(&of_bot(), good).await.expect("accepted");
        assert_eq!((found.user.name.as_str(), found.user.uid.as_str()), ("system:serviceaccount:a:bot", "sa-uid"));
        assert_eq!(found.user.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
        assert_eq!(found.audiences, ["api"]);
    }

    #[tokio::test]
    async fn without_its_secret_a_token_is_refused() {
        let gone = |_: &str| Fixed::default().with(SERVICE_ACCOUNTS, account("sa-uid"));
        assert!(matches!(ask(&of_bot(), gone).await, Err(RefusedToken::Legacy { why: "unknown", .. })));
        let changes: [(&str, Value); 4] = [
            ("/metadata/deletionTimestamp", json!("2027-01-15T07:59:59Z")),
            ("/type", json!("Opaque")),
            ("/data/token", json!(STANDARD.encode("another"))),
            ("/metadata/labels", json!({ (INVALID_SINCE): "2027-01-01" })),
        ];
        for (pointer, value) in changes {
            let build = |token: &str| {
                let mut object = secret(token);
                let (parent, field) = pointer.rsplit_once('/').expect("pointer");
                object.pointer_mut(parent).expect("parent")[field] = value.clone();
                Fixed::default().with(SECRETS, object).with(SERVICE_ACCOUNTS, account("sa-uid"))
            };
            assert!(matches!(ask(&of_bot(), build).await, Err(RefusedToken::Legacy { .. })), "{pointer}");
        }
    }

    #[tokio::test]
    async fn a_gone_replaced_or_deleted_account_is_refused() {
        let mut deleted = account("sa-uid");
        deleted["metadata"]["deletionTimestamp"] = json!("2027-01-15T07:59:59Z");
        for accounts in [vec![], vec![account("other")], vec![deleted]] {
            let build = |token: &str| {
                let live = Fixed::default().with(SECRETS, secret(token));
                accounts.iter().for_each(|account| live.put(SERVICE_ACCOUNTS, account.clone()));
                live
            };
            assert!(matches!(ask(&of_bot(), build).await, Err(RefusedToken::Gone { .. })), "{accounts:?}");
        }
    }

    #[tokio::test]
    async fn claims_audience_and_signature_are_checked() {
        let other = legacy::Claims { sub: "system:serviceaccount:a:root".into(), ..of_bot() };
        assert!(matches!(ask(&other, good).await, Err(RefusedToken::Token(_))));
        let (issuer, keys) = made();
        let token = keys.sign(&of_bot()).expect("sign");
        assert!(identify(&issuer, &good(&token), &token, &["vault".into()]).await.is_err(), "meant for the API only");
        let (_, strange) = made();
        let token = strange.sign(&of_bot()).expect("sign");
        assert!(identify(&issuer, &good(&token), &token, &issuer.audiences).await.is_err(), "of a strange key");
    }

    #[tokio::test]
    async fn the_authenticator_tells_the_kinds_of_tokens_apart() {
        let (issuer, keys) = made();
        let token = keys.sign(&of_bot()).expect("sign");
        let live: Arc<dyn Live> = Arc::new(good(&token));
        let bound = crate::tokens::Claims { nbf: 0, exp: i64::MAX, ..claims(&issuer) };
        let bound = issuer.sign(&bound).expect("sign");
        let authorizer = Arc::new(Authorizer::new(Arc::clone(&live)));
        let authenticator = Authenticator { issuer: Arc::new(issuer), live, authorizer };
        for token in [token, bound] {
            let found = authenticator.token(&token, &["api".to_owned()]).await.expect("accepted");
            assert_eq!(found.user.name, "system:serviceaccount:a:bot");
        }
    }
}
