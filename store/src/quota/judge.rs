//! Whether a command would bring a prefix beyond its quota. Part of applying (I4).
//!
//! A command is judged as a whole, before its first write: what its puts add, less what it deletes. What does not grow always passes, also
//! where a quota was lowered below what is used.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use pintle_proto::etcdserverpb::PutRequest;
use pintle_proto::store_v1::failure::Reason;
use pintle_proto::store_v1::{PrefixQuota, PrefixQuotaRecord};

use super::{Planned, Size};
use crate::apply::{Applied, Refusal};
use crate::mvcc::key::Interval;
use crate::mvcc::view::Source;

/// How much longer a refusal's name of a prefix is at most.
const SHOWN: usize = 200;

/// Judges a put.
pub(crate) fn put(quotas: &Planned, source: &dyn Source, request: &PutRequest) -> Applied<()> {
    if quotas.is_empty() {
        return Ok(Ok(()));
    }
    together(quotas, source, &[request], &[])
}

/// Judges puts and deletions of one command. No key is in two of them.
pub(crate) fn together(
    quotas: &Planned,
    source: &dyn Source,
    puts: &[&PutRequest],
    deletes: &[Interval],
) -> Applied<()> {
    let mut grown: BTreeMap<Bytes, (PrefixQuotaRecord, Size)> = BTreeMap::new();
    for request in puts {
        let mut over = quotas.over(&request.key).peekable();
        if over.peek().is_none() {
            continue;
        }
        let growth = growth(source, request)?;
        for (prefix, record) in over {
            grown.entry(prefix).or_insert_with(|| (record, Size::default())).1 += growth;
        }
    }
    if first_exceeded(&grown).is_none() {
        return Ok(Ok(()));
    }
    // What the same command deletes makes room.
    for interval in deletes {
        source.scan(interval, i64::MAX, &mut |row| {
            for (prefix, (_, size)) in &mut grown {
                if row.key.starts_with(prefix) {
                    *size = *size - Size::of(row.key, row.value);
                }
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(first_exceeded(&grown).map_or(Ok(()), Err))
}

fn growth(source: &dyn Source, request: &PutRequest) -> io::Result<Size> {
    let live = source.newest(&request.key)?.and_then(|version| version.live);
    let before = live.as_ref().map_or(Size::default(), |live| Size::of(&request.key, &live.value));
    let after = match live {
        Some(_) if request.ignore_value => before,
        _ => Size::of(&request.key, &request.value),
    };
    Ok(after - before)
}

fn first_exceeded(grown: &BTreeMap<Bytes, (PrefixQuotaRecord, Size)>) -> Option<Refusal> {
    grown.values().find_map(|(record, growth)| {
        let quota = record.quota.as_ref().filter(|_| record.counted)?;
        let beyond = |used: i64, growth: i64, most: Option<u64>| {
            most.filter(|most| growth > 0 && u64::try_from(used.saturating_add(growth)).unwrap_or(0) > *most)
        };
        let keys = beyond(record.keys, growth.keys, quota.keys).map(|most| (most, "keys"));
        let (most, what) =
            keys.or_else(|| beyond(record.bytes, growth.bytes, quota.bytes).map(|most| (most, "bytes")))?;
        let text = format!("{} may hold {most} {what}", name(quota));
        Some(Refusal { text, ..Reason::Quota.into() })
    })
}

fn name(quota: &PrefixQuota) -> String {
    let shown = &quota.prefix[..quota.prefix.len().min(SHOWN)];
    format!("prefix {:?}", String::from_utf8_lossy(shown))
}
