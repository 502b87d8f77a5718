//! `top`: the busiest and the largest prefixes of a member, from what it counts.

use std::collections::HashMap;
use std::io::IsTerminal;

use bytes::Bytes;
use pintle_base::clock;
use pintle_proto::store_v1::{TopRequest, TopResponse, TopRow};
use serde_json::{Value, json};

use super::client::Client;
use super::grammar::TopArgs;
use super::print::{self, Format};
use super::{Context, Done, Failure, go};

const HEADINGS: &[&str] = &["PREFIX", "KEYS", "BYTES", "WRITES/S", "READS/S"];
/// To the first place of the screen, and nothing below it.
const CLEAR: &str = "\x1b[H\x1b[J";

/// A prefix with what was done to it in a second.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    prefix: Bytes,
    keys: u64,
    bytes: u64,
    writes: f64,
    reads: f64,
}

pub async fn run(context: &Context, args: TopArgs) -> Done {
    let interval = crate::store::flags::duration(&args.interval).filter(|interval| !interval.is_zero());
    let interval = interval.ok_or_else(|| Failure::bad_args("--interval is no time, such as 1s"))?;
    if !(1..=4).contains(&args.depth) {
        return Err(Failure::bad_args("--depth is 1 to 4"));
    }
    if !matches!(context.printer.format, Format::Simple | Format::Table | Format::Json) {
        return Err(Failure::bad_feature("top prints simple, table and json"));
    }
    // Always the same member: each counts for itself.
    let endpoint = context.settings.endpoints.first().cloned().unwrap_or_default();
    let client = Client::of(&endpoint, &context.settings).await?;
    let request = TopRequest { depth: args.depth, limit: 0 };
    let mut before = client.ask(request).await?;
    let in_place = !args.once && std::io::stdout().is_terminal() && context.printer.format != Format::Json;
    loop {
        clock::sleep(interval).await;
        let now = client.ask(request).await?;
        if !(args.once && now.counting) {
            let text = match context.printer.format {
                Format::Json => format!("{}\n", as_json(&before, &now)),
                _ => text(&endpoint, &before, &now, args.rows),
            };
            print::out(if in_place { format!("{CLEAR}{text}") } else { text })?;
            if args.once {
                return Ok(());
            }
        }
        before = now;
    }
}

/// What was done in a second between two answers. Counting may have begun anew.
fn rates(before: &TopResponse, now: &TopResponse) -> (Row, Vec<Row>) {
    let continued = before.member_id == now.member_id && before.millis < now.millis;
    let millis = if continued { now.millis - before.millis } else { now.millis };
    let known: HashMap<&[u8], &TopRow> =
        if continued { before.rows.iter().map(|row| (&row.prefix[..], row)).collect() } else { HashMap::new() };
    #[allow(clippy::cast_precision_loss)] // for people
    let rate = |after: u64, earlier: u64| after.saturating_sub(earlier) as f64 * 1000.0 / millis.max(1) as f64;
    let row = |row: &TopRow, earlier: Option<&TopRow>| Row {
        prefix: row.prefix.clone(),
        keys: row.keys,
        bytes: row.bytes,
        writes: rate(row.writes, earlier.map_or(0, |row| row.writes)),
        reads: rate(row.reads, earlier.map_or(0, |row| row.reads)),
    };
    let total = now.total.clone().unwrap_or_default();
    let earlier = before.total.as_ref().filter(|_| continued);
    (row(&total, earlier), now.rows.iter().map(|one| row(one, known.get(&one.prefix[..]).copied())).collect())
}

fn text(endpoint: &str, before: &TopResponse, now: &TopResponse, rows: usize) -> String {
    let (total, mut all) = rates(before, now);
    let counting = if now.counting { ", keys and bytes are being counted" } else { "" };
    let Row { keys, bytes, writes, reads, .. } = total;
    let mut text = format!(
        "{endpoint} revision {}: {keys} keys, {}, {writes:.1} writes/s, {reads:.1} reads/s{counting}\n",
        now.revision,
        go::size(bytes)
    );
    let cells = |row: &Row| {
        let name = if row.prefix.is_empty() { "(others)".to_owned() } else { go::quote(&row.prefix) };
        vec![name, row.keys.to_string(), go::size(row.bytes), format!("{:.1}", row.writes), format!("{:.1}", row.reads)]
    };
    all.sort_by(|a, b| (b.writes + b.reads).total_cmp(&(a.writes + a.reads)).then_with(|| a.prefix.cmp(&b.prefix)));
    let busiest: Vec<_> = all.iter().filter(|row| row.writes + row.reads > 0.0).take(rows).map(cells).collect();
    all.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.prefix.cmp(&b.prefix)));
    let largest: Vec<_> = all.iter().filter(|row| row.keys > 0).take(rows).map(cells).collect();
    for (title, rows) in [("busiest", busiest), ("largest", largest)] {
        text.push_str(&format!("{title}:\n{}", print::table(HEADINGS, &rows)));
    }
    text
}

fn as_json(before: &TopResponse, now: &TopResponse) -> Value {
    let (total, rows) = rates(before, now);
    let one = |row: &Row| {
        json!({
            "prefix": String::from_utf8_lossy(&row.prefix), "keys": row.keys, "bytes": row.bytes,
            "writes_per_second": row.writes, "reads_per_second": row.reads,
        })
    };
    json!({
        "member": format!("{:x}", now.member_id), "revision": now.revision, "counting": now.counting,
        "total": one(&total), "prefixes": rows.iter().map(one).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(millis: u64, writes: u64) -> TopResponse {
        let row = |prefix: &'static [u8]| TopRow { prefix: prefix.into(), keys: 2, bytes: 3000, writes, reads: 4 };
        let rows = if writes > 10 { vec![row(b"/a/"), row(b"/b/")] } else { vec![row(b"/a/")] };
        TopResponse { millis, rows, total: Some(row(b"")), member_id: 7, ..TopResponse::default() }
    }

    #[test]
    fn rates_are_of_the_time_between_and_of_all_if_counting_began_anew() {
        let (total, rows) = rates(&answer(1000, 10), &answer(3000, 50));
        assert_eq!((total.writes, total.reads, rows[0].writes), (20.0, 0.0, 20.0));
        assert_eq!((rows[1].writes, rows[1].reads), (25.0, 2.0), "it was not there before");
        let (total, _) = rates(&answer(60_000, 10), &answer(2000, 50));
        assert_eq!((total.writes, total.reads), (25.0, 2.0));
    }

    #[test]
    fn both_lists_are_told() {
        let text = text("e", &answer(1000, 10), &answer(2000, 50), 1);
        assert!(text.starts_with("e revision 0: 2 keys, 3.0 kB, 40.0 writes/s, 0.0 reads/s\nbusiest:\n"), "{text}");
        assert_eq!((text.matches("\"/b/\"").count(), text.matches("\"/a/\"").count()), (1, 1), "{text}");
    }
}
