//! Requests that a fellow server passes on: the certificate is the server's, the user is named in headers.
//!
//! Only group `system:pintle:servers` is believed. The same headers from anybody else mean nothing.

use std::collections::BTreeMap;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use pintle_api::status::Status;

use crate::types::UserInfo;

const USER: &str = "x-remote-user";
const UID: &str = "x-remote-uid";
const GROUP: &str = "x-remote-group";
const EXTRA_PREFIX: &str = "x-remote-extra-";

/// The user a server speaks for; the server itself if it names none.
pub(crate) fn speaker(server: UserInfo, headers: &HeaderMap) -> Result<UserInfo, Status> {
    let Some(name) = headers.get(USER) else { return Ok(server) };
    let mut user = UserInfo { name: decode(name)?, ..UserInfo::default() };
    if let Some(uid) = headers.get(UID) {
        user.uid = decode(uid)?;
    }
    user.groups = headers.get_all(GROUP).iter().map(decode).collect::<Result<_, _>>()?;
    user.extra = extras(headers, EXTRA_PREFIX)?;
    if user.name.is_empty() {
        return Err(Status::unauthorized());
    }
    Ok(user)
}

/// Replaces every header that speaks of an identity by those that name `user`.
pub(crate) fn name_user(headers: &mut HeaderMap, user: &UserInfo) {
    let spoken: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with("x-remote-") || name.starts_with("impersonate-") || name == "authorization"
        })
        .cloned()
        .collect();
    for name in spoken {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(encode(value))) {
            headers.append(name, value);
        }
    };
    add(USER, &user.name);
    if !user.uid.is_empty() {
        add(UID, &user.uid);
    }
    for group in &user.groups {
        add(GROUP, group);
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("{EXTRA_PREFIX}{}", encode(key).to_ascii_lowercase()), value);
        }
    }
}

/// Headers that start with `prefix`, the rest of the name percent-decoded as the key.
pub(crate) fn extras(headers: &HeaderMap, prefix: &str) -> Result<BTreeMap<String, Vec<String>>, Status> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(prefix) {
            let key = unescape(key).ok_or_else(malformed)?;
            let value = value.to_str().map_err(|_| malformed())?;
            extra.entry(key).or_default().push(unescape(value).unwrap_or_else(|| value.to_owned()));
        }
    }
    Ok(extra)
}

fn decode(value: &HeaderValue) -> Result<String, Status> {
    value.to_str().ok().and_then(unescape).ok_or_else(malformed)
}

fn malformed() -> Status {
    Status::bad_request("an identity header cannot be read")
}

/// Percent-encodes what a header name or value cannot carry, and the percent sign.
fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let pair = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_survives_the_hop_whole() {
        let user = UserInfo {
            name: "ann müller/x".into(),
            uid: "u 1".into(),
            groups: vec!["a,b".into(), "system:authenticated".into()],
            extra: [("authentication.kubernetes.io/pod-name".to_owned(), vec!["web 100%".to_owned()])].into(),
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-group", HeaderValue::from_static("system:masters"));
        headers.insert("impersonate-user", HeaderValue::from_static("root"));
        headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        name_user(&mut headers, &user);
        assert!(!headers.contains_key("impersonate-user") && !headers.contains_key("authorization"));
        assert_eq!(speaker(UserInfo::default(), &headers).expect("readable"), user);
    }

    #[test]
    fn a_server_that_names_nobody_is_itself_and_an_empty_name_is_nobody() {
        let server = UserInfo { name: "system:pintle:server:s1".into(), ..UserInfo::default() };
        assert_eq!(speaker(server.clone(), &HeaderMap::new()).expect("itself"), server);
        let empty = HeaderMap::from_iter([(HeaderName::from_static(USER), HeaderValue::from_static(""))]);
        assert_eq!(speaker(server.clone(), &empty).expect_err("refused").http_code(), 401);
        let broken = HeaderMap::from_iter([(HeaderName::from_static(USER), HeaderValue::from_static("a%z"))]);
        assert_eq!(speaker(server, &broken).expect_err("refused").http_code(), 400);
    }
}
