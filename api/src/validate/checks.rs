//! Checks that many kinds share: numbers, names, choices, selectors, addresses, quantities.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::Errors;
use crate::names;
use crate::quantity::Quantity;
use crate::status::{FieldError, Path};
use crate::tree;

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// `texts` are what is wrong with `value`.
pub(super) fn invalid(errors: &mut Errors, path: &Path, value: &str, texts: Vec<String>) {
    errors.extend(texts.into_iter().map(|text| FieldError::invalid(path, value, text)));
}

/// The text field `key` of `value` must not be empty.
pub(super) fn required<'a>(errors: &mut Errors, value: &'a Value, key: &str, path: &Path) -> Option<&'a str> {
    let found = value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if found.is_none() {
        errors.push(FieldError::required(&path.child(key), ""));
    }
    found
}

/// The text field `key` must be one of `allowed`; if it may be missing, `optional`.
pub(super) fn choice(errors: &mut Errors, value: &Value, key: &str, path: &Path, allowed: &[&str], optional: bool) {
    let found = value.get(key).and_then(Value::as_str).unwrap_or_default();
    match found {
        "" if optional => {}
        "" => errors.push(FieldError::required(&path.child(key), "")),
        _ if allowed.contains(&found) => {}
        _ => errors.push(FieldError::not_supported(&path.child(key), found, allowed)),
    }
}

/// The number at `key`, if any, must not be negative.
pub(super) fn not_negative(errors: &mut Errors, value: &Value, key: &str, path: &Path) {
    if let Some(number) = value.get(key).and_then(Value::as_i64).filter(|number| *number < 0) {
        errors.push(FieldError::invalid(&path.child(key), number, NOT_NEGATIVE));
    }
}

/// The number at `key`, if any, must be in the range.
pub(super) fn in_range(errors: &mut Errors, value: &Value, key: &str, path: &Path, low: i64, high: i64) {
    if let Some(number) = value.get(key).and_then(Value::as_i64).filter(|number| !(low..=high).contains(number)) {
        errors.push(FieldError::invalid(&path.child(key), number, range_text(low, high)));
    }
}

