//! What the scheduler knows of pods and nodes, in the form its plugins calculate with.

mod cache;
mod node;
mod nominations;
mod pod;
mod resources;
mod selectors;

pub use cache::{Cache, Snapshot};
pub use node::NodeInfo;
pub use nominations::{Nomination, Nominations};
pub use pod::{AffinityTerm, HostPort, PodInfo, SpreadConstraint, WeightedTerm};
pub use resources::Resources;
pub use selectors::{NodeQuery, tolerates};
