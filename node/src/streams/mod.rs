//! Logs, exec, attach and port-forward: streams that a server opens towards this agent over the agent's own connection.
//!
//! [`session`] receives the wishes, [`logs`] reads log files, [`forward`] connects into a pod's network.

pub mod forward;
pub mod logs;
pub mod rotate;
pub mod session;
