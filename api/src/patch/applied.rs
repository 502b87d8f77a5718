//! What an applied configuration names, set in an object: maps merge, associative lists merge by all their keys, sets are
//! united, everything atomic is replaced. Directives mean nothing here; what is not named stays.
//!
//! Rule: structured merge of server-side apply (KEP-555), without ownership of fields. Work is linear in the sizes of both.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::schema::{Field, ListType, Message};
use crate::tree::Object;

type Schema = Option<&'static Message>;

/// Sets what `configuration` names in `document`, whose schema is `schema`.
pub fn applied(mut document: Value, configuration: &Value, schema: Schema) -> Value {
    set(&mut document, configuration, schema);
    document
}

fn set(target: &mut Value, wanted: &Value, schema: Schema) {
    match (target, wanted) {
        (Value::Object(target), Value::Object(wanted)) if !schema.is_some_and(|message| message.atomic) => {
            set_members(target, wanted, schema);
        }
        (target, wanted) => *target = wanted.clone(),
    }
}

fn set_members(target: &mut Object, wanted: &Object, schema: Schema) {
    // A null names nothing.
    for (key, value) in wanted.iter().filter(|(_, value)| !value.is_null()) {
        let field = schema.and_then(|message| message.field(key));
        match target.get_mut(key) {
            Some(present) if !field.is_some_and(|field| field.atomic) => set_field(present, value, field),
            _ => drop(target.insert(key.clone(), value.clone())),
        }
    }
}

fn set_field(present: &mut Value, wanted: &Value, field: Option<&'static Field>) {
    let (Some(field), Value::Array(items), Value::Array(wanted)) = (field, &mut *present, wanted) else {
        return match (present, wanted) {
            (Value::Object(present), Value::Object(wanted)) if field.is_some_and(|field| field.granular) => {
                set_members(present, wanted, field.and_then(Field::message));
            }
            (present, wanted) => set(present, wanted, field.and_then(Field::message)),
        };
    };
    match field.list_type {
        Some(ListType::Map) => set_elements(items, wanted, field),
        Some(ListType::Set) => {
            let mut known: HashSet<String> = items.iter().map(Value::to_string).collect();
            items.extend(wanted.iter().filter(|element| known.insert(element.to_string())).cloned());
        }
        Some(ListType::Atomic) | None => *present = Value::Array(wanted.clone()),
    }
}

fn set_elements(items: &mut Vec<Value>, wanted: &[Value], field: &'static Field) {
    let message = field.message();
    // What a key holds where an element leaves it out.
    let keys: Vec<(&str, Value)> = field.list_map_keys().map(|key| (key, default_of(message, key))).collect();
    let identity = |element: &Value| -> String {
        let parts = keys.iter().map(|(key, default)| element.get(*key).unwrap_or(default).to_string());
        parts.collect::<Vec<_>>().join(",")
    };
    let mut places: HashMap<String, usize> = HashMap::with_capacity(items.len());
    for (place, item) in items.iter().enumerate() {
        places.entry(identity(item)).or_insert(place);
    }
    for element in wanted {
        match places.get(&identity(element)) {
            Some(place) => set(&mut items[*place], element, message),
            None => {
                places.insert(identity(element), items.len());
                items.push(element.clone());
            }
        }
    }
}

fn default_of(message: Schema, key: &str) -> Value {
    let text = message.and_then(|message| message.field(key)).map_or("", |field| field.default);
    serde_json::from_str(text).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    #[test]
    fn lists_merge_by_all_their_keys_and_an_omitted_one_is_its_default() {
        let service = schema::message("core.v1.Service");
        let ports = |list: Value| json!({"spec": {"ports": list}});
        let stored = ports(json!([
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
        ]));
        let again = ports(json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]));
        assert_eq!(applied(stored.clone(), &again, service), stored);
        let one_more = ports(json!([{"name": "web", "port": 80}]));
        assert_eq!(applied(stored, &one_more, service)["spec"]["ports"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn sets_unite_atomic_lists_are_replaced_and_nothing_else_is_touched() {
        let pod = schema::message("core.v1.Pod");
        let stored = json!({
            "metadata": {"labels": {"a": "1"}, "finalizers": ["x"]},
            "spec": {"containers": [{"name": "c", "image": "i:1", "args": ["1", "2"], "env": [{"name": "E", "value": "1"}]}]},
        });
        let wanted = json!({
            "metadata": {"labels": {"b": "2"}, "finalizers": ["y", "x"]},
            "spec": {"nodeName": null, "containers": [
                {"name": "c", "args": ["3"], "env": [{"name": "F", "$patch": "delete"}]}, {"name": "d", "image": "i:2"}]},
        });
        let found = applied(stored, &wanted, pod);
        assert_eq!(found["metadata"], json!({"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}));
        let env = json!([{"name": "E", "value": "1"}, {"name": "F", "$patch": "delete"}]);
        assert_eq!(found["spec"]["containers"][0], json!({"name": "c", "image": "i:1", "args": ["3"], "env": env}));
        assert_eq!(found["spec"]["containers"][1]["name"], "d");
        assert!(found["spec"].get("nodeName").is_none());
    }

    #[test]
    fn types_that_are_owned_as_a_whole_are_replaced() {
        let policy = schema::message("networking.v1.NetworkPolicy");
        let selecting = |labels: Value| json!({"spec": {"podSelector": {"matchLabels": labels}}});
        let (stored, wanted) = (selecting(json!({"app": "a", "tier": "b"})), selecting(json!({"app": "a"})));
        assert_eq!(applied(stored, &wanted, policy), wanted);
        let ingress = schema::message("networking.v1.Ingress");
        let backend = |port: Value| json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": port}}}});
        let (stored, wanted) = (backend(json!({"name": "http"})), backend(json!({"number": 80})));
        assert_eq!(applied(stored, &wanted, ingress), wanted);
    }

    #[test]
    fn thousands_of_elements_are_merged_in_passing() {
        let pod = schema::message("core.v1.Pod");
        let many = |first: usize| {
            let env: Vec<Value> = (first..first + 60_000).map(|n| json!({"name": format!("E{n}")})).collect();
            json!({"spec": {"containers": [{"name": "c", "env": env}]}})
        };
        let found = applied(many(0), &many(60_000), pod);
        assert_eq!(found["spec"]["containers"][0]["env"].as_array().unwrap().len(), 120_000);
    }
}
