//! `get`, `put`, `del` and `compaction`; the first three also as parts of a transaction.

use std::io::Read;

use bytes::Bytes;
use pintle_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pintle_proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};

use super::grammar::{CompactionArgs, DelArgs, GetArgs, PutArgs};
use super::print::{self, Answer, Format, Printer};
use super::{Context, Done, Failure, bytes, exactly, go};

/// To the end of the key space.
const OPEN: &[u8] = b"\0";

pub async fn get(context: &Context, args: GetArgs) -> Done {
    let request = range(&args)?;
    let answer = context.client().await?.ask(request).await?;
    let format = context.printer.format;
    if args.count_only && format != Format::Fields {
        return Err(Failure::bad_args("--count-only is only for `--write-out=fields`"));
    }
    if args.print_value_only && format != Format::Simple {
        return Err(Failure::bad_args("print-value-only is only for `--write-out=simple`"));
    }
    Printer { value_only: args.print_value_only, ..context.printer }.print(&Answer::Get(&answer))
}

pub async fn put(context: &Context, args: PutArgs) -> Done {
    let request = self::write(&args)?;
    let answer = context.client().await?.ask(request).await?;
    context.printer.print(&Answer::Put(&answer))
}

pub async fn del(context: &Context, args: DelArgs) -> Done {
    let request = delete(&args)?;
    let answer = context.client().await?.ask(request).await?;
    context.printer.print(&Answer::Del(&answer))
}

pub async fn compaction(context: &Context, args: CompactionArgs) -> Done {
    let [revision] = exactly(&args.words, "compaction command needs 1 argument")?;
    let revision = go::int(&revision, 10).map_err(Failure::error)?;
    context.client().await?.ask(CompactionRequest { revision, physical: args.physical }).await?;
    print::out(format!("compacted revision {revision}\n"))
}

/// What `get` asks for.
///
/// # Errors
/// Arguments that contradict each other.
pub fn range(args: &GetArgs) -> Result<RangeRequest, Failure> {
    let Some(first) = args.words.first() else {
        return Err(Failure::bad_args("get command needs one argument as key and an optional argument as range_end"));
    };
    one_of(args.prefix, args.from_key)?;
    if args.keys_only && args.count_only {
        return Err(Failure::bad_args("`--keys-only` and `--count-only` cannot be set at the same time, choose one"));
    }
    let serializable = serializable(&args.consistency)?;
    let end = args.words.get(1).map(bytes);
    one_key(end.is_some(), args.prefix, args.from_key)?;
    let order = choose("order", &args.order, &[("ASCEND", SortOrder::Ascend), ("DESCEND", SortOrder::Descend)])?;
    let targets = [
        ("CREATE", SortTarget::Create),
        ("KEY", SortTarget::Key),
        ("MODIFY", SortTarget::Mod),
        ("VALUE", SortTarget::Value),
        ("VERSION", SortTarget::Version),
    ];
    let target = choose("target", &args.sort_by, &targets)?.unwrap_or(SortTarget::Key);
    let (key, range_end) = span(bytes(first), end, args.prefix, args.from_key);
    Ok(RangeRequest {
        key,
        range_end,
        limit: args.limit,
        revision: args.rev.max(0),
        sort_order: order.unwrap_or(SortOrder::None).into(),
        sort_target: target.into(),
        serializable,
        keys_only: args.keys_only,
        count_only: args.count_only,
        ..RangeRequest::default()
    })
}

fn choose<T: Copy>(what: &str, given: &str, known: &[(&str, T)]) -> Result<Option<T>, Failure> {
    if given.is_empty() {
        return Ok(None);
    }
    let found = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(given));
    found.map(|(_, choice)| Some(*choice)).ok_or_else(|| Failure::bad_feature(format!("bad sort {what} {given}")))
}

