//! Makes the cluster hold what [`super::objects`] and [`super::roles`] say, one object after the other.
//!
//! Reads come from the watch cache after a barrier, so a new leader sees what the old one wrote. An object that somebody
//! else creates meanwhile is as good.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use pintle_api::kinds::{Kind, by_resource};
use pintle_api::meta::Meta;
use pintle_api::status::{Reason, Status};
use pintle_proto::etcdserverpb::RangeRequest;
use serde_json::{Value, json};

use super::{endpoints as plan, objects, roles};
use crate::authz::live::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, NAMESPACES, PRIORITY_CLASSES, ROLE_BINDINGS, ROLES, Res, SERVICES, items,
    name_of, namespace_of,
};
use crate::authz::rbac::aggregated;
use crate::authz::rules::{Rule, uncovered};
use crate::limits;
use crate::node_session::directory;
use crate::registry::{DeleteOptions, WriteOptions};
use crate::services::repair;
use crate::storage::status_of;
use crate::types::Ctx;

/// Rules compared when a role is looked at; see [`uncovered`].
const RULES_MAX: usize = 20_000;
const CONFIG_MAPS: Res = Res("", "configmaps");
const ENDPOINTS: Res = Res("", "endpoints");
const SLICES: Res = Res("discovery.k8s.io", "endpointslices");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

type Done = Result<(), Status>;

/// One full round.
pub(super) async fn everything(ctx: &Ctx, term: u64) -> Done {
    catch_up(ctx).await?;
    let options = WriteOptions::fenced(term);
    for name in objects::NAMESPACES {
        ensure(ctx, NAMESPACES, objects::namespace(name), &options).await?;
    }
    for role in roles::cluster_roles() {
        ensure_role(ctx, CLUSTER_ROLES, role, &options).await?;
    }
    for binding in roles::cluster_bindings() {
        ensure_binding(ctx, CLUSTER_ROLE_BINDINGS, binding, &options).await?;
    }
    let (namespaced, bindings) = roles::roles_and_bindings();
    for role in namespaced {
        ensure_role(ctx, ROLES, role, &options).await?;
    }
    for binding in bindings {
        ensure_binding(ctx, ROLE_BINDINGS, binding, &options).await?;
    }
    for class in objects::priority_classes() {
        ensure(ctx, PRIORITY_CLASSES, class, &options).await?;
    }
    for config in objects::config_maps(&ctx.config) {
        ensure_fields(ctx, CONFIG_MAPS, config, &["data"], &options).await?;
    }
    ensure(ctx, SERVICES, objects::kubernetes_service(&ctx.config), &options).await?;
    catch_up(ctx).await?;
    aggregate(ctx, &options).await?;
    endpoints(ctx, term).await?;
    repair::run(&ctx.store, &ctx.cache, term).await.map_err(|error| status_of(&error))
}

/// Waits until the cache holds everything written so far.
async fn catch_up(ctx: &Ctx) -> Done {
    let revision = ctx.store.read_barrier().await.map_err(|error| status_of(&error))?;
    match ctx.cache.wait(revision, limits::CACHE_WAIT).await {
        Ok(_) => Ok(()),
        Err(behind) => Err(Status::timeout(behind, 1)),
    }
}

/// The endpoints of `default/kubernetes` follow the servers that live.
pub(super) async fn endpoints(ctx: &Ctx, term: u64) -> Done {
    let servers = live_servers(ctx).await?;
    if servers.is_empty() {
        return Ok(()); // this server lives, so the directory is not filled yet
    }
    let options = WriteOptions::fenced(term);
    ensure_fields(ctx, ENDPOINTS, plan::endpoints(&servers), &["subsets"], &options).await?;
    let slices = plan::slices(&servers);
    let names: BTreeSet<String> = slices.iter().map(|slice| name_of(slice).to_owned()).collect();
    for slice in slices {
        ensure_fields(ctx, SLICES, slice, &["endpoints", "ports"], &options).await?;
    }
    let kind = kind_of(SLICES)?;
    for slice in ctx.cache.list(kind, "default") {
        let ours = Meta::of(slice.view()).label("kubernetes.io/service-name") == Some("kubernetes");
        if ours && !names.contains(slice.name()) {
            let gone = ctx.registry.delete(kind, "default", slice.name(), &DeleteOptions::default(), &options).await;
            ignore(gone.map(|_| ()), Reason::NotFound)?;
        }
    }
    Ok(())
}

