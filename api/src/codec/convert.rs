//! Kinds that are two views of one stored object: core and `events.k8s.io` events, autoscaling v1 and v2.
//!
//! Storage holds [`storage_kind`]; the other view is converted on its way in and out. Everything else passes unchanged.

use serde_json::{Map, Value, json};

use crate::kinds::{self, Kind};

type Object = Map<String, Value>;

/// Members of an event by core name and by `events.k8s.io` name; all others are called the same in both.
const EVENT: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The kind as which objects of `kind` are stored; mostly itself.
pub fn storage_kind(kind: &'static Kind) -> &'static Kind {
    match (kind.group, kind.version, kind.kind) {
        ("events.k8s.io", "v1", "Event") => kinds::by_gvk("", "v1", "Event").unwrap_or(kind),
        ("autoscaling", "v1", "HorizontalPodAutoscaler") => {
            kinds::by_gvk("autoscaling", "v2", "HorizontalPodAutoscaler").unwrap_or(kind)
        }
        _ => kind,
    }
}

/// Turns an object of `kind` into its stored form.
pub fn to_storage(kind: &'static Kind, object: Value) -> Value {
    let stored = storage_kind(kind);
    convert(kind, stored, object, true)
}

/// Turns a stored object into one of `kind`.
pub fn from_storage(kind: &'static Kind, object: Value) -> Value {
    let stored = storage_kind(kind);
    convert(stored, kind, object, false)
}

fn convert(from: &'static Kind, to: &'static Kind, object: Value, storing: bool) -> Value {
    let Value::Object(mut map) = object else { return object };
    if from == to {
        return Value::Object(map);
    }
    map.insert("apiVersion".into(), to.api_version().into());
    if from.kind == "Event" {
        return Value::Object(rename_event(map, storing));
    }
    if storing {
        hpa_to_v2(&mut map)
    } else {
        hpa_to_v1(&mut map)
    }
    Value::Object(map)
}

fn rename_event(map: Object, to_core: bool) -> Object {
    let name = |key: &str| {
        let pair = EVENT.iter().find(|(core, new)| key == if to_core { *new } else { *core });
        pair.map_or_else(|| key.to_owned(), |(core, new)| (if to_core { *core } else { *new }).to_owned())
    };
    map.into_iter().map(|(key, value)| (name(&key), value)).collect()
}

fn child<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    map.get_mut(key).and_then(Value::as_object_mut)
}

/// Takes an annotation's JSON text off the metadata.
fn take_annotation(map: &mut Object, key: &str) -> Option<Value> {
    let annotations = child(child(map, "metadata")?, "annotations")?;
    let text = annotations.shift_remove(key)?;
    serde_json::from_str(text.as_str()?).ok()
}

fn put_annotation(map: &mut Object, key: &str, value: Value) {
    let Some(metadata) = child(map, "metadata") else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(key.to_owned(), Value::String(value.to_string()));
    }
}

/// v1 knows CPU utilisation only; what else v2 has travels in annotations.
fn hpa_to_v2(map: &mut Object) {
    let (metrics, behavior) = (take_annotation(map, METRICS), take_annotation(map, BEHAVIOR));
    let (current, conditions) = (take_annotation(map, CURRENT_METRICS), take_annotation(map, CONDITIONS));
    if let Some(spec) = child(map, "spec") {
        let mut list = Vec::new();
        if let Some(percent) = spec.shift_remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        list.extend(metrics.and_then(as_list).unwrap_or_default());
        if !list.is_empty() {
            spec.insert("metrics".into(), Value::Array(list));
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = child(map, "status") {
        let mut list = Vec::new();
        if let Some(percent) = status.shift_remove("currentCPUUtilizationPercentage") {
            let now = json!({"averageUtilization": percent, "averageValue": "0"});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": now}}));
        }
        list.extend(current.and_then(as_list).unwrap_or_default());
        for (key, value) in [("currentMetrics", Some(Value::Array(list))), ("conditions", conditions)] {
            if let Some(value) = value.filter(|v| v.as_array().is_some_and(|l| !l.is_empty())) {
                status.insert(key.into(), value);
            }
        }
    }
}

fn as_list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(list) => Some(list),
        _ => None,
    }
}

fn hpa_to_v1(map: &mut Object) {
    let mut notes: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = child(map, "spec") {
        let (cpu, rest) = split_cpu(spec.shift_remove("metrics"), "/resource/target/averageUtilization");
        if let Some(percent) = cpu {
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
        notes.extend(rest.map(|r| (METRICS, r)));
        notes.extend(spec.shift_remove("behavior").map(|b| (BEHAVIOR, b)));
    }
    if let Some(status) = child(map, "status") {
        let (cpu, rest) = split_cpu(status.shift_remove("currentMetrics"), "/resource/current/averageUtilization");
        if let Some(percent) = cpu {
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        notes.extend(rest.map(|r| (CURRENT_METRICS, r)));
        notes.extend(status.shift_remove("conditions").map(|c| (CONDITIONS, c)));
    }
    notes.into_iter().for_each(|(key, value)| put_annotation(map, key, value));
}

/// The first CPU utilisation among the metrics, and the others.
fn split_cpu(metrics: Option<Value>, utilization: &str) -> (Option<Value>, Option<Value>) {
    let mut rest = metrics.and_then(as_list).unwrap_or_default();
    let is_cpu = |m: &Value| {
        m.pointer("/resource/name").and_then(Value::as_str) == Some("cpu") && m.pointer(utilization).is_some()
    };
    let cpu = rest.iter().position(is_cpu).map(|at| rest.remove(at));
    let percent = cpu.and_then(|m| m.pointer(utilization).cloned());
    (percent, (!rest.is_empty()).then_some(Value::Array(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_views_of_an_event_are_one_object() {
        let new = kinds::by_gvk("events.k8s.io", "v1", "Event").unwrap();
        let object = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "a"},
            "regarding": {"name": "p"}, "note": "hello", "reportingController": "c", "reason": "Why", "deprecatedCount": 3});
        let stored = to_storage(new, object.clone());
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!((&stored["involvedObject"]["name"], &stored["message"]), (&json!("p"), &json!("hello")));
        assert_eq!((&stored["reportingComponent"], &stored["count"]), (&json!("c"), &json!(3)));
        assert_eq!(from_storage(new, stored), object);
    }

    #[test]
    fn an_autoscaler_survives_the_older_view() {
        let v1 = kinds::by_gvk("autoscaling", "v1", "HorizontalPodAutoscaler").unwrap();
        let object = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}, "status": {}});
        let stored = to_storage(v1, object.clone());
        assert_eq!(stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(from_storage(v1, stored.clone()), object);
        let mut more = stored;
        more["spec"]["metrics"].as_array_mut().unwrap().push(json!({"type": "Pods"}));
        let seen = from_storage(v1, more.clone());
        assert!(seen["metadata"]["annotations"][METRICS].is_string());
        let mut back = to_storage(v1, seen);
        back["metadata"].as_object_mut().unwrap().shift_remove("annotations");
        assert_eq!(back, more);
    }
}
