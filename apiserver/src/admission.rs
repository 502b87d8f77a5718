//! Admission: what may be changed or refused about a write after it is authorised and before it is validated and stored.
//!
//! One table ([`STEPS`]) in the order of execution: mutating steps first, then refusing ones. Each step is a function of
//! the review and of what the cluster holds; none writes. `pintle_api` decides what is well-formed, admission what is
//! allowed here and now.

mod certificates;
mod namespace_lifecycle;
mod node_restriction;
mod pod_defaults;
mod priority;
mod service_account;

use std::sync::Arc;

use futures::future::BoxFuture;
use pintle_api::kinds::Kind;
use pintle_api::status::Status;
use serde_json::{Map, Value};

use crate::authz::live::Live;
use crate::authz::{Authorizer, escalation, rbac};
use crate::services;
use crate::types::{Admit, Extra, Operation, Review};

pub struct Chain {
    pub(crate) live: Arc<dyn Live>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) ranges: services::Ranges,
    pub(crate) claims: Arc<dyn services::Claims>,
}

/// What a step does. Steps that may have to ask the store wait.
enum Step {
    Change(for<'a, 'b> fn(&'a Chain, &'a mut Review<'b>) -> Result<(), Status>),
    WaitAndChange(for<'a, 'b> fn(&'a Chain, &'a mut Review<'b>) -> BoxFuture<'a, Result<(), Status>>),
    Refuse(for<'a, 'b> fn(&'a Chain, &'a Review<'b>) -> Result<(), Status>),
}

/// Which writes a step looks at. An empty resource stands for all.
struct Row {
    name: &'static str,
    group: &'static str,
    resource: &'static str,
    operations: &'static [Operation],
    step: Step,
}

const CREATE: &[Operation] = &[Operation::Create];
const WRITE: &[Operation] = &[Operation::Create, Operation::Update];
const ALL: &[Operation] = &[Operation::Create, Operation::Update, Operation::Delete];
const CERTIFICATES: &str = "certificates.k8s.io";
const SCHEDULING: &str = "scheduling.k8s.io";

#[rustfmt::skip]
static STEPS: &[Row] = &[
    row("NamespaceLifecycle", "", "", ALL, Step::WaitAndChange(|chain, review| Box::pin(namespace_lifecycle::admit(chain, review)))),
    row("NodeRestriction", "", "", ALL, Step::Change(node_restriction::admit)),
    row("ServiceAccount", "", "pods", CREATE, Step::WaitAndChange(|chain, review| Box::pin(service_account::admit(chain, review)))),
    row("TaintNodesByCondition", "", "nodes", CREATE, Step::Change(pod_defaults::taint_new_node)),
    row("Priority", "", "pods", WRITE, Step::WaitAndChange(|chain, review| Box::pin(priority::admit_pod(chain, review)))),
    row("DefaultTolerationSeconds", "", "pods", CREATE, Step::Change(pod_defaults::tolerate_failing_node)),
    row("ServiceAllocation", "", "services", WRITE, Step::WaitAndChange(|chain, review| Box::pin(services::admit(chain, review)))),
    row("Priority", SCHEDULING, "priorityclasses", WRITE, Step::Refuse(priority::check_class)),
    row("CertificateApproval", CERTIFICATES, "certificatesigningrequests", WRITE, Step::Refuse(certificates::check)),
    row("RoleEscalation", rbac::GROUP, "", WRITE, Step::Refuse(|chain, review| escalation::check(&chain.authorizer, review))),
];

const fn row(
    name: &'static str,
    group: &'static str,
    resource: &'static str,
    operations: &'static [Operation],
    step: Step,
) -> Row {
    Row { name, group, resource, operations, step }
}

impl Row {
    fn concerns(&self, review: &Review<'_>) -> bool {
        let everything = self.resource.is_empty() && (self.group.is_empty() || self.group == review.kind.group);
        let one = self.group == review.kind.group && self.resource == review.kind.resource;
        self.operations.contains(&review.operation) && (everything || one)
    }
}

impl Chain {
    async fn change(&self, review: &mut Review<'_>) -> Result<(), Status> {
        for row in STEPS {
            if !row.concerns(review) {
                continue;
            }
            match row.step {
                Step::Change(step) => step(self, review),
                Step::WaitAndChange(step) => step(self, review).await,
                Step::Refuse(_) => Ok(()),
            }
            .inspect_err(|status| refused(row, status))?;
        }
        Ok(())
    }

    fn refuse(&self, review: &Review<'_>) -> Result<(), Status> {
        for row in STEPS {
            if let Step::Refuse(step) = row.step
                && row.concerns(review)
            {
                step(self, review).inspect_err(|status| refused(row, status))?;
            }
        }
        Ok(())
    }
}

fn refused(row: &Row, status: &Status) {
    tracing::debug!(step = row.name, reason = %status, "admission refused");
}

impl Admit for Chain {
    fn mutate<'a>(&'a self, review: &'a mut Review<'_>) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(self.change(review))
    }

    fn validate<'a>(&'a self, review: &'a Review<'_>) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(self.refuse(review)))
    }

