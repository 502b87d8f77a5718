//! What an applied configuration names, set in an object: maps merge, associative lists merge by all their keys, sets are
//! united, everything atomic is replaced. Directives mean nothing here; what is not named stays.
//!
//! Rule: structured merge of server-side apply (KEP-555), without ownership of fields.

use serde_json::Value;

use crate::schema::{Field, ListType, Message};
use crate::tree::Object;

type Schema = Option<&'static Message>;

/// Sets what `configuration` names in `document`, whose schema is `schema`. Work is linear in the sizes of both, apart from
/// elements of one associative list, which are compared with each other.
pub fn applied(mut document: Value, configuration: &Value, schema: Schema) -> Value {
    set(&mut document, configuration, schema);
    document
}

fn set(target: &mut Value, wanted: &Value, schema: Schema) {
    match (target, wanted) {
        (Value::Object(target), Value::Object(wanted)) => set_members(target, wanted, schema),
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
        return set(present, wanted, field.and_then(Field::message));
    };
    match field.list_type {
        Some(ListType::Map) => wanted.iter().for_each(|element| set_element(items, element, field)),
        Some(ListType::Set) => {
            for element in wanted {
                if !items.contains(element) {
                    items.push(element.clone());
                }
            }
        }
        Some(ListType::Atomic) | None => *present = Value::Array(wanted.clone()),
    }
}

fn set_element(items: &mut Vec<Value>, wanted: &Value, field: &'static Field) {
    let message = field.message();
    let same = |item: &Value| {
        field.list_map_keys().all(|key| {
            let default = message.and_then(|message| default_of(message, key));
            let value = |element: &Value| element.get(key).cloned().or_else(|| default.clone());
            value(item) == value(wanted)
        })
    };
    match items.iter_mut().find(|item| same(item)) {
        Some(present) => set(present, wanted, message),
        None => items.push(wanted.clone()),
    }
}

/// What a key holds where an element leaves it out.
fn default_of(message: &'static Message, key: &str) -> Option<Value> {
    let text = message.field(key)?.default;
    if text.is_empty() { None } else { serde_json::from_str(text).ok() }
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
}
