//! What names may look like: object names by kind, labels, environment variables, ports, keys, and generated suffixes.
//!
//! Each check answers with the texts Kubernetes uses, empty when the name is fine. The checks scan bytes; the regular
//! expressions in the texts describe the same languages.

use pintle_base::rng;

use crate::kinds::Kind;

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_RULE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

pub const LABEL_MAX: usize = 63;
pub const SUBDOMAIN_MAX: usize = 253;
/// Longest `generateName` that is kept whole; the suffix follows it.
pub const GENERATED_BASE_MAX: usize = 63 - SUFFIX_LENGTH;
const SUFFIX_LENGTH: usize = 5;
/// No vowels and nothing that looks like another letter, so that no words arise.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random suffix for a generated name.
pub fn suffix() -> String {
    (0..SUFFIX_LENGTH)
        .map(|_| usize::try_from(rng::below(SUFFIX_ALPHABET.len() as u64)).unwrap_or(0))
        .map(|at| char::from(SUFFIX_ALPHABET[at]))
        .collect()
}

/// `base` (cut to what fits) and a random suffix.
pub fn generate(base: &str) -> String {
    let mut end = base.len().min(GENERATED_BASE_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], suffix())
}

/// Maps a hash to the alphabet of generated names, as `pod-template-hash` values are written.
pub fn encode_hash(hash: u32) -> String {
    hash.to_string()
        .bytes()
        .map(|digit| char::from(SUFFIX_ALPHABET[usize::from(digit) % SUFFIX_ALPHABET.len()]))
        .collect()
}

fn regex_text(rule: &str, format: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}'")).collect();
    format!("{rule} (e.g. {}, regex used for validation is '{format}')", examples.join(",  or "))
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn too_long_characters(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn is_label(value: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match value.as_bytes() {
        [] => false,
        bytes => edge(bytes[0]) && edge(bytes[bytes.len() - 1]) && bytes.iter().all(|b| edge(*b) || *b == b'-'),
    }
}

fn is_subdomain(value: &str) -> bool {
    value.split('.').all(is_label)
}

/// RFC 1123 label.
pub fn dns_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !is_label(value) {
        if is_subdomain(value) {
            errors.push("must not contain dots".to_owned());
        } else {
            let rule = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
            errors.push(regex_text(rule, LABEL_FMT, &["my-name", "123-abc"]));
        }
    }
    errors
}

/// RFC 1123 subdomain.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if !is_subdomain(value) {
        let rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        errors.push(regex_text(rule, SUBDOMAIN_FMT, &["example.com"]));
    }
    errors
}

/// `*.` and an RFC 1123 subdomain.
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long_characters(SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(is_subdomain) {
        let rule = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        errors.push(regex_text(rule, &format!("\\*\\.{SUBDOMAIN_FMT}"), &["*.example.com"]));
    }
    errors
}

/// RFC 1035 label: starts with a letter.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long_characters(LABEL_MAX));
    }
    if !is_label(value) || !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        let rule = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        errors.push(regex_text(rule, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    errors
}

/// A name that can stand as one segment of a URL path.
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    path_segment_prefix(value)
}

fn path_segment_prefix(value: &str) -> Vec<String> {
    ["/", "%"].iter().filter(|bad| value.contains(**bad)).map(|bad| format!("may not contain '{bad}'")).collect()
}

fn is_qualified_part(value: &str) -> bool {
    let bytes = value.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `[prefix/]name`: label keys, annotation keys, finalizers, resource names, condition types.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(dns_subdomain(prefix).into_iter().map(|text| format!("prefix part {text}")));
            }
            *name
        }
        _ => {
            errors.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                regex_text(QUALIFIED_RULE, QUALIFIED_FMT, &["MyName", "my.name", "123-abc"])
            ));
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        let text = regex_text(QUALIFIED_RULE, QUALIFIED_FMT, &["MyName", "my.name", "123-abc"]);
        errors.push(format!("name part {text}"));
    }
    errors
}

pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !value.is_empty() && !is_qualified_part(value) {
        let rule = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        errors.push(regex_text(rule, "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// Environment variable names may hold any printable ASCII but `=`.
pub fn env_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if value.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// Keys of ConfigMap and Secret data.
pub fn config_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long_characters(SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(regex_text(rule, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// IANA service names, as container and target ports use.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 15 {
        errors.push(too_long_characters(15));
    }
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

pub fn http_header(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let rule = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_text(rule, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// What the names of a kind must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Subdomain,
    Label,
    Label1035,
    /// Anything that is one path segment: RBAC roles and bindings.
    PathSegment,
    /// `group:name` forms and the like: one path segment per part.
    ColonSegments,
    /// Canonical text of an IP address.
    Address,
}

impl Rule {
    pub fn of(kind: &Kind) -> Self {
        match (kind.group, kind.kind) {
            ("", "Namespace") => Self::Label,
            // Upstream relaxed this from DNS-1035: a leading digit is allowed.
            ("", "Service") => Self::Label,
            ("rbac.authorization.k8s.io", _) => Self::PathSegment,
            ("certificates.k8s.io", "ClusterTrustBundle") => Self::ColonSegments,
            ("networking.k8s.io", "IPAddress") => Self::Address,
            _ => Self::Subdomain,
        }
    }

    /// The errors of `name`; with `prefix` it is a `generateName`, which may end in a dash.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let masked;
        let name = match name.strip_suffix('-') {
            Some(base) if prefix && !base.is_empty() => {
                masked = format!("{base}a");
                masked.as_str()
            }
            _ => name,
        };
        match self {
            Self::Subdomain => dns_subdomain(name),
            Self::Label => dns_label(name),
            Self::Label1035 => dns1035_label(name),
            Self::PathSegment if prefix => path_segment_prefix(name),
            Self::PathSegment => path_segment(name),
            Self::ColonSegments => name.split(':').flat_map(dns_subdomain).collect(),
            Self::Address => match name.parse::<std::net::IpAddr>() {
                Ok(address) if address.to_string() == name => Vec::new(),
                Ok(_) => vec!["must be a canonical format IP address".to_owned()],
                Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(errors: Vec<String>, want: &[&str]) {
        assert_eq!(errors.len(), want.len(), "{errors:?}");
        for (error, want) in errors.iter().zip(want) {
            assert!(error.contains(want), "{error:?} has no {want:?}");
        }
    }

    #[test]
    fn dns_names() {
        check(dns_label("a-1"), &[]);
        check(dns_label("-a"), &["a lowercase RFC 1123 label"]);
        check(dns_label("a.b"), &["must not contain dots"]);
        check(dns_label(&"a".repeat(64)), &["must be no more than 63 bytes"]);
        check(dns_subdomain("a.b-c.d"), &[]);
        check(dns_subdomain("A"), &["(e.g. 'example.com', regex used for validation is '"]);
        check(dns_subdomain(""), &["a lowercase RFC 1123 subdomain"]);
        check(dns_subdomain("a..b"), &["a lowercase RFC 1123 subdomain"]);
        check(dns1035_label("1a"), &["'my-name',  or 'abc-123',"]);
    }

    #[test]
    fn path_segments() {
        check(path_segment("system:node"), &[]);
        check(path_segment(".."), &["may not be '..'"]);
        check(path_segment("a/b%c"), &["may not contain '/'", "may not contain '%'"]);
    }

    #[test]
    fn qualified_names() {
        check(qualified_name("app.kubernetes.io/name"), &[]);
        check(qualified_name("/x"), &["prefix part must be non-empty"]);
        check(qualified_name("x/"), &["name part must be non-empty", "name part must consist of"]);
        check(qualified_name("a/b/c"), &["a valid label key must consist of"]);
        check(label_value(""), &[]);
        check(label_value("a b"), &["a valid label must be an empty string"]);
    }

    #[test]
    fn ports_keys_and_variables() {
        check(port_name("http-1"), &[]);
        check(port_name("80"), &["must contain at least one letter"]);
        check(port_name("-http--x"), &["consecutive hyphens", "begin or end"]);
        check(config_key("..data"), &["must not start with '..'"]);
        check(env_name("A=B"), &["printable ASCII"]);
        check(env_name("my.var-1"), &[]);
    }

    #[test]
    fn generated_names_fit() {
        let name = generate(&"x".repeat(100));
        assert_eq!(name.len(), 63);
        assert!(dns_label(&name).is_empty());
        assert!(generate("web-").starts_with("web-"));
        check(Rule::Subdomain.check("web-", true), &[]);
        check(Rule::Subdomain.check("web-", false), &["a lowercase RFC 1123 subdomain"]);
    }
}