    fn released(&self, kind: &'static Kind, object: &Value) -> Vec<Extra> {
        if kind.group.is_empty() && kind.resource == "services" { services::released(object) } else { Vec::new() }
    }
}

/// The Forbidden answer of a step.
fn forbidden(review: &Review<'_>, why: &str) -> Status {
    Status::forbidden(review.kind.group, review.kind.resource, review.name, why)
}

/// `object[field]` as a map, made if absent; `None` if it is something else.
fn child<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let entry = object.as_object_mut()?.entry(field).or_insert(Value::Null);
    if entry.is_null() {
        *entry = Value::Object(Map::new());
    }
    entry.is_object().then_some(entry)
}

/// `object[field]` as a list, made if absent; `None` if it is something else.
fn list<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    let entry = object.as_object_mut()?.entry(field).or_insert(Value::Null);
    if entry.is_null() {
        *entry = Value::Array(Vec::new());
    }
    entry.as_array_mut()
}

/// True for pods that a node agent runs by itself and only reports.
fn is_mirror_pod(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations").is_some_and(|all| all.get("kubernetes.io/config.mirror").is_some())
}

#[cfg(test)]
pub(crate) mod tests {
    use pintle_api::kinds::by_resource;

    use super::*;
    use crate::authz::live::tests::Fixed;
    use crate::types::UserInfo;

    pub(crate) fn kind(group: &str, resource: &str) -> &'static Kind {
        by_resource(group, "v1", resource).expect("served")
    }

    pub(super) fn chain(live: Fixed) -> Chain {
        let live: Arc<dyn Live> = Arc::new(live);
        let ranges = services::Ranges::new("10.96.0.0/16", 30000..=32767).expect("ranges");
        let claims = Arc::new(services::tests::Held::default());
        Chain { authorizer: Arc::new(Authorizer::new(Arc::clone(&live))), live, ranges, claims }
    }

    /// A create of `object` by `user`, not yet run.
    pub(crate) fn creation<'a>(kind: &'static Kind, object: &'a Value, user: &'a UserInfo) -> Review<'a> {
        Review {
            operation: Operation::Create,
            kind,
            subresource: "",
            namespace: crate::authz::live::namespace_of(object),
            name: crate::authz::live::name_of(object),
            user,
            object: object.clone(),
            old: None,
            dry_run: false,
            extra: Vec::new(),
            warnings: Vec::new(),
            attempt: 0,
        }
    }

    /// Runs the whole chain on a create and returns the object as it would be stored.
    pub(super) async fn create(live: Fixed, kind: &'static Kind, object: Value) -> Result<Value, Status> {
        let user = UserInfo::internal();
        let mut review = creation(kind, &object, &user);
        let chain = chain(live);
        chain.mutate(&mut review).await?;
        chain.validate(&review).await?;
        Ok(review.object)
    }
}
