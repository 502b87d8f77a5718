//! What a request asks for: path, method and query become a [`RequestInfo`].
//!
//! Pure. Sits between the edge and authorization; whatever authorization sees is exactly what handlers act on.
//! Always holds: no segment of a resolved path is empty (but for one trailing slash), `.`, `..`, or holds `/` or NUL.

use std::borrow::Cow;

use http::Method;
use pintle_api::kinds;
use pintle_api::selector::Fields;
use pintle_api::status::Status;

use crate::limits;
use crate::types::RequestInfo;

/// Query parameters, decoded, in order. Lookups take the first of a name, as upstream does.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: Option<&str>) -> Self {
        let Some(raw) = raw else { return Self::default() };
        let pairs = raw.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decode(name), form_decode(value))
        });
        Self(pairs.collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value, with absent and empty alike.
    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Upstream's reading of booleans: present and neither `false` nor `0` is true.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0" | "False" | "FALSE" | "f" | "F"))
    }

    /// # Errors
    /// 400 if the value is not a whole number.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {}: invalid syntax",
                    crate::negotiate::quoted(text)
                ))
            }),
        }
    }
}

fn form_decode(text: &str) -> String {
    let plus = text.replace('+', " ");
    let bytes = percent_decode(&plus).unwrap_or_else(|| plus.as_bytes().to_vec());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `None` on a malformed escape.
fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = (bytes.next()? as char).to_digit(16)?;
        let low = (bytes.next()? as char).to_digit(16)?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(out)
}

/// Decodes a path into its segments.
///
/// # Errors
/// 400 for what cannot be a path (bad escapes, NUL, not UTF-8, an escaped slash), 404 for dot segments.
fn segments(path: &str) -> Result<Vec<String>, Status> {
    let mut out = Vec::new();
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if trimmed.is_empty() {
        return Ok(out);
    }
    for raw in trimmed.split('/') {
        let text: Cow<'_, str> = if raw.contains('%') {
            let bytes = percent_decode(raw).ok_or_else(|| Status::bad_request("invalid URL escape in the path"))?;
            String::from_utf8(bytes).map_err(|_| Status::bad_request("the path is not valid UTF-8"))?.into()
        } else {
            raw.into()
        };
        if text.contains('/') || text.chars().any(char::is_control) {
            return Err(Status::bad_request("the path contains a character that is not allowed"));
        }
        if matches!(&*text, "." | ".." | "") {
            return Err(Status::no_such_path());
        }
        out.push(text.into_owned());
    }
    Ok(out)
}

/// Resolves what `method` on `path` asks for.
///
/// # Errors
/// See [`segments`]; 400 for a path longer than [`limits::URI_BYTES`].
pub fn resolve(method: &Method, path: &str, query: &Query) -> Result<RequestInfo, Status> {
    if path.len() > limits::URI_BYTES {
        return Err(Status::bad_request("the path is too long"));
    }
    let parts = segments(path)?;
    let mut info = RequestInfo {
        verb: method.as_str().to_ascii_lowercase(),
        path: format!("/{}", parts.join("/")),
        ..RequestInfo::default()
    };
    let mut rest = parts.as_slice();
    let group_parts = match rest.first().map(String::as_str) {
        Some("api") if rest.len() >= 3 => 1,
        Some("apis") if rest.len() >= 4 => 2,
        _ => return Ok(info),
    };
    info.is_resource = true;
    info.api_prefix = rest[0].clone();
    if group_parts == 2 {
        info.api_group = rest[1].clone();
    }
    info.version = rest[group_parts].clone();
    rest = &rest[group_parts + 1..];

    info.verb = verb(method).to_owned();
    let mut legacy_watch = false;
    if rest.len() > 1 && rest[0] == "watch" {
        legacy_watch = true;
        rest = &rest[1..];
    }
    if rest[0] == "namespaces" && rest.len() > 1 {
        info.namespace = rest[1].clone();
        if rest.len() > 2 && !matches!(rest[2].as_str(), "status" | "finalize") {
            rest = &rest[2..];
        }
    }
    info.resource = rest[0].clone();
    info.name = rest.get(1).cloned().unwrap_or_default();
    info.subresource = rest.get(2).cloned().unwrap_or_default();
    info.parts = rest.get(3..).unwrap_or_default().to_vec();
    collection_verb(&mut info, query, legacy_watch);
    Ok(info)
}

fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// A request that names no object is about the collection; `metadata.name` in its field selector names one again.
fn collection_verb(info: &mut RequestInfo, query: &Query, legacy_watch: bool) {
    if legacy_watch && info.verb == "get" {
        info.verb = "watch".to_owned();
    }
    if info.name.is_empty() {
        match info.verb.as_str() {
            "get" if query.flag("watch") => info.verb = "watch".to_owned(),
            "get" => info.verb = "list".to_owned(),
            "delete" => info.verb = "deletecollection".to_owned(),
            _ => (),
        }
        info.field_selector = query.text("fieldSelector").to_owned();
        info.label_selector = query.text("labelSelector").to_owned();
        if matches!(info.verb.as_str(), "list" | "watch")
            && let Some(name) = selected_name(info)
        {
            info.name = name;
        }
    }
}

