//! The Kubernetes object model of v1.36: kinds, schemas, codecs, discovery and OpenAPI documents, selectors, quantities,
//! patches, defaulting, validation, tables, and the Status answers of the API.
//!
//! Objects are `serde_json::Value` trees. A body enters through [`codec`], which leaves only trees whose known fields have
//! the types of their [`schema`]; everything behind that point may rely on it, and panics on nothing all the same.
//! Layer 1: pure functions over values (signatures of [`tokens`] are salted); no I/O, no clock, no tasks. Imports `base` only.

pub mod codec;
pub mod defaults;
pub mod discovery;
pub mod kinds;
pub mod limits;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod tokens;
pub mod tree;
pub mod validate;
