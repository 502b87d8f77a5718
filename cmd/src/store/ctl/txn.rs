//! `txn`: a transaction typed or piped in, in etcdctl's little language of conditions and requests.

use std::ffi::OsString;
use std::io::BufRead;
use std::os::unix::ffi::OsStringExt;

use pintle_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{Compare, RequestOp, TxnRequest};

use super::grammar::{RequestCommand, RequestLine, TxnArgs};
use super::print::{self, Answer};
use super::{Context, Done, Failure, go, kv, parse};

pub async fn run(context: &Context, args: TxnArgs) -> Done {
    if !args.words.is_empty() {
        return Err(Failure::bad_args("txn command does not accept argument"));
    }
    let prompt = |text: &str| if args.interactive { print::out(format!("{text}\n")) } else { Ok(()) };
    let client = context.client().await?;
    prompt("compares:")?;
    let compare = part(condition)?;
    prompt("success requests (get, put, del):")?;
    let success = part(request)?;
    prompt("failure requests (get, put, del):")?;
    let failure = part(request)?;
    let answer = client.ask_patiently(TxnRequest { compare, success, failure }).await?;
    context.printer.print(&Answer::Txn(&answer))
}

/// The lines up to an empty one.
fn part<T>(read: fn(&[u8]) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    loop {
        let mut line = Vec::new();
        // Not held while a request waits for its value, which comes from there too.
        let length = std::io::stdin().lock().read_until(b'\n', &mut line);
        length.map_err(|error| Failure::invalid_input(error.to_string()))?;
        if line.pop() != Some(b'\n') {
            return Err(Failure::invalid_input("EOF"));
        }
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(items);
        }
        items.push(read(line)?);
    }
}

/// Reads `TARGET("KEY") OP "VALUE"`.
fn condition(line: &[u8]) -> Result<Compare, Failure> {
    let shown = String::from_utf8_lossy(line);
    let malformed = || Failure::invalid_input(format!("malformed comparison: {shown}"));
    let open = line.iter().position(|byte| *byte == b'(').ok_or_else(malformed)?;
    let target = String::from_utf8_lossy(&line[..open]);
    let rest = &line[open + 1..];
    let unread = |key: &[u8], op: &[u8]| {
        let (key, op) = (go::quote(key), String::from_utf8_lossy(op));
        Failure::invalid_input(format!("malformed comparison: {shown}; got {target}({key}) {op} \"\""))
    };
    let (key, rest) = go::unquote(rest.trim_ascii_start()).ok_or_else(|| unread(b"", b""))?;
    let rest = rest.strip_prefix(b")").and_then(|rest| rest.strip_prefix(b" ")).ok_or_else(|| unread(&key, b""))?;
    let rest = rest.trim_ascii_start();
    let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
    let (op, rest) = rest.split_at(end);
    let (value, _) = go::unquote(rest.trim_ascii_start()).ok_or_else(|| unread(&key, op))?;

    let text = String::from_utf8_lossy(&value);
    let number = |base| {
        go::int(&text, base).map_err(|_| Failure::invalid_input(format!("invalid txn compare request: {shown}")))
    };
    let (target, against) = match &*target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        other => {
            let text = format!("malformed comparison: {shown} (unknown target {other})");
            return Err(Failure::invalid_input(text));
        }
    };
    let result = match op {
        b"=" => CompareResult::Equal,
        b"!=" => CompareResult::NotEqual,
        b">" => CompareResult::Greater,
        b"<" => CompareResult::Less,
        other => {
            let other = String::from_utf8_lossy(other);
            return Err(Failure::invalid_input(format!("malformed comparison: {shown} (unknown operator {other})")));
        }
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(against),
        ..Compare::default()
    })
}

/// Reads a `get`, `put` or `del` with its flags.
fn request(line: &[u8]) -> Result<RequestOp, Failure> {
    let shown = String::from_utf8_lossy(line);
    let words = words(line)?;
    if words.len() < 2 {
        return Err(Failure::invalid_input(format!("invalid txn compare request: {shown}")));
    }
    let parsed: RequestLine =
        parse::parsed(words).map_err(|_| Failure::invalid_input(format!("invalid txn request: {shown}")))?;
    let request = match parsed.request {
        RequestCommand::Get(args) => Request::RequestRange(kv::range(&args)?),
        RequestCommand::Put(args) => Request::RequestPut(kv::write(&args)?),
        RequestCommand::Del(args) => Request::RequestDeleteRange(kv::delete(&args)?),
    };
    Ok(RequestOp { request: Some(request) })
}

/// Splits a line at spaces; text in single quotes is as it is, text in double quotes may hold escapes.
///
/// # Errors
/// An escape that is none.
pub fn words(line: &[u8]) -> Result<Vec<OsString>, Failure> {
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.first() {
        let close = |quote: u8| rest[1..].iter().position(|byte| *byte == quote).map(|at| at + 1);
        match first {
            b'"' if closing(rest).is_some() => {
                let end = closing(rest).unwrap_or_default();
                let (word, _) = go::unquote(&rest[..=end]).ok_or_else(|| Failure::invalid_input("invalid syntax"))?;
                words.push(OsString::from_vec(word));
                rest = &rest[end + 1..];
            }
            b'\'' if close(b'\'').is_some() => {
                let end = close(b'\'').unwrap_or_default();
                words.push(OsString::from_vec(rest[1..end].to_vec()));
                rest = &rest[end + 1..];
            }
            // A quote that is never closed is skipped.
            b'"' | b'\'' => rest = &rest[1..],
            space if space.is_ascii_whitespace() => rest = &rest[1..],
            _ => {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                words.push(OsString::from_vec(rest[..end].to_vec()));
                rest = &rest[end..];
            }
        }
    }
    Ok(words)
}

