//! Descriptions of types and fields, from the JSON schemas that `k8s-openapi` carries.
//!
//! They are strings of the binary's read-only part; nothing is held between two calls.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

/// Schemas by component name (`io.k8s.api.core.v1.Pod`), of everything reachable from the kinds of these versions.
pub(super) fn definitions(versions: &[(&str, &str)]) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    add::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>(&mut generator);
    add::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>(&mut generator);
    // Bodies of subresources that live in another group.
    add::<k8s_openapi::api::autoscaling::v1::Scale>(&mut generator);
    add::<k8s_openapi::api::policy::v1::Eviction>(&mut generator);
    add::<k8s_openapi::api::authentication::v1::TokenRequest>(&mut generator);
    for (group, version) in versions {
        add_version(group, version, &mut generator);
    }
    generator.take_definitions(false).into_iter().collect()
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

macro_rules! add_all {
    ($generator:expr, $($path:ident)::+ : $($kind:ident)+) => {
        {
            use k8s_openapi::$($path)::+ as module;
            $( add::<module::$kind>($generator); )+
        }
    };
}

fn add_version(group: &str, version: &str, g: &mut SchemaGenerator) {
    match (group, version) {
        ("", "v1") => {
            add_all!(g, api::core::v1: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node
            PersistentVolume PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service
            ServiceAccount)
        }
        ("apps", "v1") => {
            add_all!(g, api::apps::v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet)
        }
        ("autoscaling", "v1") => add_all!(g, api::autoscaling::v1: HorizontalPodAutoscaler Scale),
        ("autoscaling", "v2") => add_all!(g, api::autoscaling::v2: HorizontalPodAutoscaler),
        ("batch", "v1") => add_all!(g, api::batch::v1: CronJob Job),
        ("policy", "v1") => add_all!(g, api::policy::v1: Eviction PodDisruptionBudget),
        ("events.k8s.io", "v1") => add_all!(g, api::events::v1: Event),
        ("networking.k8s.io", "v1") => {
            add_all!(g, api::networking::v1: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR)
        }
        ("discovery.k8s.io", "v1") => add_all!(g, api::discovery::v1: EndpointSlice),
        ("coordination.k8s.io", "v1") => add_all!(g, api::coordination::v1: Lease),
        ("node.k8s.io", "v1") => add_all!(g, api::node::v1: RuntimeClass),
        ("scheduling.k8s.io", "v1") => add_all!(g, api::scheduling::v1: PriorityClass),
        ("rbac.authorization.k8s.io", "v1") => {
            add_all!(g, api::rbac::v1: ClusterRole ClusterRoleBinding Role RoleBinding)
        }
        ("storage.k8s.io", "v1") => add_all!(g, api::storage::v1: CSIDriver CSINode CSIStorageCapacity StorageClass
            VolumeAttachment VolumeAttributesClass),
        _ => add_extension(group, version, g),
    }
}

/// Kinds about the API itself.
fn add_extension(group: &str, version: &str, g: &mut SchemaGenerator) {
    match (group, version) {
        ("authentication.k8s.io", "v1") => {
            add_all!(g, api::authentication::v1: SelfSubjectReview TokenRequest TokenReview)
        }
        ("authorization.k8s.io", "v1") => add_all!(g, api::authorization::v1: LocalSubjectAccessReview
            SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview),
        ("certificates.k8s.io", "v1") => add_all!(g, api::certificates::v1: CertificateSigningRequest),
        ("admissionregistration.k8s.io", "v1") => add_all!(g, api::admissionregistration::v1: MutatingAdmissionPolicy
            MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy
            ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration),
        ("flowcontrol.apiserver.k8s.io", "v1") => {
            add_all!(g, api::flowcontrol::v1: FlowSchema PriorityLevelConfiguration)
        }
        ("resource.k8s.io", "v1") => {
            add_all!(g, api::resource::v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice)
        }
        ("apiextensions.k8s.io", "v1") => {
            add_all!(g, apiextensions_apiserver::pkg::apis::apiextensions::v1: CustomResourceDefinition)
        }
        ("apiregistration.k8s.io", "v1") => {
            add_all!(g, kube_aggregator::pkg::apis::apiregistration::v1: APIService)
        }
        _ => (),
    }
}
