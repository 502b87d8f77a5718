//! Pods on nodes as the watch shows them, plus pods assumed to be there because their binding is under way.
//!
//! Always holds: a pod counts on exactly one node; an assumed pod counts until the watch confirms it or the binding is
//! known to have failed. A snapshot does not change while it is used.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use pintle_base::clock::{self, Instant};

use super::node::NodeInfo;
use super::nominations::{Nomination, Nominations};
use super::pod::PodInfo;
use crate::limits;

/// Where a pod counts.
struct Placed {
    node: String,
    /// When the binding was acknowledged, for a pod the watch has not shown on its node yet.
    assumed: Option<Option<Instant>>,
}

#[derive(Default)]
pub struct Cache {
    nodes: HashMap<String, Slot>,
    pods: HashMap<String, Placed>,
    /// Names of nodes whose information differs from the last snapshot.
    changed: HashSet<String>,
    /// Nodes came, went, or moved to another zone since the last snapshot.
    reordered: bool,
    /// Nodes that have each image.
    image_nodes: HashMap<String, usize>,
    images_changed: bool,
    namespaces: Arc<BTreeMap<String, BTreeMap<String, String>>>,
    nominations: Arc<Nominations>,
}

/// A node's information; `exists` is false while only pods of it are known.
struct Slot {
    info: Arc<NodeInfo>,
    exists: bool,
}

/// The nodes at one moment, in the order they are looked at.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub nodes: Vec<Arc<NodeInfo>>,
    index: HashMap<String, usize>,
    /// Places of the nodes with pods that have pod (anti-)affinity.
    affine: BTreeSet<usize>,
    pub image_nodes: HashMap<String, usize>,
    /// The labels of each namespace.
    pub namespaces: Arc<BTreeMap<String, BTreeMap<String, String>>>,
    /// Which pods were promised room.
    pub nominations: Arc<Nominations>,
}

impl Snapshot {
    pub fn get(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.index.get(name).map(|at| &self.nodes[*at])
    }

    /// Where the node called `name` is in [`nodes`](Self::nodes).
    pub fn place_of(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The nodes with pods that have pod (anti-)affinity: most clusters have few.
    pub fn affine_nodes(&self) -> impl Iterator<Item = &Arc<NodeInfo>> {
        self.affine.iter().map(|at| &self.nodes[*at])
    }

    fn put(&mut self, at: usize, info: &Arc<NodeInfo>) {
        self.nodes[at] = Arc::clone(info);
        if info.with_affinity.is_empty() {
            self.affine.remove(&at);
        } else {
            self.affine.insert(at);
        }
    }
}

impl Cache {
    pub fn set_node(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let slot = self.nodes.entry(name.clone()).or_insert_with(empty_slot);
        let before = (slot.exists, slot.info.zone().to_owned());
        let images = Arc::clone(&slot.info.images);
        Arc::make_mut(&mut slot.info).set_node(node);
        slot.exists = true;
        if !Arc::ptr_eq(&images, &slot.info.images) {
            count_images(&mut self.image_nodes, &images, false);
            count_images(&mut self.image_nodes, &slot.info.images, true);
            self.images_changed = true;
        }
        self.reordered |= before != (true, slot.info.zone().to_owned());
        self.changed.insert(name);
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.nodes.get_mut(name) else { return };
        count_images(&mut self.image_nodes, &slot.info.images, false);
        self.reordered = true;
        if slot.info.pods.is_empty() {
            self.nodes.remove(name);
        } else {
            slot.exists = false;
            Arc::make_mut(&mut slot.info).set_node(&Node::default());
            Arc::make_mut(&mut slot.info).name = name.to_owned();
        }
    }

    /// A namespace and its labels; `None` if it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        let namespaces = Arc::make_mut(&mut self.namespaces);
        match labels {
            Some(labels) => drop(namespaces.insert(name.to_owned(), labels)),
            None => drop(namespaces.remove(name)),
        }
    }

