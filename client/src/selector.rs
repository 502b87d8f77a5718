//! Label selectors of objects, compiled for matching label maps in memory.
//!
//! Always holds: a selector that is missing matches nothing, one that is empty matches everything, as the API defines.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// A compiled label selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabelQuery {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// A selector the API server would not have accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{operator:?} is not a valid label selector operator")]
pub struct InvalidOperator {
    operator: String,
}

impl LabelQuery {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Matches objects that carry all of `labels`, as the selectors of services and replication controllers do.
    pub fn equal_to(labels: &BTreeMap<String, String>) -> Self {
        let requirements =
            labels.iter().map(|(key, value)| Requirement::In(key.clone(), vec![value.clone()])).collect();
        Self { requirements, nothing: false }
    }

    /// Compiles `selector`.
    ///
    /// # Errors
    /// [`InvalidOperator`] if a requirement's operator is unknown.
    pub fn compile(selector: Option<&LabelSelector>) -> Result<Self, InvalidOperator> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut query = selector.match_labels.as_ref().map(Self::equal_to).unwrap_or_default();
        for requirement in selector.match_expressions.iter().flatten() {
            let key = requirement.key.clone();
            let values = requirement.values.clone().unwrap_or_default();
            query.requirements.push(match requirement.operator.as_str() {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::Absent(key),
                operator => return Err(InvalidOperator { operator: operator.to_owned() }),
            });
        }
        Ok(query)
    }

    /// Adds `key` in `values` (or not in them).
    pub fn and(mut self, key: &str, values: &[String], within: bool) -> Self {
        let (key, values) = (key.to_owned(), values.to_vec());
        self.requirements.push(if within { Requirement::In(key, values) } else { Requirement::NotIn(key, values) });
        self
    }

    /// Both selectors together.
    pub fn with(mut self, other: &Self) -> Self {
        self.requirements.extend(other.requirements.iter().cloned());
        self.nothing |= other.nothing;
        self
    }

    /// True if the selector has no requirement and matches everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value = |key: &str| labels.and_then(|labels| labels.get(key));
        !self.nothing
            && self.requirements.iter().all(|requirement| match requirement {
                Requirement::In(key, values) => value(key).is_some_and(|value| values.contains(value)),
                Requirement::NotIn(key, values) => value(key).is_none_or(|value| !values.contains(value)),
                Requirement::Exists(key) => value(key).is_some(),
                Requirement::Absent(key) => value(key).is_none(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: serde_json::Value, labels: &[(&str, &str)], want: bool) {
        let selector: Option<LabelSelector> = serde_json::from_value(selector).expect("selector");
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(LabelQuery::compile(selector.as_ref()).expect("compiles").matches(Some(&labels)), want);
    }

    #[test]
    fn requirements_hold_as_the_api_defines_them() {
        use serde_json::json;
        check(json!(null), &[("a", "1")], false);
        check(json!({}), &[], true);
        check(json!({"matchLabels": {"a": "1"}}), &[("a", "1"), ("b", "2")], true);
        check(json!({"matchLabels": {"a": "1"}}), &[("a", "2")], false);
        check(json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}), &[("a", "2")], true);
        check(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), &[], true);
        check(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), &[("a", "1")], false);
        check(json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), &[("a", "")], true);
        check(json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}), &[("a", "")], false);
    }

    #[test]
    fn an_unknown_operator_is_refused() {
        let selector =
            serde_json::from_value(serde_json::json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}));
        assert!(LabelQuery::compile(Some(&selector.expect("selector"))).is_err());
    }
}