async fn live_servers(ctx: &Ctx) -> Result<Vec<SocketAddr>, Status> {
    let request = RangeRequest {
        key: directory::SERVERS.into(),
        range_end: directory::SERVERS_END.into(),
        serializable: true,
        ..RangeRequest::default()
    };
    let found = ctx.store.range(request).await.map_err(|error| status_of(&error))?;
    let address = |value: &[u8]| std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    Ok(found.kvs.iter().filter_map(|kv| address(&kv.value)).collect())
}

fn kind_of(res: Res) -> Result<&'static Kind, Status> {
    by_resource(res.0, "v1", res.1).ok_or_else(Status::no_such_path)
}

fn ignore(result: Done, reason: Reason) -> Done {
    match result {
        Err(status) if status.reason == reason => Ok(()),
        other => other,
    }
}

/// Creates the object if it is missing.
async fn ensure(ctx: &Ctx, res: Res, object: Value, options: &WriteOptions) -> Done {
    let kind = kind_of(res)?;
    let namespace = namespace_of(&object).to_owned();
    if ctx.cache.get(kind, &namespace, name_of(&object)).is_some() {
        return Ok(());
    }
    let created = ctx.registry.create(kind, &namespace, object, options).await;
    ignore(created.map(|_| ()), Reason::AlreadyExists)
}

/// Creates the object, or brings it to what `change` makes of the stored one. `None`: it is right as it is.
async fn ensure_with(
    ctx: &Ctx,
    res: Res,
    object: Value,
    change: impl Fn(&Value) -> Option<Value> + Send + Sync,
    options: &WriteOptions,
) -> Done {
    let kind = kind_of(res)?;
    let (namespace, name) = (namespace_of(&object).to_owned(), name_of(&object).to_owned());
    match ctx.cache.get(kind, &namespace, &name) {
        None => ensure(ctx, res, object, options).await,
        Some(stored) if change(&stored.tree()).is_none() => Ok(()),
        Some(_) => {
            tracing::info!(kind = kind.kind, name, "bootstrap object brought up to date");
            let changed = |stored: &Value| Ok(change(stored).unwrap_or_else(|| stored.clone()));
            ctx.registry.update_with(kind, &namespace, &name, "", changed, options).await.map(|_| ())
        }
    }
}

/// These fields are ours alone.
async fn ensure_fields(ctx: &Ctx, res: Res, object: Value, fields: &'static [&str], options: &WriteOptions) -> Done {
    let wanted = object.clone();
    let change = move |stored: &Value| {
        let same = fields.iter().all(|field| same_meaning(stored.get(*field), wanted.get(*field)));
        if same {
            return None;
        }
        let mut changed = stored.clone();
        for field in fields {
            changed[*field] = wanted.get(*field).cloned().unwrap_or(Value::Null);
        }
        Some(changed)
    };
    ensure_with(ctx, res, object, change, options).await
}

/// Equal, with absent, null and empty alike.
fn same_meaning(left: Option<&Value>, right: Option<&Value>) -> bool {
    let full = |value: Option<&Value>| -> Option<Value> {
        let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        value.filter(|value| !empty(value)).cloned()
    };
    full(left) == full(right)
}

fn may_update(stored: &Value) -> bool {
    Meta::of(stored).annotation(AUTOUPDATE) != Some("false")
}

