//! Kinds that are questions: access reviews, token review, self review. Asked by POST, answered with the same object.
//!
//! Sits behind the registry's hook for virtual kinds; decoding and encoding are the front's. Also dispatches the other
//! virtual calls (tokens, binding, eviction) to their modules, by one table.

mod access;

use std::sync::Arc;

use futures::future::BoxFuture;
use http::StatusCode;
use pintle_api::status::Status;
use pintle_base::{clock, rng};
use serde_json::{Value, json};

use crate::authn::Authenticator;
use crate::authz::live::{Live, PODS, items, text, uid_of};
use crate::authz::{Authorizer, node};
use crate::connect;
use crate::registry::Registry;
use crate::tokens;
use crate::types::{UserInfo, Virtual, VirtualCall};

pub struct Questions {
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) live: Arc<dyn Live>,
    pub(crate) registry: Registry,
}

type Answer = Result<(StatusCode, Value), Status>;

impl Virtual for Questions {
    fn create(&self, call: VirtualCall) -> BoxFuture<'_, Answer> {
        Box::pin(self.answer(call))
    }
}

impl Questions {
    async fn answer(&self, call: VirtualCall) -> Answer {
        let info = &call.info;
        let created = |object: Value| Ok((StatusCode::CREATED, object));
        match (info.api_group.as_str(), info.resource.as_str(), info.subresource.as_str()) {
            ("authorization.k8s.io", "selfsubjectaccessreviews", "") => {
                created(access::own(&self.authorizer, &call.user, call.body)?)
            }
            ("authorization.k8s.io", "subjectaccessreviews", "") => {
                created(access::of_subject(&self.authorizer, call.body)?)
            }
            ("authorization.k8s.io", "localsubjectaccessreviews", "") => {
                created(access::local(&self.authorizer, &info.namespace, call.body)?)
            }
            ("authorization.k8s.io", "selfsubjectrulesreviews", "") => {
                created(access::rules(&self.authorizer, &call.user, call.body)?)
            }
            ("authentication.k8s.io", "tokenreviews", "") => created(self.token(call.body).await?),
            ("authentication.k8s.io", "selfsubjectreviews", "") => created(own_identity(&call.user, call.body)),
            ("", "serviceaccounts", "token") => created(self.issue(call).await?),
            ("", "pods", "binding") | ("", "bindings", "") => {
                connect::binding::bind(&self.registry, &*self.live, call).await
            }
            ("", "pods", "eviction") => connect::eviction::evict(&self.registry, &*self.live, call).await,
            (group, resource, _) => Err(Status::method_not_supported(group, resource, &info.verb)),
        }
    }

    async fn token(&self, mut review: Value) -> Result<Value, Status> {
        let token = text(&review, "/spec/token").to_owned();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let asked: Vec<String> =
            items(&review, "/spec/audiences").filter_map(Value::as_str).map(str::to_owned).collect();
        let audiences = if asked.is_empty() { &self.authenticator.issuer.audiences } else { &asked };
        let status = match self.authenticator.token(&token, audiences).await {
            Ok(found) => {
                let mut status = json!({ "authenticated": true, "user": identity(&found.user) });
                if !found.audiences.is_empty() {
                    status["audiences"] = found.audiences.into();
                }
                status
            }
            // The text names no part of the token.
            Err(why) => json!({ "error": why.to_string() }),
        };
        complete(&mut review, status);
        Ok(review)
    }

    async fn issue(&self, call: VirtualCall) -> Result<Value, Status> {
        if let Some(node) = node::node_name(&call.user) {
            restrict_to_pods(&*self.live, node, &call)?;
        }
        let stamp = tokens::request::Stamp { now: clock::unix_seconds(), token_id: rng::uuid() };
        let info = &call.info;
        tokens::request::issue(&self.authenticator.issuer, &*self.live, &info.namespace, &info.name, call.body, stamp)
            .await
    }
}

/// A node agent gets tokens only for pods that run on it, bound to those pods.
fn restrict_to_pods(live: &dyn Live, node: &str, call: &VirtualCall) -> Result<(), Status> {
    let refuse = |why: &str| Err(Status::forbidden("", "serviceaccounts", &call.info.name, why));
    let bound = |field: &str| text(&call.body, &format!("/spec/boundObjectRef/{field}"));
    if bound("kind") != "Pod" || bound("apiVersion") != "v1" {
        return refuse("node requested token not bound to a pod");
    }
    if bound("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    match live.get(PODS, &call.info.namespace, bound("name")) {
        Some(pod) if uid_of(&pod) == bound("uid") && node::bound_to(&pod, node) => Ok(()),
        _ => refuse("node requested token bound to a pod scheduled on a different node"),
    }
}

fn own_identity(user: &UserInfo, mut review: Value) -> Value {
    complete(&mut review, json!({ "userInfo": identity(user) }));
    review
}

/// A user as `authentication.k8s.io/v1 UserInfo`.
fn identity(user: &UserInfo) -> Value {
    let mut out = json!({ "username": user.name });
    if !user.uid.is_empty() {
        out["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        out["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

/// Puts the answer into the question.
fn complete(review: &mut Value, status: Value) {
    if let Some(object) = review.as_object_mut() {
        object.insert("status".into(), status);
    }
}
