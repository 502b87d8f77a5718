//! Gives each node its block of the cluster's pod network (`spec.podCIDR`). Never changes or takes back a block.
//!
//! Always holds: one worker and one key for all nodes, so two nodes are never planned from the same state; a block given
//! is remembered until the cache shows it.

pub mod plan;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use pintle_client::{Key, SharedReflector};
use serde_json::json;

use crate::runtime::{Context, Controller, Intake, Lead, Outcome, ReconcileError, api, is_not_found};
use plan::Range;

pub struct NodeIpam {
    nodes: SharedReflector<Node>,
    range: Range,
    given: Mutex<BTreeMap<String, String>>,
}

impl NodeIpam {
    pub fn new(context: &Context, range: Range) -> Self {
        Self { nodes: context.reflectors.of(), range, given: Mutex::default() }
    }
}

fn all_nodes() -> Key {
    Key::cluster("nodes")
}

fn block(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty())
}

impl Controller for NodeIpam {
    const NAME: &'static str = "node-ipam";
    const WORKERS: usize = 1;

    fn watch(&self, intake: &Intake) {
        // A node that has its block changes nothing, unless it leaves it to others.
        let sink = intake.clone();
        self.nodes.on_event(move |event| {
            if event.is_deleted() || block(event.object()).is_none() {
                sink.add(all_nodes());
            }
        });
    }

    fn all(&self) -> Vec<Key> {
        vec![all_nodes()]
    }

    fn begin(&self) {
        self.given.lock().clear();
    }

    async fn reconcile(&self, _: &Key, lead: &Lead) -> Result<Outcome, ReconcileError> {
        let nodes = self.nodes.list();
        let waiting: BTreeSet<&str> = nodes
            .iter()
            .filter(|node| block(node).is_none())
            .filter_map(|node| node.metadata.name.as_deref())
            .collect();
        let (used, waiting): (Vec<String>, Vec<&str>) = {
            let mut given = self.given.lock();
            given.retain(|name, _| waiting.contains(name.as_str()));
            let used = nodes.iter().filter_map(|node| block(node).map(str::to_owned));
            let used = used.chain(given.values().cloned()).collect();
            (used, waiting.into_iter().filter(|name| !given.contains_key(*name)).collect())
        };
        let blocks = self.range.assign(used.iter().map(String::as_str), waiting.len());
        if blocks.len() < waiting.len() {
            tracing::error!(nodes = waiting.len() - blocks.len(), "the pod network has no block left for some nodes");
        }
        let stored: Api<Node> = Api::all(lead.client.clone());
        for (name, block) in waiting.into_iter().zip(blocks) {
            let patch = json!({"spec": {"podCIDR": block, "podCIDRs": [block]}});
            match stored.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => drop(self.given.lock().insert(name.to_owned(), block)),
                Err(error) if is_not_found(&error) => (),
                Err(error) => return Err(api(format!("give node {name} its pod network"))(error)),
            }
        }
        Ok(Outcome::Done)
    }
}
