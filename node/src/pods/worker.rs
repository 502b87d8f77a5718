//! The worker of one pod: looks at the runtime, plans, acts, reports; until the pod is gone.
//!
//! Always holds: a pod's deletion is confirmed to the API last, when nothing of it is left on this node: whoever hears of
//! it may use what the pod had.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use pintle_client::object::reference;
use tokio::sync::{Notify, watch};

use super::images::about;
use super::plan::{self, Action, Memory, Plan, Verdict};
use super::probers::Probers;
use super::resources::{Amounts, Qos};
use super::seen::{ContainerSeen, Seen};
use super::statuses::PodId;
use super::{Context, Wanted, cgroups, resources, start, status, stop};
use crate::limits;
use crate::runtime::RuntimeError;
use crate::streams::logs;
use crate::volumes::{PodDirs, Stage};

/// First delay after a failed start that is not about an image: most causes are races that are over in a moment.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// How often a pod is looked at while an init container runs: its end is what the whole pod waits for, and the runtime's
/// list is read only once a second.
const INIT_LOOK: Duration = Duration::from_millis(100);
/// How long the API may show another status than was sent before it is sent again.
const RESTORE_AFTER: Duration = Duration::from_secs(2);

/// Why a look at a pod did not come to its end; the next one tries again.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("remove files and cgroups of a deleted pod")]
    Traces(#[source] io::Error),
}

pub struct Worker {
    context: Arc<Context>,
    id: PodId,
    wanted: watch::Receiver<Wanted>,
    wake: Arc<Notify>,
    dirs: PodDirs,
    memory: Memory,
    probers: Probers,
    /// The status last handed over for sending.
    told: Option<PodStatus>,
    /// The pod's resource version at which a status that others changed was last put right.
    restored: Option<String>,
    last_words: BTreeMap<String, String>,
    refreshed: clock::Instant,
    /// Requests of the other pods when this one came; none if it was taken in before.
    others: Option<Amounts>,
    /// The last status, from the moment the pod's traces are being removed.
    parting: Option<PodStatus>,
}

