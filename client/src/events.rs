//! Records core/v1 Events: what people read in `kubectl describe`.
//!
//! Flow: [`Recorder::record`] → bounded channel → one task that counts repeats, limits noisy objects and writes.
//! Always holds: recording never waits and never fails its caller; events are advice, so the newest are dropped when the
//! writer cannot keep up.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use pintle_base::clock::{self, Instant};
use pintle_base::error::Chain;
use pintle_base::{rng, task};
use serde_json::json;
use tokio::sync::mpsc;

use crate::limits;
use crate::object::time_now;

/// Whether an event tells of progress or of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

struct Note {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Time,
}

/// Records events of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
}

impl Recorder {
    /// Starts the writer in `group`. `host` names the machine, empty for a component of the control plane.
    pub fn start(client: kube::Client, component: &str, host: &str, group: &task::Group) -> Self {
        let (notes, waiting) = mpsc::channel(limits::EVENTS_WAITING);
        let writer = Writer {
            client,
            component: component.to_owned(),
            host: host.to_owned(),
            series: HashMap::new(),
            order: VecDeque::new(),
            budgets: Budgets::default(),
        };
        group.spawn_until_stopped("event-recorder", writer.run(waiting));
        Self { notes }
    }

    /// A recorder that keeps nothing, for tests of its callers.
    pub fn discarding() -> Self {
        Self { notes: mpsc::channel(1).0 }
    }

    /// Records that `reason` happened to `about`.
    pub fn record(&self, about: ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let message = shorten(message.into());
        let note = Note { about, kind, reason: reason.to_owned(), message, at: time_now() };
        if self.notes.try_send(note).is_err() {
            tracing::debug!(reason, "event dropped");
        }
    }

    pub fn normal(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(about, EventType::Normal, reason, message);
    }

    pub fn warning(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(about, EventType::Warning, reason, message);
    }
}

fn shorten(mut message: String) -> String {
    if message.len() > limits::EVENT_MESSAGE_MAX {
        let end = (0..=limits::EVENT_MESSAGE_MAX).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

/// What makes two events the same series.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Series {
    uid: String,
    object: String,
    field: String,
    kind: EventType,
    reason: String,
    message: String,
}

struct Written {
    namespace: String,
    name: String,
    count: i32,
}

/// Token bucket of one object.
struct Budget {
    tokens: u32,
    refilled: Instant,
}

/// The token buckets of the objects that had events lately, [`limits::EVENT_SERIES`] of them.
#[derive(Default)]
struct Budgets(HashMap<String, Budget>);

impl Budgets {
    /// Takes a token from the object's budget: a burst, then one every five minutes.
    fn take(&mut self, object: String, now: Instant) -> bool {
        if self.0.len() >= limits::EVENT_SERIES && !self.0.contains_key(&object) {
            self.make_room(now);
        }
        let budget = self.0.entry(object).or_insert(Budget { tokens: limits::EVENT_BURST, refilled: now });
        if refill(budget, now) == 0 {
            return false;
        }
        budget.tokens -= 1;
        true
    }

    /// Full budgets are as good as none. If there is no such one, the oldest object is forgotten: a new one must be heard.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, budget| refill(budget, now) < limits::EVENT_BURST);
        if self.0.len() >= limits::EVENT_SERIES
            && let Some(oldest) = self.0.iter().min_by_key(|(_, budget)| budget.refilled).map(|(name, _)| name.clone())
        {
            self.0.remove(&oldest);
        }
    }
}

struct Writer {
    client: kube::Client,
    component: String,
    host: String,
    series: HashMap<Series, Written>,
    /// Insertion order of `series`, so that the oldest is forgotten first.
    order: VecDeque<Series>,
    budgets: Budgets,
}

impl Writer {
    async fn run(mut self, mut waiting: mpsc::Receiver<Note>) {
        while let Some(note) = waiting.recv().await {
            if !self.budgets.take(object_name(&note.about), clock::now()) {
                continue;
            }
            if let Err(error) = self.write(note).await {
                tracing::debug!(error = %Chain(&error), "event not written");
            }
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), kube::Error> {
        let series = Series {
            uid: note.about.uid.clone().unwrap_or_default(),
            object: object_name(&note.about),
            field: note.about.field_path.clone().unwrap_or_default(),
            kind: note.kind,
            reason: note.reason.clone(),
            message: note.message.clone(),
        };
        if let Some(written) = self.series.get_mut(&series) {
            let count = written.count.saturating_add(1);
            let api: Api<Event> = Api::namespaced(self.client.clone(), &written.namespace);
            let patch = json!({"count": count, "lastTimestamp": note.at});
            match api.patch(&written.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    written.count = count;
                    return Ok(());
                }
                // The event has expired: start a new series.
                Err(kube::Error::Api(status)) if status.code == 404 => (),
                Err(error) => return Err(error),
            }
        }
        self.create(note, series).await
    }

