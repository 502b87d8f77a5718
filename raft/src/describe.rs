//! Which cluster is at an address, and which member a data directory is of: what a process asks that was told neither its own id nor
//! its cluster's.

use std::path::Path;

use pintle_base::clock;
use pintle_proto::raft_v1 as pb;
use pintle_proto::raft_v1::consensus_client::ConsensusClient;

use crate::core::Record;
use crate::identity;
use crate::machine::Peer;
use crate::node::Node;
use crate::start::{Peering, StartError};
use crate::transport::client::over_tcp;
use crate::{limits, wire};

/// A cluster as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub cluster_id: u64,
    /// Empty if the member that was asked is in no cluster itself yet.
    pub members: Vec<Peer>,
    /// Of the log entry that says so; the greater one is newer.
    pub index: u64,
}

impl Description {
    /// The cluster as `node` sees it.
    pub(crate) fn of(node: &Node) -> Self {
        let membership = node.membership();
        let index = membership.log_id().as_ref().map_or(0, |id| id.index);
        let members = membership.membership().nodes().map(|(id, record)| record.peer(*id)).collect();
        Self { cluster_id: node.me().cluster_id, members, index }
    }
}

/// No description was given: nobody answers there, or not a member.
#[derive(Debug, thiserror::Error)]
#[error("ask {address} which cluster it is of: {reason}")]
pub struct DescribeError {
    pub address: String,
    pub reason: String,
}

/// Asks the member at `address`, `host:port` of its peer transport. Not where certificates name members: there everybody is told
/// who the others are.
pub async fn describe(peering: &Peering, address: &str) -> Result<Description, DescribeError> {
    let failed = |reason: String| DescribeError { address: address.to_owned(), reason };
    let record = Record { peer_addr: address.to_owned(), ..Record::default() };
    let mut client = ConsensusClient::new(over_tcp(peering)(&record));
    let answer = clock::timeout(limits::PROBE_TIMEOUT, client.describe(pb::DescribeRequest {})).await;
    let answer = answer.map_err(|_| failed(format!("no answer within {:?}", limits::PROBE_TIMEOUT)))?;
    let pb::DescribeResponse { cluster_id, members, index } =
        answer.map_err(|status| failed(status.message().to_owned()))?.into_inner();
    Ok(Description { cluster_id, members: members.into_iter().map(wire::from_member).collect(), index })
}

/// Cluster and member that Raft's data directory `dir` belongs to; `None` if it is nobody's yet.
pub fn claimed(dir: &Path) -> Result<Option<(u64, u64)>, StartError> {
    let found = identity::read(dir)?;
    Ok(found.map(|identity| (identity.cluster_id, identity.node_id)))
}
