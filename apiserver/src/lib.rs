//! The Kubernetes API server: turns HTTP requests into store transactions, and revisions into watch streams.
//!
//! Way of a request: [`edge`] (TLS, deadlines, limits) → `authn` → [`request`] (what is asked) → `authz` → [`handlers`]
//! → `admission` → [`registry`] → `storage` → store. Reads and watches come from [`cache`], at a stated revision.
//! I2: only this crate and `cmd` link the store. I11: bounds are in [`limits`]. I13: default-deny.

pub mod limits;
pub mod types;

pub mod cache;
mod compress;
pub mod discovery;
pub mod edge;
mod encode;
pub mod handlers;
pub mod health;
mod held;
pub mod hooks;
mod metrics;
pub mod negotiate;
pub mod registry;
pub mod request;
mod server;
mod storage;
mod throttle;
pub mod watch;

// The auth half of the crate.
pub mod admission;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod connect;
pub mod node_session;
pub mod reviews;
pub mod services;
pub mod tokens;

pub use bootstrap::BuildError;
pub use server::{ApiServer, Local};
pub use types::{Config, Ctx, Hooks, RequestInfo, UserInfo};

#[cfg(test)]
mod tests;