    /// The watch shows `pod` on its node.
    pub fn set_pod(&mut self, pod: &Arc<PodInfo>) {
        let Some(node) = pod.node() else { return };
        let node = node.to_owned();
        self.take(&pod.uid);
        self.put(Arc::clone(pod), node, None);
        self.denominate(&pod.uid);
    }

    /// The watch shows that `pod` is gone, or has ended.
    pub fn remove_pod(&mut self, uid: &str) {
        self.take(uid);
        self.denominate(uid);
    }

    /// Promises `pod` room on `node`; `victims` are the uids of the pods that go for it.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str, victims: BTreeSet<String>) {
        let nomination = Nomination { pod: Arc::clone(pod), node: node.to_owned(), victims };
        Arc::make_mut(&mut self.nominations).set(nomination);
    }

    /// The promise to the pod is void or kept.
    pub fn denominate(&mut self, uid: &str) {
        if self.nominations.get(uid).is_some() {
            Arc::make_mut(&mut self.nominations).remove(uid);
        }
    }

    /// Takes over what the API says the pod was promised. What this process decided and the API does not show yet stays.
    pub fn show_nomination(&mut self, pod: &Arc<PodInfo>, before: Option<&str>, now: Option<&str>) {
        let known = self.nominations.get(&pod.uid).map(|known| known.node.as_str());
        match now {
            Some(node) if known != Some(node) => self.nominate(pod, node, BTreeSet::new()),
            None if before.is_some() => self.denominate(&pod.uid),
            _ => (),
        }
    }

    /// Counts `pod` on `node` before it is bound.
    pub fn assume(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.take(&pod.uid);
        self.put(Arc::clone(pod), node.to_owned(), Some(None));
        self.denominate(&pod.uid);
    }

    /// The binding of an assumed pod was acknowledged.
    pub fn bound(&mut self, uid: &str) {
        if let Some(Placed { assumed: Some(since), .. }) = self.pods.get_mut(uid) {
            *since = Some(clock::now());
        }
    }

    /// The binding of an assumed pod failed. A pod the watch has shown on a node stays there.
    pub fn forget(&mut self, uid: &str) {
        if self.is_assumed(uid) {
            self.take(uid);
        }
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed.is_some())
    }

    /// True if the pod counts on a node, assumed or shown.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Forgets assumed pods: all of them if `all`, else those acknowledged long ago that the watch never showed.
    pub fn expire_assumed(&mut self, all: bool) {
        let over = |placed: &Placed| match placed.assumed {
            None => false,
            Some(since) => all || since.is_some_and(|since| since.elapsed() > limits::ASSUMED_MAX),
        };
        let uids: Vec<String> =
            self.pods.iter().filter(|(_, placed)| over(placed)).map(|(uid, _)| uid.clone()).collect();
        uids.iter().for_each(|uid| self.take(uid));
    }

    fn put(&mut self, pod: Arc<PodInfo>, node: String, assumed: Option<Option<Instant>>) {
        self.pods.insert(pod.uid.clone(), Placed { node: node.clone(), assumed });
        let slot = self.nodes.entry(node.clone()).or_insert_with(empty_slot);
        let info = Arc::make_mut(&mut slot.info);
        info.name.clone_from(&node);
        info.add(pod);
        self.changed.insert(node);
    }

    fn take(&mut self, uid: &str) {
        let Some(placed) = self.pods.remove(uid) else { return };
        let Some(slot) = self.nodes.get_mut(&placed.node) else { return };
        Arc::make_mut(&mut slot.info).remove(uid);
        if !slot.exists && slot.info.pods.is_empty() {
            self.nodes.remove(&placed.node);
        } else {
            self.changed.insert(placed.node);
        }
    }

    /// Brings `snapshot`, which was last refreshed from this cache, up to date. Costs as much as has changed.
    pub fn refresh(&mut self, snapshot: &mut Snapshot) {
        if self.reordered {
            self.reorder(snapshot);
        } else {
            for name in &self.changed {
                if let (Some(at), Some(slot)) = (snapshot.index.get(name), self.nodes.get(name)) {
                    let at = *at;
                    snapshot.put(at, &slot.info);
                }
            }
        }
        if self.reordered || self.images_changed {
            snapshot.image_nodes.clone_from(&self.image_nodes);
        }
        snapshot.namespaces = Arc::clone(&self.namespaces);
        snapshot.nominations = Arc::clone(&self.nominations);
        self.changed.clear();
        (self.reordered, self.images_changed) = (false, false);
    }

    /// Fills `snapshot` from nothing.
    pub fn refresh_fully(&mut self, snapshot: &mut Snapshot) {
        self.reordered = true;
        self.refresh(snapshot);
    }

    /// Puts one node of each zone after the other, so that a sample of neighbours spans the zones.
    fn reorder(&self, snapshot: &mut Snapshot) {
        let mut zones: BTreeMap<&str, Vec<&Arc<NodeInfo>>> = BTreeMap::new();
        for slot in self.nodes.values().filter(|slot| slot.exists) {
            zones.entry(slot.info.zone()).or_default().push(&slot.info);
        }
        zones.values_mut().for_each(|nodes| nodes.sort_by(|a, b| a.name.cmp(&b.name)));
        let rounds = zones.values().map(Vec::len).max().unwrap_or(0);
        let order = (0..rounds).flat_map(|round| zones.values().filter_map(move |nodes| nodes.get(round).copied()));
        snapshot.nodes = order.cloned().collect();
        let places = snapshot.nodes.iter().enumerate();
        snapshot.index = places.clone().map(|(at, node)| (node.name.clone(), at)).collect();
        snapshot.affine = places.filter(|(_, node)| !node.with_affinity.is_empty()).map(|(at, _)| at).collect();
    }
}

