//! Rows of volumes, claims and what provides them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{self, UNSET};
use super::columns::{AGE, Column, NAME, flag, number, text, wide};
use super::{Table, table_of};
use crate::meta::Meta;
use crate::tree;

const STORAGE: &str = "storage.k8s.io";

pub(super) static TABLES: &[Table] = &[
    table_of("", "PersistentVolume", VOLUME, volume),
    table_of("", "PersistentVolumeClaim", CLAIM, claim),
    table_of(STORAGE, "StorageClass", CLASS, class),
    table_of(STORAGE, "VolumeAttributesClass", ATTRIBUTES, attributes),
    table_of(STORAGE, "VolumeAttachment", ATTACHMENT, attachment),
    table_of(STORAGE, "CSINode", CSI_NODE, csi_node),
    table_of(STORAGE, "CSIDriver", CSI_DRIVER, csi_driver),
    table_of(STORAGE, "CSIStorageCapacity", CAPACITY, capacity),
];

const VOLUME_MODE: Column = wide("VolumeMode", "File system or raw device.");
const ATTRIBUTES_CLASS: Column = text("VolumeAttributesClass", "Class of changeable attributes.");

static VOLUME: &[Column] = &[
    NAME,
    text("Capacity", "Size of the volume."),
    text("Access Modes", "How the volume can be mounted."),
    text("Reclaim Policy", "What happens when its claim goes."),
    text("Status", "Phase of the volume."),
    text("Claim", "Claim the volume is bound to."),
    text("StorageClass", "Class of the volume."),
    ATTRIBUTES_CLASS,
    text("Reason", "Why the volume failed."),
    AGE,
    VOLUME_MODE,
];

static CLAIM: &[Column] = &[
    NAME,
    text("Status", "Phase of the claim."),
    text("Volume", "Volume the claim is bound to."),
    text("Capacity", "Size of that volume."),
    text("Access Modes", "How it can be mounted."),
    text("StorageClass", "Class the claim asks for."),
    ATTRIBUTES_CLASS,
    AGE,
    VOLUME_MODE,
];

static CLASS: &[Column] = &[
    NAME,
    text("Provisioner", "Who makes volumes of the class."),
    text("ReclaimPolicy", "What happens to them when their claim goes."),
    text("VolumeBindingMode", "When claims are bound."),
    text("AllowVolumeExpansion", "Whether claims may grow."),
    AGE,
];

static ATTRIBUTES: &[Column] = &[NAME, text("DriverName", "Driver the class belongs to."), AGE];

static ATTACHMENT: &[Column] = &[
    NAME,
    Column { format: "name", ..text("Attacher", "Driver that attaches.") },
    text("PV", "Volume that is attached."),
    text("Node", "Node it is attached to."),
    flag("Attached", "Whether it is attached."),
    AGE,
];

static CSI_NODE: &[Column] = &[NAME, number("Drivers", "How many drivers the node has."), AGE];

static CSI_DRIVER: &[Column] = &[
    NAME,
    flag("AttachRequired", "Whether volumes are attached before use."),
    flag("PodInfoOnMount", "Whether the driver is told about the pod."),
    flag("StorageCapacity", "Whether the driver reports free space."),
    text("TokenRequests", "Audiences of tokens the driver gets."),
    flag("RequiresRepublish", "Whether mounts are refreshed."),
    text("Modes", "Kinds of volumes the driver serves."),
    AGE,
];

static CAPACITY: &[Column] =
    &[NAME, text("StorageClassName", "Class the space is for."), text("Capacity", "How much there is.")];

/// Access modes in short, in a fixed order.
fn access_modes(object: &Value, pointer: &str) -> Value {
    let modes = tree::list(object, pointer);
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let texts: Vec<&str> =
        short.iter().filter(|(mode, _)| modes.iter().any(|found| found == mode)).map(|(_, short)| *short).collect();
    json!(texts.join(","))
}

fn phase(object: &Value) -> Value {
    if Meta::of(object).is_deleting() { json!("Terminating") } else { json!(tree::text(object, "/status/phase")) }
}

