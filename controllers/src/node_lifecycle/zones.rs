//! How fast the pods of lost nodes may be sent away: zone by zone, slower the more of a zone is lost. Pure.
//!
//! A lost node asks for its turn before it gets the taint that evicts. Each zone hands out turns at a rate: a bucket holds
//! one, and the state of the zone says how long the next takes. A zone is judged by its healthy nodes, those that are Ready
//! and that this process has heard from in this term: a new leader, who has heard from nobody, hands out nothing.
//! Always holds: turns come in the order they were asked for, as far as those who wait ask again when told; who waits in a
//! zone whose rate changes is named, so that nobody waits for a time that no longer holds.
//! Rule: node-eviction-rate, secondary-node-eviction-rate, large-cluster-size-threshold, unhealthy-zone-threshold.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use pintle_base::clock::Instant;

use crate::limits;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The name of the zone that `node` stands in. Nodes without labels stand together in one.
pub fn zone_of(node: &Node) -> String {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str);
    // No label holds a slash, so no two places have one name.
    format!("{}/{}", label(REGION), label(ZONE))
}

/// How much of a zone is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Normal,
    PartialDisruption,
    FullDisruption,
}

impl State {
    /// The state of a zone with so many nodes, of which so many are healthy.
    pub fn of(nodes: usize, healthy: usize) -> Self {
        let lost = nodes.saturating_sub(healthy);
        if healthy == 0 && lost > 0 {
            Self::FullDisruption
        } else if lost > limits::ZONE_LOSSES && lost * 100 >= nodes * limits::ZONE_LOST_PERCENT {
            Self::PartialDisruption
        } else {
            Self::Normal
        }
    }
}

/// Answer to a lost node that asks for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Now,
    /// To ask again after this long.
    In(Duration),
    /// Not while things are as they are.
    Never,
}

/// One turn at most, filled at a rate that may change.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    turns: f64,
    at: Instant,
}

impl Bucket {
    /// Adds what has come since the last look, at one turn per `period`; nothing without one.
    fn fill(&mut self, period: Option<Duration>, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        if let Some(period) = period {
            self.turns = (self.turns + passed.as_secs_f64() / period.as_secs_f64()).min(1.0);
        }
        self.at = self.at.max(now);
    }

    fn take(&mut self) -> bool {
        // Thousands of small additions may leave a full bucket short of one by some bits.
        let full = self.turns > 1.0 - 1e-6;
        if full {
            self.turns = 0.0;
        }
        full
    }

    /// How long until there is a turn for the one that `ahead` others stand before.
    fn wait(&self, ahead: usize, period: Duration) -> Duration {
        let turns = u32::try_from(ahead).unwrap_or(u32::MAX);
        period.saturating_mul(turns).saturating_add(period.mul_f64(1.0 - self.turns.clamp(0.0, 1.0)))
    }
}

#[derive(Debug)]
struct Zone {
    nodes: usize,
    healthy: usize,
    bucket: Bucket,
    /// Lost nodes that have asked and got no turn yet; the oldest first.
    waiting: Vec<String>,
}

impl Zone {
    fn state(&self) -> State {
        State::of(self.nodes, self.healthy)
    }

    /// How many others wait before `name`, which waits from now on.
    fn ahead_of(&mut self, name: &str) -> usize {
        self.waiting.iter().position(|waiting| waiting == name).unwrap_or_else(|| {
            self.waiting.push(name.to_owned());
            self.waiting.len() - 1
        })
    }
}

/// Where a node stands, and whether it is healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Home {
    zone: String,
    healthy: bool,
}

/// The zones of the cluster, as one leader knows them.
#[derive(Debug, Default)]
pub struct Zones {
    zones: BTreeMap<String, Zone>,
    homes: HashMap<String, Home>,
}

impl Zones {
    /// Takes over where `name` stands and whether it is healthy. Returns who should ask again.
    pub fn set(&mut self, name: &str, zone: &str, healthy: bool, now: Instant) -> Vec<String> {
        let home = Home { zone: zone.to_owned(), healthy };
        if self.homes.get(name) == Some(&home) {
            return Vec::new();
        }
        self.change(now, |zones| {
            zones.leave(name);
            zones.enter(name, home, now);
        })
    }

    /// The node is gone. Returns who should ask again.
    pub fn forget(&mut self, name: &str, now: Instant) -> Vec<String> {
        self.change(now, |zones| zones.leave(name))
    }

    /// Asks for the turn of the lost node `name`, and gives it if it has come.
    pub fn ask(&mut self, name: &str, now: Instant) -> Turn {
        let Some(home) = self.homes.get(name) else { return Turn::Never };
        let period = self.periods().remove(&home.zone).flatten();
        let Some(zone) = self.zones.get_mut(&home.zone) else { return Turn::Never };
        zone.bucket.fill(period, now);
        let ahead = zone.ahead_of(name);
        let Some(period) = period else { return Turn::Never };
        if zone.bucket.take() {
            zone.waiting.retain(|waiting| waiting != name);
            return Turn::Now;
        }
        Turn::In(zone.bucket.wait(ahead, period))
    }

