//! The reconcilers of the control plane: what people declared in, what agents run out.
//!
//! # Shape of a controller
//! A folder each, with a pure `plan` (objects in, actions out; tested by scripts) and a [`runtime::Controller`] whose
//! `reconcile` reads the shared caches, calls `plan` and does what it says:
//! ```text
//! impl Controller for RootCa {
//!     const NAME: &'static str = "root-ca-publisher";
//!     /// Called once: registers event handlers that put keys into `intake`.
//!     fn watch(&self, intake: &Intake) {
//!         intake.every(&self.namespaces);                              // the key of each changed namespace
//!         intake.mapped(&self.config_maps, |map| vec![Key::cluster(map.namespace()?)]); // or a key computed from it
//!     }
//!     /// Every key there is, looked at when a term begins.
//!     fn all(&self) -> Vec<Key> { self.namespaces.keys() }
//!     /// Forgets what was remembered in an earlier term (expectations, timers).
//!     fn begin(&self) {}
//!     async fn reconcile(&self, key: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
//!         let actions = plan::plan(self.namespaces.get(key).as_deref(), ...);
//!         // writes go through `lead.client`, which carries the term (I9)
//!         Ok(Outcome::Done)                                            // or Outcome::After(duration)
//!     }
//! }
//! ```
//! It is built from a [`runtime::Context`] (`context.reflectors.of::<Pod>()`, `context.recorder("name")`) and added in [`run`]
//! by one line. What has no keys, such as a periodic check, is added with [`runtime::Runtime::add_loop`].
//!
//! # Always holds
//! - Caches are shared by all controllers and the scheduler, and filled on every server; only the leader acts (D10).
//! - A term begins with caches that know the predecessor's last write; every write of the term carries its fence (I9).
//! - One key is reconciled by one worker at a time; a failure is retried with backoff; no error is lost silently.

pub mod cluster_dns;
pub mod csr;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod garbage_collector;
pub mod limits;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replicaset;
pub mod replicationcontroller;
pub mod root_ca;
pub mod runtime;
pub mod service_account_token;
pub mod serviceaccount;
pub mod token_cleaner;

use std::sync::Arc;
use std::time::Duration;

use pintle_api::tokens::jwt;
use pintle_base::task;
use pintle_client::{Clients, LeaderGate, LeaderLease, Reflectors};

use runtime::{Context, Runtime};

/// What can be set about controllers.
pub struct Options {
    /// Name of this server, as the published Lease shows it.
    pub server: String,
    /// The cluster's authority: published to every namespace, and the signer of node certificates.
    pub authority: csr::Authority,
    /// The keys of service accounts' tokens.
    pub token_keys: jwt::Keys,
    /// The cluster's pod network, cut into blocks for the nodes.
    pub pod_network: node_ipam::plan::Range,
    /// A node without a sign of life for this long is lost.
    pub node_grace: Duration,
    /// Where agents answer cluster DNS.
    pub cluster_dns: std::net::IpAddr,
}

/// Starts all controllers in `group`; they act while `gate` is open.
///
/// `clients` reaches the API as the controllers' identity; `reflectors` are shared with the scheduler.
pub fn run(clients: Clients, reflectors: Reflectors, gate: LeaderGate, options: Options, group: &task::Group) {
    let context = Context::new(clients, reflectors, group.child("controllers"));
    let lease = LeaderLease::new("kube-controller-manager", &options.server);
    let mut runtime = Runtime::new(context.clone(), lease);
    runtime.add(replicaset::controller(&context));
    runtime.add(replicationcontroller::controller(&context));
    runtime.add(deployment::Deployments::new(&context));
    let members = endpoints::Members::new(&context);
    runtime.add(endpoints::EndpointsOf::new(&context, members.clone()));
    runtime.add(endpointslice::EndpointSlices::new(&context, members));
    runtime.add(node_ipam::NodeIpam::new(&context, options.pod_network));
    runtime.add(node_lifecycle::NodeLifecycle::new(&context, options.node_grace));
    runtime.add(serviceaccount::ServiceAccounts::new(&context));
    runtime.add(root_ca::RootCa::new(&context, options.authority.certificate.clone()));
    let certificate = options.authority.certificate.clone();
    runtime.add(service_account_token::ServiceAccountTokens::new(&context, options.token_keys, certificate));
    runtime.add(token_cleaner::TokenCleaner::new(&context));
    runtime.add(csr::CertificateRequests::new(&context, options.authority));
    runtime.add(cluster_dns::ClusterDns::new(&context, options.cluster_dns.to_string()));
    runtime.add(namespace::Namespaces::new(&context));
    runtime.add_loop("garbage-collector", garbage_collector::run);
    let pods = Arc::new(pod_gc::PodGc::new(&context));
    runtime.add_loop("pod-garbage-collector", move |lead| Arc::clone(&pods).run(lead));
    runtime.start(gate);
}