    async fn create(&mut self, note: Note, series: Series) -> Result<(), kube::Error> {
        let namespace =
            note.about.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".to_owned());
        let object: String =
            note.about.name.as_deref().unwrap_or("unknown").chars().take(limits::EVENT_NAME_PREFIX).collect();
        let name = format!("{}.{:016x}", object.trim_end_matches(['.', '-']), rng::u64());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: note.about.clone(),
            reason: Some(note.reason),
            message: Some(note.message),
            type_: Some(note.kind.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(note.at.clone()),
            last_timestamp: Some(note.at),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(self.host.clone()).filter(|host| !host.is_empty()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &event).await?;
        self.remember(series, Written { namespace, name, count: 1 });
        Ok(())
    }

    fn remember(&mut self, series: Series, written: Written) {
        if self.series.insert(series.clone(), written).is_some() {
            return;
        }
        self.order.push_back(series);
        if self.order.len() > limits::EVENT_SERIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.series.remove(&oldest);
        }
    }
}

fn refill(budget: &mut Budget, now: Instant) -> u32 {
    let earned = now.duration_since(budget.refilled).as_secs() / limits::EVENT_REFILL.as_secs().max(1);
    let earned = u32::try_from(earned).unwrap_or(u32::MAX);
    budget.refilled += limits::EVENT_REFILL.checked_mul(earned).unwrap_or(Duration::ZERO);
    budget.tokens = budget.tokens.saturating_add(earned).min(limits::EVENT_BURST);
    budget.tokens
}

fn object_name(about: &ObjectReference) -> String {
    let part = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}/{}/{}", part(&about.kind), part(&about.namespace), part(&about.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use kube::client::Body;

    fn about(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("ns".into()),
            name: Some(name.into()),
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_are_counted_on_the_first_event() {
        let (sent, mut seen) = mpsc::channel(100);
        let service = tower::service_fn(move |request: Request<Body>| {
            let sent = sent.clone();
            async move {
                let method = request.method().to_string();
                let body = request.into_body().collect().await?.to_bytes();
                let value: serde_json::Value = serde_json::from_slice(&body)?;
                sent.send(format!("{method} {} {}", value["count"], value["reason"])).await?;
                Ok::<_, tower::BoxError>(Response::new(Full::new(Bytes::from(
                    r#"{"metadata":{},"involvedObject":{}}"#,
                ))))
            }
        });
        let group = task::Group::new("test");
        let recorder = Recorder::start(kube::Client::new(service, "default"), "tester", "", &group);
        recorder.normal(about("a"), "Pulled", "one");
        recorder.normal(about("a"), "Pulled", "one");
        recorder.warning(about("a"), "Failed", "two");
        let mut lines = Vec::new();
        for _ in 0..3 {
            lines.push(clock::timeout(Duration::from_secs(5), seen.recv()).await.expect("in time").expect("a request"));
        }
        assert_eq!(lines, ["POST 1 \"Pulled\"", "PATCH 2 null", "POST 1 \"Failed\""]);
        group.stop(Duration::from_secs(1)).await.expect("stops");
    }

    #[test]
    fn a_noisy_object_is_limited_and_earns_tokens_back() {
        let start = Instant::now();
        let mut budget = Budget { tokens: 0, refilled: start };
        assert_eq!(refill(&mut budget, start + Duration::from_secs(299)), 0);
        assert_eq!(refill(&mut budget, start + Duration::from_secs(601)), 2);
        assert_eq!(refill(&mut budget, start + Duration::from_secs(900_000)), limits::EVENT_BURST);
    }

    #[test]
    fn an_object_is_heard_however_many_there_were() {
        let start = Instant::now();
        let mut budgets = Budgets::default();
        for number in 0..limits::EVENT_SERIES * 2 {
            let now = start + Duration::from_millis(number as u64);
            assert!(budgets.take(format!("Pod/ns/{number}"), now), "{number}");
        }
        assert_eq!(budgets.0.len(), limits::EVENT_SERIES);
        let now = start + Duration::from_secs(60);
        let last = format!("Pod/ns/{}", limits::EVENT_SERIES * 2 - 1);
        let left = (0..limits::EVENT_BURST).filter(|_| budgets.take(last.clone(), now)).count();
        assert_eq!(left, limits::EVENT_BURST as usize - 1, "who is remembered keeps what it has used");
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        assert_eq!(shorten("ä".repeat(600)).len(), 1024);
        assert_eq!(shorten("a".to_owned() + &"ä".repeat(600)).len(), 1023);
    }
}
