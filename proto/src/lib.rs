//! The wire: generated code of every protocol spoken or served, and no logic. Lowest layer (L1), imports nothing of ours.
//!
//! One module per package: `etcdserverpb`, `mvccpb`, `authpb`, `v3lockpb`, `v3electionpb` (etcd v3), `raft_v1` (between
//! servers), `store_v1` (commands in the log), `node_v1` (agent session), `cri_v1` (container runtimes).
//! `bytes` fields are [`bytes::Bytes`] throughout, so that decoding never copies values (D5).

#![allow(clippy::all, rustdoc::all, missing_docs)]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The descriptors of etcd's packages, encoded: what turns their messages into JSON and back.
pub const ETCD_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.bin"));
