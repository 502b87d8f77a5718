//! What the generator knows of the reference: enough to aim at revisions, keys, leases and watches that are there, or nearly.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pintle_proto::mvccpb::event::EventType;
use pintle_proto::mvccpb::{Event, KeyValue};

use super::permitted::Reference;
use super::step::{Answer, Call};

pub struct World {
    pub reference: Reference,
    pub revision: i64,
    pub compacted: i64,
    /// Every revision that was compacted at.
    pub compactions: BTreeSet<i64>,
    /// Up to here [`Self::history`] and [`Self::keys`] are known.
    pub synced: i64,
    /// All that ever happened; a watch may begin anywhere in it.
    pub history: Vec<Event>,
    /// Keys as they were at [`Self::synced`], and what single puts did since.
    pub keys: BTreeMap<Bytes, KeyValue>,
    pub leases: BTreeSet<i64>,
    /// How many leases the server chose the id of.
    pub chosen: i64,
    /// Ids of the watches of each stream.
    pub watches: BTreeSet<(usize, i64)>,
    /// Keys that a lock or an election gave, with the lease each hangs on.
    pub owned: Vec<Owned>,
    pub auth_enabled: bool,
}

/// A key of an owner, as locks and elections make them.
#[derive(Clone, Debug)]
pub struct Owned {
    pub name: Bytes,
    pub key: Bytes,
    pub revision: i64,
    pub lease: i64,
}

impl World {
    pub fn new(reference: Reference) -> Self {
        Self {
            reference,
            revision: 1,
            compacted: 0,
            compactions: BTreeSet::new(),
            synced: 1,
            history: Vec::new(),
            keys: BTreeMap::new(),
            leases: BTreeSet::new(),
            chosen: 0,
            watches: BTreeSet::new(),
            owned: Vec::new(),
            auth_enabled: false,
        }
    }

    pub fn learn(&mut self, call: &Call, answer: &mut Answer) {
        if let Some(header) = answer.header() {
            self.revision = self.revision.max(header.revision);
        }
        match (call, answer) {
            (Call::Put(request), Answer::Put(_)) => {
                let revision = self.revision;
                let known = self.keys.entry(request.key.clone()).or_default();
                if known.version == 0 {
                    known.create_revision = revision;
                }
                known.key = request.key.clone();
                known.mod_revision = revision;
                known.version += 1;
                if !request.ignore_value {
                    known.value = request.value.clone();
                }
            }
            (Call::Compact(request), Answer::Compact(_)) => {
                self.compacted = request.revision;
                self.compactions.insert(request.revision);
            }
            (Call::Grant(request), Answer::Grant(granted)) => {
                self.leases.insert(granted.id);
                self.chosen += i64::from(request.id == 0);
            }
            (Call::Revoke(request), Answer::Revoke(_)) => {
                self.leases.remove(&request.id);
                self.owned.retain(|owned| owned.lease != request.id);
            }
            (Call::Lock(request), Answer::Lock(locked)) => {
                let (name, key) = (request.name.clone(), locked.key.clone());
                self.owned.push(Owned { name, key, revision: self.revision, lease: request.lease });
            }
            (Call::Campaign(request), Answer::Campaign(won)) => {
                if let Some(leader) = &won.leader {
                    let (name, key) = (leader.name.clone(), leader.key.clone());
                    self.owned.push(Owned { name, key, revision: leader.rev, lease: request.lease });
                }
            }
            (Call::AuthEnable(_), Answer::AuthEnable(_)) => self.auth_enabled = true,
            (Call::AuthDisable(_), Answer::AuthDisable(_)) => self.auth_enabled = false,
            _ => (),
        }
    }

    /// Events that came by the watch on everything.
    pub fn happened(&mut self, events: Vec<Event>) {
        for event in events {
            let Some(kv) = &event.kv else { continue };
            self.synced = self.synced.max(kv.mod_revision);
            match event.r#type() {
                EventType::Put => self.keys.insert(kv.key.clone(), kv.clone()),
                EventType::Delete => self.keys.remove(&kv.key),
            };
            self.owned.retain(|owned| event.r#type() == EventType::Put || owned.key != kv.key);
            self.history.push(event);
        }
    }

    pub fn watching(&mut self, stream: usize, watch_id: i64) {
        self.watches.insert((stream, watch_id));
    }

    pub fn stopped(&mut self, stream: usize, watch_id: i64) {
        self.watches.remove(&(stream, watch_id));
    }
}
