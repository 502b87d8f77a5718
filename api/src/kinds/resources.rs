//! The table of served resources, in discovery order: groups by upstream's priority, resources by name.

use super::{ALL_VERBS, CREATE, Kind, Subresource};

const GET: &[&str] = &["get"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const CREATE_GET: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
/// Namespaces cannot be deleted as a collection.
const NAMESPACE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const READ: &[&str] = &["get", "list"];

const NONE: &[Subresource] = &[];
const NO_NAMES: &[&str] = &[];
const EVERYDAY: &[&str] = &["all"];
const EXTENSIONS: &[&str] = &["api-extensions"];

const fn sub(
    name: &'static str,
    (group, version, kind): (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, group, version, kind, verbs }
}

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    sub("status", (group, version, kind), GET_PATCH_UPDATE)
}

const SCALE: Subresource = sub("scale", ("autoscaling", "v1", "Scale"), GET_PATCH_UPDATE);

/// A stored, cluster-wide kind with all verbs and neither nicknames nor subresources.
const fn cluster(
    (group, version, kind): (&'static str, &'static str, &'static str),
    (resource, singular): (&'static str, &'static str),
    message: &'static str,
    storage_prefix: &'static str,
) -> Kind {
    Kind {
        group,
        version,
        kind,
        resource,
        singular,
        short_names: NO_NAMES,
        categories: NO_NAMES,
        namespaced: false,
        verbs: ALL_VERBS,
        subresources: NONE,
        storage_prefix,
        message,
    }
}

/// The same within namespaces.
const fn namespaced(
    gvk: (&'static str, &'static str, &'static str),
    names: (&'static str, &'static str),
    message: &'static str,
    storage_prefix: &'static str,
) -> Kind {
    Kind { namespaced: true, ..cluster(gvk, names, message, storage_prefix) }
}

/// A question: created, answered, not stored.
const fn question(
    gvk: (&'static str, &'static str, &'static str),
    names: (&'static str, &'static str),
    message: &'static str,
) -> Kind {
    Kind { verbs: CREATE, ..cluster(gvk, names, message, "") }
}

impl Kind {
    const fn short(self, short_names: &'static [&'static str]) -> Self {
        Self { short_names, ..self }
    }

    const fn in_categories(self, categories: &'static [&'static str]) -> Self {
        Self { categories, ..self }
    }

    const fn with(self, subresources: &'static [Subresource]) -> Self {
        Self { subresources, ..self }
    }

    const fn verbs(self, verbs: &'static [&'static str]) -> Self {
        Self { verbs, ..self }
    }
}

