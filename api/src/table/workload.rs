//! Rows of pods and of what runs them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{self, NONE};
use super::columns::{AGE, CONTAINERS, Column, IMAGES, NAME, SELECTOR, number, text, wide};
use super::{Table, duration, pod, table_of};
use crate::meta::{self, Meta};
use crate::tree;

pub(super) static TABLES: &[Table] = &[
    table_of("", "Pod", POD, pod::cells),
    table_of("", "PodTemplate", POD_TEMPLATE, pod_template),
    table_of("", "ReplicationController", REPLICAS, replication_controller),
    table_of("apps", "ReplicaSet", REPLICAS, replica_set),
    table_of("apps", "Deployment", DEPLOYMENT, deployment),
    table_of("apps", "StatefulSet", STATEFUL_SET, stateful_set),
    table_of("apps", "DaemonSet", DAEMON_SET, daemon_set),
    table_of("apps", "ControllerRevision", REVISION, revision),
    table_of("batch", "Job", JOB, job),
    table_of("batch", "CronJob", CRON_JOB, cron_job),
    table_of("policy", "PodDisruptionBudget", BUDGET, budget),
    table_of("autoscaling", "Scale", SCALE, scale),
];

static POD: &[Column] = &[
    NAME,
    text("Ready", "How many containers are ready, of how many."),
    text("Status", "What the pod is doing, in one word."),
    text("Restarts", "How often its containers were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node the pod runs on."),
    wide("Nominated Node", "Node that is being cleared for the pod."),
    wide("Readiness Gates", "How many extra readiness conditions hold."),
];

static POD_TEMPLATE: &[Column] = &[
    NAME,
    text("Containers", "Names of the containers in the template."),
    text("Images", "Images of the containers in the template."),
    text("Pod Labels", "Labels of pods made from the template."),
];

static REPLICAS: &[Column] = &[
    NAME,
    number("Desired", "How many pods are wanted."),
    number("Current", "How many pods there are."),
    number("Ready", "How many of them are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

static DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "How many pods are ready, of how many."),
    text("Up-to-date", "How many pods have the newest template."),
    text("Available", "How many pods have been ready for long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

static STATEFUL_SET: &[Column] =
    &[NAME, text("Ready", "How many pods are ready, of how many."), AGE, CONTAINERS, IMAGES];

static DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired", "How many nodes should run the pod."),
    number("Current", "How many of them do."),
    number("Ready", "How many pods are ready."),
    number("Up-to-date", "How many pods have the newest template."),
    number("Available", "How many pods have been ready for long enough."),
    text("Node Selector", "Labels of the nodes that run the pod."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

static REVISION: &[Column] =
    &[NAME, text("Controller", "The object whose revision this is."), text("Revision", "Number of the revision."), AGE];

static JOB: &[Column] = &[
    NAME,
    text("Status", "Whether the job runs, is done or has failed."),
    text("Completions", "How many pods have succeeded, of how many."),
    text("Duration", "How long the job ran."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

static CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule", "When jobs are made, as cron writes it."),
    text("Timezone", "Time zone of the schedule."),
    super::columns::flag("Suspend", "Whether no jobs are made for now."),
    number("Active", "How many jobs run."),
    text("Last Schedule", "When a job was made last."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

static BUDGET: &[Column] = &[
    NAME,
    text("Min Available", "How many pods must stay available."),
    text("Max Unavailable", "How many pods may be unavailable."),
    number("Allowed Disruptions", "How many pods may be evicted now."),
    AGE,
];

static SCALE: &[Column] =
    &[NAME, number("Desired", "How many pods are wanted."), number("Available", "How many pods there are."), AGE];

fn pod_template(object: &Value, _now: Timestamp) -> Vec<Value> {
    let [names, images] = cells::containers(object, "/template/spec/containers");
    vec![cells::name(object), names, images, cells::labels(tree::map(object, "/template/metadata/labels"))]
}

fn replicas(object: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let [names, images] = cells::containers(object, "/spec/template/spec/containers");
    vec![
        cells::name(object),
        cells::count(object, "/spec/replicas"),
        cells::count(object, "/status/replicas"),
        cells::count(object, "/status/readyReplicas"),
        cells::age(object, now),
        names,
        images,
        selector,
    ]
}

fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, cells::labels(tree::map(object, "/spec/selector")))
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, cells::selector(object, "/spec/selector"))
}

fn ready_of(object: &Value) -> Value {
    let count = |pointer| tree::int(object, pointer).unwrap_or_default();
    json!(format!("{}/{}", count("/status/readyReplicas"), count("/spec/replicas")))
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = cells::containers(object, "/spec/template/spec/containers");
    vec![
        cells::name(object),
        ready_of(object),
        cells::count(object, "/status/updatedReplicas"),
        cells::count(object, "/status/availableReplicas"),
        cells::age(object, now),
        names,
        images,
        cells::selector(object, "/spec/selector"),
    ]
}

fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = cells::containers(object, "/spec/template/spec/containers");
    vec![cells::name(object), ready_of(object), cells::age(object, now), names, images]
}

fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = cells::containers(object, "/spec/template/spec/containers");
    vec![
        cells::name(object),
        cells::count(object, "/status/desiredNumberScheduled"),
        cells::count(object, "/status/currentNumberScheduled"),
        cells::count(object, "/status/numberReady"),
        cells::count(object, "/status/updatedNumberScheduled"),
        cells::count(object, "/status/numberAvailable"),
        cells::labels(tree::map(object, "/spec/template/spec/nodeSelector")),
        cells::age(object, now),
        names,
        images,
        cells::selector(object, "/spec/selector"),
    ]
}

fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let controller = Meta::of(object).controller().map_or_else(
        || NONE.to_owned(),
        |owner| {
            let group = owner.api_version.split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
            format!("{}/{}", format!("{}{group}", owner.kind).to_lowercase(), owner.name)
        },
    );
    vec![cells::name(object), json!(controller), cells::count(object, "/revision"), cells::age(object, now)]
}

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = tree::int(object, "/status/succeeded").unwrap_or_default();
    let completions = match (tree::int(object, "/spec/completions"), tree::int(object, "/spec/parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, Some(parallel)) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        _ => format!("{succeeded}/1"),
    };
    let [names, images] = cells::containers(object, "/spec/template/spec/containers");
    vec![
        cells::name(object),
        json!(job_status(object)),
        json!(completions),
        json!(job_duration(object, now)),
        cells::age(object, now),
        names,
        images,
        cells::selector(object, "/spec/selector"),
    ]
}

