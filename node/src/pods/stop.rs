//! Stopping: hooks, then signals, within the pod's grace; a shorter grace that comes later takes effect at once.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Container, Pod};
use pintle_base::clock;
use pintle_base::error::Chain;
use tokio::sync::watch;

use super::images::about;
use super::plan::StopReason;
use super::resources::{self, is_sidecar};
use super::seen::{ContainerSeen, Seen};
use super::start::target;
use super::{Context, Wanted, config, hooks};
use crate::runtime::RuntimeError;

fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

/// Runs the hook, then stops the container. What the hook used up of the grace is gone; two seconds are always left.
async fn stop_container(
    context: &Context,
    pod: &Pod,
    spec: Option<&Container>,
    seen: &Seen,
    current: &ContainerSeen,
    grace: Duration,
) -> Result<(), RuntimeError> {
    let began = clock::now();
    let hook = spec.and_then(|spec| Some((spec, spec.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((spec, hook)) = hook
        && !grace.is_zero()
    {
        let target = target(context, spec, seen.sandbox(), current.id.clone());
        if let Err(text) = hooks::run(hook, &target, grace).await {
            context.recorder.warning(about(pod, spec), "FailedPreStopHook", format!("PreStopHook failed: {text}"));
        }
    }
    let left = grace.saturating_sub(began.elapsed());
    let left = if hook.is_some() && !grace.is_zero() { left.max(Duration::from_secs(2)) } else { left };
    context.runtime.stop_container(&current.id, left).await
}

/// Stops one container that is to be replaced.
pub async fn one(context: &Context, pod: &Pod, seen: &Seen, id: &str, why: &StopReason) -> Result<(), RuntimeError> {
    let Some(current) = seen.containers.iter().find(|container| container.id == id) else { return Ok(()) };
    let spec = resources::containers(pod).find(|spec| spec.name == current.name);
    let mut grace = config::grace(pod);
    if let Some(spec) = spec {
        let (probe, text) = match why {
            StopReason::Liveness(_) => (
                spec.liveness_probe.as_ref(),
                format!("Container {} failed liveness probe, will be restarted", spec.name),
            ),
            StopReason::Startup(_) => (
                spec.startup_probe.as_ref(),
                format!("Container {} failed startup probe, will be restarted", spec.name),
            ),
            StopReason::SpecChanged => (None, format!("Container {} definition changed, will be restarted", spec.name)),
            StopReason::Unknown => (None, format!("Container {} is in an unknown state, will be restarted", spec.name)),
        };
        grace = probe.and_then(|probe| probe.termination_grace_period_seconds).unwrap_or(grace);
        context.recorder.normal(about(pod, spec), "Killing", text);
    }
    stop_container(context, pod, spec, seen, current, seconds(grace)).await
}

/// Stops every container, sidecars last and in reverse, then the sandbox.
pub async fn pod(context: &Context, wanted: &mut watch::Receiver<Wanted>, seen: &Seen) -> Result<(), RuntimeError> {
    let pod = Arc::clone(&wanted.borrow().pod);
    let mut grace = config::grace(&pod);
    let deadline = clock::now() + seconds(grace);
    let specs: Vec<&Container> = resources::containers(&pod).collect();
    let spec_of = |name: &str| specs.iter().find(|spec| spec.name == name).copied();
    let running: Vec<&ContainerSeen> = seen.containers.iter().filter(|container| container.running()).collect();
    let (sidecars, apps): (Vec<_>, Vec<_>) =
        running.iter().copied().partition(|one| spec_of(&one.name).is_some_and(is_sidecar));
    let announce = |one: &ContainerSeen| {
        if let Some(spec) = spec_of(&one.name) {
            context.recorder.normal(about(&pod, spec), "Killing", format!("Stopping container {}", spec.name));
        }
    };
    apps.iter().chain(&sidecars).for_each(|one| announce(one));
    let place = |one: &ContainerSeen| specs.iter().position(|spec| spec.name == one.name);
    let mut waves: Vec<Vec<&ContainerSeen>> = vec![apps];
    let mut late = sidecars;
    late.sort_by_key(|one| std::cmp::Reverse(place(one)));
    waves.extend(late.into_iter().map(|one| vec![one]));
    for wave in waves {
        let left = |grace: i64| seconds(grace).min(deadline.saturating_duration_since(clock::now()));
        let mut stopping = FuturesUnordered::new();
        for one in &wave {
            stopping.push(stop_container(context, &pod, spec_of(&one.name), seen, one, left(grace)));
        }
        let mut waiting = wave.len();
        while waiting > 0 {
            tokio::select! {
                Some(result) = stopping.next() => {
                    result?;
                    waiting -= 1;
                }
                Ok(()) = wanted.changed() => {
                    let newer = config::grace(&wanted.borrow_and_update().pod);
                    if newer < grace {
                        grace = newer;
                        hurry(context, &wave, seconds(newer)).await;
                    }
                }
            }
        }
    }
    for sandbox in &seen.sandboxes {
        context.runtime.stop_sandbox(&sandbox.id).await?;
    }
    Ok(())
}

/// Asks the runtime again with less time; the earlier calls return when the containers have ended.
async fn hurry(context: &Context, wave: &[&ContainerSeen], grace: Duration) {
    let again = wave.iter().map(|one| context.runtime.stop_container(&one.id, grace));
    for result in futures::future::join_all(again).await {
        if let Err(error) = result {
            tracing::warn!(error = %Chain(&error), "container not stopped sooner");
        }
    }
}
