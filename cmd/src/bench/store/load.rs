//! What clients do in a benchmark of the store: loops of one kind of request each. A client waits for its answer before it asks
//! again; as many clients as share a connection are one task.
//!
//! Always holds: an answer that is not what was asked for ends the measurement; both systems are asked by the same code.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_base::clock::{self, Instant};
use tokio::task::JoinSet;

use super::figures::Sample;
use super::progress::Progress;
use super::requests::{Asker, Data, Fill, Workload};
use super::wire::{Event, Messages, Wire};

/// Clients that share one connection, unless that makes fewer connections than `CONNECTIONS_MIN`, as a kube-apiserver's callers do.
const PER_CONNECTION: usize = 16;
const CONNECTIONS_MIN: usize = 6;
/// Whoever waits longer for an answer waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients that fill a store; each has a transaction of many keys on its way.
const FILLERS: usize = 24;

/// What the clients of one measurement saw.
pub struct Seen {
    pub samples: Vec<Sample>,
    pub elapsed: Duration,
}

/// How many connections `clients` clients use.
pub fn connections(clients: usize) -> usize {
    clients.div_ceil(PER_CONNECTION).max(CONNECTIONS_MIN.min(clients))
}

/// Clients at work until they are told to end.
pub struct Running {
    tasks: JoinSet<Result<Vec<Sample>>>,
    over: Arc<AtomicBool>,
    pub started: Instant,
}

impl Running {
    /// Connects `clients` clients to `addresses` in turns and lets them go. With a `rate` they ask so often in a second all together,
    /// or as often as they get answers, whichever is less.
    pub async fn start(
        workload: &Workload,
        addresses: &[String],
        clients: usize,
        data: Data,
        rate: Option<f64>,
    ) -> Result<Self> {
        let count = connections(clients);
        let mut wires = Vec::with_capacity(count);
        for address in addresses.iter().cycle().take(count) {
            wires.push(Wire::connect(address).await?);
        }
        let (over, started) = (Arc::new(AtomicBool::new(false)), clock::now());
        let pause = rate.map(|rate| Duration::from_secs_f64(clients as f64 / rate));
        let mut tasks = JoinSet::new();
        for (at, wire) in wires.into_iter().enumerate() {
            // Those at the front have one more.
            let here = clients / count + usize::from(at < clients % count);
            let slots = (0..here).map(|slot| {
                // Paced clients begin spread over the first pause.
                let part = (slot * count + at) as f64 / clients as f64;
                Slot::new(Asker::new(workload.clone(), data), started + pause.unwrap_or_default().mul_f64(part))
            });
            let slots = slots.collect();
            tasks.spawn(
                Connection { wire, slots, streams: HashMap::new(), started, pause, over: Arc::clone(&over) }.run(),
            );
        }
        Ok(Self { tasks, over, started })
    }

    /// Lets them work for `time`; sooner if one of them fails.
    pub async fn work(&mut self, time: Duration) -> Result<()> {
        tokio::select! {
            ended = self.tasks.join_next() => match ended {
                Some(ended) => {
                    ended.context("a client panicked")??;
                    bail!("a client ended before its time");
                }
                None => bail!("there is no client"),
            },
            () = clock::sleep(time) => Ok(()),
        }
    }

    /// Tells them to end, and waits for the answers on their way.
    pub async fn end(mut self) -> Result<Seen> {
        self.over.store(true, Ordering::Relaxed);
        let mut samples = Vec::new();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                samples.extend(ended.context("a client panicked")??);
            }
            anyhow::Ok(())
        };
        clock::timeout(PATIENCE, all).await.with_context(|| format!("no answer for {} s", PATIENCE.as_secs()))??;
        if samples.is_empty() {
            bail!("no request was answered in time");
        }
        Ok(Seen { samples, elapsed: self.started.elapsed() })
    }
}

/// `clients` clients send one request after the other for `time`.
pub async fn run(
    workload: &Workload,
    addresses: &[String],
    clients: usize,
    time: Duration,
    data: Data,
) -> Result<Seen> {
    let mut running = Running::start(workload, addresses, clients, data, None).await?;
    running.work(time).await?;
    running.end().await
}

