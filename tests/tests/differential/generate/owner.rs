//! Locks and elections. Only calls that are answered at once: nobody waits for a name that somebody holds.

use bytes::Bytes;
use pintle_proto::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use pintle_proto::v3lockpb::{LockRequest, UnlockRequest};

use super::{Generator, Step};
use crate::step::Call;
use crate::world::{Owned, World};

impl Generator {
    pub(super) fn owner(&mut self, world: &World) -> Step {
        let name = Bytes::from(format!("owner/{}", self.random.below(4)));
        let lease = self.lease_to_attach(world).max(1);
        let held = world.owned.iter().any(|owned| owned.name == name && owned.lease != lease);
        let value = self.value();
        Step::Call(match self.random.below(9) {
            0 | 1 if !held => Call::Lock(LockRequest { name, lease }),
            2 | 3 if !held => Call::Campaign(CampaignRequest { name, lease, value }),
            4 => Call::Unlock(UnlockRequest { key: self.owned(world).key }),
            5 => Call::Proclaim(ProclaimRequest { leader: self.leader(world), value }),
            6 => Call::Resign(ResignRequest { leader: self.leader(world) }),
            _ => Call::Leader(LeaderRequest { name }),
        })
    }

    fn owned(&mut self, world: &World) -> Owned {
        let nth = usize::try_from(self.random.below(world.owned.len() as u64)).expect("small");
        let nobody = Owned { name: "owner/0".into(), key: "owner/0/9".into(), revision: 1, lease: 9 };
        world.owned.get(nth).cloned().unwrap_or(nobody)
    }

    /// Of one who leads, or nearly; or of nobody.
    fn leader(&mut self, world: &World) -> Option<LeaderKey> {
        let owned = self.owned(world);
        let rev = owned.revision + self.random.of(&[0, 0, 0, 1]);
        (!self.once_in(10)).then_some(LeaderKey { name: owned.name, key: owned.key, rev, lease: owned.lease })
    }
}
