//! Delete: at once, or by setting the deletion timestamp when a grace period or a finalizer holds the object.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use pintle_api::kinds::Kind;
use pintle_api::meta::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Meta, MetaMut};
use pintle_api::status::Status;
use pintle_api::strategy::{Deletion, begin_deletion};
use pintle_api::tree;
use serde_json::Value;

use super::{
    DeleteOptions, ListOptions, Propagation, Registry, WriteOptions, encode_stored, finish, not_found, review, strategy,
};
use crate::cache::{self, Object, layout};
use crate::limits;
use crate::storage::{Refused, Write, status_of};
use crate::types::Operation;

/// What a delete left behind.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// The object is gone; this was its last version.
    Gone(Arc<Object>),
    /// Deletion is under way; this is the object now.
    Pending(Arc<Object>),
}

impl Deleted {
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Gone(object) | Self::Pending(object) => object,
        }
    }
}

/// What is to be done to one version of an object.
#[derive(Debug, PartialEq)]
enum Step {
    Remove,
    /// Deletion already runs as asked.
    Nothing,
    Mark(Value),
}

impl Registry {
    /// Deletes one object.
    ///
    /// # Errors
    /// 404; 409 if a precondition does not hold; 403 from admission; 504 if the outcome is unknown.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        how: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<Deleted, Status> {
        let missing = || not_found(kind, name);
        let options = &WriteOptions { dry_run: options.dry_run || how.dry_run, ..options.clone() };
        let mut old = self.stored_or_cached(kind, namespace, name).await?.ok_or_else(missing)?;
        let mut fresh = false;
        for _ in 0..limits::UPDATE_RETRIES {
            let tree = old.tree();
            let checked = self.check_delete(kind, (namespace, name), how, options, &tree).await;
            if let (Err(_), false) = (&checked, fresh) {
                fresh = true;
                old = self.stored(kind, namespace, name).await?.ok_or_else(missing)?;
                continue;
            }
            checked?;
            let step = plan(kind, &tree, how, strategy::now());
            if !fresh && (step == Step::Nothing || options.dry_run) {
                // No transaction will compare versions: what is answered must be true of the stored object.
                fresh = true;
                old = self.stored(kind, namespace, name).await?.ok_or_else(missing)?;
                continue;
            }
            fresh = true;
            match self.take(kind, (namespace, name), &old, step, options).await {
                Ok(deleted) => return deleted,
                Err(Refused::Changed(None)) => return Err(missing()),
                Err(Refused::Changed(Some(kv))) => {
                    old =
                        cache::feed::object(&kv).ok_or_else(|| Status::internal("the stored object is unreadable"))?;
                }
                Err(Refused::Claimed) => (),
                Err(Refused::Store(error)) => return Err(status_of(&error)),
            }
        }
        Err(Status::object_modified(kind.group, kind.resource, name))
    }

    async fn stored_or_cached(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        match self.cache().get(kind, namespace, name) {
            Some(object) => Ok(Some(object)),
            None => self.stored(kind, namespace, name).await,
        }
    }

    async fn check_delete(
        &self,
        kind: &'static Kind,
        (namespace, name): (&str, &str),
        how: &DeleteOptions,
        options: &WriteOptions,
        old: &Arc<Value>,
    ) -> Result<(), Status> {
        let meta = Meta::of(old);
        let failed = |field, want: &str, have: &str| {
            Err(Status::precondition_failed(kind.group, kind.resource, name, field, want, have))
        };
        match (&how.uid, &how.resource_version) {
            (Some(uid), _) if uid != meta.uid() => return failed("UID", uid, meta.uid()),
            (_, Some(version)) if version != meta.resource_version() => {
                return failed("ResourceVersion", version, meta.resource_version());
            }
            _ => (),
        }
        let place = (namespace, name, "");
        let mut review = review(Operation::Delete, kind, place, options, Value::Null, Some(Arc::clone(old)));
        self.mutate(&mut review).await?;
        self.admit(&review).await
    }

    async fn take(
        &self,
        kind: &'static Kind,
        (namespace, name): (&str, &str),
        old: &Arc<Object>,
        step: Step,
        options: &WriteOptions,
    ) -> Result<Result<Deleted, Status>, Refused> {
        let (value, tree) = match step {
            Step::Nothing => return Ok(Ok(Deleted::Pending(Arc::clone(old)))),
            Step::Remove => (None, None),
            Step::Mark(tree) => match encode_stored(tree.clone()) {
                Ok(value) => (Some(value), Some(tree)),
                Err(status) => return Ok(Err(status)),
            },
        };
        let extra = match &value {
            None => self.admission().released(kind, &old.tree()),
            Some(_) => Vec::new(),
        };
        let mut revision = old.revision;
        if !options.dry_run {
            let key = Bytes::from(layout::store_key(kind, namespace, name));
            let write = Write { key, expected: old.revision, value, lease: 0, extra: &extra, fence: options.fence };
            revision = self.storage().write(write).await?;
        }
        Ok(match tree {
            None if options.dry_run => Ok(Deleted::Gone(Arc::clone(old))),
            None => Ok(Deleted::Gone(Arc::new(old.deleted_at(revision)))),
            Some(tree) => finish::object(old.slot, &old.key, revision, tree).map(Deleted::Pending),
        })
    }

    /// Deletes everything that `list` selects, [`limits::DELETE_PARALLEL`] at a time, and returns what it was.
    ///
    /// # Errors
    /// The first failure other than "already gone"; what was deleted until then stays deleted.
    pub async fn delete_collection(
        &self,
        kind: &'static Kind,
        list: &ListOptions,
        how: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<(i64, Vec<Arc<Object>>), Status> {
        let page = self.list(kind, list).await?;
        let deletions = futures::stream::iter(page.objects.iter().cloned().map(|object| async move {
            let result = self.delete(kind, object.namespace(), object.name(), how, options).await;
            (object, result)
        }));
        let mut running = deletions.buffered(limits::DELETE_PARALLEL);
        let mut deleted = Vec::new();
        while let Some((object, result)) = running.next().await {
            match result {
                Ok(_) => deleted.push(object),
                Err(status) if status.code == 404 => (),
                Err(status) => return Err(status),
            }
        }
        Ok((page.revision, deleted))
    }
}

