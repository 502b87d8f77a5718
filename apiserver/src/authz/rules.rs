//! Policy rules in a form that is quick to match, and the questions they answer.
//!
//! Pure. [`Rule`] is compiled once per role version from its JSON; a request is matched without allocation.

use serde_json::Value;

/// What is asked: may `verb` be done on this resource or path? All fields as the rules see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Empty for cluster scope.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Set for requests outside the resource tree; then only `verb` counts besides.
    pub path: Option<&'a str>,
    /// Raw field selector of a list, watch or deletecollection.
    pub field_selector: &'a str,
}

/// One policy rule of a Role or ClusterRole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Reads one entry of `rules`. Fields of a wrong type count as absent: such a rule grants less, never more.
    pub fn from_value(rule: &Value) -> Self {
        Self {
            verbs: strings(rule, "verbs"),
            api_groups: strings(rule, "apiGroups"),
            resources: strings(rule, "resources"),
            resource_names: strings(rule, "resourceNames"),
            non_resource_urls: strings(rule, "nonResourceURLs"),
        }
    }

    /// Reads `rules` of a role object.
    pub fn all_of(role: &Value) -> Vec<Self> {
        role.get("rules")
            .and_then(Value::as_array)
            .map(|rules| rules.iter().map(Self::from_value).collect())
            .unwrap_or_default()
    }

    pub fn allows(&self, action: &Action<'_>) -> bool {
        if !has(&self.verbs, action.verb) {
            return false;
        }
        match action.path {
            Some(path) => self.non_resource_urls.iter().any(|pattern| path_matches(pattern, path)),
            None => {
                has(&self.api_groups, action.group)
                    && self.resources.iter().any(|entry| resource_matches(entry, action.resource, action.subresource))
                    && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == action.name))
            }
        }
    }

    /// True if everything this single-valued rule allows is allowed by `owner`.
    fn within(&self, owner: &Self) -> bool {
        let verb_ok = covers(&owner.verbs, &self.verbs);
        if !self.non_resource_urls.is_empty() {
            return verb_ok
                && self
                    .non_resource_urls
                    .iter()
                    .all(|want| owner.non_resource_urls.iter().any(|have| have == want || path_matches(have, want)));
        }
        verb_ok
            && covers(&owner.api_groups, &self.api_groups)
            && self.resources.iter().all(|want| owner.resources.iter().any(|have| resource_covers(have, want)))
            && (owner.resource_names.is_empty()
                || (!self.resource_names.is_empty()
                    && self.resource_names.iter().all(|name| owner.resource_names.contains(name))))
    }

    /// Splits into rules that name one verb, one group, one resource and at most one name (or one path) each.
    fn breakdown(&self) -> Vec<Self> {
        let mut out = Vec::new();
        for verb in &self.verbs {
            for path in &self.non_resource_urls {
                out.push(Self { verbs: vec![verb.clone()], non_resource_urls: vec![path.clone()], ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let one = Self {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(one);
                    } else {
                        let named = |name: &String| Self { resource_names: vec![name.clone()], ..one.clone() };
                        out.extend(self.resource_names.iter().map(named));
                    }
                }
            }
        }
        out
    }

    /// The rule as the escalation message prints it.
    pub fn compact(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ];
        let shown: Vec<String> = parts
            .iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, values)| {
                let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
                format!("{name}:[{}]", quoted.join(" "))
            })
            .collect();
        format!("{{{}}}", shown.join(", "))
    }
}

/// The parts of `wanted` that `held` does not grant, each as a rule of one verb and one resource.
///
/// Products of huge rules are bounded by `limit`: past it the answer is "not covered", which is the safe side.
pub fn uncovered(held: &[Rule], wanted: &[Rule], limit: usize) -> Vec<Rule> {
    let mut missing = Vec::new();
    let mut looked = 0_usize;
    for rule in wanted {
        let size = rule.verbs.len().saturating_mul(rule.non_resource_urls.len().saturating_add(
            rule.api_groups.len().saturating_mul(rule.resources.len()).saturating_mul(rule.resource_names.len().max(1)),
        ));
        looked = looked.saturating_add(size);
        if looked > limit {
            missing.push(rule.clone());
            continue;
        }
        missing.extend(rule.breakdown().into_iter().filter(|one| !held.iter().any(|owner| one.within(owner))));
    }
    missing
}

fn has(values: &[String], wanted: &str) -> bool {
    values.iter().any(|value| value == "*" || value == wanted)
}

fn covers(have: &[String], want: &[String]) -> bool {
    have.iter().any(|value| value == "*") || want.iter().all(|value| have.contains(value))
}

