//! Writes the model as nftables text: once complete, then as differences. Pure.
//!
//! Shape: two verdict maps (`services` by address, protocol and port; `nodeports` by protocol and port) lead to one chain
//! per front, which picks an endpoint in turn (`numgen inc`) and jumps to that endpoint's chain. Fronts without endpoints
//! are in `empty-…` maps of filter chains instead, where packets can be refused. A packet costs two look-ups, whatever
//! the number of services; a change costs the chains that change.

use std::collections::BTreeMap;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::model::{Back, Front, Model, Way};
use super::shape::Shape;

/// The table everything is in.
pub const TABLE: &str = "pintle";
/// Maps by address, protocol and port, and by protocol and port.
const SERVICE_MAPS: [&str; 2] = ["services", "empty-services"];
const PORT_MAPS: [&str; 2] = ["nodeports", "empty-nodeports"];
/// Mark of packets whose source must become the node's address.
const MASQUERADE: &str = "0x4000";

/// What the rules depend on beside services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub node_name: String,
    /// The name server's address, served by the agent itself.
    pub dns_address: String,
    /// All pods' addresses; traffic among them keeps its source.
    pub cluster_cidr: String,
    /// This node's pods.
    pub pod_cidr: String,
}

fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
}

fn front_name(front: &Front) -> String {
    format!("front-{}", digest(&[&format!("{front:?}")]))
}

fn back_name(front: &Front, back: &Back) -> String {
    format!("back-{}", digest(&[&format!("{front:?}"), &format!("{back:?}")]))
}

/// The set of clients that stay with an endpoint. A set keeps the timeout it was made with: another timeout is another set.
fn clients_name(back: &str, seconds: u32) -> String {
    format!("{back}-clients-{seconds}")
}

/// (map, element key) of a front.
fn key(front: &Front) -> (&'static str, String) {
    match front {
        Front::Address(address, protocol, port) => ("services", format!("{address} . {} . {port}", protocol.name())),
        Front::Node(protocol, port) => ("nodeports", format!("{} . {port}", protocol.name())),
    }
}

/// The table's parts for one model: chains with their rules, sets, and map elements. The difference of two of these is
/// a transaction.
#[derive(Default)]
struct Parts {
    chains: BTreeMap<String, Vec<String>>,
    /// Sets of clients that stay with an endpoint: name to timeout.
    sets: BTreeMap<String, u32>,
    /// (map, key) to verdict.
    elements: BTreeMap<(&'static str, String), String>,
}

impl Parts {
    fn of(model: &Model) -> Self {
        let mut parts = Self::default();
        for (front, way) in model {
            let (map, key) = key(front);
            if way.backs.is_empty() {
                let map = if map == "services" { "empty-services" } else { "empty-nodeports" };
                let verdict = if way.drop_empty { "drop" } else { "goto refuse" };
                parts.elements.insert((map, key), verdict.to_owned());
            } else {
                parts.elements.insert((map, key), format!("goto {}", front_name(front)));
                parts.add_chains(front, way);
            }
        }
        parts
    }

