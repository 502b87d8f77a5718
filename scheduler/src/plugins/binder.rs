//! Binds through the API: `pods/binding` sets the node only if the pod has none, so a pod is never bound twice.

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use crate::framework::{Bind, BindError, Plugin};
use crate::state::PodInfo;

pub struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }
}

impl Bind for DefaultBinder {
    fn bind<'a>(
        &'a self,
        client: &'a kube::Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<bool, BindError>> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.key.name.clone()),
                namespace: Some(pod.key.namespace.clone()),
                // Another pod may have taken the name meanwhile.
                uid: Some(pod.uid.clone()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
        async move {
            let params = PostParams::default();
            let result: Result<serde_json::Value, kube::Error> =
                api.create_subresource("binding", &pod.key.name, &params, &binding).await;
            result.map(|_| true).map_err(|source| BindError::Api {
                pod: pod.key.to_string(),
                node: node.to_owned(),
                source: Box::new(source),
            })
        }
        .boxed()
    }
}