/// Writes every key of `data`, `passes` times over; says how far it is.
pub async fn fill(addresses: &[String], data: Data, passes: u64, what: &str) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let fill = Workload::Fill(Fill { next: Arc::clone(&next), items: data.keys * passes });
    let mut running = Running::start(&fill, addresses, FILLERS, data, None).await?;
    let mut progress = Progress::new(what, data.keys * passes);
    loop {
        let ended = match clock::timeout(Duration::from_millis(100), running.tasks.join_next()).await {
            Err(_) => {
                progress.tell(next.load(Ordering::Relaxed).min(data.keys * passes));
                continue;
            }
            Ok(ended) => ended,
        };
        match ended {
            Some(ended) => drop(ended.context("a client panicked")?.with_context(|| what.to_owned())?),
            None => break,
        }
    }
    progress.end();
    Ok(())
}

/// One client of a connection.
struct Slot {
    asker: Asker,
    /// Asked, and not answered yet.
    busy: bool,
    /// Will not ask again.
    done: bool,
    began: Instant,
    /// When a paced client asks next.
    due: Instant,
    /// Its stream, if that lasts longer than a request.
    stream: Option<u32>,
    messages: Messages,
    answers: usize,
}

impl Slot {
    fn new(asker: Asker, due: Instant) -> Self {
        Self {
            asker,
            busy: false,
            done: false,
            began: due,
            due,
            stream: None,
            messages: Messages::default(),
            answers: 0,
        }
    }
}

struct Connection {
    wire: Wire,
    slots: Vec<Slot>,
    /// Whose a stream is.
    streams: HashMap<u32, usize>,
    started: Instant,
    pause: Option<Duration>,
    over: Arc<AtomicBool>,
}

impl Connection {
    async fn run(mut self) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        let mut message = Vec::new();
        loop {
            let now = clock::now();
            let over = self.over.load(Ordering::Relaxed);
            for at in 0..self.slots.len() {
                if !self.slots[at].busy && !self.slots[at].done && (over || self.slots[at].due <= now) {
                    self.ask(at, now, over, &mut message)?;
                }
            }
            if self.slots.iter().all(|slot| slot.done) {
                return Ok(samples);
            }
            let idle = self.slots.iter().filter(|slot| !slot.busy && !slot.done);
            let due = idle.map(|slot| slot.due).min();
            self.wire.turn(due).await?;
            while let Some(event) = self.wire.event()? {
                let Some(at) = self.heard(event)? else { continue };
                let now = clock::now();
                let slot = &mut self.slots[at];
                slot.busy = false;
                samples.push(Sample::new(now - self.started, now - slot.began));
                match self.pause {
                    None => slot.due = now,
                    // Who is late asks at once and counts from when it should have.
                    Some(pause) => slot.due += pause,
                }
                let over = self.over.load(Ordering::Relaxed);
                if over || self.slots[at].due <= now {
                    self.ask(at, now, over, &mut message)?;
                }
            }
        }
    }

    fn ask(&mut self, at: usize, now: Instant, over: bool, message: &mut Vec<u8>) -> Result<()> {
        let slot = &mut self.slots[at];
        message.clear();
        let call = if over { None } else { slot.asker.ask(message)? };
        let Some(call) = call else {
            slot.done = true;
            return Ok(());
        };
        // Of a client that waited for its turn, the clock's grain is not the server's fault; the delay of one that is late is.
        slot.began = if self.pause.is_some() && now - slot.due > GRAIN { slot.due } else { now };
        slot.busy = true;
        slot.answers = 0;
        let stream = match slot.stream.filter(|_| call.stays) {
            Some(stream) => stream,
            None => {
                let stream = self.wire.open(call.path);
                self.streams.insert(stream, at);
                slot.stream = call.stays.then_some(stream);
                stream
            }
        };
        self.wire.send(stream, message, !call.stays);
        Ok(())
    }

    /// Whose request is answered by this.
    fn heard(&mut self, event: Event) -> Result<Option<usize>> {
        match event {
            Event::Data { stream, bytes } => {
                let Some(&at) = self.streams.get(&stream) else { return Ok(None) };
                let Slot { asker, messages, answers, stream: lasting, .. } = &mut self.slots[at];
                messages.take(&bytes, |message| {
                    *answers += 1;
                    asker.hear(message)
                })?;
                Ok((*lasting == Some(stream) && *answers > 0).then_some(at))
            }
            Event::Ended { stream } => {
                let Some(at) = self.streams.remove(&stream) else { return Ok(None) };
                let slot = &self.slots[at];
                if slot.stream == Some(stream) || slot.answers != 1 {
                    bail!("a request was refused: {}", slot.asker.name());
                }
                Ok(Some(at))
            }
        }
    }
}

/// The runtime's timers are no finer.
const GRAIN: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_clients_have_connections_of_their_own_and_many_share_them() {
        assert_eq!([1, 4, 64, 256, 1000].map(connections), [1, 4, 6, 16, 63]);
    }
}