    fn add_chains(&mut self, front: &Front, way: &Way) {
        let mut rules = Vec::new();
        if way.masquerade {
            rules.push(format!("meta mark set meta mark or {MASQUERADE}"));
        }
        if let Some(seconds) = way.affinity {
            for back in &way.backs {
                let name = back_name(front, back);
                rules.push(format!("ip saddr @{} goto {name}", clients_name(&name, seconds)));
            }
        }
        let turns: Vec<String> = way
            .backs
            .iter()
            .enumerate()
            .map(|(turn, back)| format!("{turn} : goto {}", back_name(front, back)))
            .collect();
        rules.push(format!("numgen inc mod {} vmap {{ {} }}", turns.len(), turns.join(", ")));
        self.chains.insert(front_name(front), rules);
        for back in &way.backs {
            let name = back_name(front, back);
            let mut rules = Vec::new();
            // A pod that reaches itself through its service would drop an answer that comes from itself.
            rules.push(format!("ip saddr {} meta mark set meta mark or {MASQUERADE}", back.address));
            if let Some(seconds) = way.affinity {
                let set = clients_name(&name, seconds);
                rules.push(format!("update @{set} {{ ip saddr }}"));
                self.sets.insert(set, seconds);
            }
            rules.push(format!("meta l4proto {} dnat to {}:{}", way.protocol.name(), back.address, back.port));
            self.chains.insert(name, rules);
        }
    }
}

/// A transaction that replaces the whole table, without a moment between old and new.
pub fn complete(settings: &Settings, model: &Model) -> String {
    let parts = Parts::of(model);
    let mut text = format!("add table ip {TABLE}\ndelete table ip {TABLE}\nadd table ip {TABLE}\n");
    for map in SERVICE_MAPS {
        text += &format!("add map ip {TABLE} {map} {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}\n");
    }
    for map in PORT_MAPS {
        text += &format!("add map ip {TABLE} {map} {{ type inet_proto . inet_service : verdict ; }}\n");
    }
    for (name, hook, rules) in base_chains(settings) {
        text += &format!("add chain ip {TABLE} {name} {hook}\n");
        add_rules(&name, &rules, &mut text);
    }
    for (name, seconds) in &parts.sets {
        text += &add_set(name, *seconds);
    }
    for name in parts.chains.keys() {
        text += &format!("add chain ip {TABLE} {name}\n");
    }
    for (name, rules) in &parts.chains {
        add_rules(name, rules, &mut text);
    }
    for ((map, key), verdict) in &parts.elements {
        text += &format!("add element ip {TABLE} {map} {{ {key} : {verdict} }}\n");
    }
    text
}

/// What the table looks like once the model is loaded.
pub fn shape(settings: &Settings, model: &Model) -> Shape {
    let parts = Parts::of(model);
    let mut shape = foundation(settings);
    shape.chains.extend(parts.chains.iter().map(|(name, rules)| (name.clone(), rules.len())));
    shape.sets.extend(parts.sets.into_keys());
    for (map, _) in parts.elements.keys() {
        *shape.elements.entry((*map).to_owned()).or_default() += 1;
    }
    shape
}

/// The part of the shape that is the same for all models.
pub fn foundation(settings: &Settings) -> Shape {
    let chains = base_chains(settings).into_iter().map(|(name, _, rules)| (name, rules.len()));
    Shape { chains: chains.collect(), ..Shape::default() }
}

/// The chains that every packet passes: name, hook, rules.
fn base_chains(settings: &Settings) -> Vec<(String, String, Vec<String>)> {
    let mut chains = Vec::new();
    let mut chain = |name: &str, hook: &str, rules: &[String]| {
        chains.push((name.to_owned(), hook.to_owned(), rules.to_vec()));
    };
    let rules = |list: &[&str]| list.iter().map(|rule| (*rule).to_owned()).collect::<Vec<_>>();
    chain("refuse", "", &rules(&["reject"]));
    chain(
        "dispatch",
        "",
        &rules(&[
            "ip daddr . meta l4proto . th dport vmap @services",
            "fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @nodeports",
        ]),
    );
    chain(
        "refuse-empty",
        "",
        &rules(&[
            "ct state new ip daddr . meta l4proto . th dport vmap @empty-services",
            "ct state new fib daddr type local meta l4proto . th dport vmap @empty-nodeports",
        ]),
    );
    for (name, hook) in [("prerouting", "prerouting priority dstnat"), ("output", "output priority -100")] {
        chain(name, &format!("{{ type nat hook {hook} ; }}"), &rules(&["jump dispatch"]));
    }
    for hook in ["input", "forward", "output"] {
        let name = format!("filter-{hook}");
        chain(&name, &format!("{{ type filter hook {hook} priority filter ; }}"), &rules(&["jump refuse-empty"]));
    }
    let mut leave =
        vec![format!("meta mark and {MASQUERADE} != 0 meta mark set meta mark xor {MASQUERADE} masquerade")];
    if !settings.pod_cidr.is_empty() && !settings.cluster_cidr.is_empty() {
        // Addresses of pods mean nothing outside the cluster.
        leave.push(format!(
            "ip saddr {} ip daddr != {} fib daddr type != local masquerade",
            settings.pod_cidr, settings.cluster_cidr
        ));
    }
    chain("postrouting", "{ type nat hook postrouting priority srcnat ; }", &leave);
    chains
}

fn add_rules(chain: &str, rules: &[String], text: &mut String) {
    for rule in rules {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "add rule ip {TABLE} {chain} {rule}");
    }
}

fn add_set(name: &str, seconds: u32) -> String {
    format!(
        "add set ip {TABLE} {name} {{ type ipv4_addr ; flags dynamic,timeout ; timeout {seconds}s ; size 65535 ; }}\n"
    )
}