pub fn has_namespace_finalizers(namespace: &Value) -> bool {
    !tree::list(namespace, "/spec/finalizers").is_empty()
}

/// Decides what deleting `old` as asked means at `now`.
fn plan(kind: &'static Kind, old: &Value, how: &DeleteOptions, now: Timestamp) -> Step {
    let finalizers = finalizers(kind, old, how);
    let held = !finalizers.is_empty() || (strategy::is_namespace(kind) && has_namespace_finalizers(old));
    let mut tree = old.clone();
    let deletion = begin_deletion(kind, &mut tree, how.grace, now);
    if deletion == Deletion::Now && !held {
        return Step::Remove;
    }
    let names: Vec<&str> = finalizers.iter().map(String::as_str).collect();
    MetaMut::of(&mut tree).set_finalizers(&names);
    if strategy::is_namespace(kind)
        && let Some(status) = tree::object(&mut tree, "status")
    {
        tree::set(status, "phase", "Terminating");
    }
    if tree == *old { Step::Nothing } else { Step::Mark(tree) }
}

/// The finalizers the object has once its deletion was asked for with this policy.
fn finalizers(kind: &'static Kind, old: &Value, how: &DeleteOptions) -> Vec<String> {
    let mut names: Vec<String> = Meta::of(old).finalizers().map(str::to_owned).collect();
    let legacy_orphan = kind.group.is_empty() && kind.kind == "ReplicationController";
    let policy = how.propagation.or((legacy_orphan && names.is_empty()).then_some(Propagation::Orphan));
    let Some(policy) = policy else { return names };
    names.retain(|name| name != FINALIZER_ORPHAN && name != FINALIZER_FOREGROUND);
    match policy {
        Propagation::Orphan => names.push(FINALIZER_ORPHAN.to_owned()),
        Propagation::Foreground => names.push(FINALIZER_FOREGROUND.to_owned()),
        Propagation::Background => (),
    }
    names
}

#[cfg(test)]
mod tests {
    use pintle_api::kinds::by_resource;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(resource: &str, old: Value, how: DeleteOptions, want: Option<Value>) {
        let (group, resource) = resource.split_once('/').unwrap_or(("", resource));
        let kind = by_resource(group, "v1", resource).expect("served");
        let now = "2026-01-01T00:00:10Z".parse().expect("time");
        let got = match plan(kind, &old, &how, now) {
            Step::Remove => None,
            Step::Nothing => Some(json!("nothing")),
            Step::Mark(tree) => Some(tree["metadata"].clone()),
        };
        assert_eq!(got, want);
    }

    fn policy(propagation: Propagation) -> DeleteOptions {
        DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() }
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace: Some(seconds), ..DeleteOptions::default() }
    }

    #[test]
    fn what_nothing_holds_goes_at_once() {
        check("configmaps", json!({"metadata": {}}), DeleteOptions::default(), None);
        check("pods", json!({"metadata": {}, "spec": {}}), DeleteOptions::default(), None);
        check("pods", json!({"metadata": {}, "spec": {"nodeName": "n"}}), grace(0), None);
        let done = json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Failed"}});
        check("pods", done, DeleteOptions::default(), None);
    }

    #[test]
    fn a_running_pod_gets_its_grace_and_it_only_shrinks() {
        let pod =
            json!({"metadata": {"generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let marked =
            json!({"generation": 2, "deletionTimestamp": "2026-01-01T00:00:40Z", "deletionGracePeriodSeconds": 30});
        check("pods", pod, DeleteOptions::default(), Some(marked.clone()));
        let pod = json!({"metadata": marked, "spec": {"nodeName": "n"}});
        check("pods", pod.clone(), grace(60), Some(json!("nothing")));
        check(
            "pods",
            pod.clone(),
            grace(5),
            Some(json!(
            {"generation": 2, "deletionTimestamp": "2026-01-01T00:00:15Z", "deletionGracePeriodSeconds": 5})),
        );
        check("pods", pod, grace(0), None);
    }

    #[test]
    fn finalizers_follow_the_policy() {
        let marked = |finalizer: &str| {
            Some(
                json!({"finalizers": [finalizer], "deletionTimestamp": "2026-01-01T00:00:10Z", "deletionGracePeriodSeconds": 0}),
            )
        };
        let plain = || json!({"metadata": {}});
        check("apps/deployments", plain(), policy(Propagation::Foreground), marked("foregroundDeletion"));
        check("apps/deployments", plain(), policy(Propagation::Orphan), marked("orphan"));
        check("apps/deployments", plain(), policy(Propagation::Background), None);
        check("replicationcontrollers", plain(), DeleteOptions::default(), marked("orphan"));
        check("configmaps", json!({"metadata": {"finalizers": ["x"]}}), DeleteOptions::default(), marked("x"));
    }
}