/// Every generally available resource of v1.36. The first version of a group is its preferred one.
pub static KINDS: &[Kind] = &[
    namespaced(("", "v1", "Binding"), ("bindings", "binding"), "core.v1.Binding", "").verbs(CREATE),
    cluster(("", "v1", "ComponentStatus"), ("componentstatuses", "componentstatus"), "core.v1.ComponentStatus", "")
        .short(&["cs"])
        .verbs(READ),
    namespaced(("", "v1", "ConfigMap"), ("configmaps", "configmap"), "core.v1.ConfigMap", "/registry/configmaps")
        .short(&["cm"]),
    namespaced(
        ("", "v1", "Endpoints"),
        ("endpoints", "endpoints"),
        "core.v1.Endpoints",
        "/registry/services/endpoints",
    )
    .short(&["ep"]),
    namespaced(("", "v1", "Event"), ("events", "event"), "core.v1.Event", "/registry/events").short(&["ev"]),
    namespaced(("", "v1", "LimitRange"), ("limitranges", "limitrange"), "core.v1.LimitRange", "/registry/limitranges")
        .short(&["limits"]),
    cluster(("", "v1", "Namespace"), ("namespaces", "namespace"), "core.v1.Namespace", "/registry/namespaces")
        .short(&["ns"])
        .verbs(NAMESPACE)
        .with(&[sub("finalize", ("", "v1", "Namespace"), &["update"]), status("", "v1", "Namespace")]),
    cluster(("", "v1", "Node"), ("nodes", "node"), "core.v1.Node", "/registry/minions")
        .short(&["no"])
        .with(&[sub("proxy", ("", "v1", "NodeProxyOptions"), PROXY), status("", "v1", "Node")]),
    namespaced(
        ("", "v1", "PersistentVolumeClaim"),
        ("persistentvolumeclaims", "persistentvolumeclaim"),
        "core.v1.PersistentVolumeClaim",
        "/registry/persistentvolumeclaims",
    )
    .short(&["pvc"])
    .with(&[status("", "v1", "PersistentVolumeClaim")]),
    cluster(
        ("", "v1", "PersistentVolume"),
        ("persistentvolumes", "persistentvolume"),
        "core.v1.PersistentVolume",
        "/registry/persistentvolumes",
    )
    .short(&["pv"])
    .with(&[status("", "v1", "PersistentVolume")]),
    namespaced(("", "v1", "Pod"), ("pods", "pod"), "core.v1.Pod", "/registry/pods")
        .short(&["po"])
        .in_categories(EVERYDAY)
        .with(&[
            sub("attach", ("", "v1", "PodAttachOptions"), CREATE_GET),
            sub("binding", ("", "v1", "Binding"), CREATE),
            sub("ephemeralcontainers", ("", "v1", "Pod"), GET_PATCH_UPDATE),
            sub("eviction", ("policy", "v1", "Eviction"), CREATE),
            sub("exec", ("", "v1", "PodExecOptions"), CREATE_GET),
            sub("log", ("", "v1", "Pod"), GET),
            sub("portforward", ("", "v1", "PodPortForwardOptions"), CREATE_GET),
            sub("proxy", ("", "v1", "PodProxyOptions"), PROXY),
            sub("resize", ("", "v1", "Pod"), GET_PATCH_UPDATE),
            status("", "v1", "Pod"),
        ]),
    namespaced(
        ("", "v1", "PodTemplate"),
        ("podtemplates", "podtemplate"),
        "core.v1.PodTemplate",
        "/registry/podtemplates",
    ),
    namespaced(
        ("", "v1", "ReplicationController"),
        ("replicationcontrollers", "replicationcontroller"),
        "core.v1.ReplicationController",
        "/registry/controllers",
    )
    .short(&["rc"])
    .in_categories(EVERYDAY)
    .with(&[SCALE, status("", "v1", "ReplicationController")]),
    namespaced(
        ("", "v1", "ResourceQuota"),
        ("resourcequotas", "resourcequota"),
        "core.v1.ResourceQuota",
        "/registry/resourcequotas",
    )
    .short(&["quota"])
    .with(&[status("", "v1", "ResourceQuota")]),
    namespaced(("", "v1", "Secret"), ("secrets", "secret"), "core.v1.Secret", "/registry/secrets"),
    namespaced(
        ("", "v1", "ServiceAccount"),
        ("serviceaccounts", "serviceaccount"),
        "core.v1.ServiceAccount",
        "/registry/serviceaccounts",
    )
    .short(&["sa"])
    .with(&[sub("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)]),
    namespaced(("", "v1", "Service"), ("services", "service"), "core.v1.Service", "/registry/services/specs")
        .short(&["svc"])
        .in_categories(EVERYDAY)
        .with(&[sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY), status("", "v1", "Service")]),
    cluster(
        ("apiregistration.k8s.io", "v1", "APIService"),
        ("apiservices", "apiservice"),
        "apiregistration.v1.APIService",
        "/registry/apiregistration.k8s.io/apiservices",
    )
    .in_categories(EXTENSIONS)
    .with(&[status("apiregistration.k8s.io", "v1", "APIService")]),
    namespaced(
        ("apps", "v1", "ControllerRevision"),
        ("controllerrevisions", "controllerrevision"),
        "apps.v1.ControllerRevision",
        "/registry/controllerrevisions",
    ),
    namespaced(("apps", "v1", "DaemonSet"), ("daemonsets", "daemonset"), "apps.v1.DaemonSet", "/registry/daemonsets")
        .short(&["ds"])
        .in_categories(EVERYDAY)
        .with(&[status("apps", "v1", "DaemonSet")]),
    namespaced(
        ("apps", "v1", "Deployment"),
        ("deployments", "deployment"),
        "apps.v1.Deployment",
        "/registry/deployments",
    )
    .short(&["deploy"])
    .in_categories(EVERYDAY)
    .with(&[SCALE, status("apps", "v1", "Deployment")]),
    namespaced(
        ("apps", "v1", "ReplicaSet"),
        ("replicasets", "replicaset"),
        "apps.v1.ReplicaSet",
        "/registry/replicasets",
    )
    .short(&["rs"])
    .in_categories(EVERYDAY)
    .with(&[SCALE, status("apps", "v1", "ReplicaSet")]),
    namespaced(
        ("apps", "v1", "StatefulSet"),
        ("statefulsets", "statefulset"),
        "apps.v1.StatefulSet",
        "/registry/statefulsets",
    )
    .short(&["sts"])
    .in_categories(EVERYDAY)
    .with(&[SCALE, status("apps", "v1", "StatefulSet")]),
    namespaced(("events.k8s.io", "v1", "Event"), ("events", "event"), "events.v1.Event", "/registry/events")
        .short(&["ev"]),
    question(
        ("authentication.k8s.io", "v1", "SelfSubjectReview"),
        ("selfsubjectreviews", "selfsubjectreview"),
        "authentication.v1.SelfSubjectReview",
    ),
    question(
        ("authentication.k8s.io", "v1", "TokenReview"),
        ("tokenreviews", "tokenreview"),
        "authentication.v1.TokenReview",
    ),
    namespaced(
        ("authorization.k8s.io", "v1", "LocalSubjectAccessReview"),
        ("localsubjectaccessreviews", "localsubjectaccessreview"),
        "authorization.v1.LocalSubjectAccessReview",
        "",
    )
    .verbs(CREATE),
    question(
        ("authorization.k8s.io", "v1", "SelfSubjectAccessReview"),
        ("selfsubjectaccessreviews", "selfsubjectaccessreview"),
        "authorization.v1.SelfSubjectAccessReview",
    ),
    question(
        ("authorization.k8s.io", "v1", "SelfSubjectRulesReview"),
        ("selfsubjectrulesreviews", "selfsubjectrulesreview"),
        "authorization.v1.SelfSubjectRulesReview",
    ),
    question(
        ("authorization.k8s.io", "v1", "SubjectAccessReview"),
        ("subjectaccessreviews", "subjectaccessreview"),
        "authorization.v1.SubjectAccessReview",
    ),
    namespaced(
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        ("horizontalpodautoscalers", "horizontalpodautoscaler"),
        "autoscaling.v2.HorizontalPodAutoscaler",
        "/registry/horizontalpodautoscalers",
    )
    .short(&["hpa"])
    .in_categories(EVERYDAY)
    .with(&[status("autoscaling", "v2", "HorizontalPodAutoscaler")]),
    namespaced(
        ("autoscaling", "v1", "HorizontalPodAutoscaler"),
        ("horizontalpodautoscalers", "horizontalpodautoscaler"),
        "autoscaling.v1.HorizontalPodAutoscaler",
        "/registry/horizontalpodautoscalers",
    )
    .short(&["hpa"])
    .in_categories(EVERYDAY)
    .with(&[status("autoscaling", "v1", "HorizontalPodAutoscaler")]),
    namespaced(("batch", "v1", "CronJob"), ("cronjobs", "cronjob"), "batch.v1.CronJob", "/registry/cronjobs")
        .short(&["cj"])
        .in_categories(EVERYDAY)
        .with(&[status("batch", "v1", "CronJob")]),
    namespaced(("batch", "v1", "Job"), ("jobs", "job"), "batch.v1.Job", "/registry/jobs")
        .in_categories(EVERYDAY)
        .with(&[status("batch", "v1", "Job")]),
    cluster(
        ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
        ("certificatesigningrequests", "certificatesigningrequest"),
        "certificates.v1.CertificateSigningRequest",
        "/registry/certificatesigningrequests",
    )
    .short(&["csr"])
    .with(&[
        sub("approval", ("certificates.k8s.io", "v1", "CertificateSigningRequest"), GET_PATCH_UPDATE),
        status("certificates.k8s.io", "v1", "CertificateSigningRequest"),
    ]),
    cluster(
        ("networking.k8s.io", "v1", "IngressClass"),
        ("ingressclasses", "ingressclass"),
        "networking.v1.IngressClass",
        "/registry/ingressclasses",
    ),
    namespaced(
        ("networking.k8s.io", "v1", "Ingress"),
        ("ingresses", "ingress"),
        "networking.v1.Ingress",
        "/registry/ingress",
    )
    .short(&["ing"])
    .with(&[status("networking.k8s.io", "v1", "Ingress")]),
    cluster(
        ("networking.k8s.io", "v1", "IPAddress"),
        ("ipaddresses", "ipaddress"),
        "networking.v1.IPAddress",
        "/registry/ipaddresses",
    )
    .short(&["ip"]),
    namespaced(
        ("networking.k8s.io", "v1", "NetworkPolicy"),
        ("networkpolicies", "networkpolicy"),
        "networking.v1.NetworkPolicy",
        "/registry/networkpolicies",
    )
    .short(&["netpol"]),
    cluster(
        ("networking.k8s.io", "v1", "ServiceCIDR"),
        ("servicecidrs", "servicecidr"),
        "networking.v1.ServiceCIDR",
        "/registry/servicecidrs",
    )
    .with(&[status("networking.k8s.io", "v1", "ServiceCIDR")]),
    namespaced(
        ("policy", "v1", "PodDisruptionBudget"),
        ("poddisruptionbudgets", "poddisruptionbudget"),
        "policy.v1.PodDisruptionBudget",
        "/registry/poddisruptionbudgets",
    )
    .short(&["pdb"])
    .with(&[status("policy", "v1", "PodDisruptionBudget")]),
    cluster(
        ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
        ("clusterrolebindings", "clusterrolebinding"),
        "rbac.v1.ClusterRoleBinding",
        "/registry/clusterrolebindings",
    ),
    cluster(
        ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
        ("clusterroles", "clusterrole"),
        "rbac.v1.ClusterRole",
        "/registry/clusterroles",
    ),
    namespaced(
        ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
        ("rolebindings", "rolebinding"),
        "rbac.v1.RoleBinding",
        "/registry/rolebindings",
    ),
    namespaced(("rbac.authorization.k8s.io", "v1", "Role"), ("roles", "role"), "rbac.v1.Role", "/registry/roles"),
    cluster(
        ("storage.k8s.io", "v1", "CSIDriver"),
        ("csidrivers", "csidriver"),
        "storage.v1.CSIDriver",
        "/registry/csidrivers",
    ),
    cluster(("storage.k8s.io", "v1", "CSINode"), ("csinodes", "csinode"), "storage.v1.CSINode", "/registry/csinodes"),
    namespaced(
        ("storage.k8s.io", "v1", "CSIStorageCapacity"),
        ("csistoragecapacities", "csistoragecapacity"),
        "storage.v1.CSIStorageCapacity",
        "/registry/csistoragecapacities",
    ),
    cluster(
        ("storage.k8s.io", "v1", "StorageClass"),
        ("storageclasses", "storageclass"),
        "storage.v1.StorageClass",
        "/registry/storageclasses",
    )
    .short(&["sc"]),
    cluster(
        ("storage.k8s.io", "v1", "VolumeAttachment"),
        ("volumeattachments", "volumeattachment"),
        "storage.v1.VolumeAttachment",
        "/registry/volumeattachments",
    )
    .with(&[status("storage.k8s.io", "v1", "VolumeAttachment")]),
    cluster(
        ("storage.k8s.io", "v1", "VolumeAttributesClass"),
        ("volumeattributesclasses", "volumeattributesclass"),
        "storage.v1.VolumeAttributesClass",
        "/registry/volumeattributesclasses",
    )
    .short(&["vac"]),
    cluster(
        ("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy"),
        ("mutatingadmissionpolicies", "mutatingadmissionpolicy"),
        "admissionregistration.v1.MutatingAdmissionPolicy",
        "/registry/mutatingadmissionpolicies",
    )
    .in_categories(EXTENSIONS),
    cluster(
        ("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding"),
        ("mutatingadmissionpolicybindings", "mutatingadmissionpolicybinding"),
        "admissionregistration.v1.MutatingAdmissionPolicyBinding",
        "/registry/mutatingadmissionpolicybindings",
    )
    .in_categories(EXTENSIONS),
    cluster(
        ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"),
        ("mutatingwebhookconfigurations", "mutatingwebhookconfiguration"),
        "admissionregistration.v1.MutatingWebhookConfiguration",
        "/registry/mutatingwebhookconfigurations",
    )
    .in_categories(EXTENSIONS),
    cluster(
        ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
        ("validatingadmissionpolicies", "validatingadmissionpolicy"),
        "admissionregistration.v1.ValidatingAdmissionPolicy",
        "/registry/validatingadmissionpolicies",
    )
    .in_categories(EXTENSIONS)
    .with(&[status("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy")]),
    cluster(
        ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding"),
        ("validatingadmissionpolicybindings", "validatingadmissionpolicybinding"),
        "admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        "/registry/validatingadmissionpolicybindings",
    )
    .in_categories(EXTENSIONS),
    cluster(
        ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration"),
        ("validatingwebhookconfigurations", "validatingwebhookconfiguration"),
        "admissionregistration.v1.ValidatingWebhookConfiguration",
        "/registry/validatingwebhookconfigurations",
    )
    .in_categories(EXTENSIONS),
    cluster(
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        ("customresourcedefinitions", "customresourcedefinition"),
        "apiextensions.v1.CustomResourceDefinition",
        "/registry/apiextensions.k8s.io/customresourcedefinitions",
    )
    .short(&["crd", "crds"])
    .in_categories(EXTENSIONS)
    .with(&[status("apiextensions.k8s.io", "v1", "CustomResourceDefinition")]),
    cluster(
        ("scheduling.k8s.io", "v1", "PriorityClass"),
        ("priorityclasses", "priorityclass"),
        "scheduling.v1.PriorityClass",
        "/registry/priorityclasses",
    )
    .short(&["pc"]),
    namespaced(
        ("coordination.k8s.io", "v1", "Lease"),
        ("leases", "lease"),
        "coordination.v1.Lease",
        "/registry/leases",
    ),
    cluster(
        ("node.k8s.io", "v1", "RuntimeClass"),
        ("runtimeclasses", "runtimeclass"),
        "node.v1.RuntimeClass",
        "/registry/runtimeclasses",
    ),
    namespaced(
        ("discovery.k8s.io", "v1", "EndpointSlice"),
        ("endpointslices", "endpointslice"),
        "discovery.v1.EndpointSlice",
        "/registry/endpointslices",
    ),
    cluster(
        ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"),
        ("flowschemas", "flowschema"),
        "flowcontrol.v1.FlowSchema",
        "/registry/flowschemas",
    )
    .with(&[status("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema")]),
    cluster(
        ("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration"),
        ("prioritylevelconfigurations", "prioritylevelconfiguration"),
        "flowcontrol.v1.PriorityLevelConfiguration",
        "/registry/prioritylevelconfigurations",
    )
    .with(&[status("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration")]),
    cluster(
        ("resource.k8s.io", "v1", "DeviceClass"),
        ("deviceclasses", "deviceclass"),
        "resource.v1.DeviceClass",
        "/registry/deviceclasses",
    ),
    namespaced(
        ("resource.k8s.io", "v1", "ResourceClaim"),
        ("resourceclaims", "resourceclaim"),
        "resource.v1.ResourceClaim",
        "/registry/resourceclaims",
    )
    .with(&[status("resource.k8s.io", "v1", "ResourceClaim")]),
    namespaced(
        ("resource.k8s.io", "v1", "ResourceClaimTemplate"),
        ("resourceclaimtemplates", "resourceclaimtemplate"),
        "resource.v1.ResourceClaimTemplate",
        "/registry/resourceclaimtemplates",
    ),
    cluster(
        ("resource.k8s.io", "v1", "ResourceSlice"),
        ("resourceslices", "resourceslice"),
        "resource.v1.ResourceSlice",
        "/registry/resourceslices",
    ),
];
