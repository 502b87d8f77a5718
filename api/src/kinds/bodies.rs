//! Kinds that travel as bodies without being a resource of their own.

use super::Kind;

/// Home of the options kinds and of metadata-only views.
pub(super) const META: &str = "meta.k8s.io";

const fn body(group: &'static str, version: &'static str, kind: &'static str, message: &'static str) -> Kind {
    Kind {
        group,
        version,
        kind,
        resource: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: false,
        verbs: &[],
        subresources: &[],
        storage_prefix: "",
        message,
    }
}

/// Options, subresource bodies, answers.
pub static BODIES: &[Kind] = &[
    body("autoscaling", "v1", "Scale", "autoscaling.v1.Scale"),
    body("policy", "v1", "Eviction", "policy.v1.Eviction"),
    body("authentication.k8s.io", "v1", "TokenRequest", "authentication.v1.TokenRequest"),
    body("", "v1", "NodeProxyOptions", "core.v1.NodeProxyOptions"),
    body("", "v1", "PodAttachOptions", "core.v1.PodAttachOptions"),
    body("", "v1", "PodExecOptions", "core.v1.PodExecOptions"),
    body("", "v1", "PodLogOptions", "core.v1.PodLogOptions"),
    body("", "v1", "PodPortForwardOptions", "core.v1.PodPortForwardOptions"),
    body("", "v1", "PodProxyOptions", "core.v1.PodProxyOptions"),
    body("", "v1", "ServiceProxyOptions", "core.v1.ServiceProxyOptions"),
    body("", "v1", "PodStatusResult", "core.v1.PodStatusResult"),
    body("", "v1", "RangeAllocation", "core.v1.RangeAllocation"),
    body("", "v1", "SerializedReference", "core.v1.SerializedReference"),
    body("", "v1", "Status", "meta.v1.Status"),
    body("", "v1", "APIVersions", "meta.v1.APIVersions"),
    body("", "v1", "APIGroupList", "meta.v1.APIGroupList"),
    body("", "v1", "APIGroup", "meta.v1.APIGroup"),
    body("", "v1", "APIResourceList", "meta.v1.APIResourceList"),
    body("", "v1", "List", "meta.v1.List"),
    body("admission.k8s.io", "v1", "AdmissionReview", "admission.v1.AdmissionReview"),
    body("apidiscovery.k8s.io", "v2", "APIGroupDiscovery", "apidiscovery.v2.APIGroupDiscovery"),
    body(META, "v1", "CreateOptions", "meta.v1.CreateOptions"),
    body(META, "v1", "DeleteOptions", "meta.v1.DeleteOptions"),
    body(META, "v1", "GetOptions", "meta.v1.GetOptions"),
    body(META, "v1", "ListOptions", "meta.v1.ListOptions"),
    body(META, "v1", "PatchOptions", "meta.v1.PatchOptions"),
    body(META, "v1", "UpdateOptions", "meta.v1.UpdateOptions"),
    body(META, "v1", "PartialObjectMetadata", "meta.v1.PartialObjectMetadata"),
    body(META, "v1", "PartialObjectMetadataList", "meta.v1.PartialObjectMetadataList"),
];