/// `*`, `pods`, `pods/log`, `*/scale`.
fn resource_matches(entry: &str, resource: &str, subresource: &str) -> bool {
    match entry.split_once('/') {
        None => entry == "*" || (subresource.is_empty() && entry == resource),
        Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
        Some((res, sub)) => res == resource && sub == subresource,
    }
}

fn resource_covers(have: &str, want: &str) -> bool {
    if have == "*" || have == want {
        return true;
    }
    match (have.split_once('/'), want.split_once('/')) {
        (Some(("*", sub)), Some((_, wanted))) => sub == wanted,
        _ => false,
    }
}

/// `*`, `/healthz`, `/healthz/*`. A trailing star matches any rest.
fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

fn strings(rule: &Value, field: &str) -> Vec<String> {
    let entries = rule.get(field).and_then(Value::as_array);
    entries.map(|all| all.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        Rule::from_value(&json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names}))
    }

    fn action<'a>(verb: &'a str, group: &'a str, resource: &'a str, name: &'a str) -> Action<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Action { verb, group, resource, subresource, name, ..Action::default() }
    }

    #[test]
    fn resource_rules_match_as_the_table_says() {
        let all = rule(&["*"], &["*"], &["*"], &[]);
        let pods = rule(&["get", "list"], &[""], &["pods", "pods/log"], &[]);
        let scale = rule(&["update"], &["apps"], &["*/scale"], &[]);
        let named = rule(&["get"], &[""], &["configmaps"], &["a", "b"]);
        let none = rule(&[], &["*"], &["*"], &[]);
        let table = [
            (&all, action("delete", "apps", "deployments/scale", "x"), true),
            (&pods, action("get", "", "pods", "x"), true),
            (&pods, action("get", "", "pods/log", "x"), true),
            (&pods, action("get", "", "pods/exec", "x"), false),
            (&pods, action("watch", "", "pods", ""), false),
            (&pods, action("get", "apps", "pods", "x"), false),
            (&scale, action("update", "apps", "replicasets/scale", "x"), true),
            (&scale, action("update", "apps", "replicasets", "x"), false),
            (&named, action("get", "", "configmaps", "a"), true),
            (&named, action("get", "", "configmaps", "c"), false),
            (&named, action("get", "", "configmaps", ""), false),
            (&none, action("get", "", "pods", "x"), false),
        ];
        for (rule, action, want) in table {
            assert_eq!(rule.allows(&action), want, "{rule:?} {action:?}");
        }
    }

    #[test]
    fn a_resource_rule_says_nothing_about_paths() {
        let all = rule(&["*"], &["*"], &["*"], &[]);
        assert!(!all.allows(&Action { verb: "get", path: Some("/metrics"), ..Action::default() }));
        let paths = Rule::from_value(&json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/openapi/*"]}));
        for (path, want) in [("/healthz", true), ("/healthz/x", false), ("/openapi/v3", true), ("/openapi", false)] {
            assert_eq!(paths.allows(&Action { verb: "get", path: Some(path), ..Action::default() }), want, "{path}");
        }
        assert!(!paths.allows(&action("get", "", "healthz", "")));
    }

    #[test]
    fn coverage_finds_exactly_what_is_missing() {
        let held = [rule(&["get", "list"], &[""], &["pods", "services"], &[])];
        assert!(uncovered(&held, &[rule(&["get"], &[""], &["pods"], &["a"])], 100).is_empty());
        let missing = uncovered(&held, &[rule(&["get", "delete"], &[""], &["pods"], &[])], 100);
        assert_eq!(missing, vec![rule(&["delete"], &[""], &["pods"], &[])]);
        assert_eq!(missing[0].compact(), r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#);
    }

    #[test]
    fn a_named_grant_does_not_cover_all_names_and_stars_need_stars() {
        let held = [rule(&["get"], &[""], &["pods"], &["a"])];
        assert_eq!(uncovered(&held, &[rule(&["get"], &[""], &["pods"], &[])], 100).len(), 1);
        assert_eq!(uncovered(&held, &[rule(&["*"], &[""], &["pods"], &["a"])], 100).len(), 1);
        let all = [rule(&["*"], &["*"], &["*"], &[])];
        assert!(uncovered(&all, &[rule(&["*"], &["*"], &["pods/log"], &[])], 100).is_empty());
    }

    #[test]
    fn rules_too_big_to_split_count_as_missing() {
        let names: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        let refs: Vec<&str> = names.iter().map(String::as_str).collect();
        let big = rule(&refs, &refs, &refs, &refs);
        assert_eq!(uncovered(&[rule(&["*"], &["*"], &["*"], &[])], &[big], 10_000).len(), 1);
    }
}
