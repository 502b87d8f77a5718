//! Starting: volumes, the sandbox, a container. Each step is safe to repeat.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, Pod};
use pintle_base::error::Chain;
use pintle_client::object::reference;

use super::config::{self, Parts, ReadyMount};
use super::downward::Surroundings;
use super::env;
use super::hooks;
use super::images::{self, Trouble, about};
use super::probes::Target;
use super::references::{Loaded, Part};
use super::seen::{SandboxSeen, Seen};
use super::{Context, resources};
use crate::volumes::payload::Known;
use crate::volumes::{self, PodDirs, Stage};

/// Age of references when a pod starts: fresh enough for what was applied together with it.
const START_AGE: Duration = Duration::from_secs(2);

fn around(context: &Context, sandbox: Option<&SandboxSeen>, pod: &Pod) -> Surroundings {
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let pod_ips =
        if on_host { context.host_ips.clone() } else { sandbox.map(|sandbox| sandbox.ips.clone()).unwrap_or_default() };
    Surroundings {
        node_name: context.node_name.clone(),
        host_ips: context.host_ips.clone(),
        pod_ips,
        allocatable: context.allocatable.clone(),
    }
}

/// Makes all volumes of the pod ready, or brings its projected files up to date.
pub async fn volumes(context: &Context, pod: &Arc<Pod>, dirs: &PodDirs, stage: Stage) -> Result<(), String> {
    if !context.runtime.is_real() {
        return Ok(()); // nobody would read them
    }
    let age = match stage {
        Stage::Start => START_AGE,
        Stage::Refresh => crate::limits::REFERENCE_AGE,
    };
    let loaded = context.references.load(pod, Part::Volumes, age).await.map_err(|error| Chain(&error).to_string())?;
    let tokens = context.tokens.of(pod).await.map_err(|error| Chain(&error).to_string())?;
    let around = around(context, None, pod);
    let (pod, dirs) = (Arc::clone(pod), dirs.clone());
    let work = move || {
        let known = Known { sources: &loaded, around: &around, tokens: &tokens };
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let payload = volumes::payload::payload(&pod, volume, &known)
                .map_err(|error| format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name))?;
            volumes::set_up(&dirs, &pod, volume, payload.as_ref(), stage).map_err(|error| Chain(&error).to_string())?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

/// Volumes first, then the sandbox.
pub async fn sandbox(context: &Context, pod: &Arc<Pod>, dirs: &PodDirs, attempt: u32) -> Result<(), Trouble> {
    if let Err(text) = volumes(context, pod, dirs, Stage::Start).await {
        context.recorder.warning(reference(pod.as_ref()), "FailedMount", text.clone());
        return Err(("ContainerCreating", text));
    }
    let config = config::sandbox(pod, attempt, &context.facts)
        .map_err(|error| ("CreateContainerConfigError", error.to_string()))?;
    if context.runtime.is_real() {
        fs::create_dir_all(&config.log_directory)
            .map_err(|error| ("ContainerCreating", format!("make log directory: {error}")))?;
    }
    let _turn = context.starts.acquire().await;
    match context.runtime.run_sandbox(config).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = format!("Failed to create pod sandbox: {}", Chain(&error));
            context.recorder.warning(reference(pod.as_ref()), "FailedCreatePodSandBox", text.clone());
            Err(("ContainerCreating", text))
        }
    }
}

/// Starts one container in the sandbox that `seen` shows.
pub async fn container(
    context: &Context,
    pod: &Arc<Pod>,
    container: &Container,
    dirs: &PodDirs,
    seen: &Seen,
    attempt: u32,
) -> Result<(), Trouble> {
    let Some(sandbox) = seen.sandbox() else { return Ok(()) };
    let config_error = |text: String| {
        context.recorder.warning(about(pod, container), "Failed", format!("Error: {text}"));
        ("CreateContainerConfigError", text)
    };
    let loaded = context
        .references
        .load(pod, Part::Containers, START_AGE)
        .await
        .map_err(|error| config_error(Chain(&error).to_string()))?;
    let image = images::ensure(context, pod, container, &loaded).await.inspect_err(|(reason, text)| {
        if *reason != "ErrImagePull" {
            context.recorder.warning(about(pod, container), "Failed", text.clone());
        }
        context.recorder.warning(about(pod, container), "Failed", format!("Error: {reason}"));
    })?;
    let environment =
        environment(context, pod, container, &loaded, sandbox).map_err(|error| config_error(error.to_string()))?;
    let termination = dirs.termination(&container.name, attempt);
    let mounts = if context.runtime.is_real() {
        files(context, pod, container, dirs, sandbox, &environment, &termination)
            .map_err(|text| ("CreateContainerConfigError", text))?
    } else {
        Vec::new()
    };
    let parts = Parts {
        attempt,
        image: image.reference,
        image_uid: image.uid,
        environment,
        mounts,
        termination_file: context.runtime.is_real().then_some(termination.as_path()),
    };
    let made =
        config::container(pod, container, &context.facts, parts).map_err(|error| config_error(error.to_string()))?;
    let sandbox_config =
        config::sandbox(pod, sandbox.attempt, &context.facts).map_err(|error| config_error(error.to_string()))?;
    let turn = context.starts.acquire().await;
    let id = context.runtime.create_container(&sandbox.id, made, sandbox_config).await.map_err(|error| {
        context.recorder.warning(about(pod, container), "Failed", format!("Error: {}", Chain(&error)));
        ("CreateContainerError", Chain(&error).to_string())
    })?;
    context.recorder.normal(about(pod, container), "Created", format!("Container created: {}", container.name));
    context.runtime.start_container(&id).await.map_err(|error| {
        context.recorder.warning(about(pod, container), "Failed", format!("Error: {}", Chain(&error)));
        ("RunContainerError", Chain(&error).to_string())
    })?;
    context.recorder.normal(about(pod, container), "Started", format!("Container started: {}", container.name));
    drop(turn); // a hook may take its time
    post_start(context, pod, container, sandbox, id).await
}

