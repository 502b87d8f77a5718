//! etcd's buckets and the bytes of their rows, both ways.
//!
//! Always holds: what cannot be read is an error that names its bucket; nothing is guessed.

use std::io;

use bytes::Bytes;
use pintle_proto::authpb::{Role, User, UserAddOptions};
use pintle_proto::etcdserverpb::AlarmMember;
use pintle_proto::store_v1::{Alarm, LeaseRecord, Quota, UserRecord, quota};
use prost::Message;

use crate::mvcc::key::{self, ETCD_TOMBSTONE};

pub(super) const ALARM: &[u8] = b"alarm";
pub(super) const AUTH: &[u8] = b"auth";
pub(super) const AUTH_ROLES: &[u8] = b"authRoles";
pub(super) const AUTH_USERS: &[u8] = b"authUsers";
pub(super) const CLUSTER: &[u8] = b"cluster";
pub(super) const KEY: &[u8] = b"key";
pub(super) const LEASE: &[u8] = b"lease";
pub(super) const MEMBERS: &[u8] = b"members";
pub(super) const MEMBERS_REMOVED: &[u8] = b"members_removed";
pub(super) const META: &[u8] = b"meta";
/// Not etcd's: quotas. Last in the order of names; etcd and its tools leave it alone. There only if there are quotas.
pub(super) const QUOTAS: &[u8] = b"pintleQuotas";

pub(super) const AUTH_ENABLED: &[u8] = b"authEnabled";
pub(super) const AUTH_REVISION: &[u8] = b"authRevision";
pub(super) const CLUSTER_VERSION: &[u8] = b"clusterVersion";
pub(super) const CONSISTENT_INDEX: &[u8] = b"consistent_index";
pub(super) const TERM: &[u8] = b"term";
/// Up to where history was asked to be removed, and up to where it has been.
pub(super) const COMPACT_SCHEDULED: &[u8] = b"scheduledCompactRev";
pub(super) const COMPACT_FINISHED: &[u8] = b"finishedCompactRev";

/// A row's key and value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// Where a change lies in the bucket `key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub main: i64,
    pub sub: i64,
    pub deleted: bool,
}

impl Place {
    /// `MAIN_SUB`, big-endian, marked if it is a deletion.
    pub fn encode(self) -> Vec<u8> {
        key::etcd_revision(self.main, self.sub, self.deleted)
    }

    pub fn len(deleted: bool) -> usize {
        17 + usize::from(deleted)
    }

    pub fn parse(raw: &[u8]) -> Option<Self> {
        let (main, rest) = raw.split_first_chunk::<8>()?;
        let (sub, mark) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
        let deleted = match mark {
            [] => false,
            [ETCD_TOMBSTONE] => true,
            _ => return None,
        };
        let (main, sub) = (i64::from_be_bytes(*main), i64::from_be_bytes(*sub));
        (main > 0 && sub >= 0).then_some(Self { main, sub, deleted })
    }
}

/// etcd's record of a lease.
#[derive(Clone, PartialEq, Message)]
struct LeaseRow {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    /// Seconds left when the leader last said so; 0 if it never did.
    #[prost(int64, tag = "3")]
    remaining: i64,
}

pub(super) fn lease_row(id: i64, record: LeaseRecord) -> Row {
    let row = LeaseRow { id, ttl: record.ttl_seconds, remaining: 0 };
    (id.to_be_bytes().to_vec(), row.encode_to_vec())
}

/// The id and granted time of a lease.
pub(super) fn parse_lease(value: &[u8]) -> io::Result<(i64, i64)> {
    let LeaseRow { id, ttl, .. } = LeaseRow::decode(value).map_err(|_| damaged(LEASE))?;
    if id == 0 || ttl <= 0 { Err(damaged(LEASE)) } else { Ok((id, ttl)) }
}

pub(super) fn alarm_row(alarm: &Alarm) -> Row {
    let member = AlarmMember { member_id: alarm.member, alarm: alarm.kind };
    (member.encode_to_vec(), Vec::new())
}

pub(super) fn parse_alarm(key: &[u8]) -> io::Result<Alarm> {
    let AlarmMember { member_id, alarm } = AlarmMember::decode(key).map_err(|_| damaged(ALARM))?;
    Ok(Alarm { member: member_id, kind: alarm })
}

pub(super) fn user_row(name: &str, record: &UserRecord) -> Row {
    let user = User {
        name: Bytes::copy_from_slice(name.as_bytes()),
        password: Bytes::copy_from_slice(record.password_hash.as_bytes()),
        roles: record.roles.clone(),
        options: Some(UserAddOptions { no_password: record.no_password }),
    };
    (name.as_bytes().to_vec(), user.encode_to_vec())
}

/// `revision` is the auth revision its password counts as being of.
pub(super) fn parse_user(value: &[u8], revision: u64) -> io::Result<(String, UserRecord)> {
    let User { name, password, mut roles, options } = User::decode(value).map_err(|_| damaged(AUTH_USERS))?;
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).map_err(|_| damaged(AUTH_USERS));
    roles.sort();
    roles.dedup();
    let record = UserRecord {
        password_hash: text(&password)?,
        no_password: options.is_some_and(|options| options.no_password),
        roles,
        credential_revision: revision,
    };
    let name = text(&name)?;
    if name.is_empty() { Err(damaged(AUTH_USERS)) } else { Ok((name, record)) }
}

