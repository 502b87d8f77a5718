//! Bound service account tokens against the live cluster: account, pod, secret and node must still be the ones named.

use serde_json::Value;

use super::{RefusedToken, TokenUser, authenticated};
use crate::authz::live::{Live, NODES, PODS, Res, SECRETS, SERVICE_ACCOUNTS, text, uid_of};
use crate::tokens::{Claims, Issuer, ObjectRef, account_user};
use crate::types::UserInfo;

/// A token works this long past the deletion time of what it is bound to, so that a pod can shut down cleanly.
const DELETED_LEEWAY_SECONDS: i64 = 60;

pub(crate) async fn identify(
    issuer: &Issuer,
    live: &dyn Live,
    token: &str,
    audiences: &[String],
    now: i64,
) -> Result<TokenUser, RefusedToken> {
    let (claims, audiences) = issuer.check(token, audiences, now)?;
    let k = &claims.kubernetes;
    let account = ("service account", SERVICE_ACCOUNTS, k.namespace.as_str(), Some(&k.serviceaccount));
    let bound_elsewhere = k.pod.is_some() || k.secret.is_some();
    let pod = ("pod", PODS, k.namespace.as_str(), k.pod.as_ref());
    let secret = ("secret", SECRETS, k.namespace.as_str(), k.secret.as_ref());
    // The node of a pod's token is information; only a token bound to the node itself dies with it.
    let node = ("node", NODES, "", k.node.as_ref().filter(|_| !bound_elsewhere));
    for (what, res, namespace, reference) in [account, pod, secret, node] {
        if let Some(reference) = reference {
            must_live(live, what, res, namespace, reference, now).await?;
        }
    }
    Ok(TokenUser { user: user_of(&claims), audiences })
}

async fn must_live(
    live: &dyn Live,
    what: &'static str,
    res: Res,
    namespace: &str,
    reference: &ObjectRef,
    now: i64,
) -> Result<(), RefusedToken> {
    let gone = || RefusedToken::Gone { what, name: reference.name.clone() };
    let matches = |object: &Value| uid_of(object) == reference.uid && !is_gone(object, now);
    match live.get(res, namespace, &reference.name) {
        Some(object) if matches(&object) => Ok(()),
        // The cache may not have seen a replacement yet, or may have one that is already replaced: ask once.
        _ => match live.fresh(res, namespace, &reference.name).await {
            Some(object) if matches(&object) => Ok(()),
            _ => Err(gone()),
        },
    }
}

fn is_gone(object: &Value, now: i64) -> bool {
    match text(object, "/metadata/deletionTimestamp") {
        "" => false,
        at => at.parse::<jiff::Timestamp>().map_or(true, |at| at.as_second() + DELETED_LEEWAY_SECONDS < now),
    }
}

fn user_of(claims: &Claims) -> UserInfo {
    let k = &claims.kubernetes;
    let mut user = account_identity(&k.namespace, &k.serviceaccount.name);
    user.uid = k.serviceaccount.uid.clone();
    let mut add = |key: &str, value: String| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    if !claims.jti.is_empty() {
        add("credential-id", format!("JTI={}", claims.jti));
    }
    for (what, reference) in [("pod", &k.pod), ("node", &k.node)] {
        let Some(reference) = reference else { continue };
        add(&format!("{what}-name"), reference.name.clone());
        add(&format!("{what}-uid"), reference.uid.clone());
    }
    user
}

/// The user a service account is, with its groups.
pub(crate) fn account_identity(namespace: &str, name: &str) -> UserInfo {
    authenticated(UserInfo {
        name: account_user(namespace, name),
        groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")],
        ..UserInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::tokens::tests::{NOW, claims, issuer};

    async fn ask(live: &Fixed, change: impl FnOnce(&mut Claims)) -> Result<UserInfo, RefusedToken> {
        let issuer = issuer();
        let mut claims = claims(&issuer);
        change(&mut claims);
        let token = issuer.sign(&claims).expect("sign");
        identify(&issuer, live, &token, &issuer.audiences, NOW).await.map(|found| found.user)
    }

    fn account(uid: &str, deleted: Option<&str>) -> Fixed {
        let meta = json!({"namespace": "a", "name": "bot", "uid": uid, "deletionTimestamp": deleted});
        Fixed::default().with(SERVICE_ACCOUNTS, json!({"metadata": meta}))
    }

    fn with_pod(claims: &mut Claims) {
        claims.kubernetes.pod = Some(ObjectRef { name: "web".into(), uid: "pod-uid".into() });
        claims.kubernetes.node = Some(ObjectRef { name: "n1".into(), uid: "node-uid".into() });
    }

    #[tokio::test]
    async fn a_live_account_is_its_user() {
        let user = ask(&account("sa-uid", None), |_| ()).await.expect("accepted");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:a:bot", "sa-uid"));
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
        assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=id-1"]);
    }

    #[tokio::test]
    async fn a_gone_replaced_or_deleted_account_is_refused() {
        let gone = Fixed::default();
        let deleted_long_ago = account("sa-uid", Some("2027-01-15T07:50:00Z"));
        let broken_time = account("sa-uid", Some("yesterday"));
        for live in [gone, account("other", None), deleted_long_ago, broken_time] {
            assert!(matches!(ask(&live, |_| ()).await, Err(RefusedToken::Gone { .. })));
        }
        assert!(ask(&account("sa-uid", Some("2027-01-15T07:59:30Z")), |_| ()).await.is_ok());
    }

    #[tokio::test]
    async fn a_pods_token_dies_with_the_pod_and_not_with_the_node() {
        assert!(ask(&account("sa-uid", None), with_pod).await.is_err());
        let pod = json!({"metadata": {"namespace": "a", "name": "web", "uid": "pod-uid"}});
        let user = ask(&account("sa-uid", None).with(PODS, pod), with_pod).await.expect("accepted");
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-name"], ["n1"]);
    }
}
