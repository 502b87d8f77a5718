//! Writes a view of the state as a bbolt file, in two passes: the first lays the pages out, from the sizes alone, the second writes
//! them, so that memory does not follow the size of the data and nothing is spooled to disk.
//!
//! Always holds: both passes see one view; a change the second finds other than the first did is an error, never a wrong file. What a
//! compaction took away is not in the file, whether or not the scrub has come by.

use std::io::{self, Write};

use pintle_proto::mvccpb::KeyValue;
use prost::Message;

use super::schema::{self, Place, Row};
use crate::bolt::{Emitter, Layout};
use crate::etcd;
use crate::mvcc::key;
use crate::mvcc::record::{Change, Version, corrupt, decode_change};
use crate::mvcc::view::{Source, View};

/// What is in buckets before and after that of the changes, in the order of their names.
struct Around {
    before: Vec<(&'static [u8], Vec<Row>)>,
    after: Vec<(&'static [u8], Vec<Row>)>,
}

impl Around {
    fn of(view: &View<'_>) -> io::Result<Self> {
        let auth = view.auth()?;
        let (users, roles) = (auth.users(), auth.roles());
        let users = users.iter().filter_map(|name| Some(schema::user_row(name, auth.user(name)?)));
        let roles = roles.iter().filter_map(|name| Some(schema::role_row(name, auth.role(name)?)));
        let head = vec![
            (schema::AUTH_ENABLED.to_vec(), vec![u8::from(auth.enabled)]),
            schema::number_row(schema::AUTH_REVISION, auth.revision),
        ];
        let version = (schema::CLUSTER_VERSION.to_vec(), format!("{}.0", etcd::CLUSTER_VERSION).into_bytes());
        let mut meta = vec![schema::number_row(schema::CONSISTENT_INDEX, view.state.applied_index)];
        if view.compacted() > 0 {
            let compacted = Place { main: view.compacted(), sub: 0, deleted: false }.encode();
            meta.push((schema::COMPACT_FINISHED.to_vec(), compacted.clone()));
            meta.push((schema::COMPACT_SCHEDULED.to_vec(), compacted));
        }
        meta.push(schema::number_row(schema::TERM, view.state.applied_term));
        let quotas = sorted(view.quotas()?.all().iter().map(schema::quota_row));
        let quotas = (!quotas.is_empty()).then_some((schema::QUOTAS, quotas));
        let after = [
            (schema::LEASE, sorted(view.leases()?.into_iter().map(|(id, record)| schema::lease_row(id, record)))),
            (schema::MEMBERS, Vec::new()),
            (schema::MEMBERS_REMOVED, Vec::new()),
            (schema::META, meta),
        ];
        Ok(Self {
            before: vec![
                (schema::ALARM, sorted(view.alarms().iter().map(schema::alarm_row))),
                (schema::AUTH, head),
                (schema::AUTH_ROLES, sorted(roles)),
                (schema::AUTH_USERS, sorted(users)),
                (schema::CLUSTER, vec![version]),
            ],
            after: after.into_iter().chain(quotas).collect(),
        })
    }
}

fn sorted(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.collect();
    rows.sort();
    rows
}

/// A view laid out: how long its file is, and how it is written.
pub(crate) struct Saving<'a> {
    view: &'a View<'a>,
    around: Around,
    layout: Layout,
}

impl<'a> Saving<'a> {
    /// Looks at every change once; `going` is asked on the way whether anybody still wants it.
    pub fn begin(view: &'a View<'a>, going: &dyn Fn() -> io::Result<()>) -> io::Result<Self> {
        let around = Around::of(view)?;
        let mut layout = Layout::builder();
        let lay = |layout: &mut crate::bolt::LayoutBuilder, buckets: &[(&[u8], Vec<Row>)]| -> io::Result<()> {
            for (name, rows) in buckets {
                layout.bucket(name)?;
                rows.iter().try_for_each(|(key, value)| layout.item(key.len(), value.len()))?;
            }
            Ok(())
        };
        lay(&mut layout, &around.before)?;
        layout.bucket(schema::KEY)?;
        for_each_kept(view, &mut |place, change| {
            going()?;
            let size = match change.size {
                Some(size) => size,
                None => stored(view, place, change)?.encoded_len(),
            };
            layout.item(Place::len(place.deleted), size)
        })?;
        lay(&mut layout, &around.after)?;
        Ok(Self { view, around, layout: layout.finish()? })
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    pub fn write<W: Write>(self, sink: W) -> io::Result<W> {
        let Self { view, around, layout } = self;
        let mut file = layout.write(sink);
        emit(&mut file, &around.before)?;
        file.bucket(schema::KEY)?;
        let mut row = Vec::new();
        for_each_kept(view, &mut |place, change| {
            row.clear();
            stored(view, place, change)?.encode(&mut row).map_err(io::Error::other)?;
            file.item(&place.encode(), &row)
        })?;
        emit(&mut file, &around.after)?;
        file.finish()
    }
}

fn emit<W: Write>(file: &mut Emitter<W>, buckets: &[(&[u8], Vec<Row>)]) -> io::Result<()> {
    for (name, rows) in buckets {
        file.bucket(name)?;
        rows.iter().try_for_each(|(key, value)| file.item(key, value))?;
    }
    Ok(())
}

/// What the file says about a change.
fn stored(view: &View<'_>, place: Place, change: &Change<'_>) -> io::Result<KeyValue> {
    let version = view.version(change.key, place.main)?;
    let fits = |version: &Version| version.sub == place.sub && version.live.is_none() == place.deleted;
    let version = version.filter(fits).ok_or_else(|| corrupt("history: a version is missing"))?;
    Ok(version.to_stored_kv(change.key))
}

/// Visits the changes that history still has, in order: everything after the compact revision, and of what is not after it the newest
/// of each key, unless that is a deletion; a deletion exactly at it stays, because a watch may begin there.
fn for_each_kept(view: &View<'_>, visit: &mut dyn FnMut(Place, &Change<'_>) -> io::Result<()>) -> io::Result<()> {
    let compacted = view.compacted();
    let mut changes = view.changes(0)?;
    while let Some((raw, change)) = changes.item() {
        let (main, sub) = key::parse_revision(raw).ok_or_else(|| corrupt("revision key"))?;
        let change = decode_change(change)?;
        let lasting = !change.deleted || main == compacted;
        let kept = main > compacted || (lasting && view.is_newest(change.key, main, compacted)?);
        if kept {
            visit(Place { main, sub, deleted: change.deleted }, &change)?;
        }
        changes.next();
    }
    changes.status().map_err(io::Error::other)
}
