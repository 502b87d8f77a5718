//! Gives each pod of this node its worker, wakes workers when the runtime changed without them, and ends what no pod
//! claims. Nothing is ended before the first complete list of pods has been seen, on no checkpoint's word (I10).

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use pintle_client::SharedReflector;
use tokio::sync::{Notify, watch};

use super::resources::{self, Amounts};
use super::worker::Worker;
use super::{Context, Wanted, plan};
use crate::runtime::{RuntimeError, label};
use crate::volumes::PodDirs;
use crate::{checkpoint, limits};

struct Running {
    wanted: watch::Sender<Wanted>,
    wake: Arc<Notify>,
    requests: Amounts,
}

impl Running {
    /// True while the pod may use what it asked for. A pod that the API has forgotten does not count: the scheduler has
    /// given its place away, and a pod that is refused for want of room is not tried again.
    fn counts(&self) -> bool {
        let wanted = self.wanted.borrow();
        !wanted.gone && !plan::is_over(&wanted.pod)
    }
}

/// When a runtime's silence is worth a line in the log.
#[derive(Debug, Default)]
struct Silence {
    /// None while it answers.
    told: Option<clock::Instant>,
}

impl Silence {
    /// True when the silence begins and ends, and once per [`limits::SILENCE_TOLD`] while it lasts.
    fn is_news(&mut self, answers: bool, now: clock::Instant) -> bool {
        if answers {
            return self.told.take().is_some();
        }
        let due = self.told.is_none_or(|told| now.duration_since(told) >= limits::SILENCE_TOLD);
        if due {
            self.told = Some(now);
        }
        due
    }
}

/// See the module's text.
pub struct Dispatch {
    context: Arc<Context>,
    pods: SharedReflector<Pod>,
    group: Group,
    workers: BTreeMap<String, Running>,
    /// Workers report their end here.
    ended: tokio::sync::mpsc::UnboundedSender<String>,
    ends: tokio::sync::mpsc::UnboundedReceiver<String>,
    /// Pods whose end is confirmed but which the watch still shows.
    finished: BTreeSet<String>,
    /// What the runtime showed of each pod last time.
    shown: BTreeMap<String, u64>,
    silence: Silence,
}

impl Dispatch {
    pub fn new(context: Arc<Context>, pods: SharedReflector<Pod>, group: Group) -> Self {
        // Bounded by the number of workers: each sends once.
        let (ended, ends) = tokio::sync::mpsc::unbounded_channel();
        Self {
            context,
            pods,
            group,
            workers: BTreeMap::new(),
            ended,
            ends,
            finished: BTreeSet::new(),
            shown: BTreeMap::new(),
            silence: Silence::default(),
        }
    }

    /// Runs until the agent stops.
    pub async fn run(mut self) {
        checkpoint::settled(&self.pods).await;
        let mut changes = self.pods.changes();
        let mut relist = clock::ticker(limits::RELIST);
        let mut swept = false;
        loop {
            let confirmed = self.pods.is_ready();
            self.reconcile();
            if confirmed && !swept {
                self.sweep().await;
                swept = true;
            }
            tokio::select! {
                () = changes.changed() => (),
                Some(uid) = self.ends.recv() => {
                    self.workers.remove(&uid);
                    self.finished.insert(uid);
                }
                _ = relist.tick() => {
                    let looked = self.relist().await;
                    self.tell(&looked);
                }
            }
        }
    }

    fn tell(&mut self, looked: &Result<(), RuntimeError>) {
        if !self.silence.is_news(looked.is_ok(), clock::now()) {
            return;
        }
        let socket = self.context.runtime.endpoint();
        match looked {
            Ok(()) => tracing::info!(socket, "container runtime answers again"),
            Err(error) => tracing::warn!(
                error = %Chain(error),
                socket,
                "container runtime does not answer, will retry: is the socket's path right, and what says `systemctl status containerd`?"
            ),
        }
    }

    /// Removes directories of pods that went away while no agent ran. What still has a sandbox is an orphan and ends as one.
    async fn sweep(&self) {
        if !self.context.runtime.is_real() {
            return;
        }
        let Ok(sandboxes) = self.context.runtime.sandboxes(None).await else { return };
        let claimed = sandboxes.iter().filter_map(|sandbox| sandbox.labels.get(label::POD_UID).cloned());
        let claimed: BTreeSet<String> = claimed.chain(self.workers.keys().cloned()).collect();
        let data_dir = self.context.data_dir.clone();
        let swept = tokio::task::spawn_blocking(move || PodDirs::remove_unclaimed(&data_dir, &claimed));
        match swept.await {
            Ok(Ok(0)) => (),
            Ok(Ok(count)) => tracing::info!(count, "removed directories of pods that are gone"),
            Ok(Err(error)) => tracing::warn!(%error, "directories of pods that are gone remain"),
            Err(error) => tracing::warn!(%error, "directories of pods that are gone remain"),
        }
    }

