//! Server-side tables: what `kubectl get` prints.
//!
//! A kind has columns and a function that makes the cells of a row; kinds without an entry show name and creation time.
//! Columns of priority 1 appear with `-o wide`; their cells are always sent. Texts in cells are Kubernetes' own, because
//! scripts cut them out.

mod cells;
mod cluster;
mod columns;
mod duration;
mod network;
mod other;
mod pod;
mod storage;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::meta::Meta;
use crate::tree;

pub use columns::Column;
pub use duration::human;

/// The cells of one object, and the row's conditions if it has any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub cells: Vec<Value>,
    /// Marks finished objects, which `--show-all` used to hide.
    pub conditions: Vec<Value>,
}

/// How much of the object stands in each row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    None,
    /// As `PartialObjectMetadata`; the default of the protocol.
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// Reads the query parameter `includeObject`; `None` if it has no such meaning.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// Columns and cells of one kind.
struct Table {
    group: &'static str,
    kind: &'static str,
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

const fn table_of(
    group: &'static str,
    kind: &'static str,
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
) -> Table {
    Table { group, kind, columns, cells }
}

fn find(kind: &Kind) -> Option<&'static Table> {
    [workload::TABLES, network::TABLES, cluster::TABLES, storage::TABLES, other::TABLES]
        .into_iter()
        .flatten()
        .find(|table| table.group == kind.group && table.kind == kind.kind)
}

static DEFAULT: &[Column] = &[columns::NAME, columns::CREATED_AT];

/// The columns of `kind`.
pub fn columns(kind: &Kind) -> &'static [Column] {
    find(kind).map_or(DEFAULT, |table| table.columns)
}

/// The row of one object; ages are counted to `now`.
pub fn row(kind: &Kind, object: &Value, now: Timestamp) -> Row {
    let cells = match find(kind) {
        Some(table) => (table.cells)(object, now),
        None => vec![
            json!(Meta::of(object).name()),
            json!(tree::some_text(object, "/metadata/creationTimestamp").unwrap_or("<unknown>")),
        ],
    };
    let conditions = if (kind.group, kind.kind) == ("", "Pod") { pod::conditions(object) } else { Vec::new() };
    Row { cells, conditions }
}

/// A whole `Table` of `objects`. `metadata` is that of the list, or `{}`. In a watch only the first event has columns.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    include: Include,
    metadata: Value,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects.into_iter().map(|object| row_value(kind, object, include, now)).collect();
    let columns = if with_columns { columns(kind).iter().map(Column::to_value).collect() } else { Vec::new() };
    let columns = if with_columns { Value::Array(columns) } else { Value::Null };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn row_value(kind: &Kind, object: &Value, include: Include, now: Timestamp) -> Value {
    let Row { cells, conditions } = row(kind, object, now);
    let mut value = json!({"cells": cells});
    if !conditions.is_empty() {
        tree::set(&mut value, "conditions", conditions);
    }
    let object = match include {
        Include::None => return value,
        Include::Object => object.clone(),
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
        }),
    };
    tree::set(&mut value, "object", object);
    value
}

#[cfg(test)]
mod tests;
