//! `serviceaccounts/token`: a TokenRequest in, the same object with a signed token in its status out.
//!
//! A token may be bound to a pod, a secret or a node: it is then refused as soon as that object is gone. The uid of the
//! bound object is looked up here, so a name that is reused later does not revive a token.

use pintle_api::status::{FieldError, Path, Status};
use serde_json::{Value, json};

use super::{Claims, Issuer, KubernetesClaims, ObjectRef, account_user};
use crate::authz::live::{Live, NODES, PODS, Res, SECRETS, SERVICE_ACCOUNTS, get_or_fresh, items, text, uid_of};

/// Life of a token that asks for nothing, and the shortest and longest that can be asked for (upstream's figures).
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// Longest life handed out, whatever was asked: a leaked token without a bound object must die some day.
const GRANTED_MAX_SECONDS: i64 = 365 * 24 * 3600;
/// Audiences in one token; each is a string of the client's choice that is signed and sent with every request.
const AUDIENCES_MAX: usize = 32;

/// Time and identity the caller provides, so that issuing is a function of its input.
pub(crate) struct Stamp {
    pub now: i64,
    pub token_id: String,
}

/// Issues a token for `namespace/name` as `request` asks and returns the answered TokenRequest.
pub(crate) async fn issue(
    issuer: &Issuer,
    live: &dyn Live,
    namespace: &str,
    name: &str,
    request: Value,
    stamp: Stamp,
) -> Result<Value, Status> {
    let wish =
        Wish::read(&request).map_err(|errors| Status::invalid("authentication.k8s.io", "TokenRequest", "", &errors))?;
    let account = get_or_fresh(live, SERVICE_ACCOUNTS, namespace, name).await;
    let account = account.ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
    check_names(&request, namespace, name)?;
    let mut kubernetes = KubernetesClaims {
        namespace: namespace.into(),
        serviceaccount: ObjectRef { name: name.into(), uid: uid_of(&account).into() },
        ..KubernetesClaims::default()
    };
    if let Some(bound) = &wish.bound {
        bind(live, bound, namespace, name, &mut kubernetes).await?;
    }
    let audiences = if wish.audiences.is_empty() { issuer.audiences.clone() } else { wish.audiences.clone() };
    let expires = stamp.now + wish.seconds.min(GRANTED_MAX_SECONDS);
    let claims = Claims {
        aud: audiences.clone(),
        exp: expires,
        iat: stamp.now,
        iss: issuer.issuer.clone(),
        jti: stamp.token_id,
        kubernetes,
        nbf: stamp.now,
        sub: account_user(namespace, name),
    };
    let token = issuer.sign(&claims).map_err(Status::internal)?;
    Ok(answer(request, audiences, &token, expires, namespace, name))
}

/// What a TokenRequest asks for, checked.
struct Wish {
    audiences: Vec<String>,
    seconds: i64,
    bound: Option<Bound>,
}

struct Bound {
    kind: String,
    name: String,
    uid: String,
}

impl Wish {
    fn read(request: &Value) -> Result<Self, Vec<FieldError>> {
        let spec = Path::new("spec");
        let mut errors = Vec::new();
        let seconds = match request.pointer("/spec/expirationSeconds") {
            None | Some(Value::Null) => DEFAULT_SECONDS,
            Some(asked) => asked.as_i64().unwrap_or(0),
        };
        let at = spec.child("expirationSeconds");
        if seconds < MIN_SECONDS {
            errors.push(FieldError::invalid(&at, seconds, "may not specify a duration less than 10 minutes"));
        }
        if seconds > MAX_SECONDS {
            errors.push(FieldError::invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds"));
        }
        let audiences: Vec<String> =
            items(request, "/spec/audiences").filter_map(Value::as_str).map(str::to_owned).collect();
        if audiences.len() > AUDIENCES_MAX {
            let text = format!("may not name more than {AUDIENCES_MAX} audiences");
            errors.push(FieldError::invalid(&spec.child("audiences"), audiences.len(), text));
        }
        let bound = request.pointer("/spec/boundObjectRef").filter(|bound| bound.is_object()).map(|bound| Bound {
            kind: format!("{}/{}", text(bound, "/apiVersion"), text(bound, "/kind")),
            name: text(bound, "/name").into(),
            uid: text(bound, "/uid").into(),
        });
        if errors.is_empty() { Ok(Self { audiences, seconds, bound }) } else { Err(errors) }
    }
}

/// Names in the body may be left out but not differ from the path.
fn check_names(request: &Value, namespace: &str, name: &str) -> Result<(), Status> {
    let (given_name, given_namespace) = (text(request, "/metadata/name"), text(request, "/metadata/namespace"));
    if !given_name.is_empty() && given_name != name {
        return Err(Status::bad_request(format!(
            "the service account name in the URL ({name}) does not match the token request ({given_name})"
        )));
    }
    if !given_namespace.is_empty() && given_namespace != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Kinds a token can be bound to.
fn bindable(kind: &str) -> Option<(Res, &'static str)> {
    match kind {
        "v1/Pod" => Some((PODS, "pods")),
        "v1/Secret" => Some((SECRETS, "secrets")),
        "v1/Node" => Some((NODES, "nodes")),
        _ => None,
    }
}

async fn bind(
    live: &dyn Live,
    bound: &Bound,
    namespace: &str,
    account: &str,
    claims: &mut KubernetesClaims,
) -> Result<(), Status> {
    let Some((res, resource)) = bindable(&bound.kind) else {
        return Err(Status::bad_request(format!("cannot bind token to object of type {:?}", bound.kind)));
    };
    let scope = if res == NODES { "" } else { namespace };
    let object = get_or_fresh(live, res, scope, &bound.name).await;
    let object = object.ok_or_else(|| Status::not_found("", resource, &bound.name))?;
    let uid = uid_of(&object);
    if !bound.uid.is_empty() && bound.uid != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            bound.uid
        );
        return Err(Status::conflict("", resource, &bound.name, &why));
    }
    let reference = ObjectRef { name: bound.name.clone(), uid: uid.into() };
    match resource {
        "pods" => {
            if text(&object, "/spec/serviceAccountName") != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            let node = text(&object, "/spec/nodeName");
            if !node.is_empty() {
                let uid = live.get(NODES, "", node).map(|node| uid_of(&node).to_owned()).unwrap_or_default();
                claims.node = Some(ObjectRef { name: node.into(), uid });
            }
            claims.pod = Some(reference);
        }
        "secrets" => claims.secret = Some(reference),
        _ => claims.node = Some(reference),
    }
    Ok(())
}