fn job_status(object: &Value) -> &'static str {
    let is = |condition| cells::is_true(object, condition);
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if Meta::of(object).is_deleting() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn job_duration(object: &Value, now: Timestamp) -> String {
    let Some(start) = meta::timestamp(object, "/status/startTime") else { return String::new() };
    let end = meta::timestamp(object, "/status/completionTime").unwrap_or(now);
    duration::human(end.duration_since(start))
}

fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let last = match meta::timestamp(object, "/status/lastScheduleTime") {
        Some(last) => duration::human(now.duration_since(last)),
        None => NONE.to_owned(),
    };
    let suspend = tree::at(object, "/spec/suspend").and_then(Value::as_bool);
    let suspend = match suspend {
        Some(true) => "True",
        Some(false) => "False",
        None => cells::UNSET,
    };
    let template = "/spec/jobTemplate/spec/template/spec/containers";
    let [names, images] = cells::containers(object, template);
    vec![
        cells::name(object),
        json!(tree::text(object, "/spec/schedule")),
        cells::text_or(object, "/spec/timeZone", NONE),
        json!(suspend),
        cells::length(object, "/status/active"),
        json!(last),
        cells::age(object, now),
        names,
        images,
        cells::selector(object, "/spec/jobTemplate/spec/selector"),
    ]
}

fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |pointer| json!(cells::scalar(object, pointer).unwrap_or_else(|| "N/A".to_owned()));
    vec![
        cells::name(object),
        bound("/spec/minAvailable"),
        bound("/spec/maxUnavailable"),
        cells::count(object, "/status/disruptionsAllowed"),
        cells::age(object, now),
    ]
}

fn scale(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        cells::name(object),
        cells::count(object, "/spec/replicas"),
        cells::count(object, "/status/replicas"),
        cells::age(object, now),
    ]
}