fn nanos() -> i64 {
    let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Worker {
    /// `None` if the pod's uid cannot be a directory name.
    pub fn new(
        context: Arc<Context>,
        wanted: watch::Receiver<Wanted>,
        wake: Arc<Notify>,
        others: Option<Amounts>,
        group: &Group,
    ) -> Option<Self> {
        let id = PodId::of(&wanted.borrow().pod);
        let dirs = PodDirs::new(&context.data_dir, &id.uid)?;
        let probers = Probers::new(Arc::clone(&context), group.clone(), Arc::clone(&wake));
        Some(Self {
            context,
            id,
            wanted,
            wake,
            dirs,
            memory: Memory::default(),
            probers,
            told: None,
            restored: None,
            last_words: BTreeMap::new(),
            refreshed: clock::now(),
            others,
            parting: None,
        })
    }

    /// Runs until the pod is gone from this node and its deletion is confirmed. Dropped when the agent stops: whatever
    /// is under way then is found again by the next agent.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        // What was told already: a runtime that is away fails every pod every few seconds.
        let mut told = String::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            match self.round(&wanted).await {
                Ok(true) => return,
                Ok(false) => {
                    backoff.reset();
                    told.clear();
                }
                Err(error) => {
                    let error = Chain(&error).to_string();
                    if error == told {
                        tracing::debug!(pod = %self.id.name, namespace = %self.id.namespace, error, "pod not looked after");
                    } else {
                        tracing::warn!(pod = %self.id.name, namespace = %self.id.namespace, error, "pod not looked after, will retry");
                        told = error;
                    }
                    self.pause(backoff.next_delay()).await;
                }
            }
        }
    }

    async fn pause(&mut self, limit: Duration) {
        tokio::select! {
            () = clock::sleep(limit) => (),
            _ = self.wanted.changed() => (),
        }
    }

    /// One look and what follows from it; true if the pod is gone.
    #[tracing::instrument(skip_all, fields(pod = %self.id.name, namespace = %self.id.namespace))]
    async fn round(&mut self, wanted: &Wanted) -> Result<bool, RoundError> {
        let pod = &wanted.pod;
        let seen = self.context.look(&self.id.uid).await?;
        if let Some(status) = self.parting.clone().filter(|_| !seen.anything_runs()) {
            self.clean_up(wanted, &seen, status).await?;
            return Ok(true);
        }
        self.judge(pod, &seen);
        let ending = pod.metadata.deletion_timestamp.is_some();
        if ending || self.memory.verdict.is_some() {
            self.probers.stop_all();
        } else {
            self.probers.follow(pod, &seen);
        }
        self.memory.probed = self.probers.found();
        let plan = plan::plan(pod, &seen, &self.memory, nanos());
        self.read_last_words(pod, &seen).await;
        let status = self.report(pod, &seen);
        if !plan.actions.is_empty() {
            self.act(pod, &seen, plan).await?;
            return Ok(false);
        }
        if ending || wanted.gone {
            self.clean_up(wanted, &seen, status).await?;
            return Ok(true);
        }
        if self.settle() {
            return Ok(false);
        }
        self.wait(pod, &seen, &plan).await;
        Ok(false)
    }

    /// Decides whether the agent itself ends the pod: no room for it, or its deadline has passed.
    fn judge(&mut self, pod: &Pod, seen: &Seen) {
        if self.memory.verdict.is_some() || plan::is_over(pod) {
            return;
        }
        if let Some(others) = self.others.take()
            && seen.sandboxes.is_empty()
            && pod.status.as_ref().is_none_or(|status| {
                status.container_statuses.as_ref().is_none_or(|all| all.iter().all(|one| one.container_id.is_none()))
            })
            && let Some((reason, message)) = start::refusal(&self.context, pod, &others)
        {
            self.context.recorder.warning(reference(pod), &reason, message.clone());
            self.memory.verdict = Some(Verdict { reason, message });
            return;
        }
        if let Some(deadline) = deadline(pod)
            && deadline <= nanos()
        {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.context.recorder.normal(reference(pod), "DeadlineExceeded", message.clone());
            self.memory.verdict = Some(Verdict { reason: "DeadlineExceeded".to_owned(), message });
        }
    }

    fn report(&mut self, pod: &Pod, seen: &Seen) -> PodStatus {
        let runtime = self.context.runtime_name.read().clone();
        let facts = status::Facts {
            seen,
            memory: &self.memory,
            runtime: &runtime,
            host_ips: &self.context.host_ips,
            last_words: &self.last_words,
            now: nanos(),
        };
        let mut status = status::compute(pod, &facts);
        if let Some(told) = &self.told {
            keep_times(&mut status, told);
        }
        let known = pod.status.as_ref() == Some(&status);
        if self.told.as_ref() != Some(&status) && !(self.told.is_none() && known) {
            self.context.statuses.post(self.id.clone(), status.clone());
        }
        self.told = Some(status.clone());
        status
    }

    async fn act(&mut self, pod: &Arc<Pod>, seen: &Seen, plan: Plan) -> Result<(), RuntimeError> {
        for action in plan.actions {
            match action {
                Action::StopPod => {
                    let mut wanted = self.wanted.clone();
                    stop::pod(&self.context, &mut wanted, seen).await?;
                }
                Action::DropSandbox { id } => {
                    self.context.runtime.stop_sandbox(&id).await?;
                    self.context.runtime.remove_sandbox(&id).await?;
                }
                Action::StopSandbox { id } => self.context.runtime.stop_sandbox(&id).await?,
                Action::Remove { id } => self.context.runtime.remove_container(&id).await?,
                Action::Stop { id, why, .. } => stop::one(&self.context, pod, seen, &id, &why).await?,
                Action::RunSandbox { attempt } => {
                    let starting = start::sandbox(&self.context, pod, &self.dirs, attempt);
                    match until_deleted(&mut self.wanted, starting).await {
                        None => return Ok(()),
                        Some(result) => self.note(plan::SANDBOX, result, RETRY_FIRST),
                    }
                    self.refreshed = clock::now();
                }
                Action::Start { name, attempt } => {
                    if !self.start(pod, seen, &name, attempt).await {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts a container; false if the pod's deletion came in between.
    async fn start(&mut self, pod: &Arc<Pod>, seen: &Seen, name: &str, attempt: u32) -> bool {
        let Some(container) = resources::containers(pod).find(|container| container.name == name) else { return true };
        let ended = seen.current(name).filter(|current| current.exited()).map(|current| current.finished_at);
        let starting = start::container(&self.context, pod, container, &self.dirs, seen, attempt);
        let Some(result) = until_deleted(&mut self.wanted, starting).await else { return false };
        let image = matches!(&result, Err((reason, _)) if reason.contains("Image"));
        if let Some(finished) = ended.filter(|_| result.is_ok()) {
            self.memory.restarted(name, finished, nanos());
            self.back_off_event(pod, container, finished);
        }
        self.note(name, result, if image { limits::BACKOFF_FIRST } else { RETRY_FIRST });
        true
    }

    /// Tells users, from the second restart on, that the next one will wait.
    fn back_off_event(&self, pod: &Pod, container: &Container, finished: i64) {
        let waits = self.memory.may_restart_at(&container.name, finished);
        if waits.is_some_and(|(_, delay)| delay > limits::BACKOFF_FIRST.as_nanos() as i64) {
            self.context.recorder.warning(about(pod, container), "BackOff", status::crash_event(pod, container));
        }
    }

    fn note(&mut self, name: &str, result: Result<(), (&'static str, String)>, first: Duration) {
        match result {
            Ok(()) => {
                self.memory.trouble.remove(name);
            }
            Err((reason, message)) => {
                tracing::debug!(container = name, reason, message, "not started");
                let first = i64::try_from(first.as_nanos()).unwrap_or(i64::MAX);
                self.memory.failed(name, reason, message, first, nanos());
            }
        }
    }

    /// After a failed pull was told once, the container is backing off; true if that is news.
    fn settle(&mut self) -> bool {
        let mut news = false;
        for trouble in self.memory.trouble.values_mut().filter(|trouble| trouble.reason == "ErrImagePull") {
            trouble.reason = "ImagePullBackOff";
            trouble.message = format!("Back-off pulling image: ErrImagePull: {}", trouble.message);
            news = true;
        }
        news
    }

    async fn wait(&mut self, pod: &Arc<Pod>, seen: &Seen, plan: &Plan) {
        let now = nanos();
        let until = |at: i64| Duration::from_nanos(u64::try_from(at.saturating_sub(now)).unwrap_or(0));
        let mut limit = limits::RESYNC;
        for at in
            plan.wake.into_iter().chain(deadline(pod).filter(|_| self.memory.verdict.is_none() && !plan::is_over(pod)))
        {
            limit = limit.min(until(at).max(Duration::from_millis(10)));
        }
        if initializing(pod, seen) {
            limit = limit.min(INIT_LOOK);
        }
        // Somebody else may have changed the status (a controller that took this node for dead). What was sent has
        // normally come back by then; it is sent again once per state of the object.
        let foreign = pod.status != self.told && self.restored != pod.metadata.resource_version;
        if foreign {
            limit = limit.min(RESTORE_AFTER);
        }
        tokio::select! {
            () = clock::sleep(limit) => {
                if foreign && limit == RESTORE_AFTER {
                    self.restored.clone_from(&pod.metadata.resource_version);
                    self.told = None;
                }
            }
            () = self.wake.notified() => (),
            changed = self.wanted.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await; // the agent is stopping
                }
            }
        }
        if self.refreshed.elapsed() >= limits::RESYNC && !plan::is_over(pod) {
            self.refreshed = clock::now();
            if let Err(text) = start::volumes(&self.context, pod, &self.dirs, Stage::Refresh).await {
                tracing::warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %text, "volumes not brought up to date");
            }
        }
    }

    /// Reads what ended containers left in their termination files, once each.
    async fn read_last_words(&mut self, pod: &Pod, seen: &Seen) {
        self.last_words.retain(|id, _| seen.containers.iter().any(|container| container.id == *id));
        for ended in seen.containers.iter().filter(|container| container.exited()) {
            if self.last_words.contains_key(&ended.id) {
                continue;
            }
            let spec = resources::containers(pod).find(|spec| spec.name == ended.name);
            let from_log = spec.and_then(|spec| spec.termination_message_policy.as_deref())
                == Some("FallbackToLogsOnError")
                && ended.exit_code != 0;
            let (file, log) = (ended.termination_file.clone(), ended.log_path.clone());
            let words = tokio::task::spawn_blocking(move || {
                let written = file.and_then(|file| last_bytes(&file, limits::TERMINATION_MESSAGE)).unwrap_or_default();
                if written.is_empty() && from_log { logs::tail_text(&log) } else { written }
            });
            self.last_words.insert(ended.id.clone(), words.await.unwrap_or_default());
        }
    }

    /// Removes everything of the pod from this node, then confirms its deletion to the API.
    async fn clean_up(&mut self, wanted: &Wanted, seen: &Seen, status: PodStatus) -> Result<(), RoundError> {
        // What is removed below is not seen by the next look, should there have to be one.
        self.parting = Some(status.clone());
        for sandbox in &seen.sandboxes {
            self.context.runtime.stop_sandbox(&sandbox.id).await?;
            self.context.runtime.remove_sandbox(&sandbox.id).await?;
        }
        self.context.tokens.forget(&self.id.uid);
        if self.context.runtime.is_real() {
            self.remove_traces(&wanted.pod).await.map_err(RoundError::Traces)?;
        }
        if !wanted.gone {
            self.context.statuses.finish(self.id.clone(), status).await;
        }
        Ok(())
    }

    /// Removes files and cgroups.
    async fn remove_traces(&self, pod: &Pod) -> io::Result<()> {
        let (dirs, logs) = (self.dirs.clone(), super::config::log_directory(&self.context.facts, pod));
        // An orphan's class is not known any more: its group is in one of these places.
        let root = &self.context.facts.cgroup_root;
        let groups = Qos::ALL.map(|class| class.cgroup_parent(root, &self.id.uid));
        let removal = tokio::task::spawn_blocking(move || {
            groups.iter().try_for_each(|group| cgroups::remove(group))?;
            dirs.remove()?;
            match std::fs::remove_dir_all(logs) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        });
        removal.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Times that were told once do not move.
fn keep_times(status: &mut PodStatus, told: &PodStatus) {
    if told.start_time.is_some() {
        status.start_time.clone_from(&told.start_time);
    }
    for condition in status.conditions.iter_mut().flatten() {
        let old =
            told.conditions.iter().flatten().find(|old| old.type_ == condition.type_ && old.status == condition.status);
        if let Some(old) = old {
            condition.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
}

/// True while an init container runs that is to end.
fn initializing(pod: &Pod, seen: &Seen) -> bool {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.filter(|container| !resources::is_sidecar(container))
        .any(|container| seen.current(&container.name).is_some_and(ContainerSeen::running))
}

/// The end of `activeDeadlineSeconds`, nanoseconds since the epoch.
fn deadline(pod: &Pod) -> Option<i64> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let started = pod.status.as_ref()?.start_time.as_ref()?.0.as_second();
    started.checked_add(seconds)?.checked_mul(1_000_000_000)
}

/// Awaits `work`, or gives it up when the pod's deletion arrives.
async fn until_deleted<T>(wanted: &mut watch::Receiver<Wanted>, work: impl Future<Output = T>) -> Option<T> {
    let mut watcher = wanted.clone();
    let deleted = async {
        let is_ending = |wanted: &Wanted| wanted.gone || wanted.pod.metadata.deletion_timestamp.is_some();
        if watcher.wait_for(is_ending).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = work => Some(result),
        () = deleted => None,
    }
}

fn last_bytes(path: &std::path::Path, limit: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(limit))).ok()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
