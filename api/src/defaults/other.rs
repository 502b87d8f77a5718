//! Defaults of all kinds without pods or services in them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::rules::{self, Rules, To};
use crate::meta::{Meta, MetaMut};
use crate::tree::{self, Object};

/// Kinds whose defaults need no code, by group and kind.
pub(super) static TABLES: &[(&str, &str, Rules)] = &[
    ("", "Endpoints", &[("subsets/*/ports/*/protocol", To::Text("TCP"))]),
    (
        "",
        "PersistentVolume",
        &[
            ("spec+/persistentVolumeReclaimPolicy", To::Text("Retain")),
            ("spec+/volumeMode", To::Text("Filesystem")),
            ("spec/hostPath/type", To::Text("")),
            ("spec/rbd/pool", To::Text("rbd")),
            ("spec/rbd/user", To::Text("admin")),
            ("spec/rbd/keyring", To::Text("/etc/ceph/keyring")),
            ("spec/iscsi/iscsiInterface", To::Text("default")),
            ("spec/azureDisk/cachingMode", To::Text("ReadWrite")),
            ("spec/azureDisk/kind", To::Text("Shared")),
            ("spec/azureDisk/fsType", To::Text("ext4")),
            ("spec/azureDisk/readOnly", To::Flag(false)),
            ("status+/phase", To::Text("Pending")),
        ],
    ),
    (
        "",
        "PersistentVolumeClaim",
        &[("spec+/volumeMode", To::Text("Filesystem")), ("status+/phase", To::Text("Pending"))],
    ),
    ("networking.k8s.io", "IngressClass", &[("spec/parameters/scope", To::Text("Cluster"))]),
    (
        "storage.k8s.io",
        "StorageClass",
        &[("reclaimPolicy", To::Text("Delete")), ("volumeBindingMode", To::Text("Immediate"))],
    ),
    (
        "storage.k8s.io",
        "CSIDriver",
        &[
            ("spec+/attachRequired", To::Flag(true)),
            ("spec+/podInfoOnMount", To::Flag(false)),
            ("spec+/storageCapacity", To::Flag(false)),
            ("spec+/fsGroupPolicy", To::Text("ReadWriteOnceWithFSType")),
            ("spec+/requiresRepublish", To::Flag(false)),
            ("spec+/seLinuxMount", To::Flag(false)),
        ],
    ),
    ("scheduling.k8s.io", "PriorityClass", &[("preemptionPolicy", To::Text("PreemptLowerPriority"))]),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", WEBHOOKS_MUTATING),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", WEBHOOKS),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicy",
        &[
            ("spec+/failurePolicy", To::Text("Fail")),
            ("spec/matchConstraints/matchPolicy", To::Text("Equivalent")),
            ("spec/matchConstraints/namespaceSelector", To::Empty),
            ("spec/matchConstraints/objectSelector", To::Empty),
            ("spec/matchConstraints/resourceRules/*/scope", To::Text("*")),
            ("spec/matchConstraints/excludeResourceRules/*/scope", To::Text("*")),
        ],
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicy",
        &[
            ("spec+/failurePolicy", To::Text("Fail")),
            ("spec/matchConstraints/matchPolicy", To::Text("Equivalent")),
            ("spec/matchConstraints/namespaceSelector", To::Empty),
            ("spec/matchConstraints/objectSelector", To::Empty),
            ("spec/matchConstraints/resourceRules/*/scope", To::Text("*")),
            ("spec/matchConstraints/excludeResourceRules/*/scope", To::Text("*")),
        ],
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
        &[
            ("spec/matchResources/matchPolicy", To::Text("Equivalent")),
            ("spec/matchResources/namespaceSelector", To::Empty),
            ("spec/matchResources/objectSelector", To::Empty),
        ],
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicyBinding",
        &[
            ("spec/matchResources/matchPolicy", To::Text("Equivalent")),
            ("spec/matchResources/namespaceSelector", To::Empty),
            ("spec/matchResources/objectSelector", To::Empty),
        ],
    ),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", &[("spec+/matchingPrecedence", To::Int(1000))]),
    (
        "resource.k8s.io",
        "ResourceClaim",
        &[
            ("spec/devices/requests/*/exactly/allocationMode", To::Text("ExactCount")),
            ("spec/devices/requests/*/exactly/tolerations/*/operator", To::Text("Equal")),
            ("spec/devices/requests/*/firstAvailable/*/allocationMode", To::Text("ExactCount")),
        ],
    ),
    (
        "resource.k8s.io",
        "ResourceClaimTemplate",
        &[
            ("spec/spec/devices/requests/*/exactly/allocationMode", To::Text("ExactCount")),
            ("spec/spec/devices/requests/*/exactly/tolerations/*/operator", To::Text("Equal")),
            ("spec/spec/devices/requests/*/firstAvailable/*/allocationMode", To::Text("ExactCount")),
        ],
    ),
    ("apiregistration.k8s.io", "APIService", &[("spec/service/port", To::Int(443))]),
];

static WEBHOOKS: Rules = &[
    ("webhooks/*/failurePolicy", To::Text("Fail")),
    ("webhooks/*/matchPolicy", To::Text("Equivalent")),
    ("webhooks/*/namespaceSelector", To::Empty),
    ("webhooks/*/objectSelector", To::Empty),
    ("webhooks/*/timeoutSeconds", To::Int(10)),
    ("webhooks/*/rules/*/scope", To::Text("*")),
    ("webhooks/*/clientConfig/service/port", To::Int(443)),
];

