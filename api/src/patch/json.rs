//! JSON patch (RFC 6902), bounded in operations, in what `copy` may add, and in the elements of lists that its operations
//! push aside.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::{PatchError, malformed};
use crate::limits;

/// Applies `patch`, an array of operations, to `document`.
/// # Errors
/// Malformed patches, more than [`limits::JSON_PATCH_OPERATIONS`] operations, operations that do not fit the document.
pub fn json(mut document: Value, patch: &Value) -> Result<Value, PatchError> {
    let got = patch.as_array().map(Vec::len).unwrap_or_default();
    if got > limits::JSON_PATCH_OPERATIONS {
        return Err(PatchError::TooManyOperations { limit: limits::JSON_PATCH_OPERATIONS, got });
    }
    let Patch(operations) =
        serde_json::from_value(patch.clone()).map_err(|error| malformed(format!("error decoding patch: {error}")))?;
    let (mut copied, mut shifted) = (0, 0_usize);
    for operation in operations {
        shifted = shifted.saturating_add(elements_shifted(&document, &operation));
        if shifted > limits::JSON_PATCH_SHIFTS {
            return Err(PatchError::TooMuchWork { limit: limits::JSON_PATCH_SHIFTS });
        }
        copied += size_of_copy(&document, &operation);
        if copied > limits::JSON_PATCH_COPY_BYTES {
            return Err(PatchError::Unprocessable(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {}",
                limits::JSON_PATCH_COPY_BYTES
            )));
        }
        json_patch::patch(&mut document, &[operation]).map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    }
    Ok(document)
}

fn size_of_copy(document: &Value, operation: &PatchOperation) -> usize {
    match operation {
        PatchOperation::Copy(copy) => {
            document.pointer(copy.from.as_str()).map(|value| value.to_string().len()).unwrap_or_default()
        }
        _ => 0,
    }
}

/// How many elements of lists the operation moves by one place.
fn elements_shifted(document: &Value, operation: &PatchOperation) -> usize {
    let behind = |place: &str| elements_behind(document, place).unwrap_or_default();
    match operation {
        PatchOperation::Add(add) => behind(add.path.as_str()),
        PatchOperation::Remove(remove) => behind(remove.path.as_str()),
        PatchOperation::Copy(copy) => behind(copy.path.as_str()),
        PatchOperation::Move(moved) => behind(moved.from.as_str()).saturating_add(behind(moved.path.as_str())),
        PatchOperation::Replace(_) | PatchOperation::Test(_) => 0,
    }
}

/// The number of elements of a list from `place` on; `None` if that is not in a list.
fn elements_behind(document: &Value, place: &str) -> Option<usize> {
    let (list, index) = place.rsplit_once('/')?;
    let list = document.pointer(list)?.as_array()?;
    Some(list.len().saturating_sub(index.parse().unwrap_or(list.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as j;

    #[track_caller]
    fn check(document: Value, patch: Value, want: Value) {
        assert_eq!(json(document, &patch), Ok(want));
    }

    #[test]
    fn operations() {
        check(j!({"a": 1}), j!([{"op": "add", "path": "/b", "value": [1]}]), j!({"a": 1, "b": [1]}));
        check(j!({"a": [1, 2]}), j!([{"op": "add", "path": "/a/-", "value": 3}]), j!({"a": [1, 2, 3]}));
        check(j!({"a": [1, 2]}), j!([{"op": "remove", "path": "/a/0"}]), j!({"a": [2]}));
        check(
            j!({"a": {"x/y": 1}}),
            j!([{"op": "test", "path": "/a/x~1y", "value": 1}, {"op": "replace", "path": "/a/x~1y", "value": 2}]),
            j!({"a": {"x/y": 2}}),
        );
        check(j!({"a": 1}), j!([{"op": "move", "from": "/a", "path": "/b"}]), j!({"b": 1}));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let test = json(j!({"a": 1}), &j!([{"op": "test", "path": "/a", "value": 2}]));
        assert!(matches!(test, Err(PatchError::Unprocessable(_))), "{test:?}");
        let path = json(j!({}), &j!([{"op": "remove", "path": "/a"}]));
        assert!(matches!(path, Err(PatchError::Unprocessable(_))), "{path:?}");
        let shape = json(j!({}), &j!({"op": "add"}));
        assert!(matches!(shape, Err(PatchError::Malformed(_))), "{shape:?}");
    }

    #[test]
    fn a_patch_is_bounded() {
        let many = Value::from(vec![j!({"op": "test", "path": "/a", "value": 1}); limits::JSON_PATCH_OPERATIONS + 1]);
        assert!(matches!(json(j!({"a": 1}), &many), Err(PatchError::TooManyOperations { .. })));
        let doubling = Value::from(vec![j!({"op": "copy", "from": "", "path": "/a"}); 100]);
        assert!(json(j!({"x": "y".repeat(1000)}), &doubling).is_err());
    }

    #[test]
    fn work_in_long_lists_is_bounded() {
        let list = || j!({"a": vec![0; 100_000], "b": {"c": [1, 2]}});
        let repeated = |operation: Value| Value::from(vec![operation; 1000]);
        for operation in [
            j!({"op": "add", "path": "/a/0", "value": 1}),
            j!({"op": "remove", "path": "/a/0"}),
            j!({"op": "copy", "from": "/b/c/0", "path": "/a/0"}),
            j!({"op": "move", "from": "/a/0", "path": "/a/99999"}),
            j!({"op": "move", "from": "/a/99999", "path": "/a/0"}),
        ] {
            let refused = json(list(), &repeated(operation.clone()));
            assert_eq!(refused, Err(PatchError::TooMuchWork { limit: limits::JSON_PATCH_SHIFTS }), "{operation}");
        }
        for operation in [
            j!({"op": "add", "path": "/a/-", "value": 1}),
            j!({"op": "replace", "path": "/a/0", "value": 1}),
            j!({"op": "move", "from": "/b/c/0", "path": "/b/c/1"}),
        ] {
            assert!(json(list(), &repeated(operation.clone())).is_ok(), "{operation}");
        }
    }
}