/// The transaction that turns one model's rules into another's; empty if nothing changes.
pub fn difference(before: &Model, after: &Model) -> String {
    let (old, new) = (Parts::of(before), Parts::of(after));
    let mut text = String::new();
    for (name, seconds) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
        text += &add_set(name, *seconds);
    }
    for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
        text += &format!("add chain ip {TABLE} {name}\n");
    }
    for (name, rules) in &new.chains {
        match old.chains.get(name) {
            Some(same) if same == rules => (),
            Some(_) => {
                text += &format!("flush chain ip {TABLE} {name}\n");
                add_rules(name, rules, &mut text);
            }
            None => add_rules(name, rules, &mut text),
        }
    }
    for ((map, key), verdict) in &old.elements {
        if new.elements.get(&(*map, key.clone())) != Some(verdict) {
            text += &format!("delete element ip {TABLE} {map} {{ {key} }}\n");
        }
    }
    for ((map, key), verdict) in &new.elements {
        if old.elements.get(&(*map, key.clone())) != Some(verdict) {
            text += &format!("add element ip {TABLE} {map} {{ {key} : {verdict} }}\n");
        }
    }
    let gone: Vec<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
    // Emptied first: chains may lead to one another.
    for name in &gone {
        text += &format!("flush chain ip {TABLE} {name}\n");
    }
    for name in &gone {
        text += &format!("delete chain ip {TABLE} {name}\n");
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        text += &format!("delete set ip {TABLE} {name}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::model::Protocol;
    use super::*;
    use std::net::Ipv4Addr;

    fn front() -> Front {
        Front::Address(Ipv4Addr::new(10, 96, 0, 5), Protocol::Tcp, 80)
    }

    fn way(lasts: &[u8], affinity: Option<u32>) -> Way {
        let backs = lasts.iter().map(|last| Back { address: Ipv4Addr::new(10, 244, 0, *last), port: 8080 }).collect();
        Way { protocol: Protocol::Tcp, backs, affinity, masquerade: false, drop_empty: false }
    }

    fn model(lasts: &[u8]) -> Model {
        Model::from([(front(), way(lasts, None))])
    }

    fn settings() -> Settings {
        Settings {
            node_name: "n1".into(),
            dns_address: "10.96.0.10".into(),
            cluster_cidr: "10.244.0.0/16".into(),
            pod_cidr: "10.244.0.0/24".into(),
        }
    }

    /// Loads transactions one after the other in a network namespace of its own, and returns the table.
    fn loaded(texts: &[String]) -> Option<String> {
        use std::io::Write;
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("not loaded into the kernel: needs root");
            return None;
        }
        let script = texts.iter().map(|_| "nft -f \"$1\" && shift").collect::<Vec<_>>().join(" && ");
        let dir = tempfile::tempdir().expect("directory");
        let mut command = std::process::Command::new("unshare");
        command.args(["--net", "sh", "-c", &format!("{script} && nft list table ip {TABLE}"), "sh"]);
        for (place, text) in texts.iter().enumerate() {
            let path = dir.path().join(place.to_string());
            std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("write");
            command.arg(path);
        }
        let output = command.output().expect("unshare runs");
        assert!(output.status.success(), "{}\n{texts:?}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn endpoints_take_turns() {
        let text = complete(&settings(), &model(&[2, 3]));
        let want = format!("add rule ip pintle {} numgen inc mod 2 vmap {{ 0 : goto", front_name(&front()));
        assert!(text.contains(&want), "{text}");
        assert!(text.contains("meta l4proto tcp dnat to 10.244.0.3:8080"), "{text}");
    }

    #[test]
    fn the_same_model_needs_no_transaction() {
        assert_eq!(difference(&model(&[2, 3]), &model(&[2, 3])), "");
    }

    #[test]
    fn a_lost_endpoint_changes_its_front_only() {
        let text = difference(&model(&[2, 3]), &model(&[2]));
        assert_eq!(text.matches("flush chain").count(), 2, "{text}");
        assert_eq!(text.matches("delete chain").count(), 1, "{text}");
        assert!(!text.contains("element"), "{text}");
    }

    #[test]
    fn without_endpoints_packets_are_refused() {
        let text = difference(&model(&[2]), &model(&[]));
        assert!(text.contains("delete element ip pintle services { 10.96.0.5 . tcp . 80 }"), "{text}");
        assert!(text.contains("add element ip pintle empty-services { 10.96.0.5 . tcp . 80 : goto refuse }"), "{text}");
    }

    #[test]
    fn another_affinity_timeout_reaches_the_kernel() {
        let model = |seconds| Model::from([(front(), way(&[2], Some(seconds)))]);
        let (before, after) = (model(10_800), model(60));
        let text = difference(&before, &after);
        assert!(text.contains("timeout 60s"), "{text}");
        let Some(table) = loaded(&[complete(&settings(), &before), text]) else { return };
        assert!(table.contains("timeout 1m") && !table.contains("timeout 3h"), "{table}");
        assert_eq!(Some(table), loaded(&[complete(&settings(), &after)]));
    }

    #[test]
    fn the_kernel_takes_every_step_and_ends_where_a_complete_load_ends() {
        let node = Front::Node(Protocol::Udp, 30053);
        let steps: Vec<Model> = vec![
            model(&[]),
            Model::from([
                (front(), way(&[2], Some(10_800))),
                (node, Way { protocol: Protocol::Udp, masquerade: true, ..way(&[2, 3], None) }),
            ]),
            model(&[2, 3, 4]),
            Model::new(),
            Model::from([
                (front(), way(&[3, 4], Some(60))),
                (node, Way { protocol: Protocol::Udp, drop_empty: true, ..way(&[], None) }),
            ]),
        ];
        let mut texts = vec![complete(&settings(), &steps[0])];
        texts.extend(steps.windows(2).map(|pair| difference(&pair[0], &pair[1])));
        let direct = loaded(&[complete(&settings(), &steps[4])]);
        let sorted = |text: Option<String>| {
            text.map(|text| {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            })
        };
        assert_eq!(sorted(loaded(&texts)), sorted(direct));
    }
}
