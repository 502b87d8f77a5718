//! The reconcilers of the control plane: what people declared in, what agents run out.
//!
//! # Shape of a controller
//! A folder each, with a pure `plan` (objects in, actions out; tested by scripts) and a [`runtime::Controller`] whose
//! `reconcile` reads the shared caches, calls `plan` and does what it says:
//! ```ignore
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

pub mod deployment;
pub mod limits;
pub mod replicaset;
pub mod replicationcontroller;
pub mod runtime;

use pintle_base::task;
use pintle_client::{Clients, LeaderGate, Reflectors};

use runtime::{Context, Runtime};

/// What can be set about controllers.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {}

/// Starts all controllers in `group`; they act while `gate` is open.
///
/// `clients` reaches the API as the controllers' identity; `reflectors` are shared with the scheduler.
pub fn run(clients: Clients, reflectors: Reflectors, gate: LeaderGate, options: &Options, group: &task::Group) {
    let _ = options;
    let context = Context::new(clients, reflectors, group.child("controllers"));
    let mut runtime = Runtime::new(context.clone());
    runtime.add(replicaset::controller(&context));
    runtime.add(replicationcontroller::controller(&context));
    runtime.add(deployment::Deployments::new(&context));
    runtime.start(gate);
}
