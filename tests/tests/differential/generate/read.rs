//! Reads, hashes and compaction.

use pintle_proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, DefragmentRequest, HashKvRequest, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, MoveLeaderRequest, RangeRequest, StatusRequest,
};

use super::{Generator, Step};
use crate::step::Call;
use crate::system::OWN;
use crate::world::World;

impl Generator {
    pub(super) fn range(&mut self, world: &World) -> RangeRequest {
        let (key, range_end) = self.interval();
        let mut request = RangeRequest { key, range_end, revision: self.revision(world), ..RangeRequest::default() };
        if self.once_in(3) {
            request.limit = self.random.between(-1, 12);
        }
        if self.once_in(3) {
            request.sort_order = self.random.of(&[0, 1, 2]);
            request.sort_target = self.random.of(&[0, 1, 2, 3, 4]);
        }
        request.serializable = self.once_in(4);
        request.keys_only = self.once_in(6);
        request.count_only = self.once_in(8);
        if self.once_in(5) {
            let revisions = [0, 1, 2, 3].map(|_| self.random.between(-1, world.revision + 1));
            let [min_mod, max_mod, min_create, max_create] =
                revisions.map(|revision| if self.once_in(2) { revision } else { 0 });
            request.min_mod_revision = min_mod;
            request.max_mod_revision = max_mod;
            request.min_create_revision = min_create;
            request.max_create_revision = max_create;
        }
        if self.once_in(60) {
            request.key = Default::default();
        }
        request
    }

    pub(super) fn compact(&mut self, world: &World) -> Step {
        let revision = match self.random.below(10) {
            // The first one at 0 etcd lets through, as it begins at -1; that changes nothing, so it is not asked.
            0 => self.random.between(-1, world.compacted).min(if world.compacted == 0 { -1 } else { world.compacted }),
            1 => self.random.between(world.revision, world.revision + 2),
            2 => world.revision,
            // Most of the history stays, so that there is something to read and watch.
            _ => self.random.between(world.compacted.max(1), world.compacted + (world.revision - world.compacted) / 2),
        };
        Step::Call(Call::Compact(CompactionRequest { revision, physical: self.once_in(2) }))
    }

    /// Not at a revision that was compacted at: of those etcd remembers a hash over what the compaction removed, once it is through.
    pub(super) fn hash(&mut self, world: &World) -> Step {
        let revision = self.revision(world);
        let revision = if world.compactions.contains(&revision) { 0 } else { revision };
        Step::Call(Call::HashKv(HashKvRequest { revision }))
    }

    /// Calls about the member that change nothing, and those that must be refused.
    pub(super) fn maintenance(&mut self, _: &World) -> Step {
        let id = self.random.below(3);
        Step::Call(match self.random.below(8) {
            0 => Call::Alarm(AlarmRequest::default()),
            1 => Call::Status(StatusRequest {}),
            2 => Call::Defragment(DefragmentRequest {}),
            3 => Call::MoveLeader(MoveLeaderRequest { target_id: self.random.of(&[id, OWN]) }),
            4 => Call::MemberRemove(MemberRemoveRequest { id }),
            5 => Call::MemberPromote(MemberPromoteRequest { id }),
            6 => Call::Alarm(AlarmRequest { action: 2, member_id: id, alarm: 1 }),
            _ => Call::MemberList(MemberListRequest { linearizable: self.once_in(2) }),
        })
    }
}
