//! Leases: ids of the client and of the server, those that live and those that do not.

use pintle_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
};

use super::{Generator, Step};
use crate::step::{Call, chosen_lease};
use crate::world::World;

/// A lease that does not end by itself while a run lasts, in seconds.
const LONG: i64 = 100_000;
/// Ids that clients choose are below.
const IDS: i64 = 16;

impl Generator {
    pub(super) fn grant(&mut self, world: &World) -> Step {
        let id = match self.random.below(10) {
            0 | 1 => 0,
            2 => self.random.between(-3, -1),
            3 => i64::MAX - self.random.between(0, 1),
            _ => self.random.between(1, IDS),
        };
        let ttl = self.random.of(&[LONG, LONG, LONG, 3 * LONG, 0, -5, 1, 9_000_000_000, 9_000_000_001, i64::MAX]);
        // With users it may not be allowed to end it in time.
        let ttl = if self.auth && ttl < LONG { LONG } else { ttl };
        if ttl < LONG && !world.leases.contains(&id) {
            // Raised to the shortest one. It is ended before it ends by itself, which is at another time in each system.
            let id = if id == 0 { chosen_lease(world.chosen) } else { id };
            let look = Call::TimeToLive(LeaseTimeToLiveRequest { id, keys: true });
            self.next.extend([Step::Call(look), Step::Call(Call::Revoke(LeaseRevokeRequest { id }))]);
        }
        Step::Call(Call::Grant(LeaseGrantRequest { ttl, id }))
    }

    pub(super) fn revoke(&mut self, world: &World) -> Step {
        Step::Call(Call::Revoke(LeaseRevokeRequest { id: self.lease(world) }))
    }

    pub(super) fn time_to_live(&mut self, world: &World) -> Step {
        Step::Call(Call::TimeToLive(LeaseTimeToLiveRequest { id: self.lease(world), keys: self.once_in(2) }))
    }

    pub(super) fn keep_alive(&mut self, world: &World) -> Step {
        Step::Call(Call::KeepAlive(LeaseKeepAliveRequest { id: self.lease(world) }))
    }

    fn lease(&mut self, world: &World) -> i64 {
        let living = self.random.below(world.leases.len() as u64);
        match world.leases.iter().nth(usize::try_from(living).expect("small")) {
            Some(id) if !self.once_in(5) => *id,
            _ => self.random.between(0, IDS),
        }
    }

    /// Never one whose id a server chose: the hash of the keys would differ.
    pub(super) fn lease_to_attach(&mut self, world: &World) -> i64 {
        let id = self.lease(world);
        if id < chosen_lease(0) / 2 { 1 } else { id }
    }
}
