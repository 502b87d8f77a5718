//! Watches from before, at and after the current revision; their ends, and progress.

use pintle_proto::etcdserverpb::WatchCreateRequest;

use super::{Generator, Step};
use crate::permitted::Reference;
use crate::system::STREAMS;
use crate::world::World;

/// The stream of those that wait for a revision to come.
pub(super) const WAITING: usize = STREAMS - 1;
/// Watches that live at a time, of all streams.
const MOST: usize = 24;

impl Generator {
    pub(super) fn watch(&mut self, world: &World) -> Step {
        if world.watches.len() >= MOST {
            return self.cancel(world);
        }
        let mut stream = self.stream();
        let (key, range_end) = self.interval();
        let mut request = WatchCreateRequest { key, range_end, ..WatchCreateRequest::default() };
        let oldest = world.compacted.max(1);
        request.start_revision = match self.random.below(16) {
            0..6 => 0,
            6..9 => self.random.between(oldest, world.revision),
            9..12 => self.random.between((world.revision - 30).max(oldest), world.revision),
            12 => world.compacted,
            13 if self.once_in(4) => self.random.between(-2, world.compacted),
            14 => world.revision + 1,
            15 => world.revision + self.random.between(2, 20),
            _ => 0,
        };
        // A stream with one that waits for a revision to come tells no progress, by which a late one is known to have caught up.
        match request.start_revision {
            start if start > world.revision => stream = WAITING,
            start if start > 0 && start <= world.revision && stream == WAITING => stream = 0,
            _ => (),
        }
        // 3.4 lost the delete at the compacted revision, and takes a watch from before all revisions.
        if world.reference == Reference::V3_4
            && (request.start_revision == world.compacted || request.start_revision < 0)
        {
            request.start_revision = 0;
        }
        request.prev_kv = self.once_in(2);
        request.fragment = self.once_in(6);
        request.progress_notify = self.once_in(6);
        if self.once_in(5) {
            request.filters = self.random.of(&[&[0][..], &[1], &[0, 1], &[5], &[1, 1]]).to_vec();
        }
        if self.once_in(6) {
            request.watch_id = self.random.between(-1, 12);
        }
        if self.once_in(20) {
            request.key = Default::default();
        }
        Step::Watch(stream, request)
    }

    pub(super) fn cancel(&mut self, world: &World) -> Step {
        let nth = self.random.below(world.watches.len() as u64);
        match world.watches.iter().nth(usize::try_from(nth).expect("small")) {
            Some((stream, watch_id)) => Step::Cancel(*stream, *watch_id),
            None => self.watch(world),
        }
    }

    pub(super) fn progress(&mut self, _: &World) -> Step {
        Step::Progress(self.stream())
    }

    fn stream(&mut self) -> usize {
        usize::try_from(self.random.below(STREAMS as u64)).expect("small")
    }
}
