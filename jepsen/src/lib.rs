//! Fault injection against a running cluster, through its public interfaces only: the API, and the `pintle` program.
//!
//! The program is `pintle-jepsen`; tests use the same parts: a cluster as its user sees it, and writers that remember
//! what was acknowledged to them.
#![allow(clippy::print_stdout)]

pub mod cluster;
pub mod failover;
pub mod writers;
