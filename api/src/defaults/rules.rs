//! The language of the default tables: a path and the value that stands there if the request left it out.
//!
//! A path is keys between slashes. `*` goes into every element of a list; a key with `+` is made an object if it is
//! missing; any other missing key ends the rule without effect. Null counts as missing.

use serde_json::{Value, json};

use crate::tree;

/// A default value.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Text(&'static str),
    Int(i64),
    Flag(bool),
    /// `{}`
    Empty,
}

impl To {
    fn value(self) -> Value {
        match self {
            Self::Text(text) => Value::from(text),
            Self::Int(number) => Value::from(number),
            Self::Flag(flag) => Value::from(flag),
            Self::Empty => json!({}),
        }
    }
}

pub(super) type Rules = &'static [(&'static str, To)];

/// Applies `rules` below `object`.
pub(super) fn apply(object: &mut Value, rules: Rules) {
    for (path, to) in rules {
        apply_one(object, path, *to);
    }
}

fn apply_one(value: &mut Value, path: &str, to: To) {
    let Some((head, rest)) = path.split_once('/') else {
        // Text fields cannot be told from absent ones upstream: an empty text is a missing one.
        if let (To::Text(_), Some(Value::String(text))) = (to, value.get(path))
            && text.is_empty()
        {
            tree::remove(value, path);
        }
        tree::set_default(value, path, to.value());
        return;
    };
    if head == "*" {
        for item in value.as_array_mut().into_iter().flatten() {
            apply_one(item, rest, to);
        }
    } else if let Some(key) = head.strip_suffix('+') {
        if let Some(child) = tree::object(value, key) {
            apply_one(child, rest, to);
        }
    } else if let Some(child) = value.get_mut(head).filter(|child| !child.is_null()) {
        apply_one(child, rest, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_fill_only_what_is_missing() {
        let mut object = json!({"list": [{"a": 1}, {}], "empty": {"text": ""}});
        const RULES: Rules = &[
            ("list/*/a", To::Int(7)),
            ("made+/b", To::Flag(true)),
            ("absent/c", To::Empty),
            ("empty/text", To::Text("x")),
        ];
        apply(&mut object, RULES);
        assert_eq!(object, json!({"list": [{"a": 1}, {"a": 7}], "empty": {"text": "x"}, "made": {"b": true}}));
    }
}
