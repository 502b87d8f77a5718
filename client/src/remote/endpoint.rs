//! The address of a server as people write it: `host:port`, `https://host:port`, `[::1]:6443`, or a host alone.

use std::fmt;
use std::str::FromStr;

/// The port of the API when none is given.
const API_PORT: u16 = 6443;

/// A server's host and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a server address: give host:port or https://host:port")]
pub struct InvalidEndpoint(String);

impl Endpoint {
    /// Host name or IP address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint(text.to_owned());
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (host, tail) = bracketed.split_once(']').ok_or_else(invalid)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?;
                (host, tail.strip_prefix(':').or(if tail.is_empty() { Some("") } else { None }).ok_or_else(invalid)?)
            }
            None => rest.split_once(':').unwrap_or((rest, "")),
        };
        let port = if port.is_empty() { API_PORT } else { port.parse().map_err(|_| invalid())? };
        if port == 0 || rustls_pki_types::ServerName::try_from(host).is_err() {
            return Err(invalid());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl From<std::net::SocketAddr> for Endpoint {
    fn from(address: std::net::SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, want) in [
            ("10.0.0.1:6444", "10.0.0.1:6444"),
            ("https://master-1:6443", "master-1:6443"),
            ("https://master-1/", "master-1:6443"),
            ("[::1]:7000", "[::1]:7000"),
            ("[fd00::1]", "[fd00::1]:6443"),
        ] {
            assert_eq!(text.parse::<Endpoint>().map(|endpoint| endpoint.to_string()), Ok(want.to_owned()), "{text}");
        }
        for text in ["", "http://a:1", "a:b", "a:0", "a:99999", "[::1", "[::1]x", "a b:1", "a:1/path", "::1"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
