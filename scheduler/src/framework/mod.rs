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
    values: HashMap<TypeId, Box<dyn Noted>>,
}

/// A value in a [`CycleState`]: of any type that can be copied.
trait Noted: Any + Send + Sync {
    fn copy(&self) -> Box<dyn Noted>;
}

impl<T: Any + Clone + Send + Sync> Noted for T {
    fn copy(&self) -> Box<dyn Noted> {
        Box::new(self.clone())
    }
}

impl Clone for CycleState {
    fn clone(&self) -> Self {
        // Of the value, not of its box, which can be copied as well.
        Self { values: self.values.iter().map(|(id, value)| (*id, (**value).copy())).collect() }
    }
}

impl CycleState {
    pub fn put<T: Any + Clone + Send + Sync>(&mut self, value: T) {
        self.values.insert(TypeId::of::<T>(), Box::new(value));
    }

    pub fn get<T: Any>(&self) -> Option<&T> {
        let value: &dyn Any = &**self.values.get(&TypeId::of::<T>())?;
        value.downcast_ref()
    }

    pub fn get_mut<T: Any>(&mut self) -> Option<&mut T> {
        let value: &mut dyn Any = &mut **self.values.get_mut(&TypeId::of::<T>())?;
        value.downcast_mut()
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

    /// Keeps what was noted right while `other` is put on `node` in thought (`by` is 1) or taken off it (-1).
    fn moved(&self, _state: &mut CycleState, _pod: &PodInfo, _other: &PodInfo, _node: &NodeInfo, _by: i64) {}
}

/// Rules out one node.
pub trait Filter: Plugin {
    /// # Errors
    /// Why the node cannot run the pod.
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;
}

/// How room can be made for a pod: who has to go where.
#[derive(Clone, Debug)]
pub struct Preemption {
    pub node: String,
    /// Pods on the node that must go, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// Less important pods that were promised the node.
    pub displaced: Vec<Arc<PodInfo>>,
}

/// What became of the attempt to make room.
#[derive(Debug)]
pub enum Attempt {
    /// None was made: it is not allowed, or an earlier one is still under way.
    Declined(String),
    /// No node can be made to fit; an earlier promise is void.
    Failed(String),
    Found(Preemption),
}

/// Makes room when no node fits.
pub trait PostFilter: Plugin {
    /// `candidates` are the places in the snapshot of those nodes on which fewer pods might help.
    fn post_filter(
        &self,
        profile: &Profile,
        state: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        candidates: &[usize],
    ) -> Attempt;
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
