//! Room for large answers. One is made whole, and stays in memory until its client has taken it: a client that asks for much and takes
//! nothing would fill the memory of a member.
//!
//! Always holds: no more than [`limits::ANSWERS_BYTES`] of answers wait for their clients, all together, and of one connection no more
//! than [`limits::ANSWERS_BYTES_OF_ONE`]; what is made anew after a wait may have grown a little. Who asks for more waits, without an answer
//! that would take room, and is refused if none is found in time. A connection that does not take an answer in the time it was given is cut
//! off, and much earlier if it takes nothing at all while others wait.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use pintle_base::clock::{self, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Response, Status};

use crate::error::StoreError;
use crate::limits;
use crate::store::Store;

/// Room is given in pieces of so many bytes.
const PIECE: usize = 1 << 10;

/// The room of all, or of one connection.
#[derive(Clone)]
pub(crate) struct Room {
    pieces: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Room {
    pub fn new(bytes: usize) -> Self {
        Self { pieces: Arc::new(Semaphore::new(bytes / PIECE)), waiting: Arc::default() }
    }

    /// What is larger than all the room takes all of it: it has its turn once nothing else is there.
    async fn take(&self, bytes: usize, whole: usize) -> Option<OwnedSemaphorePermit> {
        let pieces = bytes.div_ceil(PIECE).min(whole / PIECE);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        Arc::clone(&self.pieces).acquire_many_owned(u32::try_from(pieces).unwrap_or(u32::MAX)).await.ok()
    }

    fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Somebody waits for as long as it lives.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's connection: its room, and its end.
#[derive(Clone)]
pub(super) struct Client {
    room: Room,
    /// Cut off once this is cancelled.
    pub stalled: CancellationToken,
    /// Its place among the connections, also after it was made a websocket's.
    _slot: Arc<OwnedSemaphorePermit>,
}

impl Client {
    pub fn new(slot: OwnedSemaphorePermit) -> Self {
        let room = Room::new(limits::ANSWERS_BYTES_OF_ONE);
        Self { room, stalled: CancellationToken::new(), _slot: Arc::new(slot) }
    }
}

/// The room of an answer; given back with the last of these.
#[derive(Clone)]
pub(super) struct Held {
    _room: Arc<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>, DropGuard)>,
    taken: Taken,
}

impl Held {
    /// The client took some of it.
    pub fn went_on(&self) {
        self.taken.now();
    }
}

/// When something of an answer was taken last.
#[derive(Clone)]
struct Taken(Arc<(Instant, AtomicU64)>);

impl Taken {
    fn new() -> Self {
        Self(Arc::new((clock::now(), AtomicU64::new(0))))
    }

