//! What a member knows of the cluster beside its data: alarms, what members said of themselves, and how much room is taken.
//!
//! Alarms and attributes are replicated and written with the data; this is the copy that requests look at.

use std::collections::BTreeMap;
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
    client_urls: BTreeMap<u64, Vec<String>>,
}

impl About {
    /// Takes over a state.
    pub fn load(&self, alarms: &[Alarm], members: Vec<MemberAttributes>) {
        let client_urls = members.into_iter().map(|member| (member.id, member.client_urls)).collect();
        *self.known.lock() = Known { alarms: alarms.to_vec(), client_urls };
    }

    /// An entry was written.
    pub fn applied(&self, alarms: &[Alarm], published: &[MemberAttributes]) {
        let mut known = self.known.lock();
        if known.alarms != alarms {
            known.alarms = alarms.to_vec();
        }
        for member in published {
            known.client_urls.insert(member.id, member.client_urls.clone());
        }
    }

    pub fn alarms(&self) -> Vec<Alarm> {
        self.known.lock().alarms.clone()
    }

    /// The URLs a member made known.
    pub fn client_urls(&self, id: u64) -> Vec<String> {
        self.known.lock().client_urls.get(&id).cloned().unwrap_or_default()
    }

    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    pub fn set_size(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Relaxed);
    }
}