/// Rules that a role lacks are added; rules that people added stay.
async fn ensure_role(ctx: &Ctx, res: Res, role: Value, options: &WriteOptions) -> Done {
    let wanted = role.clone();
    let change = move |stored: &Value| {
        if !may_update(stored) {
            return None;
        }
        if wanted.get("aggregationRule").is_some() {
            return with_aggregation(stored, &wanted);
        }
        let held = Rule::all_of(stored);
        let lacking =
            items(&wanted, "/rules").filter(|rule| !uncovered(&held, &[Rule::from_value(rule)], RULES_MAX).is_empty());
        extended(stored, "rules", lacking.cloned().collect())
    };
    ensure_with(ctx, res, role, change, options).await
}

fn with_aggregation(stored: &Value, wanted: &Value) -> Option<Value> {
    let have: Vec<&Value> = items(stored, "/aggregationRule/clusterRoleSelectors").collect();
    let lacking = items(wanted, "/aggregationRule/clusterRoleSelectors").filter(|selector| !have.contains(selector));
    let lacking: Vec<Value> = lacking.cloned().collect();
    if lacking.is_empty() {
        return None;
    }
    let all: Vec<Value> = have.into_iter().cloned().chain(lacking).collect();
    let mut changed = stored.clone();
    changed["aggregationRule"] = json!({ "clusterRoleSelectors": all });
    Some(changed)
}

/// Subjects that a binding lacks are added; the role it refers to cannot change.
async fn ensure_binding(ctx: &Ctx, res: Res, binding: Value, options: &WriteOptions) -> Done {
    let wanted = binding.clone();
    let change = move |stored: &Value| {
        if !may_update(stored) {
            return None;
        }
        let key = |subject: &Value| ["kind", "name", "namespace"].map(|field| subject.get(field).cloned());
        let have: Vec<_> = items(stored, "/subjects").map(key).collect();
        let lacking = items(&wanted, "/subjects").filter(|subject| !have.contains(&key(subject)));
        extended(stored, "subjects", lacking.cloned().collect())
    };
    ensure_with(ctx, res, binding, change, options).await
}

/// `stored` with `more` at the end of a list. `None` if there is nothing to add.
fn extended(stored: &Value, field: &str, more: Vec<Value>) -> Option<Value> {
    if more.is_empty() {
        return None;
    }
    let pointer = format!("/{field}");
    let all: Vec<Value> = items(stored, &pointer).cloned().chain(more).collect();
    let mut changed = stored.clone();
    changed.as_object_mut()?.insert(field.to_owned(), all.into());
    Some(changed)
}

/// Writes the rules of aggregating roles into them, for people and tools that read them. Authorization does not wait for it.
async fn aggregate(ctx: &Ctx, options: &WriteOptions) -> Done {
    let kind = kind_of(CLUSTER_ROLES)?;
    let all: Vec<_> = ctx.cache.list(kind, "").iter().map(|role| role.tree()).collect();
    for role in &all {
        let Some(members) = aggregated(role, &all) else { continue };
        let mut rules: Vec<Value> = Vec::new();
        for rule in members.into_iter().flat_map(|member| items(member, "/rules")) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        if role.get("rules").and_then(Value::as_array).map_or(&[][..], Vec::as_slice) == rules.as_slice() {
            continue;
        }
        let change = |stored: &Value| {
            let mut changed = stored.clone();
            if let Some(changed) = changed.as_object_mut() {
                changed.insert("rules".into(), rules.clone().into());
            }
            Ok(changed)
        };
        ctx.registry.update_with(kind, "", name_of(role), "", change, options).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_of_people_stay() {
        let stored = json!({"rules": [{"verbs": ["get"]}]});
        assert_eq!(extended(&stored, "rules", vec![]), None);
        let changed = extended(&stored, "rules", vec![json!({"verbs": ["list"]})]).expect("changed");
        assert_eq!(changed["rules"], json!([{"verbs": ["get"]}, {"verbs": ["list"]}]));
        assert!(!may_update(&json!({"metadata": {"annotations": {AUTOUPDATE: "false"}}})));
        assert!(same_meaning(None, Some(&json!([]))));
    }
}
