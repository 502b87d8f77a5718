//! Fills Endpoints: which pods are behind each Service that has a selector. Services without one are left to people.

mod members;
pub mod plan;
pub mod select;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use pintle_client::{Key, SharedReflector};

pub use members::Members;

use crate::runtime::{
    Context, Controller, Intake, Lead, Outcome, ReconcileError, api, is_already_exists, is_not_found,
};

pub struct EndpointsOf {
    services: SharedReflector<Service>,
    members: Members,
    endpoints: SharedReflector<Endpoints>,
}

impl EndpointsOf {
    pub fn new(context: &Context, members: Members) -> Self {
        Self { services: context.reflectors.of(), members, endpoints: context.reflectors.of() }
    }
}

impl Controller for EndpointsOf {
    const NAME: &'static str = "endpoints";

    fn watch(&self, intake: &Intake) {
        intake.every(&self.services);
        self.members.watch(intake, &self.services);
        intake.every(&self.endpoints);
    }

    fn all(&self) -> Vec<Key> {
        self.services.keys()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let stored: Api<Endpoints> = Api::namespaced(lead.client.clone(), &key.namespace);
        let old = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            // Hand-made Endpoints have no Service either; only those that we made carry our mark of origin.
            if old.is_some_and(|old| is_ours(&old)) {
                match stored.delete(&key.name, &DeleteParams::default()).await {
                    Err(error) if !is_not_found(&error) => return Err(api("delete endpoints")(error)),
                    _ => (),
                }
            }
            return Ok(Outcome::Done);
        };
        let selects = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|map| !map.is_empty());
        let external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
        if !selects || external {
            return Ok(Outcome::Done);
        }
        let pods = self.members.pods_of(&service);
        let backends = select::backends(&service, pods.iter().map(Arc::as_ref));
        let Some(wanted) = plan::plan(&service, &backends, old.as_deref()) else { return Ok(Outcome::Done) };
        let written = match old {
            Some(_) => stored.replace(&key.name, &PostParams::default(), &wanted).await,
            None => stored.create(&PostParams::default(), &wanted).await,
        };
        match written {
            // The cache will show it and bring us back.
            Err(error) if is_already_exists(&error) => Ok(Outcome::After(std::time::Duration::from_millis(100))),
            Err(error) => Err(api("write endpoints")(error)),
            Ok(_) => Ok(Outcome::Done),
        }
    }
}

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}
