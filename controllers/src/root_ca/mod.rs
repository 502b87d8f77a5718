//! Publishes the cluster's authority as ConfigMap `kube-root-ca.crt` in every namespace: pods check the API server by it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::PostParams;
use pintle_client::{Key, SharedReflector};

use crate::runtime::{
    Context, Controller, Intake, Lead, Outcome, ReconcileError, api, is_already_exists, is_conflict, is_not_found,
};

const NAME: &str = "kube-root-ca.crt";
const FIELD: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const TEXT: &str = "Contains the certificate of the authority that signs the API servers' certificates.";

pub struct RootCa {
    namespaces: SharedReflector<Namespace>,
    maps: SharedReflector<ConfigMap>,
    certificate: String,
}

impl RootCa {
    /// `certificate` is the authority's, PEM.
    pub fn new(context: &Context, certificate: String) -> Self {
        Self { namespaces: context.reflectors.of(), maps: context.reflectors.of(), certificate }
    }
}

impl Controller for RootCa {
    const NAME: &'static str = "root-ca-certificate-publisher";

    fn watch(&self, intake: &Intake) {
        intake.every(&self.namespaces);
        intake.mapped(&self.maps, |map| {
            let ours = map.metadata.name.as_deref() == Some(NAME);
            map.metadata.namespace.clone().filter(|_| ours).map(Key::cluster)
        });
    }

    fn all(&self) -> Vec<Key> {
        self.namespaces.keys()
    }

    async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let active = self.namespaces.get(key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none());
        if !active {
            return Ok(Outcome::Done);
        }
        let wanted = BTreeMap::from([(FIELD.to_owned(), self.certificate.clone())]);
        let stored: Api<ConfigMap> = Api::namespaced(lead.client.clone(), &key.name);
        let written = match self.maps.get(&Key::new(key.name.clone(), NAME)) {
            Some(map) if map.data.as_ref() == Some(&wanted) => return Ok(Outcome::Done),
            Some(map) => {
                let mut map = (*map).clone();
                map.data = Some(wanted);
                stored.replace(NAME, &PostParams::default(), &map).await
            }
            None => {
                let mut map = ConfigMap { data: Some(wanted), ..ConfigMap::default() };
                map.metadata.name = Some(NAME.to_owned());
                map.metadata.annotations = Some(BTreeMap::from([(DESCRIPTION.to_owned(), TEXT.to_owned())]));
                stored.create(&PostParams::default(), &map).await
            }
        };
        match written {
            Err(error) if is_already_exists(&error) || is_not_found(&error) || is_conflict(&error) => Ok(Outcome::Done),
            Err(error) => Err(api("publish the root certificate")(error)),
            Ok(_) => Ok(Outcome::Done),
        }
    }
}
