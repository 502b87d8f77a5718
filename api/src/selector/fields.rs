//! Field selectors (`status.phase!=Running,spec.nodeName=n1`): only `=`, `==` and `!=`, only on fields a kind names.

use std::fmt;

use serde_json::Value;

use super::SelectorError;
use crate::kinds::Kind;
use crate::status::Status;
use crate::tree;

/// How the text of a selectable field is found in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// Text, number or boolean at the pointer; absent is `""`.
    Scalar,
    /// A boolean that is `false` when absent.
    Flag,
    /// A number that is `0` when absent.
    Count,
    /// `source.component`, or the reporting controller of new events.
    EventSource,
    /// `true` if any of the pod's addresses equals the value asked for.
    PodIps,
}

struct Selectable {
    name: &'static str,
    pointer: &'static str,
    read: Read,
}

const fn at(name: &'static str, pointer: &'static str, read: Read) -> Selectable {
    Selectable { name, pointer, read }
}

static METADATA: [Selectable; 2] = [
    at("metadata.name", "/metadata/name", Read::Scalar),
    at("metadata.namespace", "/metadata/namespace", Read::Scalar),
];

/// What may be selected beside name and namespace, by group and kind.
static TABLE: &[(&str, &str, &[Selectable])] = &[
    (
        "",
        "Pod",
        &[
            at("spec.nodeName", "/spec/nodeName", Read::Scalar),
            at("spec.host", "/spec/nodeName", Read::Scalar),
            at("spec.restartPolicy", "/spec/restartPolicy", Read::Scalar),
            at("spec.schedulerName", "/spec/schedulerName", Read::Scalar),
            at("spec.serviceAccountName", "/spec/serviceAccountName", Read::Scalar),
            at("spec.hostNetwork", "/spec/hostNetwork", Read::Flag),
            at("status.phase", "/status/phase", Read::Scalar),
            at("status.podIP", "/status/podIP", Read::Scalar),
            at("status.podIPs", "/status/podIPs", Read::PodIps),
            at("status.nominatedNodeName", "/status/nominatedNodeName", Read::Scalar),
        ],
    ),
    ("", "Node", &[at("spec.unschedulable", "/spec/unschedulable", Read::Flag)]),
    ("", "Namespace", &[at("status.phase", "/status/phase", Read::Scalar)]),
    ("", "Secret", &[at("type", "/type", Read::Scalar)]),
    (
        "",
        "Service",
        &[at("spec.clusterIP", "/spec/clusterIP", Read::Scalar), at("spec.type", "/spec/type", Read::Scalar)],
    ),
    ("", "ReplicationController", &[at("status.replicas", "/status/replicas", Read::Count)]),
    ("apps", "ReplicaSet", &[at("status.replicas", "/status/replicas", Read::Count)]),
    ("batch", "Job", &[at("status.successful", "/status/succeeded", Read::Count)]),
    ("certificates.k8s.io", "CertificateSigningRequest", &[at("spec.signerName", "/spec/signerName", Read::Scalar)]),
    ("certificates.k8s.io", "ClusterTrustBundle", &[at("spec.signerName", "/spec/signerName", Read::Scalar)]),
    (
        "certificates.k8s.io",
        "PodCertificateRequest",
        &[
            at("spec.signerName", "/spec/signerName", Read::Scalar),
            at("spec.podName", "/spec/podName", Read::Scalar),
            at("spec.nodeName", "/spec/nodeName", Read::Scalar),
        ],
    ),
    ("networking.k8s.io", "IPAddress", &[]),
    (
        "resource.k8s.io",
        "ResourceSlice",
        &[at("spec.nodeName", "/spec/nodeName", Read::Scalar), at("spec.driver", "/spec/driver", Read::Scalar)],
    ),
    ("", "Event", EVENT),
    ("events.k8s.io", "Event", EVENT),
];

static EVENT: &[Selectable] = &[
    at("involvedObject.kind", "/involvedObject/kind", Read::Scalar),
    at("involvedObject.namespace", "/involvedObject/namespace", Read::Scalar),
    at("involvedObject.name", "/involvedObject/name", Read::Scalar),
    at("involvedObject.uid", "/involvedObject/uid", Read::Scalar),
    at("involvedObject.apiVersion", "/involvedObject/apiVersion", Read::Scalar),
    at("involvedObject.resourceVersion", "/involvedObject/resourceVersion", Read::Scalar),
    at("involvedObject.fieldPath", "/involvedObject/fieldPath", Read::Scalar),
    at("regarding.kind", "/regarding/kind", Read::Scalar),
    at("regarding.namespace", "/regarding/namespace", Read::Scalar),
    at("regarding.name", "/regarding/name", Read::Scalar),
    at("regarding.uid", "/regarding/uid", Read::Scalar),
    at("regarding.apiVersion", "/regarding/apiVersion", Read::Scalar),
    at("regarding.resourceVersion", "/regarding/resourceVersion", Read::Scalar),
    at("regarding.fieldPath", "/regarding/fieldPath", Read::Scalar),
    at("reason", "/reason", Read::Scalar),
    at("reportingComponent", "/reportingComponent", Read::Scalar),
    at("reportingController", "/reportingController", Read::Scalar),
    at("source", "/source/component", Read::EventSource),
    at("type", "/type", Read::Scalar),
];

