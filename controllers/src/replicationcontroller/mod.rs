//! Keeps the wanted number of pods of replication controllers, with the implementation of replica sets.

use crate::replicaset::{Replicas, ReplicationControllers};
use crate::runtime::Context;

/// The controller of replication controllers.
pub fn controller(context: &Context) -> Replicas<ReplicationControllers> {
    Replicas::new(context)
}
