//! Room for large answers. One is made whole, and stays in memory until its client has taken it: a client that asks for much and takes
//! nothing would fill the memory of a member.
//!
//! Always holds: no more than [`limits::ANSWERS_BYTES`] of answers wait for their clients, all together, and of one connection no more
//! than [`limits::ANSWERS_BYTES_OF_ONE`]. Who asks for more waits, without an answer that would take room, and is refused if none is
//! found in time. A connection that does not take an answer in the time it was given is cut off.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use pintle_base::clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Extensions;

use crate::error::StoreError;
use crate::limits;

/// Room is given in pieces of so many bytes.
const PIECE: usize = 1 << 10;

/// The room of all, or of one connection.
#[derive(Clone)]
pub(crate) struct Room(Arc<Semaphore>);

impl Room {
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / PIECE)))
    }

    /// What is larger than all the room takes all of it: it has its turn once nothing else is there.
    async fn take(&self, bytes: usize, whole: usize) -> Option<OwnedSemaphorePermit> {
        let pieces = bytes.div_ceil(PIECE).min(whole / PIECE);
        Arc::clone(&self.0).acquire_many_owned(u32::try_from(pieces).unwrap_or(u32::MAX)).await.ok()
    }
}

/// A client's connection: its room, and its end.
#[derive(Clone)]
pub(super) struct Client {
    room: Room,
    /// Cut off once this is cancelled.
    pub stalled: CancellationToken,
}

impl Client {
    pub fn new() -> Self {
        Self { room: Room::new(limits::ANSWERS_BYTES_OF_ONE), stalled: CancellationToken::new() }
    }
}

/// The room of an answer; given back with the last of these.
#[derive(Clone)]
pub(super) struct Held {
    _room: Arc<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>, DropGuard)>,
}

/// Makes an answer of so many `bytes` and finds room for it: what goes with the answer holds the room. `make` may be called twice, and
/// changes nothing.
pub(super) async fn make<T, F>(
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
    let taken = CancellationToken::new();
    if let Some(client) = client {
        let (taken, time) = (taken.clone(), limits::ANSWER_STALL + limits::ANSWER_MEBIBYTE * mebibytes(bytes));
        tokio::spawn(async move {
            if clock::timeout(time, taken.cancelled()).await.is_err() {
                tracing::debug!(bytes, "a client does not take its answer, and is cut off");
                client.stalled.cancel();
            }
        });
    }
    Some(Held { _room: Arc::new((shared, own, taken.drop_guard())) })
}

fn mebibytes(bytes: usize) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}
