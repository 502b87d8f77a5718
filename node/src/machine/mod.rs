//! This machine as the cluster sees it: the Node object, its heartbeat and its Lease.

pub mod heartbeat;
mod lease;
pub mod node;
mod probe;

pub use probe::Machine;

/// The task that renews the Lease of the node whose object has this uid.
pub fn lease(
    client: kube::Client,
    options: &crate::options::AgentOptions,
    uid: String,
) -> impl Future<Output = ()> + use<> {
    lease::run(client, options.node_name.clone(), uid, options.lease_renew, options.lease_duration)
}
