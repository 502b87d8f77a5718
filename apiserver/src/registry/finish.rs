//! From the tree that was written to the object that is answered.

use std::sync::Arc;

use pintle_api::status::Status;
use serde_json::Value;

use crate::cache::{Object, Slot};

/// The written object at its revision; revision 0 (dry run of a create) has no resourceVersion.
pub fn object(slot: Slot, key: &str, revision: i64, mut tree: Value) -> Result<Arc<Object>, Status> {
    if let Some(metadata) = tree.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("selfLink");
    }
    Object::from_tree(slot, key, revision, tree).map(Arc::new).map_err(Status::internal)
}
