//! The two systems side by side: does each step to both, and holds what they answer against each other.
//!
//! The reference's answers alone steer what comes next, so a seed gives the same steps whatever pintle answers.

use std::collections::BTreeMap;
use std::fmt;

use pintle_proto::etcdserverpb::watch_create_request::FilterType;
use pintle_proto::etcdserverpb::{RangeRequest, WatchCreateRequest};
use pintle_proto::mvccpb::Event;
use pintle_proto::mvccpb::event::EventType;

use super::generate::ROOT;
use super::permitted::{self, Reference};
use super::step::{Call, Step};
use super::system::{Program, System};
use super::world::World;

pub struct Pair {
    ours: System,
    theirs: System,
    reference: Reference,
    pub world: World,
    /// Watches that live in both, by stream and id.
    watches: BTreeMap<(usize, i64), Watched>,
    /// How often each kind of call was answered, and how often each refusal came.
    pub seen: Seen,
}

pub type Seen = BTreeMap<String, u64>;

struct Watched {
    request: WatchCreateRequest,
    /// Events before it were compared, or are none of its own.
    from: i64,
}

/// What the two did not do alike.
pub struct Difference {
    pub step: String,
    pub ours: String,
    pub theirs: String,
}

impl Difference {
    fn new(step: &dyn fmt::Debug, ours: &dyn fmt::Debug, theirs: &dyn fmt::Debug) -> Box<Self> {
        Box::new(Self { step: format!("{step:?}"), ours: format!("{ours:#?}"), theirs: format!("{theirs:#?}") })
    }
}

type Outcome = Result<(), Box<Difference>>;

impl Pair {
    pub async fn start(ours: &Program, theirs: &Program, reference: Reference) -> Self {
        let (ours, theirs) = tokio::join!(System::start(ours), System::start(theirs));
        Self { ours, theirs, reference, world: World::new(reference), watches: BTreeMap::new(), seen: Seen::new() }
    }

