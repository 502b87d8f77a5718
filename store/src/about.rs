//! What a member knows of the cluster beside its data: alarms, what members said of themselves, and how much room is taken.
//!
//! Alarms and attributes are replicated and written with the data; this is the copy that requests look at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pintle_proto::store_v1::{Alarm, MemberAttributes};

#[derive(Default)]
pub(crate) struct About {
    known: Mutex<Known>,
    /// Bytes the data took when it was last looked at.
    size: AtomicU64,
}

#[derive(Default)]
struct Known {
    alarms: Vec<Alarm>,
    members: BTreeMap<u64, MemberAttributes>,
    /// Members that are to vote once they have caught up.
    expected: BTreeSet<u64>,
}

impl About {
    /// Takes over a state.
    pub fn load(&self, alarms: &[Alarm], members: Vec<MemberAttributes>, expected: BTreeSet<u64>) {
        let members = members.into_iter().map(|member| (member.id, member)).collect();
        *self.known.lock() = Known { alarms: alarms.to_vec(), members, expected };
    }

    /// An entry was written.
    pub fn applied(&self, alarms: &[Alarm], published: &[MemberAttributes], expected: &BTreeSet<u64>) {
        let mut known = self.known.lock();
        if known.alarms != alarms {
            known.alarms = alarms.to_vec();
        }
        for member in published {
            known.members.insert(member.id, member.clone());
        }
        known.expected.extend(expected);
    }

    pub fn alarms(&self) -> Vec<Alarm> {
        self.known.lock().alarms.clone()
    }

    /// What a member said of itself.
    pub fn member(&self, id: u64) -> Option<MemberAttributes> {
        self.known.lock().members.get(&id).cloned()
    }

    /// Whether a member is to vote as soon as it can.
    pub fn is_expected_to_vote(&self, id: u64) -> bool {
        self.known.lock().expected.contains(&id)
    }

    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    pub fn set_size(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Relaxed);
    }
}
