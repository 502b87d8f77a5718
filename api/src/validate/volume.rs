//! Volumes of a pod: each names one source, and the source is complete.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, checks, env};
use crate::names;
use crate::status::{FieldError, Path};
use crate::tree;

/// Texts that must be given, by source.
static REQUIRED: &[(&str, &[&str])] = &[
    ("hostPath", &["path"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("secret", &["secretName"]),
    ("configMap", &["name"]),
    ("csi", &["driver"]),
    ("image", &["reference"]),
    ("flexVolume", &["driver"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("gcePersistentDisk", &["pdName"]),
    ("azureFile", &["secretName", "shareName"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("vsphereVolume", &["volumePath"]),
    ("portworxVolume", &["volumeID"]),
    ("cinder", &["volumeID"]),
    ("rbd", &["image"]),
    ("quobyte", &["registry", "volume"]),
];

static HOST_PATH_TYPES: [&str; 7] =
    ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks all volumes.
pub(super) fn list(errors: &mut Errors, spec: &Value, path: &Path) {
    let path = path.child("volumes");
    let volumes = tree::list(spec, "/volumes");
    checks::unique(errors, volumes.iter().map(|volume| tree::text(volume, "/name")), |index| {
        path.index(index).child("name")
    });
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        if let Some(name) = checks::required(errors, volume, "name", &path) {
            checks::invalid(errors, &path.child("name"), name, names::dns_label(name));
        }
        source(errors, volume, &path);
    }
}

fn source(errors: &mut Errors, volume: &Value, path: &Path) {
    let Some(fields) = volume.as_object() else { return };
    let mut count = 0;
    for (name, source) in fields.iter().filter(|(name, source)| *name != "name" && source.is_object()) {
        count += 1;
        let path = path.child(name);
        if count > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        for (_, keys) in REQUIRED.iter().filter(|(of, _)| of == name) {
            for key in *keys {
                checks::required(errors, source, key, &path);
            }
        }
        details(errors, name, source, &path);
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn details(errors: &mut Errors, name: &str, source: &Value, path: &Path) {
    match name {
        "emptyDir" => empty_dir(errors, source, path),
        "hostPath" => {
            checks::no_backsteps(errors, tree::text(source, "/path"), &path.child("path"));
            checks::choice(errors, source, "type", path, &HOST_PATH_TYPES, true);
        }
        "nfs" if !tree::text(source, "/path").starts_with('/') && tree::some_text(source, "/path").is_some() => {
            let text = "must be an absolute path";
            errors.push(FieldError::invalid(&path.child("path"), tree::text(source, "/path"), text));
        }
        "secret" | "configMap" => {
            checks::file_mode(errors, source, "defaultMode", path);
            key_paths(errors, source, path);
        }
        "downwardAPI" => {
            checks::file_mode(errors, source, "defaultMode", path);
            downward_files(errors, source, path);
        }
        "projected" => projected(errors, source, path),
        "ephemeral" => ephemeral(errors, source, path),
        "image" => checks::choice(errors, source, "pullPolicy", path, &["Always", "IfNotPresent", "Never"], true),
        _ => {}
    }
}

fn empty_dir(errors: &mut Errors, source: &Value, path: &Path) {
    if let Some(limit) = tree::at(source, "/sizeLimit")
        && crate::quantity::Quantity::from_value(limit).is_ok_and(|limit| limit.is_negative())
    {
        errors
            .push(FieldError::forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity"));
    }
    let medium = tree::text(source, "/medium");
    if !matches!(medium, "" | "Memory" | "HugePages") && !medium.starts_with("HugePages-") {
        errors.push(FieldError::not_supported(&path.child("medium"), medium, &["", "HugePages", "Memory"]));
    }
}

fn key_paths(errors: &mut Errors, source: &Value, path: &Path) {
    for (index, item) in tree::list(source, "/items").iter().enumerate() {
        let path = path.child("items").index(index);
        checks::required(errors, item, "key", &path);
        if let Some(file) = checks::required(errors, item, "path", &path) {
            checks::local_path(errors, file, &path.child("path"));
        }
        checks::file_mode(errors, item, "mode", &path);
    }
}

fn downward_files(errors: &mut Errors, source: &Value, path: &Path) {
    for (index, item) in tree::list(source, "/items").iter().enumerate() {
        // The path of upstream's messages has no "items" here.
        let path = path.child("items").index(index);
        match checks::required(errors, item, "path", &path) {
            Some(file) => checks::local_path(errors, file, &path.child("path")),
            None => continue,
        }
        match (tree::at(item, "/fieldRef"), tree::at(item, "/resourceFieldRef")) {
            (Some(_), Some(_)) => {
                let text = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&path, "resource", text));
            }
            (Some(field), None) => env::field_reference(errors, field, &env::VOLUME_FIELDS, &path.child("fieldRef")),
            (None, Some(resource)) => {
                env::resource_reference(errors, resource, true, &path.child("resourceFieldRef"));
            }
            (None, None) => {
                errors.push(FieldError::required(&path, "one of fieldRef and resourceFieldRef is required"));
            }
        }
        checks::file_mode(errors, item, "mode", &path);
    }
}

fn projected(errors: &mut Errors, source: &Value, path: &Path) {
    checks::file_mode(errors, source, "defaultMode", path);
    let mut files = HashSet::new();
    for (index, projection) in tree::list(source, "/sources").iter().enumerate() {
        let path = path.child("sources").index(index);
        let Some(kinds) = projection.as_object() else { continue };
        let mut count = 0;
        for (kind, inner) in kinds.iter().filter(|(_, inner)| inner.is_object()) {
            count += 1;
            let path = path.child(kind);
            if count > 1 {
                errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type per source"));
                continue;
            }
            projection_details(errors, kind, inner, &path);
            for file in files_of(kind, inner) {
                if !files.insert(file) {
                    errors.push(FieldError::invalid(&path, file, "conflicting duplicate paths"));
                }
            }
        }
        if count == 0 {
            errors.push(FieldError::required(&path, "must specify at least one source type"));
        }
    }
}

fn files_of<'a>(kind: &str, projection: &'a Value) -> Vec<&'a str> {
    match kind {
        "serviceAccountToken" | "clusterTrustBundle" => tree::some_text(projection, "/path").into_iter().collect(),
        _ => tree::list(projection, "/items").iter().filter_map(|item| tree::some_text(item, "/path")).collect(),
    }
}

fn projection_details(errors: &mut Errors, kind: &str, projection: &Value, path: &Path) {
    match kind {
        "secret" | "configMap" => {
            checks::required(errors, projection, "name", path);
            key_paths(errors, projection, path);
        }
        "downwardAPI" => downward_files(errors, projection, path),
        "serviceAccountToken" => {
            let seconds = tree::int(projection, "/expirationSeconds").unwrap_or(3600);
            let path_of_seconds = path.child("expirationSeconds");
            if seconds < 600 {
                let text = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(&path_of_seconds, seconds, text));
            } else if seconds > 1 << 32 {
                let text = "may not specify a duration larger than 2^32 seconds";
                errors.push(FieldError::invalid(&path_of_seconds, seconds, text));
            }
            if let Some(file) = checks::required(errors, projection, "path", path) {
                checks::local_path(errors, file, &path.child("path"));
            }
        }
        "clusterTrustBundle" => {
            if let Some(file) = checks::required(errors, projection, "path", path) {
                checks::local_path(errors, file, &path.child("path"));
            }
        }
        _ => {}
    }
}

fn ephemeral(errors: &mut Errors, source: &Value, path: &Path) {
    let path = path.child("volumeClaimTemplate");
    match tree::at(source, "/volumeClaimTemplate/spec") {
        None => errors.push(FieldError::required(&path, "")),
        Some(spec) => super::storage::claim_spec(errors, spec, &path.child("spec")),
    }
}
