//! Keys of claims. They stand outside `/registry/`, where no client of the API can write them.

use bytes::Bytes;
use serde_json::json;

pub(crate) const ALL: &str = "/pintle/alloc/";
pub(crate) const ADDRESSES: &str = "/pintle/alloc/clusterip/";
pub(crate) const NODE_PORTS: &str = "/pintle/alloc/nodeport/";

/// Who claims, for people that look into the store.
pub(crate) fn owner(namespace: &str, name: &str) -> Bytes {
    json!({ "service": format!("{namespace}/{name}") }).to_string().into()
}

pub(crate) fn address(ip: &str) -> Bytes {
    format!("{ADDRESSES}{ip}").into()
}

pub(crate) fn node_port(port: u16) -> Bytes {
    format!("{NODE_PORTS}{port}").into()
}
