//! Sees that the Service `kube-dns` exists: the address at which every worker answers cluster DNS itself.
//!
//! It has no selector and no endpoints: agents answer on its address, so that names resolve without any server (I10).

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::Api;
use kube::api::PostParams;
use pintle_client::{Key, SharedReflector};
use serde_json::json;

use crate::runtime::{
    Context, Controller, Intake, Lead, Outcome, ReconcileError, api, is_already_exists, is_not_found,
};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";

pub struct ClusterDns {
    namespaces: SharedReflector<Namespace>,
    services: SharedReflector<Service>,
    address: String,
}

impl ClusterDns {
    /// `address` is the one agents answer at.
    pub fn new(context: &Context, address: String) -> Self {
        Self { namespaces: context.reflectors.of(), services: context.reflectors.of(), address }
    }
}

fn key() -> Key {
    Key::new(NAMESPACE, NAME)
}

impl Controller for ClusterDns {
    const NAME: &'static str = "cluster-dns";
    const WORKERS: usize = 1;

    fn watch(&self, intake: &Intake) {
        intake.mapped(&self.namespaces, |namespace| (namespace.metadata.name.as_deref() == Some(NAMESPACE)).then(key));
        intake.mapped(&self.services, |service| (Key::of(&service.metadata) == key()).then(key));
    }

    fn all(&self) -> Vec<Key> {
        vec![key()]
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        if self.services.get(key).is_some() || self.namespaces.get(&Key::cluster(NAMESPACE)).is_none() {
            return Ok(Outcome::Done);
        }
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {
                "k8s-app": NAME, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
            "spec": {"clusterIP": self.address, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]},
        }))
        .map_err(|error| ReconcileError::Invalid(format!("cluster DNS service: {error}")))?;
        let stored: Api<Service> = Api::namespaced(lead.client.clone(), NAMESPACE);
        match stored.create(&PostParams::default(), &service).await {
            Err(error) if !is_already_exists(&error) && !is_not_found(&error) => {
                Err(api("create the DNS service")(error))
            }
            _ => Ok(Outcome::Done),
        }
    }
}