pub(super) fn range_text(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

pub(super) fn port(errors: &mut Errors, number: i64, path: &Path) {
    if !(1..=65535).contains(&number) {
        errors.push(FieldError::invalid(path, number, range_text(1, 65535)));
    }
}

/// A port given by number or by name.
pub(super) fn port_or_name(errors: &mut Errors, value: Option<&Value>, path: &Path) {
    match value {
        Some(Value::String(name)) => invalid(errors, path, name, names::port_name(name)),
        Some(Value::Number(number)) => port(errors, number.as_i64().unwrap_or(-1), path),
        _ => port(errors, 0, path),
    }
}

/// A count or a percentage: `IntOrString` that is not negative.
pub(super) fn count_or_percent(errors: &mut Errors, value: Option<&Value>, path: &Path) {
    match value {
        Some(Value::String(text)) if !is_percent(text) => {
            let text = text.as_str();
            errors.push(FieldError::invalid(path, text, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"));
        }
        Some(Value::Number(number)) if number.as_i64().is_none_or(|number| number < 0) => {
            errors.push(FieldError::invalid(path, number.clone(), NOT_NEGATIVE));
        }
        _ => {}
    }
}

fn is_percent(text: &str) -> bool {
    text.strip_suffix('%').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn not_above_100_percent(errors: &mut Errors, value: Option<&Value>, path: &Path) {
    if let Some(Value::String(text)) = value
        && is_percent(text)
        && text.trim_end_matches('%').parse::<u64>().is_ok_and(|percent| percent > 100)
    {
        errors.push(FieldError::invalid(path, text.as_str(), "must not be greater than 100%"));
    }
}

/// Whether a count or percentage is zero.
pub(super) fn is_zero(value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(Value::String(text)) => text.trim_end_matches('%').bytes().all(|b| b == b'0'),
        Some(other) => other.as_i64() == Some(0),
    }
}

/// Labels at `pointer` of `value`: keys and values.
pub(super) fn labels(errors: &mut Errors, value: &Value, pointer: &str, path: &Path) {
    for (key, value) in tree::entries(value, pointer) {
        invalid(errors, path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid(errors, path, value, names::label_value(value));
    }
}

/// A `LabelSelector` object.
pub(super) fn label_selector(errors: &mut Errors, selector: Option<&Value>, path: &Path) {
    let Some(selector) = selector else { return };
    labels(errors, selector, "/matchLabels", &path.child("matchLabels"));
    for (index, expression) in tree::list(selector, "/matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = tree::list(expression, "/values");
        match tree::text(expression, "/operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
        let key = tree::text(expression, "/key");
        invalid(errors, &path.child("key"), key, names::qualified_name(key));
        for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
            invalid(errors, &path.child("values").index(index), value, names::label_value(value));
        }
    }
}

/// Names that occur twice among `names`, reported at the path that `at` makes of the position.
pub(super) fn unique<'a>(errors: &mut Errors, names: impl Iterator<Item = &'a str>, at: impl Fn(usize) -> Path) {
    let mut seen = HashSet::new();
    for (index, name) in names.enumerate() {
        if !name.is_empty() && !seen.insert(name) {
            errors.push(FieldError::duplicate(&at(index), name));
        }
    }
}

/// Parses an address in the form new fields demand.
pub(super) fn address(errors: &mut Errors, value: &str, path: &Path) -> Option<IpAddr> {
    let parsed = value.parse().ok();
    if parsed.is_none() {
        errors.push(FieldError::invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
    parsed
}

/// Checks `10.0.0.0/24` and the like.
pub(super) fn cidr(errors: &mut Errors, value: &str, path: &Path) {
    let valid = value.split_once('/').is_some_and(|(address, length)| {
        let bits = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        length.parse::<u8>().is_ok_and(|length| length <= bits)
    });
    if !valid {
        errors.push(FieldError::invalid(
            path,
            value,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ));
    }
}

/// Addresses that must not be the target of service traffic.
pub(super) fn not_special(errors: &mut Errors, value: &str, path: &Path) {
    let Some(address) = address(errors, value, path) else { return };
    let (link_local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    let complaints = [
        (address.is_unspecified(), format!("may not be unspecified ({value})")),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ];
    for (_, text) in complaints.into_iter().filter(|(applies, _)| *applies) {
        errors.push(FieldError::invalid(path, value, text));
    }
}

/// Parses the quantity at `path`; reports what does not parse or is negative.
pub(super) fn quantity(errors: &mut Errors, value: &Value, path: &Path) -> Option<Quantity> {
    match Quantity::from_value(value) {
        Err(error) => {
            errors.push(FieldError::invalid(path, value.clone(), error.to_string()));
            None
        }
        Ok(quantity) if quantity.is_negative() => {
            errors.push(FieldError::invalid(path, quantity.to_string(), NOT_NEGATIVE));
            None
        }
        Ok(quantity) => Some(quantity),
    }
}

/// A path inside a volume: relative, without `..`.
pub(super) fn local_path(errors: &mut Errors, value: &str, path: &Path) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    no_backsteps(errors, value, path);
}

pub(super) fn no_backsteps(errors: &mut Errors, value: &str, path: &Path) {
    if value.split(['/', '\\']).any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

/// File modes are octal permissions.
pub(super) fn file_mode(errors: &mut Errors, value: &Value, key: &str, path: &Path) {
    if let Some(mode) = value.get(key).and_then(Value::as_i64).filter(|mode| !(0..=0o777).contains(mode)) {
        let text = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(&path.child(key), mode, text));
    }
}

/// `new` must equal `old` at `pointer`.
pub(super) fn immutable(errors: &mut Errors, new: &Value, old: &Value, pointer: &str, path: &Path) {
    if !tree::same(tree::at(new, pointer), tree::at(old, pointer)) {
        let bad = tree::at(new, pointer).cloned().unwrap_or_default();
        errors.push(FieldError::immutable(path, bad));
    }
}
