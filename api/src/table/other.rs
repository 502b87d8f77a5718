//! Rows of scaling, certificates, admission, flow control, priorities and resource claims.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::cells::{self, NONE, UNSET};
use super::columns::{AGE, Column, NAME, flag, number, text, wide};
use super::{Table, duration, table_of};
use crate::tree;

const ADMISSION: &str = "admissionregistration.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const RESOURCE: &str = "resource.k8s.io";

pub(super) static TABLES: &[Table] = &[
    table_of("autoscaling", "HorizontalPodAutoscaler", AUTOSCALER, autoscaler),
    table_of(CERTIFICATES, "CertificateSigningRequest", REQUEST, request),
    table_of(CERTIFICATES, "ClusterTrustBundle", BUNDLE, bundle),
    table_of(ADMISSION, "MutatingWebhookConfiguration", WEBHOOKS, webhooks),
    table_of(ADMISSION, "ValidatingWebhookConfiguration", WEBHOOKS, webhooks),
    table_of(ADMISSION, "ValidatingAdmissionPolicy", VALIDATING_POLICY, validating_policy),
    table_of(ADMISSION, "MutatingAdmissionPolicy", MUTATING_POLICY, mutating_policy),
    table_of(ADMISSION, "ValidatingAdmissionPolicyBinding", POLICY_BINDING, policy_binding),
    table_of(ADMISSION, "MutatingAdmissionPolicyBinding", POLICY_BINDING, policy_binding),
    table_of(FLOW, "FlowSchema", FLOW_SCHEMA, flow_schema),
    table_of(FLOW, "PriorityLevelConfiguration", PRIORITY_LEVEL, priority_level),
    table_of("scheduling.k8s.io", "PriorityClass", PRIORITY_CLASS, priority_class),
    table_of("node.k8s.io", "RuntimeClass", RUNTIME_CLASS, runtime_class),
    table_of(RESOURCE, "DeviceClass", PLAIN, plain),
    table_of(RESOURCE, "ResourceClaimTemplate", PLAIN, plain),
    table_of(RESOURCE, "ResourceClaim", CLAIM, claim),
    table_of(RESOURCE, "ResourceSlice", SLICE, slice),
    table_of("apiextensions.k8s.io", "CustomResourceDefinition", CREATED, created),
    table_of("apiregistration.k8s.io", "APIService", API_SERVICE, api_service),
];

static PLAIN: &[Column] = &[NAME, AGE];
static CREATED: &[Column] = &[NAME, super::columns::CREATED_AT];

static AUTOSCALER: &[Column] = &[
    NAME,
    text("Reference", "Object that is scaled."),
    text("Targets", "Metrics, now and as wanted."),
    text("MinPods", "Fewest pods."),
    text("MaxPods", "Most pods."),
    text("Replicas", "Pods there are."),
    AGE,
];

static REQUEST: &[Column] = &[
    NAME,
    AGE,
    text("SignerName", "Who is asked to sign."),
    text("Requestor", "Who asks."),
    text("RequestedDuration", "For how long."),
    text("Condition", "What became of the request."),
];

static BUNDLE: &[Column] = &[NAME, text("SignerName", "Whose certificates the bundle holds.")];
static WEBHOOKS: &[Column] = &[NAME, number("Webhooks", "How many webhooks are configured."), AGE];

static VALIDATING_POLICY: &[Column] = &[
    NAME,
    number("Validations", "How many rules there are."),
    text("ParamKind", "Kind of the objects with parameters."),
    AGE,
];

static MUTATING_POLICY: &[Column] = &[
    NAME,
    number("Mutations", "How many rules there are."),
    text("ParamKind", "Kind of the objects with parameters."),
    AGE,
];

static POLICY_BINDING: &[Column] =
    &[NAME, text("PolicyName", "Policy that is bound."), text("ParamRef", "Object with parameters."), AGE];

static FLOW_SCHEMA: &[Column] = &[
    NAME,
    text("PriorityLevel", "Level that requests go to."),
    text("MatchingPrecedence", "The lower, the earlier it is tried."),
    text("DistinguisherMethod", "What tells flows apart."),
    AGE,
    text("MissingPL", "Whether that level is missing."),
];

static PRIORITY_LEVEL: &[Column] = &[
    NAME,
    text("Type", "Limited or exempt."),
    text("NominalConcurrencyShares", "Share of the server."),
    text("Queues", "How many queues there are."),
    text("HandSize", "How many queues a flow may use."),
    text("QueueLengthLimit", "How long a queue may get."),
    AGE,
];

