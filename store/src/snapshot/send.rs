//! A snapshot as the messages of `Maintenance.Snapshot`: the file in pieces, then its SHA-256.
//!
//! Always holds: a thread of its own reads the state and waits for whoever takes the pieces, a bounded time for each; when nobody does,
//! or the stream is given up, it ends and lets go of its view.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pintle_base::clock;
use pintle_proto::etcdserverpb::{ResponseHeader, SnapshotResponse};
use ring::digest::{Context, SHA256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::save::Saving;
use crate::error::StoreError;
use crate::limits;
use crate::store::Store;

type Message = Result<SnapshotResponse, Status>;

/// Begins to send this member's state as it is now.
pub(crate) fn stream(store: &Store) -> Result<ReceiverStream<Message>, StoreError> {
    let permit = Arc::clone(&store.shared().snapshots).try_acquire_owned().map_err(|_| StoreError::Overloaded)?;
    let (sender, receiver) = mpsc::channel(limits::SNAPSHOT_MESSAGES);
    let (store, runtime) = (store.clone(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let began = clock::now();
        match send(&store, &sender, &runtime) {
            Ok(bytes) => tracing::info!(bytes, took = ?began.elapsed(), "sent a snapshot"),
            Err(error) if sender.is_closed() => tracing::info!(%error, "a snapshot was given up by its receiver"),
            Err(error) => {
                tracing::warn!(%error, "a snapshot could not be sent");
                store.shared().engine.report(&error);
                let told = sender.send(Err(StoreError::storage(error).into()));
                let _ = runtime.block_on(clock::timeout(limits::SNAPSHOT_STALL, told));
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

fn send(store: &Store, sender: &mpsc::Sender<Message>, runtime: &Handle) -> io::Result<u64> {
    let generation = store.shared().engine.current();
    let view = generation.view()?;
    let saving = Saving::begin(&view, &|| if sender.is_closed() { Err(nobody()) } else { Ok(()) })?;
    let total = saving.bytes();
    let header = store.header(view.state.revision);
    let sum = Context::new(&SHA256);
    let pieces = Pieces { sender, runtime, header, left: total, sum, piece: BytesMut::new() };
    saving.write(pieces)?.finish()?;
    Ok(total)
}

fn nobody() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "nobody listens any more")
}

/// Cuts what is written into messages.
struct Pieces<'a> {
    sender: &'a mpsc::Sender<Message>,
    runtime: &'a Handle,
    header: Option<ResponseHeader>,
    /// Bytes of the file not handed over yet.
    left: u64,
    sum: Context,
    piece: BytesMut,
}

impl Pieces<'_> {
    fn hand_over(&mut self, header: Option<ResponseHeader>, blob: Bytes) -> io::Result<()> {
        let message = SnapshotResponse { header, remaining_bytes: self.left, blob, version: String::new() };
        let sending = clock::timeout(limits::SNAPSHOT_STALL, self.sender.send(Ok(message)));
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(nobody()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver takes nothing any more")),
        }
    }

    fn cut(&mut self) -> io::Result<()> {
        let blob = self.piece.split().freeze();
        self.left = self.left.saturating_sub(blob.len() as u64);
        self.sum.update(&blob);
        self.hand_over(self.header, blob)
    }

    /// The last piece, and the checksum of all.
    fn finish(mut self) -> io::Result<()> {
        if !self.piece.is_empty() {
            self.cut()?;
        }
        let sum = Bytes::copy_from_slice(self.sum.clone().finish().as_ref());
        self.hand_over(None, sum)
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = limits::SNAPSHOT_PIECE.saturating_sub(self.piece.len());
        let taken = bytes.len().min(room);
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() >= limits::SNAPSHOT_PIECE {
            self.cut()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
