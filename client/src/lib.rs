//! The one way to reach the Kubernetes API, for everything that is not the API server itself (I3, D9).
//!
//! - [`in_process`] and [`Clients`]: a `kube::Client` over a tower service of the same process, with the fence of I9.
//! - [`remote`]: one mutually authenticated HTTP/2 connection to one of several servers, for `kube` and for gRPC.
//! - [`reflector`]: one list and watch per kind and process, decoded once, shared by all readers.
//! - [`work_queue`], [`leader`], [`lease`], [`events`]: what reconcilers and the scheduler stand on.
//!
//! Always holds: a write made through a fenced client carries the Raft term it was decided in; nothing in here retries a
//! write whose outcome is unknown.

pub mod clients;
pub mod events;
pub mod leader;
pub mod lease;
pub mod limits;
pub mod object;
pub mod reflector;
pub mod remote;
pub mod selector;
pub mod work_queue;

pub use clients::{Clients, FENCE_HEADER, in_process};
pub use events::Recorder;
pub use leader::{LeaderGate, Leadership};
pub use lease::LeaderLease;
pub use object::Key;
pub use reflector::{Index, ObjectEvent, Reflectors, SharedReflector};
pub use remote::{Connection, remote};
pub use selector::LabelQuery;
pub use work_queue::WorkQueue;