/// Where the double quote that `text` starts with is closed.
fn closing(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().enumerate().skip(1).find_map(|(at, byte)| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_split_into_words() {
        let split = |line: &str| {
            let words = words(line.as_bytes()).unwrap();
            words.into_iter().map(|word| String::from_utf8_lossy(&word.into_vec()).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(split(r#"put "a \"b\"" 'c d'  e"f"#), ["put", r#"a "b""#, "c d", "e\"f"]);
        assert_eq!(split("put \"\\x41\" ''"), ["put", "A", ""]);
        assert_eq!(split("a \"open"), ["a", "open"]);
        assert_eq!(words(br#"a "\q""#).unwrap_err().code, 3);
    }

    #[test]
    fn conditions_are_read_or_refused_in_etcdctls_words() {
        let read = condition(br#"mod("a\x00") > "7""#).unwrap();
        assert_eq!((read.result, read.target, &read.key[..]), (1, 2, &b"a\0"[..]));
        assert_eq!(read.target_union, Some(TargetUnion::ModRevision(7)));
        assert_eq!(condition(br#"lease("a") != "ff""#).unwrap().target_union, Some(TargetUnion::Lease(255)));
        for (line, text) in [
            ("x", "malformed comparison: x"),
            (r#"foo("a") = "0""#, r#"malformed comparison: foo("a") = "0" (unknown target foo)"#),
            (r#"mod("a") = "x""#, r#"invalid txn compare request: mod("a") = "x""#),
            ("mod(a) = 0", r#"malformed comparison: mod(a) = 0; got mod("")  """#),
            (r#"mod("a") = 0"#, r#"malformed comparison: mod("a") = 0; got mod("a") = """#),
            (r#"mod("a")= "1""#, r#"malformed comparison: mod("a")= "1"; got mod("a")  """#),
            (r#"mod("a") ? "1""#, r#"malformed comparison: mod("a") ? "1" (unknown operator ?)"#),
        ] {
            let failure = condition(line.as_bytes()).unwrap_err();
            assert_eq!((failure.code, failure.text.as_str()), (3, text), "{line}");
        }
    }

    #[test]
    fn requests_are_commands_with_their_flags() {
        let Some(Request::RequestDeleteRange(delete)) = request(b"del --prefix a").unwrap().request else {
            panic!("it is a delete")
        };
        assert_eq!((&delete.key[..], &delete.range_end[..]), (&b"a"[..], &b"b"[..]));
        for (line, code, text) in [
            ("bad x", 3, "invalid txn request: bad x"),
            ("get", 3, "invalid txn compare request: get"),
            ("put a --nope x", 3, "invalid txn request: put a --nope x"),
            ("get x --order=foo", 4, "bad sort order foo"),
            ("get x --help", 3, "invalid txn request: get x --help"),
        ] {
            let failure = request(line.as_bytes()).unwrap_err();
            assert_eq!((failure.code, failure.text.as_str()), (code, text), "{line}");
        }
    }

    /// Pieces of the language, and whatever else.
    fn line() -> impl Strategy<Value = Vec<u8>> {
        const PIECES: [&str; 22] = [
            "mod",
            "value",
            "lease",
            "(",
            ")",
            "\"",
            "'",
            "`",
            "\\",
            "\\x41",
            "\\u00e9",
            "\\777",
            " ",
            "=",
            "!=",
            ">",
            "get",
            "put",
            "del",
            "--prefix",
            "--lease=",
            "99999999999999999999",
        ];
        let piece = (0..PIECES.len()).prop_map(|at| PIECES[at].as_bytes().to_vec());
        let any = proptest::collection::vec(any::<u8>(), 0..4);
        proptest::collection::vec(prop_oneof![4 => piece, 1 => any], 0..14).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused_in_words(line in line()) {
            for refused in [condition(&line).err(), request(&line).err(), words(&line).err()].into_iter().flatten() {
                prop_assert!(!refused.text.is_empty() && refused.code != 0);
            }
        }

        #[test]
        fn what_is_quoted_is_read_as_it_was(key in proptest::collection::vec(any::<u8>(), 1..12), version in any::<i64>()) {
            let quoted = go::quote(&key);
            let read = condition(format!("ver({quoted}) < \"{version}\"").as_bytes());
            let read = read.unwrap_or_else(|failure| panic!("{quoted}: {}", failure.text));
            prop_assert_eq!(read.target_union, Some(TargetUnion::Version(version)));
            if std::str::from_utf8(&key).is_ok() {
                prop_assert_eq!(&read.key[..], &key[..]);
            }
        }
    }
}