    /// `name` does not want a turn any more.
    pub fn withdraw(&mut self, name: &str) {
        if let Some(zone) = self.homes.get(name).and_then(|home| self.zones.get_mut(&home.zone)) {
            zone.waiting.retain(|waiting| waiting != name);
        }
    }

    /// The turn that `name` got was not used.
    pub fn give_back(&mut self, name: &str) {
        if let Some(zone) = self.homes.get(name).and_then(|home| self.zones.get_mut(&home.zone)) {
            zone.bucket.turns = 1.0;
        }
    }

    /// Changes nodes; what came into the buckets until `now` came at the old rates. Returns who waits at a new one.
    fn change(&mut self, now: Instant, change: impl FnOnce(&mut Self)) -> Vec<String> {
        let before = self.periods();
        for (name, zone) in &mut self.zones {
            zone.bucket.fill(before.get(name).copied().flatten(), now);
        }
        change(self);
        self.zones.retain(|_, zone| zone.nodes > 0);
        let after = self.periods();
        let changed = self.zones.iter().filter(|(name, _)| before.get(*name) != after.get(*name));
        changed.flat_map(|(_, zone)| zone.waiting.iter().cloned()).collect()
    }

    /// The time that each zone takes for a turn now; `None` if it gives none.
    ///
    /// A zone that is lost as a whole has its full rate, for the others can take its pods. If there are no others the fault
    /// is more likely on this side, and nobody could take them.
    fn periods(&self) -> BTreeMap<String, Option<Duration>> {
        let all_lost = self.zones.values().all(|zone| zone.state() == State::FullDisruption);
        let period = |zone: &Zone| match zone.state() {
            _ if all_lost => None,
            State::Normal | State::FullDisruption => Some(limits::EVICTION_PERIOD),
            State::PartialDisruption => (zone.nodes > limits::LARGE_ZONE).then_some(limits::EVICTION_PERIOD_REDUCED),
        };
        self.zones.iter().map(|(name, zone)| (name.clone(), period(zone))).collect()
    }

    fn enter(&mut self, name: &str, home: Home, now: Instant) {
        let full = Bucket { turns: 1.0, at: now };
        let fresh = || Zone { nodes: 0, healthy: 0, bucket: full, waiting: Vec::new() };
        let zone = self.zones.entry(home.zone.clone()).or_insert_with(fresh);
        zone.nodes += 1;
        zone.healthy += usize::from(home.healthy);
        self.homes.insert(name.to_owned(), home);
    }

