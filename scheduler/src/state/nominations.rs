//! Pods that were promised room on a node: others are being deleted there for them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::pod::PodInfo;

/// What one pod was promised.
#[derive(Clone, Debug)]
pub struct Nomination {
    pub pod: Arc<PodInfo>,
    pub node: String,
    /// Uids of the pods that go for it, if it was this process that decided so.
    pub victims: BTreeSet<String>,
}

/// All promises. Bounded by the number of pods without a node.
#[derive(Clone, Debug, Default)]
pub struct Nominations {
    pods: HashMap<String, Nomination>,
    nodes: HashMap<String, BTreeSet<String>>,
}

impl Nominations {
    pub fn get(&self, uid: &str) -> Option<&Nomination> {
        self.pods.get(uid)
    }

    /// Pods that were promised room on `node`, except `pod` itself, and are not less important than it.
    pub fn before(&self, pod: &PodInfo, node: &str) -> Vec<Arc<PodInfo>> {
        self.on(node).filter(|other| other.uid != pod.uid && other.priority >= pod.priority).cloned().collect()
    }

    /// Pods that were promised room on `node` and are less important than `pod`.
    pub fn after(&self, pod: &PodInfo, node: &str) -> Vec<Arc<PodInfo>> {
        self.on(node).filter(|other| other.uid != pod.uid && other.priority < pod.priority).cloned().collect()
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        let uids = self.nodes.get(node).into_iter().flatten();
        uids.filter_map(|uid| self.pods.get(uid).map(|nomination| &nomination.pod))
    }

    pub(super) fn set(&mut self, nomination: Nomination) {
        let uid = nomination.pod.uid.clone();
        self.remove(&uid);
        self.nodes.entry(nomination.node.clone()).or_default().insert(uid.clone());
        self.pods.insert(uid, nomination);
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some(old) = self.pods.remove(uid) else { return };
        if let Some(uids) = self.nodes.get_mut(&old.node) {
            uids.remove(uid);
            if uids.is_empty() {
                self.nodes.remove(&old.node);
            }
        }
    }
}