static PRIORITY_CLASS: &[Column] = &[
    NAME,
    number("Value", "Priority of pods of the class."),
    flag("Global-Default", "Whether pods without a class get it."),
    AGE,
    wide("PreemptionPolicy", "Whether pods of the class push out others."),
];

static RUNTIME_CLASS: &[Column] = &[NAME, text("Handler", "Configuration of the container runtime."), AGE];
static CLAIM: &[Column] = &[NAME, text("State", "What became of the claim."), AGE];

static SLICE: &[Column] = &[
    NAME,
    text("Node", "Node with the devices."),
    text("Driver", "Driver of the devices."),
    text("Pool", "Pool the slice belongs to."),
    AGE,
];

static API_SERVICE: &[Column] =
    &[NAME, text("Service", "Service that serves the version."), text("Available", "Whether it answers."), AGE];

fn plain(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), cells::age(object, now)]
}

fn created(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), cells::text_or(object, "/metadata/creationTimestamp", "<unknown>")]
}

fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let reference = format!(
        "{}/{}",
        tree::text(object, "/spec/scaleTargetRef/kind"),
        tree::text(object, "/spec/scaleTargetRef/name")
    );
    let min = cells::scalar(object, "/spec/minReplicas").unwrap_or_else(|| UNSET.to_owned());
    vec![
        cells::name(object),
        json!(reference),
        json!(metrics(object)),
        json!(min),
        cells::count(object, "/spec/maxReplicas"),
        cells::count(object, "/status/currentReplicas"),
        cells::age(object, now),
    ]
}

fn metrics(object: &Value) -> String {
    const SHOWN: usize = 2;
    if let Some(target) = tree::int(object, "/spec/targetCPUUtilizationPercentage") {
        let current = percent(tree::int(object, "/status/currentCPUUtilizationPercentage")).unwrap_or_else(unknown);
        return format!("cpu: {current}/{target}%");
    }
    let current = tree::list(object, "/status/currentMetrics");
    let specs = tree::list(object, "/spec/metrics");
    if specs.is_empty() {
        return NONE.to_owned();
    }
    let empty = Value::Null;
    let texts: Vec<String> = specs
        .iter()
        .enumerate()
        .take(SHOWN)
        .map(|(index, spec)| metric(spec, current.get(index).unwrap_or(&empty)))
        .collect();
    let shown = texts.join(", ");
    if specs.len() > SHOWN { format!("{shown} + {} more...", specs.len() - SHOWN) } else { shown }
}

fn unknown() -> String {
    "<unknown>".to_owned()
}

fn percent(number: Option<i64>) -> Option<String> {
    number.map(|number| format!("{number}%"))
}

fn metric(spec: &Value, status: &Value) -> String {
    let (key, has_name) = match tree::text(spec, "/type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".to_owned(),
    };
    let (target, now) = (format!("/{key}/target"), format!("/{key}/current"));
    let average = cells::scalar(spec, &format!("{target}/averageValue"));
    let current_average = || cells::scalar(status, &format!("{now}/averageValue")).unwrap_or_else(unknown);
    let prefix = if has_name { format!("{}: ", tree::text(spec, &format!("/{key}/name"))) } else { String::new() };
    match (average, key) {
        (Some(average), "object" | "external") => format!("{}/{average} (avg)", current_average()),
        (Some(average), _) => format!("{prefix}{}/{average}", current_average()),
        (None, _) if has_name => {
            let current = percent(tree::int(status, &format!("{now}/averageUtilization"))).unwrap_or_else(unknown);
            let wanted = percent(tree::int(spec, &format!("{target}/averageUtilization")));
            format!("{prefix}{current}/{}", wanted.unwrap_or_else(|| "<auto>".to_owned()))
        }
        (None, _) => {
            let current = cells::scalar(status, &format!("{now}/value")).unwrap_or_else(unknown);
            format!("{current}/{}", cells::scalar(spec, &format!("{target}/value")).unwrap_or_else(|| "0".to_owned()))
        }
    }
}

fn request(object: &Value, now: Timestamp) -> Vec<Value> {
    let period = tree::int(object, "/spec/expirationSeconds")
        .map_or_else(|| NONE.to_owned(), |seconds| duration::human(SignedDuration::from_secs(seconds)));
    vec![
        cells::name(object),
        cells::age(object, now),
        cells::text_or(object, "/spec/signerName", NONE),
        json!(tree::text(object, "/spec/username")),
        json!(period),
        json!(request_condition(object)),
    ]
}