static WEBHOOKS_MUTATING: Rules = &[
    ("webhooks/*/failurePolicy", To::Text("Fail")),
    ("webhooks/*/matchPolicy", To::Text("Equivalent")),
    ("webhooks/*/namespaceSelector", To::Empty),
    ("webhooks/*/objectSelector", To::Empty),
    ("webhooks/*/timeoutSeconds", To::Int(10)),
    ("webhooks/*/reinvocationPolicy", To::Text("Never")),
    ("webhooks/*/rules/*/scope", To::Text("*")),
    ("webhooks/*/clientConfig/service/port", To::Int(443)),
];

/// `stringData` is a way to write `data`; it is never stored.
pub(super) fn secret(object: &mut Value) {
    rules::apply(object, &[("type", To::Text("Opaque"))]);
    let Some(Value::Object(plain)) = tree::remove(object, "stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let Some(data) = tree::object(object, "data") else { return };
    for (key, value) in plain {
        tree::set(data, &key, STANDARD.encode(value.as_str().unwrap_or_default()));
    }
}

/// Every namespace carries its name as a label, for selectors.
pub(super) fn namespace(object: &mut Value) {
    let name = Meta::of(object).name().to_owned();
    if !name.is_empty() {
        MetaMut::of(object).set_label("kubernetes.io/metadata.name", &name);
    }
}

/// What a node has is what it can give, unless it says otherwise.
pub(super) fn node(object: &mut Value) {
    if let Some(status) = object.get_mut("status")
        && let Some(capacity) = tree::at(status, "/capacity").cloned()
    {
        tree::set_default(status, "allocatable", capacity);
    }
}

pub(super) fn limit_range(object: &mut Value) {
    for item in tree::list_mut(object, "/spec/limits") {
        if tree::text(item, "/type") != "Container" {
            continue;
        }
        let copy = |item: &mut Value, from: &str, to: &str| {
            let from = tree::map(item, from).cloned().unwrap_or_default();
            if from.is_empty() {
                return;
            }
            if let Some(target) = tree::object(item, to) {
                for (name, amount) in from {
                    tree::set_default(target, &name, amount);
                }
            }
        };
        copy(item, "/max", "default");
        copy(item, "/default", "defaultRequest");
        copy(item, "/min", "defaultRequest");
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn role_binding(object: &mut Value) {
    rules::apply(object, &[("roleRef/apiGroup", To::Text(RBAC))]);
    for subject in tree::list_mut(object, "/subjects") {
        if matches!(tree::text(subject, "/kind"), "User" | "Group") && tree::text(subject, "/apiGroup").is_empty() {
            tree::set(subject, "apiGroup", RBAC);
        }
    }
}

pub(super) fn autoscaler(version: &str, object: &mut Value) {
    rules::apply(object, &[("spec+/minReplicas", To::Int(1))]);
    let Some(spec) = object.get_mut("spec") else { return };
    if version == "v1" {
        return;
    }
    if tree::list(spec, "/metrics").is_empty() {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        tree::set(spec, "metrics", cpu);
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) else { return };
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (direction, policies, window) in [("scaleUp", up, Some(0)), ("scaleDown", down, None)] {
        if let Some(rules) = tree::object(behavior, direction) {
            tree::set_default(rules, "policies", policies);
            tree::set_default(rules, "selectPolicy", "Max");
            if let Some(window) = window {
                tree::set_default(rules, "stabilizationWindowSeconds", window);
            }
        }
    }
}

pub(super) fn priority_level(object: &mut Value) {
    static LIMITED: Rules = &[
        ("spec/limited/nominalConcurrencyShares", To::Int(30)),
        ("spec/limited/lendablePercent", To::Int(0)),
        ("spec/limited/limitResponse/queuing/handSize", To::Int(8)),
        ("spec/limited/limitResponse/queuing/queues", To::Int(64)),
        ("spec/limited/limitResponse/queuing/queueLengthLimit", To::Int(50)),
    ];
    static EXEMPT: Rules =
        &[("spec/exempt+/nominalConcurrencyShares", To::Int(0)), ("spec/exempt+/lendablePercent", To::Int(0))];
    match tree::text(object, "/spec/type") {
        "Limited" => rules::apply(object, LIMITED),
        "Exempt" => rules::apply(object, EXEMPT),
        _ => {}
    }
}

pub(super) fn custom_resource_definition(object: &mut Value) {
    rules::apply(
        object,
        &[
            ("spec+/scope", To::Text("Namespaced")),
            ("spec+/conversion+/strategy", To::Text("None")),
            ("spec/conversion/webhook/clientConfig/service/port", To::Int(443)),
        ],
    );
    let names = object.pointer_mut("/spec/names").filter(|names| names.is_object());
    let Some(names) = names else { return };
    let kind = tree::text(names, "/kind").to_owned();
    if kind.is_empty() {
        return;
    }
    for (key, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
        if tree::text(names, &format!("/{key}")).is_empty() {
            tree::set(names, key, value);
        }
    }
    let versions = object.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten().filter_map(Value::as_object_mut) {
        default_printer_columns(version);
    }
}

/// A version without columns of its own shows the age.
fn default_printer_columns(version: &mut Object) {
    let empty = version.get("additionalPrinterColumns").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if empty {
        version.shift_remove("additionalPrinterColumns");
    }
}