/// Whether the answer of the member asked is enough.
pub fn serializable(consistency: &str) -> Result<bool, Failure> {
    match consistency {
        "s" => Ok(true),
        "l" => Ok(false),
        other => Err(Failure::bad_feature(format!("unknown consistency flag {}", go::quote(other.as_bytes())))),
    }
}

fn one_of(prefix: bool, from_key: bool) -> Done {
    if prefix && from_key {
        return Err(Failure::bad_args("`--prefix` and `--from-key` cannot be set at the same time, choose one"));
    }
    Ok(())
}

fn one_key(has_end: bool, prefix: bool, from_key: bool) -> Done {
    if has_end && (prefix || from_key) {
        let text = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
        return Err(Failure::bad_args(text));
    }
    Ok(())
}

/// First key and end of what is meant.
fn span(key: Bytes, end: Option<Bytes>, prefix: bool, from_key: bool) -> (Bytes, Bytes) {
    let open = Bytes::from_static(OPEN);
    match (prefix, from_key) {
        (false, false) => (key, end.unwrap_or_default()),
        _ if key.is_empty() => (open.clone(), open),
        (true, _) => {
            let end = go::prefix_end(&key);
            (key, end.into())
        }
        (false, true) => (key, open),
    }
}

/// What `put` asks for; reads the value from standard input if it is not an argument.
///
/// # Errors
/// Wrong arguments, or nothing on standard input.
pub fn write(args: &PutArgs) -> Result<PutRequest, Failure> {
    let needed = || Failure::bad_args("put command needs 1 argument and input from stdin or 2 arguments");
    let key = args.words.first().map(bytes).ok_or_else(needed)?;
    if args.ignore_value && args.words.len() > 1 {
        return Err(Failure::bad_args("put command needs only 1 argument when 'ignore-value' is set"));
    }
    let value = match args.words.get(1) {
        Some(value) => bytes(value),
        None if args.ignore_value => Bytes::new(),
        None => {
            let mut value = Vec::new();
            std::io::stdin().lock().read_to_end(&mut value).map_err(|_| needed())?;
            if value.is_empty() {
                return Err(needed());
            }
            value.into()
        }
    };
    let bad = |why| Failure::bad_args(format!("bad lease ID ({why}), expecting ID in Hex"));
    Ok(PutRequest {
        key,
        value,
        lease: go::int(&args.lease, 16).map_err(bad)?,
        prev_kv: args.prev_kv,
        ignore_value: args.ignore_value,
        ignore_lease: args.ignore_lease,
    })
}

/// What `del` asks for.
///
/// # Errors
/// Arguments that contradict each other.
pub fn delete(args: &DelArgs) -> Result<DeleteRangeRequest, Failure> {
    let (first, end) = match &args.words[..] {
        [first] => (first, None),
        [first, end] => (first, Some(bytes(end))),
        _ => {
            let text = "del command needs one argument as key and an optional argument as range_end";
            return Err(Failure::bad_args(text));
        }
    };
    one_of(args.prefix, args.from_key)?;
    one_key(end.is_some(), args.prefix, args.from_key)?;
    let (key, range_end) = span(bytes(first), end, args.prefix, args.from_key);
    Ok(DeleteRangeRequest { key, range_end, prev_kv: args.prev_kv })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_key_a_range_a_prefix_or_the_rest() {
        let span = |key: &'static str, end: Option<&'static str>, prefix, from_key| {
            let (key, end) = span(key.into(), end.map(Bytes::from), prefix, from_key);
            (String::from_utf8(key.to_vec()).unwrap(), String::from_utf8(end.to_vec()).unwrap())
        };
        let pair = |key: &str, end: &str| (key.to_owned(), end.to_owned());
        assert_eq!(span("a", None, false, false), pair("a", ""));
        assert_eq!(span("a", Some("c"), false, false), pair("a", "c"));
        assert_eq!(span("a", None, true, false), pair("a", "b"));
        assert_eq!(span("a", None, false, true), pair("a", "\0"));
        assert_eq!(span("", None, true, false), pair("\0", "\0"));
    }
}