fn empty_slot() -> Slot {
    Slot { info: Arc::default(), exists: false }
}

fn count_images(counts: &mut HashMap<String, usize>, images: &HashMap<String, i64>, add: bool) {
    for image in images.keys() {
        let count = counts.entry(image.clone()).or_default();
        *count = if add { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            counts.remove(image);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn node(name: &str, zone: &str) -> Node {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        serde_json::from_value(
            json!({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": {"cpu": "4"}}}),
        )
        .expect("node")
    }

    fn pod(name: &str, node: &str) -> Arc<PodInfo> {
        let container = json!({"name": "a", "resources": {"requests": {"cpu": "1"}}});
        let value =
            json!({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": node, "containers": [container]}});
        let pod: Pod = serde_json::from_value(value).expect("pod");
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn used(snapshot: &Snapshot, node: &str) -> i64 {
        snapshot.get(node).map_or(-1, |info| info.requested.milli_cpu)
    }

    #[test]
    fn an_assumed_pod_counts_once_until_it_is_confirmed_or_forgotten() {
        let (mut cache, mut snapshot) = (Cache::default(), Snapshot::default());
        cache.set_node(&node("n1", ""));
        cache.assume(&pod("a", ""), "n1");
        cache.assume(&pod("b", ""), "n1");
        cache.refresh(&mut snapshot);
        assert_eq!(used(&snapshot, "n1"), 2000);
        cache.set_pod(&pod("a", "n1"));
        cache.forget("a");
        cache.forget("b");
        cache.refresh(&mut snapshot);
        assert_eq!(used(&snapshot, "n1"), 1000);
        assert!(cache.is_placed("a") && !cache.is_assumed("a") && !cache.is_placed("b"));
        cache.remove_pod("a");
        cache.refresh(&mut snapshot);
        assert_eq!(used(&snapshot, "n1"), 0);
    }

    #[test]
    fn a_snapshot_stays_as_it_is_until_it_is_refreshed() {
        let (mut cache, mut snapshot) = (Cache::default(), Snapshot::default());
        cache.set_node(&node("n1", ""));
        cache.refresh(&mut snapshot);
        cache.assume(&pod("a", ""), "n1");
        assert_eq!(used(&snapshot, "n1"), 0);
        cache.refresh(&mut snapshot);
        assert_eq!(used(&snapshot, "n1"), 1000);
    }

    #[test]
    fn pods_may_be_seen_before_their_node_and_outlive_it() {
        let (mut cache, mut snapshot) = (Cache::default(), Snapshot::default());
        cache.set_pod(&pod("a", "n1"));
        cache.refresh(&mut snapshot);
        assert_eq!(used(&snapshot, "n1"), -1);
        cache.set_node(&node("n1", ""));
        cache.refresh(&mut snapshot);
        assert_eq!(used(&snapshot, "n1"), 1000);
        cache.remove_node("n1");
        cache.refresh(&mut snapshot);
        assert_eq!(used(&snapshot, "n1"), -1);
        cache.remove_pod("a");
        assert!(cache.nodes.is_empty());
    }

    #[test]
    fn a_promise_holds_until_the_pod_is_placed_or_the_api_takes_it_back() {
        let mut cache = Cache::default();
        let pod = pod("a", "");
        let node = |cache: &Cache| cache.nominations.get("a").map(|nomination| nomination.node.clone());
        cache.nominate(&pod, "n1", ["v".to_owned()].into());
        cache.show_nomination(&pod, None, None);
        assert_eq!(node(&cache).as_deref(), Some("n1"), "the API does not show it yet");
        cache.show_nomination(&pod, None, Some("n1"));
        assert_eq!(cache.nominations.get("a").map(|nomination| nomination.victims.len()), Some(1));
        cache.show_nomination(&pod, Some("n1"), Some("n2"));
        assert_eq!(node(&cache).as_deref(), Some("n2"), "another scheduler process decided");
        cache.show_nomination(&pod, Some("n2"), None);
        assert_eq!(node(&cache), None);
        cache.nominate(&pod, "n1", BTreeSet::new());
        cache.assume(&pod, "n1");
        assert_eq!(node(&cache), None);
    }

    #[test]
    fn nodes_with_affinity_are_known_without_a_look_at_all() {
        let (mut cache, mut snapshot) = (Cache::default(), Snapshot::default());
        ["n1", "n2"].iter().for_each(|name| cache.set_node(&node(name, "")));
        cache.refresh(&mut snapshot);
        let term = json!([{"topologyKey": "zone", "labelSelector": {}}]);
        let affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
        let value = json!({"metadata": {"name": "a", "uid": "a"},
            "spec": {"nodeName": "n2", "containers": [], "affinity": affinity}});
        let pod: Pod = serde_json::from_value(value).expect("pod");
        cache.set_pod(&Arc::new(PodInfo::new(Arc::new(pod))));
        cache.refresh(&mut snapshot);
        let names = |snapshot: &Snapshot| snapshot.affine_nodes().map(|node| node.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&snapshot), ["n2"]);
        cache.set_node(&node("n0", ""));
        cache.refresh(&mut snapshot);
        assert_eq!(names(&snapshot), ["n2"], "places move when nodes come");
        cache.remove_pod("a");
        cache.refresh(&mut snapshot);
        assert!(names(&snapshot).is_empty());
    }

    #[test]
    fn nodes_of_different_zones_alternate() {
        let (mut cache, mut snapshot) = (Cache::default(), Snapshot::default());
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")] {
            cache.set_node(&node(name, zone));
        }
        cache.refresh(&mut snapshot);
        let names: Vec<_> = snapshot.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["a1", "b1", "c1", "a2", "a3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledged_binding_that_never_shows_is_given_up() {
        let mut cache = Cache::default();
        cache.assume(&pod("a", ""), "n1");
        cache.assume(&pod("b", ""), "n1");
        cache.bound("a");
        clock::sleep(limits::ASSUMED_MAX + std::time::Duration::from_secs(1)).await;
        cache.expire_assumed(false);
        assert!(!cache.is_placed("a") && cache.is_placed("b"));
        cache.expire_assumed(true);
        assert!(!cache.is_placed("b"));
    }
}
