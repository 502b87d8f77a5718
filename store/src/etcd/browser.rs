//! What keeps web pages away, or lets them in: which hosts this member answers for (a page must not reach it by a name of its
//! own that it points here), and whose pages may read the answers (CORS).

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::store::Store;

/// In the extensions of requests that came over TLS: there the certificate says whom a client reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverTls;

const CORS: [(HeaderName, &str); 2] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
];

pub(super) async fn guard(State(store): State<Store>, request: Request, next: Next) -> Response {
    let options = store.options();
    if request.extensions().get::<OverTls>().is_none() && !answers_for(&options.hosts, request.headers()) {
        return (StatusCode::MISDIRECTED_REQUEST, "host is not one of --host-whitelist\n").into_response();
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.filter(|origin| lets_in(&options.origins, origin));
    let preflight = request.method() == Method::OPTIONS;
    let mut response =
        if preflight && !options.origins.is_empty() { StatusCode::OK.into_response() } else { next.run(request).await };
    if let Some(origin) = allowed {
        for (name, value) in CORS {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn lets_in(origins: &[String], origin: &HeaderValue) -> bool {
    origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
}

/// Nothing named lets every host through. A request without a host is one of a client that is no browser.
fn answers_for(hosts: &[String], headers: &HeaderMap) -> bool {
    if hosts.is_empty() || hosts.iter().any(|host| host == "*") {
        return true;
    }
    let Some(asked) = headers.get(header::HOST) else { return true };
    let asked = asked.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
    asked.is_some_and(|asked| hosts.iter().any(|host| host.eq_ignore_ascii_case(asked.host())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(hosts: &[&str], asked: Option<&str>, want: bool) {
        let mut headers = HeaderMap::new();
        if let Some(asked) = asked {
            headers.insert(header::HOST, asked.parse().unwrap());
        }
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        assert_eq!(answers_for(&hosts, &headers), want, "{hosts:?} {asked:?}");
    }

    #[test]
    fn only_named_hosts_are_answered_for() {
        check(&[], Some("evil.example"), true);
        check(&["*"], Some("evil.example:2379"), true);
        check(&["store.example", "127.0.0.1"], Some("store.example:2379"), true);
        check(&["store.example", "127.0.0.1"], Some("STORE.example"), true);
        check(&["store.example"], Some("evil.example"), false);
        check(&["store.example"], Some("store.example.evil.example"), false);
        check(&["store.example"], Some("not a host"), false);
        check(&["store.example"], None, true);
    }
}