    fn reconcile(&mut self) {
        let pods = self.pods.list();
        let present: BTreeSet<String> = pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        self.finished.retain(|uid| present.contains(uid));
        // First, so that they do not count against pods that came in their place.
        for (uid, running) in &self.workers {
            if !present.contains(uid) && !running.wanted.borrow().gone {
                let pod = Arc::new(deleted(&running.wanted.borrow().pod));
                running.wanted.send_replace(Wanted { pod, gone: true });
            }
        }
        for pod in pods {
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            match self.workers.get(&uid) {
                Some(running) => {
                    let same = running.wanted.borrow().pod.metadata.resource_version == pod.metadata.resource_version;
                    if !same {
                        running.wanted.send_replace(Wanted { pod, gone: false });
                    }
                }
                None if self.finished.contains(&uid) => (),
                // What only a checkpoint says to be ending is left as it is until a server says so.
                None if pod.metadata.deletion_timestamp.is_some() && !self.pods.is_ready() => (),
                None => self.begin(uid, pod, false),
            }
        }
    }

    fn begin(&mut self, uid: String, pod: Arc<Pod>, gone: bool) {
        // A pod of the checkpoint was taken in before: it is not refused now.
        let others = self.pods.is_ready().then(|| self.requests());
        let requests = resources::pod_requests(&pod);
        let (wanted, receiver) = watch::channel(Wanted { pod, gone });
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(Arc::clone(&self.context), receiver, Arc::clone(&wake), others, &self.group);
        let Some(worker) = worker else {
            tracing::error!(uid, "pod has an impossible uid and is ignored");
            return;
        };
        let (ended, finished) = (self.ended.clone(), uid.clone());
        self.group.spawn_until_stopped("pod", async move {
            worker.run().await;
            // The receiver lives as long as the dispatcher; without it nobody needs to know.
            ended.send(finished).unwrap_or_default();
        });
        self.workers.insert(uid, Running { wanted, wake, requests });
    }

    /// What all pods together ask for.
    fn requests(&self) -> Amounts {
        let mut total = Amounts::default();
        for running in self.workers.values().filter(|running| running.counts()) {
            total.add(&running.requests);
        }
        total
    }

    /// Compares what the runtime runs with the last time and wakes the workers concerned.
    async fn relist(&mut self) -> Result<(), RuntimeError> {
        let confirmed = self.pods.is_ready();
        let sandboxes = self.context.runtime.sandboxes(None).await?;
        let containers = self.context.runtime.containers(None).await?;
        // The list may have come, or grown, since workers were given out: a pod that it names is none to end.
        let listed: BTreeSet<String> = self.pods.list().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let mut shown: BTreeMap<String, DefaultHasher> = BTreeMap::new();
        let mut orphans: BTreeMap<String, Pod> = BTreeMap::new();
        for sandbox in &sandboxes {
            let Some(uid) = sandbox.labels.get(label::POD_UID) else { continue };
            (&sandbox.id, sandbox.state).hash(shown.entry(uid.clone()).or_default());
            if confirmed && !self.workers.contains_key(uid) && !listed.contains(uid) {
                orphans.entry(uid.clone()).or_insert_with(|| orphan(sandbox));
            }
        }
        for container in &containers {
            let Some(uid) = container.labels.get(label::POD_UID) else { continue };
            (&container.id, container.state).hash(shown.entry(uid.clone()).or_default());
        }
        let shown: BTreeMap<String, u64> = shown.into_iter().map(|(uid, hasher)| (uid, hasher.finish())).collect();
        for (uid, running) in &self.workers {
            if self.shown.get(uid) != shown.get(uid) {
                running.wake.notify_one();
            }
        }
        self.shown = shown;
        for (uid, pod) in orphans {
            tracing::info!(
                uid,
                pod = pod.metadata.name.as_deref().unwrap_or_default(),
                "ending a pod that is assigned here no more"
            );
            self.begin(uid, Arc::new(deleted(&pod)), true);
        }
        Ok(())
    }
}

/// The pod as if its deletion had been asked for, with the grace of its spec.
fn deleted(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    let now = jiff::Timestamp::try_from(clock::wall()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    pod.metadata.deletion_timestamp.get_or_insert(Time(now));
    pod
}

/// What can be known of a pod from its sandbox alone.
fn orphan(sandbox: &pintle_proto::cri_v1::PodSandbox) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = sandbox.labels.get(label::POD_NAME).cloned();
    pod.metadata.namespace = sandbox.labels.get(label::POD_NAMESPACE).cloned();
    pod.metadata.uid = sandbox.labels.get(label::POD_UID).cloned();
    pod
}

#[cfg(test)]
mod tests;
