//! Quantities are stored in one canonical text (`0.5` is `500m`), wherever the schema has them. Requests and limits of
//! containers are rounded up to thousandths, the finest a node can account for.

use serde_json::Value;

use crate::quantity::Quantity;
use crate::schema::{Cardinality, Message, Shape};

/// Rewrites every quantity in `value`. What does not parse stays as it is, for validation to name.
pub(super) fn canonicalize(value: &mut Value, schema: &'static Message) {
    if schema.shape == Shape::Quantity {
        if let Ok(quantity) = Quantity::from_value(value) {
            *value = Value::from(quantity.to_string());
        }
        return;
    }
    let Value::Object(object) = value else { return };
    for (name, child) in object.iter_mut() {
        let Some(field) = schema.field(name) else { continue };
        let Some(message) = field.message() else { continue };
        match (field.cardinality, child) {
            (Cardinality::List, Value::Array(items)) => items.iter_mut().for_each(|item| canonicalize(item, message)),
            (Cardinality::Map, Value::Object(entries)) => {
                entries.values_mut().for_each(|entry| canonicalize(entry, message));
            }
            (Cardinality::One | Cardinality::Optional, child) => canonicalize(child, message),
            _ => {}
        }
    }
}

/// Rounds the amounts of a resource list up to thousandths.
pub(super) fn round_to_milli(list: Option<&mut Value>) {
    let Some(Value::Object(amounts)) = list else { return };
    for amount in amounts.values_mut() {
        if let Ok(quantity) = Quantity::from_value(amount) {
            *amount = Value::from(quantity.rounded_to_milli().to_string());
        }
    }
}
