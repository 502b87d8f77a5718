//! Content negotiation: which form an answer takes, from the whole Accept list, and which form a body has.
//!
//! Pure but for building responses. Always holds: a clause that names a view or version we do not serve is passed over,
//! never answered with something else (W1, W2); nothing acceptable is 406.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use pintle_api::status::Status;

use crate::types::{Body, Response};

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// What bodies of requests and answers may be.
pub const MEDIA_TYPES: [&str; 3] = [JSON, YAML, PROTOBUF];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

impl Format {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }
}

/// What is shown of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Full,
    Table,
    /// Metadata only.
    Partial,
}

/// One clause of an Accept header.
#[derive(Clone, Debug, PartialEq)]
pub struct Clause {
    pub media_type: String,
    pub params: Vec<(String, String)>,
    quality: f32,
}

impl Clause {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next()?.to_ascii_lowercase();
        if media_type.is_empty() {
            return None;
        }
        let mut clause = Self { media_type, params: Vec::new(), quality: 1.0 };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim().trim_matches('"');
            match name.trim() {
                "q" => clause.quality = value.parse().unwrap_or(1.0),
                name => clause.params.push((name.to_owned(), value.to_owned())),
            }
        }
        Some(clause)
    }

    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn format(&self) -> Option<Format> {
        match self.media_type.as_str() {
            "*/*" | "application/*" | JSON => Some(Format::Json),
            YAML => Some(Format::Yaml),
            PROTOBUF => Some(Format::Protobuf),
            _ => None,
        }
    }

    fn view(&self) -> Option<View> {
        let meta = self.param("g") == "meta.k8s.io" && matches!(self.param("v"), "v1" | "v1beta1");
        match self.param("as") {
            "" => Some(View::Full),
            "Table" if meta => Some(View::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta => Some(View::Partial),
            _ => None,
        }
    }
}

/// The clauses of all Accept headers, best first. No header at all accepts anything.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause> {
    let texts = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let mut clauses: Vec<Clause> = texts.flat_map(|text| text.split(',')).filter_map(Clause::parse).collect();
    clauses.retain(|clause| clause.quality > 0.0);
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    if clauses.is_empty() {
        clauses.extend(Clause::parse("*/*"));
    }
    clauses
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub format: Format,
    pub view: View,
    /// Version of meta.k8s.io that a table or partial object is labelled with.
    pub meta_version: &'static str,
    pub pretty: bool,
}

impl Accepted {
    pub const JSON: Self = Self { format: Format::Json, view: View::Full, meta_version: "v1", pretty: false };

    /// # Errors
    /// 406 if no clause can be served.
    pub fn of(headers: &HeaderMap, pretty: bool) -> Result<Self, Status> {
        let chosen = clauses(headers).into_iter().find_map(|clause| {
            let meta_version = if clause.param("v") == "v1beta1" { "v1beta1" } else { "v1" };
            let pretty = pretty || clause.param("pretty") == "1" || clause.param("pretty") == "true";
            let (format, view) = (clause.format()?, clause.view()?);
            // Tables have no protobuf form.
            (format != Format::Protobuf || view != View::Table).then_some(Self { format, view, meta_version, pretty })
        });
        chosen.ok_or_else(|| Status::not_acceptable(&MEDIA_TYPES))
    }
}

/// The media type of a body, without parameters. Missing means JSON (W16).
pub fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or(JSON);
    let text = text.split(';').next().unwrap_or(JSON).trim().to_ascii_lowercase();
    if text.is_empty() { JSON.to_owned() } else { text }
}

/// Quoted as Go prints it, for messages.
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}

pub fn bytes_response(code: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

pub fn json_response(code: StatusCode, value: &impl serde::Serialize) -> Response {
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    bytes_response(code, JSON, body)
}

/// A failure (or a bare success) as JSON.
pub fn status_response(status: &Status) -> Response {
    with_retry(json_response(code_of(status), status), status)
}

/// A failure in a form the client accepts; JSON if it accepts nothing we have.
pub fn status_for(headers: &HeaderMap, status: &Status) -> Response {
    let response = match Accepted::of(headers, false).map(|accepted| accepted.format) {
        Ok(Format::Protobuf) => {
            let value = status.to_value();
            bytes_response(code_of(status), PROTOBUF, crate::encode::protobuf_of(&value))
        }
        Ok(Format::Yaml) => bytes_response(code_of(status), YAML, pintle_api::codec::encode_yaml(&status.to_value())),
        _ => return status_response(status),
    };
    with_retry(response, status)
}

pub fn code_of(status: &Status) -> StatusCode {
    StatusCode::from_u16(status.http_code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn with_retry(mut response: Response, status: &Status) -> Response {
    if let Some(seconds) = status.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning: 299` headers. Lines that no header can carry are cleaned, long ones cut.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    for warning in warnings.iter().take(64) {
        let clean: String = warning.chars().filter(|c| !c.is_control()).take(1024).collect();
        let text = format!("299 - {}", quoted(&clean));
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, want: &str) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(ACCEPT, HeaderValue::from_str(accept).expect("header"));
        }
        let got = match Accepted::of(&headers, false) {
            Ok(accepted) => format!("{:?} {:?} {}", accepted.format, accepted.view, accepted.meta_version),
            Err(status) => status.code.to_string(),
        };
        assert_eq!(got, want, "{accept}");
    }

    #[test]
    fn the_first_clause_that_can_be_served_wins() {
        check("", "Json Full v1");
        check("*/*", "Json Full v1");
        check("application/vnd.kubernetes.protobuf,application/json", "Protobuf Full v1");
        check("application/vnd.kubernetes.protobuf, */*", "Protobuf Full v1");
        check("application/json;q=0.5, application/yaml", "Yaml Full v1");
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "Json Table v1");
        check("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", "Json Full v1");
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io", "Json Table v1beta1");
        check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "Json Partial v1");
        check("text/html", "406");
        check("application/json;as=Nothing;g=meta.k8s.io;v=v1", "406");
    }
}
