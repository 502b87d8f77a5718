//! Node selectors and tolerations.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

/// One requirement on a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
    /// An operator or a number that validation does not let through.
    Never,
}

impl Test {
    fn read(requirement: &NodeSelectorRequirement) -> Self {
        let values = requirement.values.clone().unwrap_or_default();
        let number = || values.first().and_then(|value| value.parse().ok());
        match requirement.operator.as_str() {
            "In" => Self::In(values),
            "NotIn" => Self::NotIn(values),
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::Absent,
            "Gt" => number().map_or(Self::Never, Self::Above),
            "Lt" => number().map_or(Self::Never, Self::Below),
            _ => Self::Never,
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            Self::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Above(bound) => number().is_some_and(|number| number > *bound),
            Self::Below(bound) => number().is_some_and(|number| number < *bound),
            Self::Never => false,
        }
    }
}

/// A node selector: terms of which one must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeQuery {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    labels: Vec<(String, Test)>,
    fields: Vec<(String, Test)>,
}

impl NodeQuery {
    pub fn compile(terms: &[NodeSelectorTerm]) -> Self {
        let read = |list: Option<&Vec<NodeSelectorRequirement>>| {
            list.into_iter().flatten().map(|one| (one.key.clone(), Test::read(one))).collect()
        };
        let terms = terms.iter().map(|term| Term {
            labels: read(term.match_expressions.as_ref()),
            fields: read(term.match_fields.as_ref()),
        });
        Self { terms: terms.collect() }
    }

    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.terms.iter().any(|term| term.matches(name, labels))
    }

    /// The nodes named by field in every term, if the query is of that form: nothing else needs to be looked at.
    pub fn names(&self) -> Option<Vec<&str>> {
        let mut names = Vec::new();
        for term in &self.terms {
            let test = term.fields.iter().find(|(field, _)| field == "metadata.name");
            let Some((_, Test::In(values))) = test else { return None };
            names.extend(values.iter().map(String::as_str));
        }
        (!self.terms.is_empty()).then_some(names)
    }
}

impl Term {
    fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        // A term without requirements selects nothing.
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(|(key, test)| test.holds(labels.get(key).map(String::as_str)))
            && self.fields.iter().all(|(field, test)| test.holds((field == "metadata.name").then_some(name)))
    }
}

/// True if one of `tolerations` accepts `taint`.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let key = given(&toleration.key);
        given(&toleration.effect).is_none_or(|effect| effect == taint.effect)
            && key.as_ref().is_none_or(|key| *key == taint.key)
            && match toleration.operator.as_deref() {
                Some("Exists") => true,
                // Without a key only `Exists` means anything.
                None | Some("" | "Equal") => {
                    key.is_some() && toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("")
                }
                Some(_) => false,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(terms: Value, want: bool) {
        let terms: Vec<NodeSelectorTerm> = serde_json::from_value(terms).expect("terms");
        let labels = [("zone".to_owned(), "a".to_owned()), ("cores".to_owned(), "8".to_owned())].into();
        assert_eq!(NodeQuery::compile(&terms).matches("n1", &labels), want);
    }

    fn label(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
    }

    #[test]
    fn one_term_must_hold_with_all_its_requirements() {
        check(json!([]), false);
        check(json!([{}]), false);
        check(json!([label("zone", "In", &["a", "b"])]), true);
        check(json!([label("zone", "NotIn", &["a"]), label("cores", "Gt", &["4"])]), true);
        check(json!([label("cores", "Lt", &["8"])]), false);
        check(json!([label("cores", "Gt", &["many"])]), false);
        check(json!([label("gpu", "DoesNotExist", &[])]), true);
        check(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]), true);
        check(json!([label("zone", "Near", &["a"])]), false);
    }

    #[track_caller]
    fn check_taint(toleration: Value, want: bool) {
        let taint = Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), time_added: None };
        let toleration = serde_json::from_value(toleration).expect("toleration");
        assert_eq!(tolerates(&[toleration], &taint), want);
    }

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        check_taint(json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true);
        check_taint(json!({"key": "k", "operator": "Equal", "value": "other"}), false);
        check_taint(json!({"key": "k", "operator": "Exists"}), true);
        check_taint(json!({"operator": "Exists"}), true);
        check_taint(json!({"operator": "Equal", "value": "v"}), false);
        check_taint(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false);
    }
}
