//! Runs controllers: warm on every server, acting on the leader (D10).
//!
//! Flow: reflector event → [`Intake`] → work queue of the term → worker → [`Controller::reconcile`] → fenced write.
//! Always holds: handlers are registered once and for ever; queues, workers and clients live for one term. A term begins
//! when the caches have caught up with a consistent read, so a new leader never repeats its predecessor's writes.

mod delete;
mod error;
mod expectations;
mod intake;
pub mod ownership;
pub mod pods;

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use pintle_base::error::Chain;
use pintle_base::{clock, task};
use pintle_client::{Clients, Key, LeaderGate, LeaderLease, Recorder, Reflectors, WorkQueue};
use tokio::task::JoinSet;

pub use delete::{Deleted, delete_same};
pub(crate) use error::is_refused;
pub use error::{ReconcileError, api, is_already_exists, is_conflict, is_not_found};
pub use expectations::Expectations;
pub use intake::Intake;

use crate::limits;

/// What controllers are built from. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub clients: Clients,
    pub reflectors: Reflectors,
    pub group: task::Group,
}

impl Context {
    pub fn new(clients: Clients, reflectors: Reflectors, group: task::Group) -> Self {
        Self { clients, reflectors, group }
    }

    /// A recorder of events that name `component` as their source.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::start(self.clients.unfenced(), component, "", &self.group)
    }
}

/// One term of leadership. Cheap to clone.
#[derive(Clone)]
pub struct Lead {
    pub term: u64,
    /// Writes through it are refused once the term is over (I9).
    pub client: kube::Client,
}

/// What is left to do for a key after a reconcile that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until the next event.
    Done,
    /// To be looked at again after this long, if no event comes earlier.
    After(Duration),
}

/// A reconciler of keys; the crate's documentation shows how one looks.
pub trait Controller: Send + Sync + 'static {
    const NAME: &'static str;
    const WORKERS: usize = limits::WORKERS;

    /// Registers event handlers that put keys into `intake`. Called once, before any term.
    fn watch(&self, intake: &Intake);

    /// Every key to look at when a term begins.
    fn all(&self) -> Vec<Key>;

    /// Forgets what was remembered in an earlier term.
    fn begin(&self) {}

    /// Brings the world closer to what the object at `key` declares. May be dropped at any await.
    fn reconcile(&self, key: &Key, lead: &Lead) -> impl Future<Output = Result<Outcome, ReconcileError>> + Send;
}

/// Something that runs while leading.
trait Led: Send + Sync {
    fn name(&self) -> &'static str;
    fn lead(self: Arc<Self>, lead: Lead) -> BoxFuture<'static, ()>;
}

/// The controllers of this process.
pub struct Runtime {
    context: Context,
    lease: LeaderLease,
    led: Vec<Arc<dyn Led>>,
}

impl Runtime {
    /// Controllers that show in `lease` who leads.
    pub fn new(context: Context, lease: LeaderLease) -> Self {
        Self { context, lease, led: Vec::new() }
    }

    pub fn add<C: Controller>(&mut self, controller: C) {
        let intake = Intake::default();
        controller.watch(&intake);
        self.led.push(Arc::new(Keyed { controller, intake }));
    }

    /// Adds work without keys: `run` is called in each term, and dropped with it. It should not return before.
    pub fn add_loop<F, W>(&mut self, name: &'static str, run: F)
    where
        F: Fn(Lead) -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        self.led.push(Arc::new(Looped { name, run }));
    }

    /// Starts to wait for leadership in the context's group.
    pub fn start(self, gate: LeaderGate) {
        let (stop, group) = (self.context.group.token(), self.context.group.clone());
        let this = Arc::new(self);
        group.spawn("controllers", gate.run(stop, move |term| Arc::clone(&this).lead(term)));
    }

    async fn lead(self: Arc<Self>, term: u64) {
        let started = clock::now();
        let lead = Lead { term, client: self.context.clients.fenced(term) };
        let mut tasks = JoinSet::new();
        let (lease, client) = (self.lease.clone(), lead.client.clone());
        tasks.spawn(async move { lease.hold(client).await });
        self.context.reflectors.ready().await;
        self.context.reflectors.catch_up().await;
        tracing::info!(term, controllers = self.led.len(), waited = ?started.elapsed(), "controllers lead");
        for led in &self.led {
            tasks.spawn(Arc::clone(led).lead(lead.clone()));
        }
        while let Some(ended) = tasks.join_next().await {
            match ended {
                // A panic reaches the task group, which stops the process: half a control plane is worse than none.
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                Ok(()) | Err(_) => (),
            }
        }
    }
}

struct Keyed<C> {
    controller: C,
    intake: Intake,
}

impl<C: Controller> Led for Keyed<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn lead(self: Arc<Self>, lead: Lead) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.controller.begin();
            let queue = WorkQueue::new();
            // First the queue, then all keys: an event in between is at worst a second look.
            let _open = self.intake.open(queue.clone());
            self.controller.all().into_iter().for_each(|key| queue.add(key));
            queue.drain(C::WORKERS, |key| self.work(key, &queue, &lead)).await;
        })
    }
}

impl<C: Controller> Keyed<C> {
    #[tracing::instrument(skip_all, fields(controller = C::NAME, key = %key))]
    async fn work(&self, key: Key, queue: &WorkQueue<Key>, lead: &Lead) {
        match self.controller.reconcile(&key, lead).await {
            Ok(outcome) => {
                queue.forget(&key);
                if let Outcome::After(delay) = outcome {
                    queue.add_after(key, delay);
                }
            }
            Err(error) => {
                let failures = queue.failures(&key);
                if error.is_conflict() {
                    tracing::debug!(error = %Chain(&error), "reconcile met a newer object, will retry");
                } else {
                    tracing::warn!(error = %Chain(&error), failures, "reconcile failed, will retry");
                }
                queue.add_after_failure(key);
            }
        }
    }
}

struct Looped<F> {
    name: &'static str,
    run: F,
}

impl<F, W> Led for Looped<F>
where
    F: Fn(Lead) -> W + Send + Sync + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn lead(self: Arc<Self>, lead: Lead) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            (self.run)(lead).await;
            tracing::debug!(controller = self.name(), "loop ended before its term");
        })
    }
}
