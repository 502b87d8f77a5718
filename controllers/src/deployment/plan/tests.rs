//! Rollouts as scripts: a deployment, its replica sets and their pods, step by step.

use super::*;
use serde_json::{Value, json};

/// A deployment, its sets, and how many pods of each set are available.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// False while new pods do not become available.
    healthy: bool,
    seconds: i64,
    trace: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut full = json!({"replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": template("v1"),
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2});
        for (key, value) in spec.as_object().expect("spec") {
            full[key] = value.clone();
        }
        let metadata = json!({"name": "web", "namespace": "ns", "uid": "d", "generation": 1});
        let deployment = serde_json::from_value(json!({"metadata": metadata, "spec": full})).expect("deployment");
        Self { deployment, sets: Vec::new(), healthy: true, seconds: 0, trace: Vec::new() }
    }

    fn set_spec(&mut self, change: impl FnOnce(&mut k8s_openapi::api::apps::v1::DeploymentSpec)) {
        change(self.deployment.spec.as_mut().expect("spec"));
        *self.deployment.metadata.generation.as_mut().expect("generation") += 1;
    }

    fn image(&mut self, image: &str) {
        self.set_spec(|spec| spec.template = serde_json::from_value(template(image)).expect("template"));
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + self.seconds).expect("time")
    }

    /// One reconcile; returns whether anything was written.
    fn reconcile(&mut self) -> bool {
        let sets: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
        let live = |set: &ReplicaSet| set.status.as_ref().is_some_and(|status| status.replicas > 0);
        let busy = sets.iter().filter(|set| live(set)).filter_map(|set| set.metadata.uid.clone()).collect();
        let plan = plan(&Input { deployment: &self.deployment, sets, busy, now: self.now() });
        let wrote = !plan.writes.is_empty() || plan.status.is_some();
        for write in plan.writes {
            self.write(write);
        }
        let scaled: Vec<_> = plan.scaled.iter().map(|message| self.short(message)).collect();
        self.trace.extend(scaled);
        if let Some(status) = plan.status {
            self.deployment.status = Some(status);
        }
        wrote
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Create(mut set) => {
                set.metadata.uid = Some(format!("s{}", self.sets.len()));
                set.metadata.creation_timestamp = Some(Time(self.now()));
                set.metadata.generation = Some(1);
                assert!(self.sets.iter().all(|other| other.metadata.name != set.metadata.name), "made twice");
                self.sets.push(*set);
            }
            Write::Update(set) => {
                let at = self.sets.iter().position(|other| other.metadata.uid == set.metadata.uid).expect("known");
                self.sets[at] = *set;
            }
            Write::Delete(set) => {
                self.trace.push(format!("delete {}", image_of(&set)));
                self.sets.retain(|other| other.metadata.uid != set.metadata.uid);
            }
            Write::Revision(number) => {
                let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                annotations.insert(revision::REVISION.to_owned(), number.to_string());
            }
        }
    }

    /// The replica set controller and the nodes: pods follow sizes; new ones become available if all is well.
    fn pods(&mut self) {
        let newest = self.deployment.spec.as_ref().expect("spec").template.clone();
        for set in &mut self.sets {
            let size = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
            let healthy = self.healthy || !revision::runs_template(set, &newest);
            let status = set.status.get_or_insert_default();
            status.replicas = size;
            let available = if healthy { size } else { status.available_replicas.unwrap_or(0).min(size) };
            (status.ready_replicas, status.available_replicas) = (Some(available), Some(available));
            status.observed_generation = set.metadata.generation;
        }
        self.check_bounds();
    }

    /// The promise of a rolling update.
    fn check_bounds(&self) {
        let fence = Fenceposts::of(&self.deployment);
        let sum = |count: fn(&ReplicaSet) -> i32| self.sets.iter().map(count).sum::<i32>();
        let total = sum(|set| set.status.as_ref().map_or(0, |status| status.replicas));
        assert!(total <= fence.max_total().max(4), "{total} pods");
    }

    /// Reconciles and lets pods follow until nothing changes.
    fn settle(&mut self) {
        for _ in 0..100 {
            let wrote = self.reconcile();
            self.pods();
            self.seconds += 1;
            if !wrote && !self.reconcile() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.trace);
    }

    /// `Scaled up replica set web-abc from 0 to 4` as `v1 0>4`.
    fn short(&self, message: &str) -> String {
        let words: Vec<&str> = message.split_whitespace().collect();
        let set = self.sets.iter().find(|set| set.metadata.name.as_deref() == Some(words[4])).expect("set");
        format!("{} {}>{}", image_of(set), words[6], words[8])
    }

    fn take(&mut self) -> String {
        std::mem::take(&mut self.trace).join(", ")
    }

    fn condition(&self, kind: &str) -> String {
        let status = self.deployment.status.as_ref().expect("status");
        let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        found.map_or("none".to_owned(), |found| format!("{} {}", found.status, found.reason.as_deref().unwrap_or("-")))
    }

    fn revision(&self) -> i64 {
        revision::revision(&self.deployment.metadata)
    }
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": image}]}})
}

fn image_of(set: &ReplicaSet) -> String {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let spec = template.and_then(|template| template.spec.as_ref());
    spec.and_then(|spec| spec.containers[0].image.clone()).expect("image")
}