pub(super) fn role_row(name: &str, role: &Role) -> Row {
    (name.as_bytes().to_vec(), role.encode_to_vec())
}

pub(super) fn parse_role(value: &[u8]) -> io::Result<(String, Role)> {
    let role = Role::decode(value).map_err(|_| damaged(AUTH_ROLES))?;
    let name = String::from_utf8(role.name.to_vec()).map_err(|_| damaged(AUTH_ROLES))?;
    if name.is_empty() { Err(damaged(AUTH_ROLES)) } else { Ok((name, role)) }
}

pub(super) fn number_row(key: &[u8], number: u64) -> Row {
    (key.to_vec(), number.to_be_bytes().to_vec())
}

pub(super) fn parse_number(bucket: &[u8], value: &[u8]) -> io::Result<u64> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| damaged(bucket))
}

/// What is used is counted anew.
pub(super) fn quota_row(quota: &Quota) -> Row {
    let key = match &quota.of {
        Some(quota::Of::Prefix(quota)) => [b"prefix/", &quota.prefix[..]].concat(),
        Some(quota::Of::User(quota)) => [b"user/", quota.user.as_bytes()].concat(),
        None => Vec::new(),
    };
    (key, quota.encode_to_vec())
}

pub(super) fn parse_quota(value: &[u8]) -> io::Result<Quota> {
    Quota::decode(value).ok().filter(|quota| quota.of.is_some()).ok_or_else(|| damaged(QUOTAS))
}

pub(super) fn damaged(bucket: &[u8]) -> io::Error {
    let text = format!("snapshot: a row of bucket {} cannot be read", String::from_utf8_lossy(bucket));
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads a row of the kind that a fuzzer chose; what is read can be written and read again.
#[cfg(any(test, debug_assertions))]
pub(crate) fn fuzz(which: u8, raw: &[u8]) {
    match which % 6 {
        0 => {
            if let Some(place) = Place::parse(raw) {
                assert_eq!(place.encode(), raw);
            }
        }
        1 => {
            if let Ok((id, ttl_seconds)) = parse_lease(raw) {
                let again = lease_row(id, LeaseRecord { ttl_seconds, stamp: 0 });
                assert_eq!(parse_lease(&again.1).ok(), Some((id, ttl_seconds)));
            }
        }
        2 => {
            if let Ok(alarm) = parse_alarm(raw) {
                assert_eq!(parse_alarm(&alarm_row(&alarm).0).ok(), Some(alarm));
            }
        }
        3 => {
            if let Ok((name, record)) = parse_user(raw, 7) {
                assert_eq!(parse_user(&user_row(&name, &record).1, 7).ok(), Some((name, record)));
            }
        }
        4 => {
            if let Ok((name, role)) = parse_role(raw) {
                assert_eq!(parse_role(&role_row(&name, &role).1).ok(), Some((name, role)));
            }
        }
        _ => drop(parse_number(META, raw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_back_and_nothing_else_is_one() {
        for (main, sub, deleted) in [(1, 0, false), (i64::MAX, 7, true), (258, 128, false)] {
            let place = Place { main, sub, deleted };
            assert_eq!(place.encode().len(), Place::len(deleted));
            assert_eq!(Place::parse(&place.encode()), Some(place));
        }
        let good = Place { main: 3, sub: 1, deleted: false }.encode();
        for (at, byte) in [(0, 0xff), (8, b'-'), (9, 0x80)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Place::parse(&bad), None);
        }
        assert_eq!(Place::parse(&good[..16]), None);
        assert_eq!(Place::parse(&[&good[..], b"x"].concat()), None);
        assert_eq!(Place::parse(&[&good[..], b"tt"].concat()), None);
    }

    #[test]
    fn rows_of_leases_users_roles_and_alarms_are_read_back() {
        let (_, value) = lease_row(-5, LeaseRecord { ttl_seconds: 60, stamp: 3 });
        assert_eq!(parse_lease(&value).unwrap(), (-5, 60));
        assert!(parse_lease(&lease_row(4, LeaseRecord { ttl_seconds: 0, stamp: 0 }).1).is_err());
        let record = UserRecord {
            password_hash: "$2a$hash".to_owned(),
            no_password: false,
            roles: vec!["a".to_owned(), "b".to_owned()],
            credential_revision: 9,
        };
        let (_, value) = user_row("user", &record);
        assert_eq!(parse_user(&value, 9).unwrap(), ("user".to_owned(), record));
        assert!(parse_user(&[0xff], 9).is_err() && parse_user(&[], 9).is_err());
        let role = Role { name: Bytes::from_static(b"role"), key_permission: Vec::new() };
        assert_eq!(parse_role(&role_row("role", &role).1).unwrap(), ("role".to_owned(), role));
        let alarm = Alarm { member: 7, kind: 1 };
        assert_eq!(parse_alarm(&alarm_row(&alarm).0).unwrap(), alarm);
    }
}