fn environment(
    context: &Context,
    pod: &Pod,
    container: &Container,
    loaded: &Loaded,
    sandbox: &SandboxSeen,
) -> Result<Vec<(String, String)>, env::EnvError> {
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut services = context.services.in_namespace(namespace);
    if namespace != "default" {
        services.extend(context.services.get(&pintle_client::Key::new("default", "kubernetes")));
    }
    let services = env::service_variables(services.iter().map(Arc::as_ref), namespace, links);
    env::environment(pod, container, &services, loaded, &around(context, Some(sandbox), pod))
}

/// Mounts of volumes, of /etc/hosts and of the termination message file; and the log's directory.
fn files(
    context: &Context,
    pod: &Pod,
    container: &Container,
    dirs: &PodDirs,
    sandbox: &SandboxSeen,
    environment: &[(String, String)],
    termination: &Path,
) -> Result<Vec<ReadyMount>, String> {
    let io = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut mounts = volumes::mounts(dirs, pod, container, environment).map_err(|error| Chain(&error).to_string())?;
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    if !on_host && !mounts.iter().any(|mount| mount.container_path == "/etc/hosts") {
        let text = config::hosts_file(pod, &sandbox.ips, &context.facts.dns.domain);
        let hosts = dirs.hosts();
        if let Some(parent) = hosts.parent() {
            fs::create_dir_all(parent).map_err(io("make pod directory"))?;
        }
        // Written once per sandbox address: containers may have changed their copy.
        let known = fs::read_to_string(&hosts).unwrap_or_default();
        if !sandbox.ips.iter().all(|ip| known.contains(&format!("{ip}\t"))) || known.is_empty() {
            fs::write(&hosts, Bytes::from(text)).map_err(io("write hosts file"))?;
        }
        mounts.push(ReadyMount { container_path: "/etc/hosts".to_owned(), host_path: hosts, ..ReadyMount::default() });
    }
    let path =
        container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log");
    if let Some(parent) = termination.parent() {
        fs::create_dir_all(parent).map_err(io("make container directory"))?;
    }
    fs::write(termination, b"").map_err(io("make termination file"))?;
    // Any user of the container writes its last words here.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(termination, open).map_err(io("open termination file"))?;
    mounts.push(ReadyMount {
        container_path: path.to_owned(),
        host_path: termination.to_path_buf(),
        ..ReadyMount::default()
    });
    let logs = config::log_directory(&context.facts, pod).join(&container.name);
    fs::create_dir_all(logs).map_err(io("make log directory"))?;
    Ok(mounts)
}

async fn post_start(
    context: &Context,
    pod: &Pod,
    container: &Container,
    sandbox: &SandboxSeen,
    id: String,
) -> Result<(), Trouble> {
    let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
        return Ok(());
    };
    let target = target(context, container, Some(sandbox), id.clone());
    let Err(text) = hooks::run(hook, &target, crate::limits::IMAGE_PULL).await else { return Ok(()) };
    context.recorder.warning(about(pod, container), "FailedPostStartHook", format!("PostStartHook failed: {text}"));
    let grace = Duration::from_secs(u64::try_from(config::grace(pod)).unwrap_or(0));
    if let Err(error) = context.runtime.stop_container(&id, grace).await {
        tracing::warn!(container = %container.name, error = %Chain(&error), "container with a failed hook not stopped");
    }
    Ok(()) // the container has ended: its restart policy decides what comes next
}

/// Where hooks and probes of a container go.
pub fn target(context: &Context, container: &Container, sandbox: Option<&SandboxSeen>, id: String) -> Target {
    let ip = sandbox.and_then(|sandbox| sandbox.ips.first().cloned());
    let ip = ip.or_else(|| context.host_ips.first().cloned()).unwrap_or_default();
    Target { runtime: Arc::clone(&context.runtime), container_id: id, ip, container: container.clone() }
}

/// Why this node cannot take the pod at all, as reason and message; upstream's kubelet checks the same again.
pub fn refusal(context: &Context, pod: &Pod, others: &resources::Amounts) -> Option<(String, String)> {
    if config::is_oversized(pod) {
        return Some(("TooManyContainers".to_owned(), "Pod has more containers than this node looks at".to_owned()));
    }
    let requests = resources::pod_requests(pod);
    let mut total = others.clone();
    total.add(&requests);
    let name = requests.exceeding(&context.allocatable).or_else(|| {
        let name = total.exceeding(&context.allocatable)?;
        requests.milli(name).is_some_and(|milli| milli > 0).then_some(name)
    })?;
    let text = format!("Pod was rejected: Node didn't have enough resource: {name}");
    Some((format!("OutOf{name}"), text))
}