/// The class, in the field or in the annotation it used to be.
fn storage_class(object: &Value) -> Value {
    let old = Meta::of(object).annotation("volume.beta.kubernetes.io/storage-class");
    json!(old.unwrap_or_else(|| tree::text(object, "/spec/storageClassName")))
}

fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = tree::at(object, "/spec/claimRef").map_or_else(String::new, |claim| {
        format!("{}/{}", tree::text(claim, "/namespace"), tree::text(claim, "/name"))
    });
    vec![
        cells::name(object),
        cells::text_or(object, "/spec/capacity/storage", "0"),
        access_modes(object, "/spec/accessModes"),
        json!(tree::text(object, "/spec/persistentVolumeReclaimPolicy")),
        phase(object),
        json!(claim),
        storage_class(object),
        cells::text_or(object, "/spec/volumeAttributesClassName", UNSET),
        json!(tree::text(object, "/status/reason")),
        cells::age(object, now),
        cells::text_or(object, "/spec/volumeMode", UNSET),
    ]
}

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = tree::some_text(object, "/spec/volumeName").is_some();
    let capacity = if bound { cells::text_or(object, "/status/capacity/storage", "0") } else { json!("") };
    let modes = if bound { access_modes(object, "/status/accessModes") } else { json!("") };
    vec![
        cells::name(object),
        phase(object),
        json!(tree::text(object, "/spec/volumeName")),
        capacity,
        modes,
        storage_class(object),
        cells::text_or(object, "/spec/volumeAttributesClassName", UNSET),
        cells::age(object, now),
        cells::text_or(object, "/spec/volumeMode", UNSET),
    ]
}

fn named_default(object: &Value, annotations: &[&str]) -> Value {
    let meta = Meta::of(object);
    let is_default = annotations.iter().any(|key| meta.annotation(key) == Some("true"));
    json!(if is_default { format!("{} (default)", meta.name()) } else { meta.name().to_owned() })
}

fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let keys = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    vec![
        named_default(object, &keys),
        json!(tree::text(object, "/provisioner")),
        cells::text_or(object, "/reclaimPolicy", "Delete"),
        cells::text_or(object, "/volumeBindingMode", "Immediate"),
        json!(tree::flag(object, "/allowVolumeExpansion")),
        cells::age(object, now),
    ]
}

fn attributes(object: &Value, now: Timestamp) -> Vec<Value> {
    let name = named_default(object, &["storage.alpha.kubernetes.io/is-default-class"]);
    vec![name, json!(tree::text(object, "/driverName")), cells::age(object, now)]
}

fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        cells::name(object),
        json!(tree::text(object, "/spec/attacher")),
        json!(tree::text(object, "/spec/source/persistentVolumeName")),
        json!(tree::text(object, "/spec/nodeName")),
        json!(tree::flag(object, "/status/attached")),
        cells::age(object, now),
    ]
}

fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), cells::length(object, "/spec/drivers"), cells::age(object, now)]
}

fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let join = |pointer: &str, inner: &str, none: &str| {
        let texts: Vec<&str> = tree::list(object, pointer).iter().map(|item| tree::text(item, inner)).collect();
        if texts.is_empty() { none.to_owned() } else { texts.join(",") }
    };
    vec![
        cells::name(object),
        json!(tree::at(object, "/spec/attachRequired").and_then(Value::as_bool).unwrap_or(true)),
        json!(tree::flag(object, "/spec/podInfoOnMount")),
        json!(tree::flag(object, "/spec/storageCapacity")),
        json!(join("/spec/tokenRequests", "/audience", UNSET)),
        json!(tree::flag(object, "/spec/requiresRepublish")),
        json!(join("/spec/volumeLifecycleModes", "", cells::NONE)),
        cells::age(object, now),
    ]
}

fn capacity(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![
        cells::name(object),
        json!(tree::text(object, "/storageClassName")),
        cells::text_or(object, "/capacity", UNSET),
    ]
}