/// The name that the field selector pins down. Read by the parser that the list will use: what is authorised is what is
/// selected. The deletion of a collection is never about one name, as upstream has it.
fn selected_name(info: &RequestInfo) -> Option<String> {
    let kind = kinds::by_resource(&info.api_group, &info.version, &info.resource)?;
    let fields = Fields::parse(kind, &info.field_selector).ok()?;
    let name = fields.exact("metadata.name")?;
    let segment = !matches!(name, "" | "." | "..") && !name.contains(['/', '%']);
    segment.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(request: &str, want: &str) {
        let (method, uri) = request.split_once(' ').expect("method and uri");
        let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
        let method = Method::from_bytes(method.as_bytes()).expect("method");
        let got = match resolve(&method, path, &Query::parse(query)) {
            Err(status) => status.code.to_string(),
            Ok(info) if !info.is_resource => format!("{} {}", info.verb, info.path),
            Ok(i) => {
                let mut text = format!("{} g={} v={} r={}", i.verb, i.api_group, i.version, i.resource);
                for (tag, value) in [("ns", &i.namespace), ("n", &i.name), ("sub", &i.subresource)] {
                    if !value.is_empty() {
                        text += &format!(" {tag}={value}");
                    }
                }
                text + &if i.parts.is_empty() { String::new() } else { format!(" +{}", i.parts.join("/")) }
            }
        };
        assert_eq!(got, want, "{request}");
    }

    #[test]
    fn resource_paths_are_resolved_as_upstream_does() {
        check("GET /api/v1/pods", "list g= v=v1 r=pods");
        check("GET /api/v1/pods/", "list g= v=v1 r=pods");
        check("GET /api/v1/pods?watch=true", "watch g= v=v1 r=pods");
        check("GET /api/v1/watch/pods", "watch g= v=v1 r=pods");
        check("GET /api/v1/namespaces/a/pods/p", "get g= v=v1 r=pods ns=a n=p");
        check("GET /api/v1/namespaces/a", "get g= v=v1 r=namespaces ns=a n=a");
        check("PUT /api/v1/namespaces/a/finalize", "update g= v=v1 r=namespaces ns=a n=a sub=finalize");
        check(
            "PATCH /apis/apps/v1/namespaces/a/deployments/d/scale",
            "patch g=apps v=v1 r=deployments ns=a n=d sub=scale",
        );
        check("DELETE /api/v1/namespaces/a/pods", "deletecollection g= v=v1 r=pods ns=a");
        check("GET /api/v1/pods?fieldSelector=metadata.name%3Dx", "list g= v=v1 r=pods n=x");
        check("GET /api/v1/watch/namespaces/a/pods/p", "watch g= v=v1 r=pods ns=a n=p");
        check("GET /api/v1/nodes/n/proxy/metrics/x", "get g= v=v1 r=nodes n=n sub=proxy +metrics/x");
        check("GET /api/v1", "get /api/v1");
        check("GET /healthz/", "get /healthz");
    }

    #[test]
    fn a_selector_names_an_object_only_if_it_selects_no_other() {
        check("GET /api/v1/secrets?watch=1&fieldSelector=metadata.name%3D%3Dx,type%3Dy", "watch g= v=v1 r=secrets n=x");
        for selector in [
            "type!%3Dy%5C,metadata.name%3Dx", // one term, about the type
            "metadata.name!%3Dx",
            "metadata.name%3D",
            "metadata.name%3D..",
            "metadata.name%3Dx,spec.none%3Dy",
        ] {
            check(&format!("GET /api/v1/secrets?fieldSelector={selector}"), "list g= v=v1 r=secrets");
        }
        check("DELETE /api/v1/secrets?fieldSelector=metadata.name%3Dx", "deletecollection g= v=v1 r=secrets");
    }

    #[test]
    fn path_tricks_are_refused() {
        check("GET /api/v1/namespaces/a/pods/..", "404");
        check("GET /api/v1/namespaces/a/pods/%2e%2e", "404");
        check("GET /api/v1//pods", "404");
        check("GET /api/v1/namespaces/a%2fb/pods", "400");
        check("GET /api/v1/pods/%00", "400");
        check("GET /api/v1/pods/%zz", "400");
        check("GET /api/v1/pods/%ff", "400");
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("a=1&b=x+y%3Dz&watch&c=%zz&a=2"));
        assert_eq!(
            (query.text("a"), query.text("b"), query.flag("watch"), query.text("c")),
            ("1", "x y=z", true, "%zz")
        );
        assert!(!Query::parse(Some("watch=0")).flag("watch"));
        assert!(Query::parse(Some("limit=x")).number("limit").is_err());
    }
}