    pub async fn run(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Call(call) => self.call(step, call, None).await,
            Step::CallAs(user, call) => self.call(step, call, Some(user)).await,
            Step::Watch(stream, request) => self.watch(step, *stream, request).await,
            Step::Cancel(stream, watch_id) => self.cancel(step, *stream, *watch_id).await,
            Step::Progress(stream) => self.progress(step, *stream).await,
            Step::Sync => self.sync().await,
        }
    }

    async fn call(&mut self, step: &Step, call: &Call, user: Option<&str>) -> Outcome {
        if let Call::Compact(_) = call {
            self.sync().await?; // a watch that lags would be ended by it, or not
        }
        let (mut ours, mut theirs) = tokio::join!(self.ours.call(call, user), self.theirs.call(call, user));
        *self.seen.entry(theirs.summary()).or_default() += 1;
        permitted::settle(self.reference, call, &mut ours, &mut theirs);
        self.world.learn(call, &mut theirs);
        same(step, &ours, &theirs)
    }

    async fn watch(&mut self, step: &Step, stream: usize, request: &WatchCreateRequest) -> Outcome {
        let start = request.start_revision;
        let late = start > 0 && start <= self.world.revision && start >= self.world.compacted;
        if late {
            self.sync().await?;
        }
        let mut watched = Watched { request: request.clone(), from: start };
        let silent = late && !self.world.history.iter().any(|event| watched.wants(event));
        if silent && self.reference == Reference::V3_4 {
            return Ok(()); // nothing would tell when it has caught up
        }
        let (ours, theirs) = (&self.ours.streams[stream], &self.theirs.streams[stream]);
        let (one, other) = tokio::join!(ours.create(request), theirs.create(request));
        let created = same_watch_answer(step, one, other)?;
        if created.canceled {
            return Ok(());
        }
        let id = created.watch_id;
        if start > 0 && start < self.world.compacted {
            let (one, other) = tokio::join!(ours.control(), theirs.control());
            same_watch_answer(step, one, other)?;
            let (one, other) = tokio::join!(ours.cancel(id), theirs.cancel(id));
            same_watch_answer(step, one, other)?;
            return Ok(());
        }
        if start == 0 {
            watched.from = created.header.map_or(0, |header| header.revision) + 1;
        }
        self.watches.insert((stream, id), watched);
        self.world.watching(stream, id);
        // A compaction would end it in etcd for as long as it has not caught up.
        if silent { self.progress(step, stream).await } else { Ok(()) }
    }

    async fn cancel(&mut self, step: &Step, stream: usize, watch_id: i64) -> Outcome {
        self.sync().await?;
        let (ours, theirs) = (&self.ours.streams[stream], &self.theirs.streams[stream]);
        let (one, other) = tokio::join!(ours.cancel(watch_id), theirs.cancel(watch_id));
        same_watch_answer(step, one, other)?;
        self.watches.remove(&(stream, watch_id));
        self.world.stopped(stream, watch_id);
        Ok(())
    }

    /// Nothing is said of a stream without watches, nor while one waits for a revision to come. What 3.4 says is not compared: it
    /// tells progress whether the watches have caught up or not.
    async fn progress(&mut self, step: &Step, stream: usize) -> Outcome {
        let mut of_stream = self.watches.iter().filter(|((at, _), _)| *at == stream).peekable();
        let none = of_stream.peek().is_none();
        if self.reference == Reference::V3_4
            || none
            || of_stream.any(|(_, watched)| watched.request.start_revision > self.world.revision)
        {
            return Ok(());
        }
        let revision = self.world.revision;
        let (ours, theirs) = (&self.ours.streams[stream], &self.theirs.streams[stream]);
        let (one, other) = tokio::join!(ours.progress(revision), theirs.progress(revision));
        same(step, &one, &other)?;
        if one.is_ok() { Ok(()) } else { Err(Difference::new(step, &one, &other)) }
    }

    /// The reference's live watch on everything says what each watch must get.
    async fn sync(&mut self) -> Outcome {
        // Not every answer tells the revision of what it wrote.
        let read = Call::Range(RangeRequest { key: "x".into(), ..RangeRequest::default() });
        let mut answer = self.theirs.call(&read, Some(ROOT)).await;
        self.world.learn(&read, &mut answer);
        let revision = self.world.revision;
        if self.world.synced < revision {
            let (one, other) =
                tokio::join!(self.ours.history.events_to(revision), self.theirs.history.events_to(revision));
            same(&"the watch on everything", &one, &other)?;
            match other {
                Ok(events) => self.world.happened(events),
                Err(_) => return Err(Difference::new(&"the watch on everything", &one, &other)),
            }
        }
        for ((stream, id), watched) in &mut self.watches {
            let expected = self.world.history.iter().filter(|event| watched.wants(event)).count();
            let (ours, theirs) = (&self.ours.streams[*stream], &self.theirs.streams[*stream]);
            let (mut one, mut other) = tokio::join!(ours.events(*id, expected), theirs.events(*id, expected));
            for events in [&mut one, &mut other].into_iter().flatten() {
                permitted::settle_events(self.world.compacted, events);
            }
            let what = format!("{expected} events of watch {id} on stream {stream}: {:?}", watched.request);
            same(&what, &one, &other)?;
            if other.as_ref().map(Vec::len) != Ok(expected) {
                return Err(Difference::new(&what, &one, &other));
            }
            watched.from = watched.from.max(revision + 1);
        }
        Ok(())
    }

    /// The ends of both logs.
    pub fn logs(&self) -> String {
        let of = |system: &System| format!("{}'s log ends:\n{}", system.name, system.log());
        format!("{}\n{}", of(&self.ours), of(&self.theirs))
    }
}

impl Watched {
    fn wants(&self, event: &Event) -> bool {
        let Some(kv) = &event.kv else { return false };
        let request = &self.request;
        let key: &[u8] = if request.key.is_empty() { b"\0" } else { &request.key };
        let within = match &request.range_end[..] {
            b"" => kv.key == key,
            b"\0" => kv.key >= key,
            end => kv.key >= key && kv.key < end,
        };
        let filter = if event.r#type() == EventType::Put { FilterType::Noput } else { FilterType::Nodelete };
        within && kv.mod_revision >= self.from && !request.filters.contains(&i32::from(filter))
    }
}

fn same<T: PartialEq + fmt::Debug>(step: &dyn fmt::Debug, ours: &T, theirs: &T) -> Outcome {
    if ours == theirs { Ok(()) } else { Err(Difference::new(step, ours, theirs)) }
}

type WatchAnswer = Result<pintle_proto::etcdserverpb::WatchResponse, String>;

fn same_watch_answer(
    step: &Step,
    mut ours: WatchAnswer,
    mut theirs: WatchAnswer,
) -> Result<pintle_proto::etcdserverpb::WatchResponse, Box<Difference>> {
    for answer in [&mut ours, &mut theirs].into_iter().flatten() {
        permitted::without_ids(answer.header.as_mut());
    }
    same(step, &ours, &theirs)?;
    theirs.clone().map_err(|_| Difference::new(step, &ours, &theirs))
}