fn request_condition(object: &Value) -> String {
    let has = |of: &str| {
        tree::list(object, "/status/conditions").iter().any(|condition| tree::text(condition, "/type") == of)
    };
    let mut text = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if tree::some_text(object, "/status/certificate").is_some() {
        text.push_str(",Issued");
    }
    text
}

fn bundle(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), cells::text_or(object, "/spec/signerName", NONE)]
}

fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), cells::length(object, "/webhooks"), cells::age(object, now)]
}

fn policy(object: &Value, rules: &str, now: Timestamp) -> Vec<Value> {
    let kind = tree::at(object, "/spec/paramKind").map_or_else(
        || UNSET.to_owned(),
        |kind| format!("{}/{}", tree::text(kind, "/apiVersion"), tree::text(kind, "/kind")),
    );
    vec![cells::name(object), cells::length(object, rules), json!(kind), cells::age(object, now)]
}

fn validating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, "/spec/validations", now)
}

fn mutating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, "/spec/mutations", now)
}

fn policy_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match tree::at(object, "/spec/paramRef") {
        None => UNSET.to_owned(),
        Some(reference) => match (tree::some_text(reference, "/name"), tree::some_text(reference, "/namespace")) {
            (Some(name), namespace) => format!("{}/{name}", namespace.unwrap_or("*")),
            (None, _) => cells::selector(reference, "/selector").as_str().unwrap_or(UNSET).to_owned(),
        },
    };
    vec![cells::name(object), json!(tree::text(object, "/spec/policyName")), json!(parameters), cells::age(object, now)]
}

fn flow_schema(object: &Value, now: Timestamp) -> Vec<Value> {
    let dangling = tree::list(object, "/status/conditions")
        .iter()
        .find(|condition| tree::text(condition, "/type") == "Dangling")
        .map_or("?", |condition| tree::text(condition, "/status"));
    vec![
        cells::name(object),
        json!(tree::text(object, "/spec/priorityLevelConfiguration/name")),
        cells::count(object, "/spec/matchingPrecedence"),
        cells::text_or(object, "/spec/distinguisherMethod/type", NONE),
        cells::age(object, now),
        json!(dangling),
    ]
}

fn priority_level(object: &Value, now: Timestamp) -> Vec<Value> {
    let shares = cells::scalar(object, "/spec/limited/nominalConcurrencyShares")
        .or_else(|| cells::scalar(object, "/spec/exempt/nominalConcurrencyShares"));
    let queuing = |key: &str| {
        cells::scalar(object, &format!("/spec/limited/limitResponse/queuing/{key}")).unwrap_or_else(|| NONE.to_owned())
    };
    vec![
        cells::name(object),
        json!(tree::text(object, "/spec/type")),
        json!(shares.unwrap_or_else(|| NONE.to_owned())),
        json!(queuing("queues")),
        json!(queuing("handSize")),
        json!(queuing("queueLengthLimit")),
        cells::age(object, now),
    ]
}

fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        cells::name(object),
        cells::count(object, "/value"),
        json!(tree::flag(object, "/globalDefault")),
        cells::age(object, now),
        json!(tree::text(object, "/preemptionPolicy")),
    ]
}

fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![cells::name(object), json!(tree::text(object, "/handler")), cells::age(object, now)]
}

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut states = Vec::new();
    if tree::at(object, "/metadata/deletionTimestamp").is_some() {
        states.push("deleted");
    }
    match tree::at(object, "/status/allocation") {
        None if states.is_empty() => states.push("pending"),
        None => {}
        Some(_) => {
            states.push("allocated");
            if !tree::list(object, "/status/reservedFor").is_empty() {
                states.push("reserved");
            }
        }
    }
    vec![cells::name(object), json!(states.join(",")), cells::age(object, now)]
}

fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        cells::name(object),
        cells::text_or(object, "/spec/nodeName", UNSET),
        json!(tree::text(object, "/spec/driver")),
        json!(tree::text(object, "/spec/pool/name")),
        cells::age(object, now),
    ]
}

fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = tree::at(object, "/spec/service").map_or_else(
        || "Local".to_owned(),
        |service| format!("{}/{}", tree::text(service, "/namespace"), tree::text(service, "/name")),
    );
    let condition =
        tree::list(object, "/status/conditions").iter().find(|found| tree::text(found, "/type") == "Available");
    let available = match condition.map(|found| (tree::text(found, "/status"), tree::text(found, "/reason"))) {
        None => "Unknown".to_owned(),
        Some(("True", _)) => "True".to_owned(),
        Some((status, reason)) => format!("{status} ({reason})"),
    };
    vec![cells::name(object), json!(service), json!(available), cells::age(object, now)]
}
