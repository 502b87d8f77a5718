//! Definitions of columns.

use serde_json::{Value, json};

/// One column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub of: &'static str,
    /// `name` for the column that identifies the row, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 1: shown with `-o wide` only.
    pub priority: i32,
}

impl Column {
    pub fn to_value(&self) -> Value {
        json!({"name": self.name, "type": self.of, "format": self.format, "description": self.description, "priority": self.priority})
    }
}

pub(super) const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, of: "string", format: "", description, priority: 0 }
}

pub(super) const fn number(name: &'static str, description: &'static str) -> Column {
    Column { name, of: "integer", format: "", description, priority: 0 }
}

pub(super) const fn flag(name: &'static str, description: &'static str) -> Column {
    Column { name, of: "boolean", format: "", description, priority: 0 }
}

pub(super) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, of: "string", format: "", description, priority: 1 }
}

pub(super) const NAME: Column = Column {
    name: "Name",
    of: "string",
    format: "name",
    description: "Name of the object, unique in its namespace.",
    priority: 0,
};

pub(super) const AGE: Column = text("Age", "Time since the object was created.");

pub(super) const CREATED_AT: Column = Column {
    name: "Created At",
    of: "date",
    format: "",
    description: "When the server created the object, in RFC 3339 and UTC.",
    priority: 0,
};

pub(super) const CONTAINERS: Column = wide("Containers", "Names of the containers in the template.");
pub(super) const IMAGES: Column = wide("Images", "Images of the containers in the template.");
pub(super) const SELECTOR: Column = wide("Selector", "Labels by which the object finds its pods.");