    fn leave(&mut self, name: &str) {
        self.withdraw(name);
        let Some(home) = self.homes.remove(name) else { return };
        let Some(zone) = self.zones.get_mut(&home.zone) else { return };
        zone.nodes -= 1;
        zone.healthy -= usize::from(home.healthy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        zones: Zones,
        now: Instant,
        out: Vec<String>,
    }

    impl World {
        fn set(&mut self, name: &str, zone: &str, healthy: bool) {
            let woken = self.zones.set(name, zone, healthy, self.now);
            self.woken(&woken);
        }

        fn woken(&mut self, names: &[String]) {
            if !names.is_empty() {
                self.out.push(format!("wake:{}", names.join(",")));
            }
        }

        fn line(&mut self, line: &str) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["up", zone, names] => names.split(',').for_each(|name| self.set(name, zone, true)),
                ["down", zone, names] => names.split(',').for_each(|name| self.set(name, zone, false)),
                ["crowd", zone, up, down] => {
                    let count = |text: &str| text.parse::<usize>().expect("count");
                    (0..count(up)).for_each(|n| self.set(&format!("{zone}-up{n}"), zone, true));
                    (0..count(down)).for_each(|n| self.set(&format!("{zone}-down{n}"), zone, false));
                }
                ["gone", name] => {
                    let woken = self.zones.forget(name, self.now);
                    self.woken(&woken);
                }
                ["ask", name] => self.out.push(match self.zones.ask(name, self.now) {
                    Turn::Now => "now".to_owned(),
                    Turn::In(wait) => format!("{:.0}s", wait.as_secs_f64()),
                    Turn::Never => "never".to_owned(),
                }),
                ["withdraw", name] => self.zones.withdraw(name),
                ["back", name] => self.zones.give_back(name),
                ["tick", seconds] => self.now += Duration::from_secs(seconds.parse().expect("seconds")),
                _ => panic!("unknown line {line}"),
            }
        }
    }

    #[track_caller]
    fn check(script: &str, want: &str) {
        let mut world = World { zones: Zones::default(), now: pintle_base::clock::now(), out: Vec::new() };
        script.split(';').map(str::trim).for_each(|line| world.line(line));
        assert_eq!(world.out.join(" "), want, "{script}");
    }

    #[test]
    fn states_follow_how_much_is_lost() {
        use State::{FullDisruption, Normal, PartialDisruption};
        for (nodes, healthy, want) in [
            (0, 0, Normal),
            (1, 1, Normal),
            (1, 0, FullDisruption),
            (2, 1, Normal),
            (3, 1, Normal), // two losses are few
            (4, 1, PartialDisruption),
            (6, 3, Normal),             // 50 %
            (20, 9, PartialDisruption), // 55 %
            (20, 10, Normal),
            (20, 0, FullDisruption),
        ] {
            assert_eq!(State::of(nodes, healthy), want, "{healthy} of {nodes}");
        }
    }

    #[test]
    fn zones_have_the_name_of_region_and_zone() {
        let node = |labels: serde_json::Value| -> Node {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n", "labels": labels}})).expect("node")
        };
        assert_eq!(zone_of(&node(serde_json::json!({(REGION): "r", (ZONE): "z"}))), "r/z");
        assert_eq!(zone_of(&node(serde_json::json!({(ZONE): "z"}))), "/z");
        assert_eq!(zone_of(&Node::default()), "/");
    }

    #[test]
    fn the_first_of_two_workers_is_sent_away_from_at_once() {
        check("up z a,b; down z b; ask b", "now");
    }

    #[test]
    fn turns_come_one_in_ten_seconds_in_order() {
        check("up z a,b,c,d,e; down z c,d; ask c; ask d; tick 4; ask d; tick 6; ask d", "now 10s 6s now");
        check(
            "up z a,b,c,d,e,f; down z d,e; ask d; ask e; down z f; ask f; tick 10; ask e; ask f",
            "now 10s 20s now 10s",
        );
        check("up z a,b,c; down z c; tick 100; ask c; ask c", "now 10s");
    }

    #[test]
    fn a_zone_has_a_rate_of_its_own() {
        check("up x a,b; up y c,d; down x b; down y d; ask b; ask d", "now now");
        check("up x a,b; up y c,d; down y c,d; ask c; ask d; tick 10; ask d", "now 10s now");
    }

    #[test]
    fn a_small_zone_in_partial_disruption_sends_nobody_away() {
        check("up z a,b,c,d; down z b,c,d; ask b; tick 1000; ask b", "never never");
        check("up z a,b,c,d; down z b,c,d; ask b; ask c; up z d; ask b; ask c", "never never wake:b,c now 10s");
    }

    #[test]
    fn a_large_zone_in_partial_disruption_goes_on_at_a_tenth_of_the_rate() {
        check(
            "crowd z 20 31; ask z-down0; ask z-down1; tick 50; ask z-down1; tick 50; ask z-down1",
            "now 100s 50s now",
        );
        check("crowd z 20 30; ask z-down0", "never"); // 50 nodes are not large
    }

    #[test]
    fn what_was_saved_at_one_rate_counts_at_the_next() {
        let crowd = "crowd z 23 28; ask z-down0; ask z-down1";
        check(&format!("{crowd}; tick 5; down z z-up0; ask z-down1"), "now 10s wake:z-down1 50s");
        check(
            &format!("{crowd}; down z z-up0; tick 50; up z z-up0; ask z-down1"),
            "now 10s wake:z-down1 wake:z-down1 5s",
        );
    }

    #[test]
    fn nobody_is_sent_away_while_no_zone_has_a_healthy_node() {
        check("down x a,b; down y c; ask a; ask c; tick 1000; ask a", "never never never");
        check("down x a,b; down y c; ask a; ask c; up y c; ask a", "never never wake:a now");
        check(
            "up x a,b; down x b; ask b; down x a; ask a; ask b; tick 60; up x b; ask a",
            "now never never wake:a 10s",
        );
    }

    #[test]
    fn who_recovers_or_leaves_makes_room() {
        check("up z a,b,c,d,e,f; down z d,e; ask d; ask e; down z f; ask f; up z e; ask f", "now 10s 20s 10s");
        check("up z a,b,c,d,e,f; down z d,e; ask d; ask e; down z f; ask f; gone e; ask f", "now 10s 20s 10s");
        check("up z a,b,c,d,e,f; down z d,e; ask d; ask e; down z f; ask f; withdraw e; ask f", "now 10s 20s 10s");
        check("ask a; up z a; gone a; ask a", "never never");
    }

    #[test]
    fn a_turn_that_was_not_used_is_the_next_one_s() {
        check("up z a,b,c; down z b; ask b; back b; ask b", "now now");
    }

    #[test]
    fn a_node_takes_its_place_into_another_zone() {
        check("up x a,b; up y c; down x b; ask b; down y b; ask b", "now now");
        check("down x a; up y c; gone c; ask a; up y c; ask a", "never wake:a now");
    }
}