fn settled(spec: Value) -> World {
    let mut world = World::new(spec);
    world.settle();
    world.take();
    world
}

#[test]
fn a_new_deployment_gets_one_set_of_full_size() {
    let mut world = World::new(json!({}));
    world.settle();
    assert_eq!(world.take(), "v1 0>4");
    assert_eq!(world.revision(), 1);
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn a_rolling_update_grows_the_new_set_and_shrinks_the_old_one_within_bounds() {
    let mut world = settled(json!({}));
    world.image("v2");
    world.settle();
    assert_eq!(world.take(), "v2 0>1, v1 4>2, v2 1>3, v1 2>0, v2 3>4");
    assert_eq!(world.revision(), 2);
    let status = world.deployment.status.as_ref().expect("status");
    assert_eq!((status.updated_replicas, status.available_replicas, status.replicas), (Some(4), Some(4), Some(4)));
    assert_eq!(status.observed_generation, world.deployment.metadata.generation);
}

#[test]
fn without_surge_old_pods_make_room_first() {
    let mut world =
        settled(json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}));
    world.image("v2");
    world.settle();
    assert_eq!(world.take(), "v1 4>3, v2 0>1, v1 3>2, v2 1>2, v1 2>1, v2 2>3, v1 1>0, v2 3>4");
}

#[test]
fn a_broken_template_stops_at_the_bounds_and_times_out() {
    let mut world = settled(json!({}));
    (world.healthy, _) = (false, world.image("v2"));
    world.settle();
    assert_eq!(world.take(), "v2 0>1, v1 4>3, v2 1>2");
    assert_eq!(world.condition("Progressing"), "True ReplicaSetUpdated");
    world.seconds += 601;
    world.settle();
    assert_eq!(world.condition("Progressing"), "False ProgressDeadlineExceeded");
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
}

#[test]
fn a_rollback_uses_the_old_set_again_under_a_new_number() {
    let mut world = settled(json!({}));
    world.image("v2");
    world.settle();
    world.take();
    world.image("v1");
    world.settle();
    assert_eq!(world.take(), "v1 0>1, v2 4>2, v1 1>3, v2 2>0, v1 3>4");
    assert_eq!((world.revision(), world.sets.len()), (3, 2));
    let annotations = world.sets[0].metadata.annotations.as_ref().expect("annotations");
    assert_eq!(annotations.get(revision::REVISION_HISTORY).map(String::as_str), Some("1"));
}

#[test]
fn a_change_in_the_middle_goes_to_the_newest_template_only() {
    let mut world = settled(json!({}));
    world.image("v2");
    world.reconcile();
    world.pods();
    world.image("v3");
    world.settle();
    assert_eq!(world.take(), "v2 0>1, v1 4>2, v3 0>2, v1 2>0, v3 2>4, v2 1>0");
}

#[test]
fn recreate_ends_the_old_pods_before_it_starts_new_ones() {
    let mut world = settled(json!({"strategy": {"type": "Recreate"}}));
    world.image("v2");
    world.settle();
    assert_eq!(world.take(), "v1 4>0, v2 0>4");
}

#[test]
fn scaling_a_finished_rollout_sizes_its_only_set() {
    let mut world = settled(json!({}));
    world.set_spec(|spec| spec.replicas = Some(7));
    world.settle();
    world.set_spec(|spec| spec.replicas = Some(0));
    world.settle();
    assert_eq!(world.take(), "v1 4>7, v1 7>0");
}

#[test]
fn scaling_in_the_middle_is_shared_in_proportion() {
    let mut world = settled(
        json!({"replicas": 10, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}),
    );
    world.healthy = false;
    world.image("v2");
    world.settle();
    assert_eq!(world.take(), "v2 0>3, v1 10>8, v2 3>5");
    world.set_spec(|spec| spec.replicas = Some(15));
    world.reconcile();
    assert_eq!(world.take(), "v1 8>11, v2 5>7");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll_out() {
    let mut world = settled(json!({}));
    world.set_spec(|spec| spec.paused = Some(true));
    world.image("v2");
    world.settle();
    assert_eq!((world.take(), world.condition("Progressing")), (String::new(), "Unknown DeploymentPaused".to_owned()));
    world.set_spec(|spec| spec.replicas = Some(5));
    world.settle();
    assert_eq!(world.take(), "v1 4>5");
    world.set_spec(|spec| spec.paused = Some(false));
    world.settle();
    let sizes: Vec<_> = world.sets.iter().map(|set| set.spec.as_ref().and_then(|spec| spec.replicas)).collect();
    assert_eq!(sizes, [Some(0), Some(5)]);
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn only_the_wanted_history_is_kept() {
    let mut world = settled(json!({"strategy": {"type": "Recreate"}}));
    for image in ["v2", "v3", "v4", "v5"] {
        world.image(image);
        world.settle();
    }
    let trace = world.take();
    assert!(trace.contains("delete v1") && trace.contains("delete v2") && !trace.contains("delete v3"), "{trace}");
    assert_eq!(world.sets.len(), 3);
}

#[test]
fn a_deployment_that_is_being_deleted_only_reports() {
    let mut world = settled(json!({}));
    world.deployment.metadata.deletion_timestamp = Some(Time(world.now()));
    world.image("v2");
    world.settle();
    assert_eq!(world.take(), "");
}