    fn now(&self) {
        let (made, at) = &*self.0;
        at.store(u64::try_from(made.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn ago(&self) -> Duration {
        let (made, at) = &*self.0;
        made.elapsed().saturating_sub(Duration::from_millis(at.load(Ordering::Relaxed)))
    }
}

/// Makes what may be large, of so many `bytes`, and finds room for it: what goes with the answer holds the room. `make` only reads.
pub(super) async fn respond<T, F>(
    store: &Store,
    client: Option<Client>,
    bytes: fn(&T) -> usize,
    make_one: impl Fn() -> F,
) -> Result<Response<T>, Status>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let (room, patience) = (&store.shared().answers, store.options().request_timeout);
    let (answer, extensions) = make(room, client, patience, bytes, make_one).await?;
    Ok(Response::from_parts(MetadataMap::new(), answer, extensions))
}

/// Makes an answer of so many `bytes` and finds room for it: what goes with the answer holds the room. `make` may be called twice, and
/// changes nothing.
async fn make<T, F>(
    all: &Room,
    client: Option<Client>,
    patience: Duration,
    bytes: fn(&T) -> usize,
    make: impl Fn() -> F,
) -> Result<(T, Extensions), StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let answer = make().await?;
    let bytes = bytes(&answer);
    let mut extensions = Extensions::new();
    if bytes < limits::ANSWER_SMALL {
        return Ok((answer, extensions));
    }
    let mut held = Box::pin(hold(all, client, bytes));
    let (held, answer) = match futures::poll!(&mut held) {
        Poll::Ready(held) => (held, answer),
        Poll::Pending => {
            drop(answer); // or whoever waits would hold more than who may
            let held = clock::timeout(patience, held).await.map_err(|_| StoreError::Overloaded)?;
            (held, make().await?)
        }
    };
    extensions.insert(held.ok_or(StoreError::Stopped)?);
    Ok((answer, extensions))
}

async fn hold(all: &Room, client: Option<Client>, bytes: usize) -> Option<Held> {
    // One's own first: who waits for that is in nobody's way.
    let own = match &client {
        Some(client) => Some(client.room.take(bytes, limits::ANSWERS_BYTES_OF_ONE).await?),
        None => None,
    };
    let shared = all.take(bytes, limits::ANSWERS_BYTES).await?;
    let (sent, taken) = (CancellationToken::new(), Taken::new());
    if let Some(client) = client {
        tokio::spawn(cut_off_if_stalled(all.clone(), client, bytes, sent.clone(), taken.clone()));
    }
    Some(Held { _room: Arc::new((shared, own, sent.drop_guard())), taken })
}

/// Waits until an answer is sent, and ends the connection of a client that does not take it.
async fn cut_off_if_stalled(all: Room, client: Client, bytes: usize, sent: CancellationToken, taken: Taken) {
    let deadline = clock::now() + limits::ANSWER_STALL + limits::ANSWER_MEBIBYTE * mebibytes(bytes);
    while clock::timeout(limits::ANSWER_LOOK, sent.cancelled()).await.is_err() {
        let in_the_way = all.is_wanted() && taken.ago() >= limits::ANSWER_IDLE;
        if in_the_way || clock::now() >= deadline {
            tracing::debug!(bytes, "a client does not take its answer, and is cut off");
            return client.stalled.cancel();
        }
    }
}

fn mebibytes(bytes: usize) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn client() -> Client {
        Client::new(Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap())
    }

    const PATIENCE: Duration = Duration::from_secs(7);

    async fn answer(all: &Room, client: &Client, bytes: usize, made: &AtomicU32) -> Result<Extensions, StoreError> {
        let made = || {
            made.fetch_add(1, Ordering::Relaxed);
            async move { Ok(bytes) }
        };
        make(all, Some(client.clone()), PATIENCE, |bytes| *bytes, made).await.map(|(_, extensions)| extensions)
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_without_an_answer_and_is_refused_in_the_end() {
        let (all, made) = (Room::new(10 << 20), AtomicU32::new(0));
        let (first, second) = (client(), client());
        let held = answer(&all, &first, 9 << 20, &made).await.unwrap();
        assert!(answer(&all, &second, limits::ANSWER_SMALL - 1, &made).await.unwrap().get::<Held>().is_none());
        let taking = tokio::spawn(async move {
            // The client takes it, slowly.
            for _ in 0..20 {
                clock::sleep(Duration::from_secs(1)).await;
                held.get::<Held>().unwrap().went_on();
            }
        });
        let began = clock::now();
        let refused = answer(&all, &second, 2 << 20, &made).await;
        assert!(matches!(refused, Err(StoreError::Overloaded)), "{:?}", refused.err());
        assert_eq!((began.elapsed(), made.load(Ordering::Relaxed)), (PATIENCE, 3));
        taking.await.unwrap();
        assert!(!first.stalled.is_cancelled());
        assert!(answer(&all, &second, 2 << 20, &made).await.is_ok(), "there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_at_once_if_others_wait_and_else_in_time() {
        let (all, made) = (Room::new(10 << 20), AtomicU32::new(0));
        let (idle, other) = (client(), client());
        let held = answer(&all, &idle, 9 << 20, &made).await.unwrap();
        clock::sleep(limits::ANSWER_STALL).await;
        assert!(!idle.stalled.is_cancelled(), "it is in nobody's way");
        let cut = {
            let stalled = idle.stalled.clone();
            tokio::spawn(async move {
                stalled.cancelled().await;
                drop(held); // with its connection
            })
        };
        assert!(answer(&all, &other, 2 << 20, &made).await.is_ok());
        cut.await.unwrap();
        let late = client();
        let _held = answer(&all, &late, 1 << 20, &made).await.unwrap();
        clock::sleep(limits::ANSWER_STALL + 2 * limits::ANSWER_MEBIBYTE).await;
        assert!(late.stalled.is_cancelled());
    }
}
