//! The extension points of scheduling, by upstream's names and in upstream's order, and the table of plugins at each.
//!
//! PreEnqueue · QueueSort · PreFilter · Filter · PostFilter · PreScore · Score · NormalizeScore · Reserve · Permit · PreBind ·
//! Bind · PostBind. Always holds: what a plugin decides depends on the pod, the snapshot and the cycle's state only; the
//! points up to Score are pure.

mod event;
mod profile;

use std::any::{Any, TypeId};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

pub use event::ClusterEvent;
pub use profile::Profile;

use crate::queue::Waiting;
use crate::state::{NodeInfo, PodInfo, Snapshot};

/// What plugins of one cycle tell each other and themselves, from one point to the next.
#[derive(Default)]
pub struct CycleState {
    values: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
}

impl CycleState {
    pub fn put<T: Any + Send + Sync>(&mut self, value: T) {
        self.values.insert(TypeId::of::<T>(), Box::new(value));
    }

    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.values.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

/// Why a pod does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// In the words people see, such as `Insufficient cpu`.
    pub reasons: Vec<String>,
    /// Removing pods from the node would not help.
    pub unresolvable: bool,
}

impl Rejection {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: false }
    }

    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self { unresolvable: true, ..Self::new(reason) }
    }
}

/// What every plugin has.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Changes of the cluster after which a pod this plugin rejected may fit.
    fn events(&self) -> ClusterEvent {
        ClusterEvent::empty()
    }
}

/// Keeps pods out of the queue until they are ready to be scheduled.
pub trait PreEnqueue: Plugin {
    /// # Errors
    /// What the pod waits for.
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection>;
}

/// Orders waiting pods.
pub trait QueueSort: Plugin {
    fn compare(&self, a: &Waiting, b: &Waiting) -> Ordering;
}

/// Looks at the pod and the whole snapshot once per cycle.
pub trait PreFilter: Plugin {
    /// The only nodes worth looking at, if the plugin knows them.
    ///
    /// # Errors
    /// The reason why no node can do.
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection>;
}

/// Rules out one node.
pub trait Filter: Plugin {
    /// # Errors
    /// Why the node cannot run the pod.
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;
}

/// Makes room when no node fits.
pub trait PostFilter: Plugin {
    /// The node that will have room soon, and what to tell about the attempt.
    fn post_filter(&self, state: &CycleState, pod: &PodInfo, snapshot: &Snapshot) -> (Option<String>, Option<String>);
}

/// Looks at all nodes that fit before they are scored.
pub trait PreScore: Plugin {
    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, nodes: &[Arc<NodeInfo>]);
}

/// Rates one node.
pub trait Score: Plugin {
    /// Any number; [`normalize`](Self::normalize) brings all nodes' into `0..=100`.
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64;

    /// NormalizeScore. Leaves scores that are in `0..=100` already as they are.
    fn normalize(&self, _state: &CycleState, _nodes: &[Arc<NodeInfo>], _scores: &mut [i64]) {}
}

/// Takes what the pod needs besides its node, and gives it back if the pod is not bound.
pub trait Reserve: Plugin {
    /// # Errors
    /// Why it cannot be had.
    fn reserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str) -> Result<(), Rejection>;
    fn unreserve(&self, state: &CycleState, pod: &PodInfo, node: &str);
}

/// What a permit plugin says.
pub enum Permission {
    Granted,
    Denied(Rejection),
    /// To be asked again, for at most this long.
    Wait(Duration),
}

/// The last word before binding.
pub trait Permit: Plugin {
    fn permit(&self, state: &CycleState, pod: &PodInfo, node: &str) -> Permission;
}

/// Why a binding cycle ended without a bound pod.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("bind pod {pod} to node {node}")]
    Api {
        pod: String,
        node: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{plugin} refused: {reasons}")]
    Refused { plugin: &'static str, reasons: String },
}

/// Prepares the node for the pod.
pub trait PreBind: Plugin {
    fn pre_bind<'a>(
        &'a self,
        client: &'a kube::Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), BindError>>;
}

/// Binds the pod. The first plugin that does not pass decides.
pub trait Bind: Plugin {
    /// False if the pod is not this plugin's.
    fn bind<'a>(
        &'a self,
        client: &'a kube::Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<bool, BindError>>;
}

/// Is told of a bound pod.
pub trait PostBind: Plugin {
    fn post_bind(&self, pod: &PodInfo, node: &str);
}
