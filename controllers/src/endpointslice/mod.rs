//! Fills EndpointSlices: what service proxies and cluster DNS read. One plan per Service with a selector.
//!
//! Always holds: while a slice that was created is not in the cache yet, the Service is not planned again, so a slow
//! cache never leads to a second slice with the same endpoints.

pub mod plan;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use pintle_client::{Index, Key, ObjectEvent, SharedReflector};

use crate::endpoints::{Members, select};
use crate::runtime::{
    Context, Controller, Expectations, Intake, Lead, Outcome, ReconcileError, api, is_conflict, is_not_found,
};

/// How soon a Service whose last creation has an unknown outcome is looked at again.
const UNCERTAIN: std::time::Duration = std::time::Duration::from_secs(1);

pub struct EndpointSlices {
    services: SharedReflector<Service>,
    members: Members,
    slices: SharedReflector<EndpointSlice>,
    by_service: Index<EndpointSlice>,
    expectations: Arc<Expectations>,
    reflectors: pintle_client::Reflectors,
}

impl EndpointSlices {
    pub fn new(context: &Context, members: Members) -> Self {
        let slices: SharedReflector<EndpointSlice> = context.reflectors.of();
        Self {
            services: context.reflectors.of(),
            members,
            by_service: Index::new(&slices, |slice| service_of(slice).map(|key| key.to_string())),
            slices,
            expectations: Arc::default(),
            reflectors: context.reflectors.clone(),
        }
    }
}

/// The Service a slice of this controller belongs to.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    (labels.get(plan::MANAGED_BY).is_some_and(|manager| manager == plan::MANAGER)).then_some(())?;
    Some(Key::new(slice.metadata.namespace.clone()?, labels.get(plan::SERVICE_NAME)?.clone()))
}

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice";

    fn watch(&self, intake: &Intake) {
        let expectations = Arc::clone(&self.expectations);
        self.slices.on_event(move |event: &ObjectEvent<EndpointSlice>| {
            let slice = event.object();
            if let (Some(key), Some(uid)) = (service_of(slice), slice.metadata.uid.as_deref()) {
                expectations.observe(&key, uid, event.is_deleted());
            }
        });
        intake.every(&self.services);
        self.members.watch(intake, &self.services);
        intake.mapped(&self.slices, service_of);
    }

    fn all(&self) -> Vec<Key> {
        self.services.keys()
    }

    fn begin(&self) {
        self.expectations.clear();
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        if self.expectations.is_uncertain(key) {
            self.reflectors.catch_up().await;
            self.expectations.caught_up(key);
        }
        if !self.expectations.satisfied(key) {
            return Ok(Outcome::After(UNCERTAIN));
        }
        // Slices of a Service that is gone are the garbage collector's: they name it as owner.
        let Some(service) = self.services.get(key) else { return Ok(Outcome::Done) };
        let spec = service.spec.as_ref();
        let selects = spec.and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty());
        let external = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
        if !selects || external || service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let pods = self.members.pods_of(&service);
        let backends = select::backends(&service, pods.iter().map(Arc::as_ref));
        let old: Vec<EndpointSlice> = self.by_service.get(&key.to_string()).iter().map(|s| (**s).clone()).collect();
        let plan = plan::plan(&service, &backends, &old);
        self.execute(key, plan, lead).await
    }
}

impl EndpointSlices {
    async fn execute(&self, key: &Key, plan: plan::Plan, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let stored: Api<EndpointSlice> = Api::namespaced(lead.client.clone(), &key.namespace);
        for slice in plan.create {
            self.expectations.creating(key);
            match stored.create(&PostParams::default(), &slice).await {
                Ok(made) => self.expectations.created(key, made.metadata.uid.as_deref().unwrap_or_default()),
                Err(error) => {
                    let refused = matches!(&error, kube::Error::Api(status) if (400..500).contains(&status.code));
                    self.expectations.not_created(key, refused);
                    return Err(api("create endpoint slice")(error));
                }
            }
        }
        for slice in plan.update {
            let name = slice.metadata.name.clone().unwrap_or_default();
            match stored.replace(&name, &PostParams::default(), &slice).await {
                // The cache is behind: its next event brings us back.
                Err(error) if is_conflict(&error) || is_not_found(&error) => (),
                Err(error) => return Err(api("update endpoint slice")(error)),
                Ok(_) => (),
            }
        }
        for name in plan.delete {
            match stored.delete(&name, &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => return Err(api("delete endpoint slice")(error)),
                _ => (),
            }
        }
        Ok(Outcome::Done)
    }
}
