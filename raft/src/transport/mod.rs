//! How members reach each other: gRPC over mutually authenticated TLS (D2, D7), or in plain text where that was asked for.
//!
//! To every peer there are up to three connections, each opened when first used: `control` (votes, heartbeats, read index),
//! `bulk` (append streams, forwarded proposals) and `snapshot`; so bulk data cannot delay a heartbeat. What is asked often (heartbeats, read
//! index, proposals) shares a stream per connection (`exchange`). HTTP/2 pings find a
//! dead connection within two seconds; the next request opens a new one at once.
//!
//! Always holds: a message is acted upon only if it names this cluster, group and member. With named certificates also: its
//! sender's name is the one in the certificate of its connection, and a connection is used only if the server's certificate
//! names the expected member.

pub(crate) mod client;
mod exchange;
mod outgoing;
pub(crate) mod server;
mod tls;

use pintle_proto::raft_v1 as pb;

pub(crate) use client::Links;
pub(crate) use tls::PeerName;
#[cfg(test)]
pub(crate) use {client::Broken, tls::ConnectError};

/// This member as its messages name it.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    pub cluster_id: u64,
    pub group_id: u64,
    pub id: u64,
    pub name: String,
}

impl Me {
    pub fn header(&self, to: u64) -> pb::Header {
        pb::Header {
            cluster_id: self.cluster_id,
            group_id: self.group_id,
            from: self.id,
            to,
            from_name: self.name.clone(),
        }
    }
}
