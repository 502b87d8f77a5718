//! Just enough of an API for the agent's pods to report to: remembers statuses and events, answers references.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use pintle_client::SharedReflector;
use serde_json::{Value, json};

#[derive(Default)]
pub struct Kept {
    pub pods: BTreeMap<String, Value>,
    pub events: Vec<String>,
    pub version: u64,
}

#[derive(Clone, Default)]
pub struct Api(pub Arc<Mutex<Kept>>);

impl Api {
    /// Stores a pod and shows it to the agent.
    pub fn put(&self, mut pod: Value, shown: &SharedReflector<Pod>) {
        let mut kept = self.0.lock();
        kept.version += 1;
        pod["metadata"]["resourceVersion"] = json!(kept.version.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        shown.apply(serde_json::from_value(pod.clone()).expect("pod"));
        kept.pods.insert(name, pod);
    }

    pub async fn answer(
        self,
        shown: SharedReflector<Pod>,
        request: Request<kube::client::Body>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let parts: Vec<&str> = head.uri.path().split('/').skip(1).collect();
        let (code, answer) = match (&head.method, parts.as_slice()) {
            (&Method::PATCH, ["api", "v1", "namespaces", _, "pods", name, "status"]) => self.patch(name, &body, &shown),
            (&Method::DELETE, ["api", "v1", "namespaces", _, "pods", name]) => self.remove(name, &shown),
            (&Method::GET, ["api", "v1", "namespaces", _, "configmaps", "config"]) => (
                200,
                json!({ "metadata": { "name": "config" }, "data": { "greeting": "hello", "more": "second value\n" } }),
            ),
            (&Method::POST, ["api", "v1", "namespaces", _, "serviceaccounts", _, "token"]) => (
                201,
                json!({ "metadata": {}, "spec": { "audiences": [] }, "status": { "token": "a-token\n", "expirationTimestamp": "2100-01-01T00:00:00Z" } }),
            ),
            (&Method::POST, ["api", "v1", "namespaces", _, "events"]) => {
                self.0.lock().events.push(body["reason"].as_str().unwrap_or_default().to_owned());
                (201, body)
            }
            _ => (404, failure(404, "NotFound")),
        };
        let answer = Response::builder()
            .status(code)
            .header("Content-Type", "application/json")
            .body(Full::new(Bytes::from(answer.to_string())));
        Ok(answer.expect("response"))
    }

    fn patch(&self, name: &str, body: &Value, shown: &SharedReflector<Pod>) -> (u16, Value) {
        let Some(mut pod) = self.0.lock().pods.get(name).cloned() else { return (404, failure(404, "NotFound")) };
        if pod["metadata"]["uid"] != body["metadata"]["uid"] {
            return (409, failure(409, "Conflict"));
        }
        let mut status = body["status"].clone();
        if let Some(fields) = status.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        pod["status"] = status;
        self.put(pod.clone(), shown);
        (200, pod)
    }

    fn remove(&self, name: &str, shown: &SharedReflector<Pod>) -> (u16, Value) {
        match self.0.lock().pods.remove(name) {
            Some(pod) => {
                shown.remove(serde_json::from_value(pod.clone()).expect("pod"));
                (200, pod)
            }
            None => (404, failure(404, "NotFound")),
        }
    }
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code })
}