fn answer(mut request: Value, audiences: Vec<String>, token: &str, expires: i64, namespace: &str, name: &str) -> Value {
    let granted = jiff::Timestamp::from_second(expires).unwrap_or(jiff::Timestamp::MAX);
    let created = text(&request, "/metadata/creationTimestamp").to_owned();
    if !request.is_object() {
        request = json!({});
    }
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"] = json!({ "name": name, "namespace": namespace });
    if !created.is_empty() {
        request["metadata"]["creationTimestamp"] = created.into();
    }
    if !request["spec"].is_object() {
        request["spec"] = json!({});
    }
    request["spec"]["audiences"] = audiences.into();
    if request["spec"]["expirationSeconds"].as_i64().is_none() {
        request["spec"]["expirationSeconds"] = DEFAULT_SECONDS.into();
    }
    request["status"] = json!({ "token": token, "expirationTimestamp": granted.to_string() });
    request
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, issuer};
    use super::*;
    use crate::authz::live::tests::Fixed;

    fn cluster() -> Fixed {
        Fixed::default()
            .with(SERVICE_ACCOUNTS, json!({"metadata": {"namespace": "a", "name": "bot", "uid": "sa-uid"}}))
            .with(NODES, json!({"metadata": {"name": "n1", "uid": "node-uid"}}))
            .with(
                PODS,
                json!({"metadata": {"namespace": "a", "name": "web", "uid": "pod-uid"},
                       "spec": {"serviceAccountName": "bot", "nodeName": "n1"}}),
            )
            .with(
                PODS,
                json!({"metadata": {"namespace": "a", "name": "db", "uid": "db-uid"}, "spec": {"serviceAccountName": "x"}}),
            )
    }

    async fn ask(issuer: &Issuer, spec: Value) -> Result<Value, Status> {
        let stamp = Stamp { now: NOW, token_id: "id-1".into() };
        issue(issuer, &cluster(), "a", "bot", json!({"metadata": {}, "spec": spec}), stamp).await
    }

    #[tokio::test]
    async fn a_plain_request_gets_an_hour_for_this_api() {
        let issuer = issuer();
        let answer = ask(&issuer, json!({})).await.expect("token");
        let token = text(&answer, "/status/token");
        let (claims, _) = issuer.check(token, &issuer.audiences, NOW).expect("valid");
        assert_eq!((claims.exp, claims.sub.as_str()), (NOW + 3600, "system:serviceaccount:a:bot"));
        assert_eq!(answer["status"]["expirationTimestamp"], "2027-01-15T09:00:00Z");
        assert_eq!(answer["spec"]["audiences"], json!(["api"]));
    }

    #[tokio::test]
    async fn a_token_bound_to_a_pod_names_its_node_too() {
        let issuer = issuer();
        let bound = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "pod-uid"},
            "audiences": ["api"], "expirationSeconds": 3607});
        let answer = ask(&issuer, bound).await.expect("token");
        let (claims, _) = issuer.check(text(&answer, "/status/token"), &issuer.audiences, NOW).expect("valid");
        assert_eq!(claims.kubernetes.pod, Some(ObjectRef { name: "web".into(), uid: "pod-uid".into() }));
        assert_eq!(claims.kubernetes.node, Some(ObjectRef { name: "n1".into(), uid: "node-uid".into() }));
        assert_eq!(claims.exp, NOW + 3607);
    }

    #[tokio::test]
    async fn wrong_wishes_are_refused_with_their_reason() {
        let bound = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}});
        let table = [
            (json!({"expirationSeconds": 599}), 422),
            (json!({"expirationSeconds": "soon"}), 422),
            (json!({"expirationSeconds": (1_i64 << 32) + 1}), 422),
            (bound("Pod", "web", "other"), 409),
            (bound("Pod", "none", ""), 404),
            (bound("Pod", "db", ""), 400),
            (bound("ConfigMap", "web", ""), 400),
        ];
        let issuer = issuer();
        for (spec, code) in table {
            assert_eq!(ask(&issuer, spec.clone()).await.expect_err("refused").http_code(), code, "{spec}");
        }
        let stamp = Stamp { now: NOW, token_id: String::new() };
        let missing = issue(&issuer, &cluster(), "a", "nobody", json!({}), stamp).await.expect_err("missing");
        assert_eq!(missing.message, r#"serviceaccounts "nobody" not found"#);
    }
}
