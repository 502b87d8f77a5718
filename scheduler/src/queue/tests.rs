//! The queue as scripts.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use pintle_base::clock;
use serde_json::json;

use super::*;
use crate::plugins::{Budgets, SpreadDefaults};

struct World {
    queue: Queue,
    start: Instant,
    millis: u64,
    out: Vec<String>,
}

fn pod(name: &str, flags: &[&str]) -> Arc<PodInfo> {
    let priority: i32 = flags.iter().find_map(|flag| flag.strip_prefix("p=")?.parse().ok()).unwrap_or(0);
    let gates = if flags.contains(&"gated") { json!([{"name": "later"}]) } else { json!([]) };
    let labels = json!({"v": flags.iter().find_map(|flag| flag.strip_prefix("v=")).unwrap_or("0")});
    let spec = json!({"priority": priority, "schedulingGates": gates, "containers": []});
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "labels": labels}, "spec": spec}))
            .expect("pod");
    Arc::new(PodInfo::new(Arc::new(pod)))
}

/// Lines: `set NAME flags`, `remove NAME`, `pop`, `full NAME` (no node: Insufficient), `stuck NAME` (only a new node can
/// help), `error NAME`, `done NAME`, `lost NAME` (was it deleted in flight?), `retry NAME`, `gone` (a pod left a node), `labels` (a node's labels changed), `wait MS`, `flush`, `restart`, `counts`.
fn run(script: &str) -> String {
    let profile = Arc::new(Profile::standard("default-scheduler", SpreadDefaults::none(), Budgets::none()));
    let mut world = World { queue: Queue::new(profile), start: clock::now(), millis: 0, out: Vec::new() };
    script.split(';').map(str::trim).for_each(|line| world.line(line));
    world.out.join(" ")
}

impl World {
    fn line(&mut self, line: &str) {
        let now = self.start + Duration::from_millis(self.millis);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["set", name, ref flags @ ..] => self.queue.set(pod(name, flags), now),
            ["remove", name] => self.queue.remove(name),
            ["pop"] => {
                let popped = self.queue.pop(now).map_or("-".to_owned(), |waiting| waiting.pod.key.name.clone());
                self.out.push(popped);
            }
            ["full", name] => self.queue.put_back_unschedulable(name, &["NodeResourcesFit"], now),
            ["error", name] => self.queue.put_back_after_error(name, now),
            ["done", name] => self.queue.finish(name),
            ["lost", name] => self.out.push(self.queue.is_gone(name).to_string()),
            ["gone"] => self.queue.on_event(ClusterEvent::POD_GONE, now),
            ["labels"] => self.queue.on_event(ClusterEvent::NODE_LABELS, now),
            ["wait", millis] => self.millis += millis.parse::<u64>().expect("millis"),
            ["retry", name] => self.queue.retry(name, now),
            ["stuck", name] => self.queue.put_back_unschedulable(name, &["NodeName"], now),
            ["flush"] => self.queue.flush_unschedulable(now),
            ["restart"] => self.queue.restart(now),
            ["counts"] => self.out.push(format!("{:?}", self.queue.counts())),
            _ => panic!("unknown line {line}"),
        }
    }
}

#[track_caller]
fn check(script: &str, want: &str) {
    assert_eq!(run(script), want, "{script}");
}

#[test]
fn a_pod_that_is_deleted_in_flight_is_known_to_be_gone() {
    check("set a; pop; lost a; remove a; lost a; done a; lost a", "a false true true");
}

#[test]
fn pods_come_by_priority_and_then_by_age() {
    check("set a; wait 1; set b p=5; wait 1; set c p=5; wait 1; set d; pop; pop; pop; pop; pop", "b c a d -");
}

#[test]
fn an_unschedulable_pod_waits_for_a_change_that_may_help_it() {
    check("set a; pop; full a; pop; labels; pop; counts", "a - - [0, 0, 1, 0]");
    check("set a; pop; full a; wait 2000; gone; pop", "a a");
}

#[test]
fn an_event_wakes_those_it_may_help_in_their_order_and_no_others() {
    check("set a; set b; set c; pop; pop; pop; full c; stuck b; full a; wait 2000; gone; pop; pop; pop", "a b c c a -");
    check("set a; set b; pop; pop; full a; stuck b; remove a; gone; counts", "a b [0, 0, 1, 0]");
}

#[test]
fn a_pod_can_be_woken_whatever_it_waits_for() {
    check("set a; pop; stuck a; gone; pop; wait 2000; retry a; pop; retry a; pop", "a - a -");
}

#[test]
fn a_change_during_the_attempt_counts_afterwards() {
    check("set a; pop; gone; full a; counts; wait 1000; pop", "a [0, 1, 0, 0] a");
    check("set a; pop; labels; full a; counts", "a [0, 0, 1, 0]");
}

#[test]
fn backoff_doubles_after_errors_and_is_not_cut_short() {
    check("set a; pop; error a; pop; wait 999; pop; wait 1; pop", "a - - a");
    check("set a; pop; error a; wait 1000; pop; error a; wait 1999; pop; wait 1; pop", "a a - a");
}

#[test]
fn a_woken_pod_in_backoff_is_tried_early_when_nothing_else_waits() {
    check("set a; pop; full a; gone; counts; set b; pop; pop", "a [0, 1, 0, 0] b a");
}

#[test]
fn gated_pods_stay_out_until_their_gates_are_removed() {
    check("set a gated; pop; counts; set a; pop", "- [0, 0, 0, 1] a");
}

#[test]
fn a_pod_that_is_gone_or_bound_does_not_come_back() {
    check("set a; remove a; pop", "-");
    check("set a; pop; remove a; error a; wait 60000; pop", "a -");
    check("set a; pop; done a; wait 60000; gone; pop", "a -");
}

#[test]
fn a_change_of_the_pod_itself_wakes_it_but_its_status_does_not() {
    check("set a; pop; full a; wait 5000; set a; pop; set a v=1; pop", "a - a");
    check("set a; pop; set a v=1; full a; wait 1000; pop", "a a");
}

#[test]
fn nothing_is_forgotten_for_ever() {
    check("set a; pop; full a; wait 299000; flush; pop; wait 2000; flush; pop", "a - a");
}

#[test]
fn a_new_term_takes_up_what_was_in_flight() {
    check("set a; set b; pop; pop; full b; wait 2000; restart; pop; pop; pop", "a b a b -");
}
