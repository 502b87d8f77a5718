//! Amounts of resources that containers and pods ask for.

use serde_json::Value;

use super::{Errors, checks};
use crate::names;
use crate::quantity::Quantity;
use crate::status::{FieldError, Path};
use crate::tree;

/// `cpu`, `memory`... and `hugepages-*`: what a container may ask for without a vendor's prefix.
fn is_standard_for_containers(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Only these may be promised more often than they exist.
fn may_be_overcommitted(name: &str) -> bool {
    !name.starts_with("hugepages-") && (!name.contains('/') || name.contains("kubernetes.io/"))
}

/// A name in a resource list.
pub(super) fn name(errors: &mut Errors, name: &str, path: &Path) -> bool {
    let texts = names::qualified_name(name);
    let valid = texts.is_empty();
    checks::invalid(errors, path, name, texts);
    valid
}

fn container_name(errors: &mut Errors, resource: &str, path: &Path) {
    if name(errors, resource, path) && !resource.contains('/') && !is_standard_for_containers(resource) {
        errors.push(FieldError::invalid(path, resource, "must be a standard resource for containers"));
    }
}

/// A quantity of `resource`: not negative; whole, where the resource cannot be divided.
pub(super) fn amount(errors: &mut Errors, resource: &str, value: &Value, path: &Path) -> Option<Quantity> {
    let quantity = checks::quantity(errors, value, path)?;
    if (resource.contains('/') || resource == "pods") && quantity.is_fractional() {
        errors.push(FieldError::invalid(path, quantity.to_string(), "must be an integer"));
    }
    Some(quantity)
}

/// `resources` of a container (or of a whole pod): known names, sane amounts, requests within limits.
pub(super) fn requirements(errors: &mut Errors, holder: &Value, path: &Path) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let mut has_cpu_or_memory = false;
    let mut has_huge_pages = false;
    for (resource, value) in tree::entries(holder, "/limits") {
        let path = limits_path.key(resource);
        container_name(errors, resource, &path);
        amount(errors, resource, value, &path);
        has_huge_pages |= resource.starts_with("hugepages-");
        has_cpu_or_memory |= matches!(resource, "cpu" | "memory");
    }
    for (resource, value) in tree::entries(holder, "/requests") {
        let path = requests_path.key(resource);
        container_name(errors, resource, &path);
        has_huge_pages |= resource.starts_with("hugepages-");
        has_cpu_or_memory |= matches!(resource, "cpu" | "memory");
        let Some(request) = amount(errors, resource, value, &path) else { continue };
        let limit = tree::map(holder, "/limits").and_then(|limits| limits.get(resource));
        within_limit(errors, resource, request, limit, &requests_path, &limits_path);
    }
    if has_huge_pages && !has_cpu_or_memory {
        let text = "HugePages require cpu or memory";
        errors.push(FieldError::forbidden(path, text));
    }
    for (index, claim) in tree::list(holder, "/claims").iter().enumerate() {
        checks::required(errors, claim, "name", &path.child("claims").index(index));
    }
}

fn within_limit(
    errors: &mut Errors,
    resource: &str,
    request: Quantity,
    limit: Option<&Value>,
    requests: &Path,
    limits: &Path,
) {
    let Some(limit) = limit.and_then(|limit| Quantity::from_value(limit).ok()) else {
        if !may_be_overcommitted(resource) {
            errors.push(FieldError::required(limits, "Limit must be set for non overcommitable resources"));
        }
        return;
    };
    if !may_be_overcommitted(resource) && request != limit {
        let text = format!("must be equal to {resource} limit of {limit}");
        errors.push(FieldError::invalid(requests, request.to_string(), text));
    } else if request > limit {
        let text = format!("must be less than or equal to {resource} limit of {limit}");
        errors.push(FieldError::invalid(requests, request.to_string(), text));
    }
}