fn selectable(kind: &Kind, name: &str) -> Option<&'static Selectable> {
    let own = TABLE.iter().find(|(group, of, _)| *group == kind.group && *of == kind.kind).map(|(.., fields)| *fields);
    METADATA.iter().chain(own.unwrap_or_default()).find(|field| field.name == name)
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub field: String,
    pub value: String,
    /// `!=` instead of `=`.
    pub negated: bool,
    pointer: &'static str,
    read: Read,
}

/// A field selector: all terms hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<Term>);

impl Fields {
    pub fn everything() -> Self {
        Self::default()
    }

    /// Parses query text for `kind`.
    /// # Errors
    /// A 400 status if the text cannot be read or names a field the kind cannot be selected by.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split_terms(text).into_iter().filter(|part| !part.is_empty()) {
            let unreadable = || Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let (field, negated, value) = split_term(&part).ok_or_else(unreadable)?;
            let value = unescape(value).map_err(|SelectorError(why)| Status::bad_request(why))?;
            let selectable = selectable(kind, field).ok_or_else(|| unsupported(kind, field))?;
            terms.push(Term {
                field: field.to_owned(),
                value,
                negated,
                pointer: selectable.pointer,
                read: selectable.read,
            });
        }
        Ok(Self(terms))
    }

    /// Selects the objects of one name, of any kind.
    pub fn named(name: &str) -> Self {
        let Selectable { name: field, pointer, read } = &METADATA[0];
        let (field, value) = ((*field).to_owned(), name.to_owned());
        Self(vec![Term { field, value, negated: false, pointer, read: *read }])
    }

    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// The value the selector asks `field` to have, if it asks for exactly one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|term| term.field == field && !term.negated).map(|term| term.value.as_str())
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|term| term.holds(object) != term.negated)
    }
}

impl Term {
    fn holds(&self, object: &Value) -> bool {
        let found = tree::at(object, self.pointer);
        match self.read {
            Read::Scalar => match found {
                None => self.value.is_empty(),
                Some(Value::String(text)) => *text == self.value,
                Some(other) => format!("{other}") == self.value,
            },
            Read::Flag => found.and_then(Value::as_bool).unwrap_or(false).to_string() == self.value,
            Read::Count => found.and_then(Value::as_i64).unwrap_or(0).to_string() == self.value,
            Read::EventSource => {
                let source = tree::some_text(object, self.pointer)
                    .or_else(|| tree::some_text(object, "/deprecatedSource/component"))
                    .or_else(|| tree::some_text(object, "/reportingComponent"))
                    .unwrap_or_else(|| tree::text(object, "/reportingController"));
                source == self.value
            }
            Read::PodIps => tree::list(object, self.pointer).iter().any(|ip| tree::text(ip, "/ip") == self.value),
        }
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if term.negated { "!=" } else { "=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

/// Kinds with selectable fields of their own say so in one way, all others in another.
fn unsupported(kind: &Kind, field: &str) -> Status {
    let own = TABLE.iter().any(|(group, of, fields)| *group == kind.group && *of == kind.kind && !fields.is_empty());
    if own {
        return Status::bad_request(format!("field label not supported: {field}"));
    }
    Status::bad_request(format!(
        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    ))
}

/// Splits at commas that are not escaped.
fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(term) = terms.last_mut() {
            term.push(c);
        }
    }
    terms
}

/// Field, whether negated, value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let rest = &term[at..];
        for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..at], negated, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                Some(other) => {
                    return Err(SelectorError(format!("invalid field selector: invalid escape sequence: \\{other}")));
                }
                None => return Err(SelectorError("invalid field selector: invalid escape sequence: \\".to_owned())),
            },
            ',' | '=' => {
                return Err(SelectorError(format!("invalid field selector: unescaped character in value: {c}")));
            }
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    fn kind(group: &str, version: &str, kind: &str) -> &'static Kind {
        kinds::by_gvk(group, version, kind).expect("known kind")
    }

    #[track_caller]
    fn check(selector: &str, object: &Value, want: bool) {
        let fields = Fields::parse(kind("", "v1", "Pod"), selector).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(fields.matches(object), want, "{selector}");
    }

    #[test]
    fn pods_by_their_fields() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}});
        check("spec.nodeName=n1,status.phase!=Failed", &pod, true);
        check("spec.nodeName==n2", &pod, false);
        check("spec.nodeName!=", &pod, true);
        check("spec.hostNetwork=false", &pod, true);
        check("metadata.name=a,metadata.namespace=b", &pod, true);
        check("status.podIPs=10.0.0.1", &pod, true);
        check("", &pod, true);
        check("status.nominatedNodeName=", &pod, true);
    }

    #[test]
    fn bad_selectors_are_bad_requests() {
        let refuse = |kind, text| Fields::parse(kind, text).expect_err("refused").message;
        let pod = kind("", "v1", "Pod");
        assert_eq!(refuse(pod, "spec.image=x"), "field label not supported: spec.image");
        assert_eq!(refuse(pod, "nonsense"), "invalid selector: 'nonsense'; can't understand 'nonsense'");
        assert_eq!(
            refuse(kind("", "v1", "ConfigMap"), "data=x"),
            "\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }

    #[test]
    fn exact_terms_can_be_asked_for() {
        let fields = Fields::parse(kind("", "v1", "Pod"), "metadata.name=a,spec.nodeName!=n").expect("selector");
        assert_eq!((fields.exact("metadata.name"), fields.exact("spec.nodeName")), (Some("a"), None));
        assert_eq!(fields.to_string(), "metadata.name=a,spec.nodeName!=n");
        assert_eq!(Fields::named("a"), Fields::parse(kind("", "v1", "Pod"), "metadata.name=a").expect("selector"));
    }
}
