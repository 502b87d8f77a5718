//! Go's notations, in which etcdctl reads and prints: numbers, truth values, times, quoted text, sizes.
//!
//! Pure. What is read comes from users, so everything that is not the notation is an error in Go's words.

use std::time::Duration;

use super::super::flags;

/// A whole number in base ten, or with `0x`, `0o`, `0b` in front; the form of numeric flags.
///
/// # Errors
/// Go's text for text that is no number, or one beyond 64 bits.
pub fn flag_int(text: &str) -> Result<i64, String> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let based = [("0x", 16), ("0X", 16), ("0o", 8), ("0b", 2)];
    let found = based.iter().find_map(|(prefix, base)| Some((digits.strip_prefix(prefix)?, *base)));
    let (digits, base) = found.unwrap_or((digits, 10));
    parse("ParseInt", text, i64::from_str_radix(&format!("{sign}{digits}"), base))
}

pub fn int(text: &str, base: u32) -> Result<i64, String> {
    parse("ParseInt", text, i64::from_str_radix(text, base))
}

/// Like Go's, it takes no sign.
pub fn hex(text: &str) -> Result<u64, String> {
    let digits = if text.starts_with('+') { "" } else { text };
    parse("ParseUint", text, u64::from_str_radix(digits, 16))
}

fn parse<T>(function: &str, text: &str, read: Result<T, std::num::ParseIntError>) -> Result<T, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    read.map_err(|error| {
        let why = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.{function}: parsing {}: {why}", quote(text.as_bytes()))
    })
}

pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text.as_bytes()))),
    }
}

pub fn duration(text: &str) -> Result<Duration, String> {
    flags::duration(text).ok_or_else(|| format!("time: invalid duration {}", quote(text.as_bytes())))
}

/// A time as Go prints it: the largest unit that fits, without trailing zeros.
pub fn time(time: Duration) -> String {
    let nanos = time.as_nanos();
    let scaled = |unit: u128, name: &str| {
        let (whole, rest) = (nanos / unit, nanos % unit);
        let digits = unit.ilog10() as usize;
        let fraction = format!("{rest:0digits$}");
        let fraction = fraction.trim_end_matches('0');
        if rest == 0 { format!("{whole}{name}") } else { format!("{whole}.{fraction}{name}") }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => scaled(1_000, "µs"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => scaled(1_000_000_000, "s"),
        _ => {
            let minutes = time.as_secs() / 60;
            let hours = if minutes >= 60 { format!("{}h", minutes / 60) } else { String::new() };
            let rest = Duration::from_nanos(u64::try_from(nanos % 60_000_000_000).unwrap_or_default());
            let rest = if rest < Duration::from_secs(1) && !rest.is_zero() {
                format!("{}s", rest.as_secs_f64())
            } else {
                self::time(rest)
            };
            format!("{hours}{}m{rest}", minutes % 60)
        }
    }
}

/// Bytes in steps of a thousand: `20 kB`, `1.5 MB`.
#[allow(clippy::cast_precision_loss)] // shown with two digits
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// An error of the system in Go's spelling: `no such file or directory`.
pub fn system_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.chars().take(1).flat_map(char::to_lowercase).chain(text.chars().skip(1)).collect()
}

/// Text in double quotes as `%q` prints it: what is not printable, and what is not UTF-8, is escaped.
pub fn quote(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| escape(c, &mut text));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text.push('"');
    text
}

fn escape(c: char, text: &mut String) {
    let named = [('\x07', 'a'), ('\x08', 'b'), ('\x0c', 'f'), ('\n', 'n'), ('\r', 'r'), ('\t', 't'), ('\x0b', 'v')];
    match c {
        '"' | '\\' => text.extend(['\\', c]),
        _ if named.iter().any(|(known, _)| *known == c) => {
            let letter = named.iter().find(|(known, _)| *known == c).map_or(c, |(_, letter)| *letter);
            text.extend(['\\', letter]);
        }
        _ if printable(c) => text.push(c),
        '\0'..='\x7f' => text.push_str(&format!("\\x{:02x}", u32::from(c))),
        '\u{80}'..='\u{ffff}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
        _ => text.push_str(&format!("\\U{:08x}", u32::from(c))),
    }
}

fn printable(c: char) -> bool {
    // After a letter also combining marks are shown as they are.
    c == ' ' || c == '\'' || ['a', c].iter().collect::<String>().escape_debug().count() == 2
}

/// What a quoted text stands for, and what follows it. `None` if `text` does not start with one.
pub fn unquote(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let raw = text.first() == Some(&b'`');
    if raw {
        let end = text[1..].iter().position(|byte| *byte == b'`')?;
        return Some((text[1..=end].to_vec(), &text[end + 2..]));
    }
    let mut rest = text.strip_prefix(b"\"")?;
    let mut value = Vec::new();
    loop {
        match rest {
            [b'"', after @ ..] => return Some((value, after)),
            [b'\\', escaped @ ..] => rest = unescape(escaped, &mut value)?,
            [b'\n', ..] | [] => return None,
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
        }
    }
}

fn unescape<'a>(text: &'a [u8], value: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (kind, rest) = text.split_first()?;
    let named = [(b'a', 7), (b'b', 8), (b'f', 12), (b'n', 10), (b'r', 13), (b't', 9), (b'v', 11)];
    if let Some((_, byte)) = named.iter().find(|(letter, _)| letter == kind) {
        value.push(*byte);
        return Some(rest);
    }
    let number = |length: usize, base: u32, text: &'a [u8]| {
        let digits = std::str::from_utf8(text.get(..length)?).ok()?;
        let plain = digits.chars().all(|c| c.is_digit(base));
        Some((u32::from_str_radix(digits, base).ok().filter(|_| plain)?, &text[length..]))
    };
    let (code, rest) = match kind {
        b'\\' | b'"' => {
            value.push(*kind);
            return Some(rest);
        }
        b'x' => number(2, 16, rest)?,
        b'0'..=b'7' => number(3, 8, text)?,
        b'u' => number(4, 16, rest)?,
        b'U' => number(8, 16, rest)?,
        _ => return None,
    };
    if matches!(kind, b'u' | b'U') {
        value.extend_from_slice(char::from_u32(code)?.to_string().as_bytes());
    } else {
        value.push(u8::try_from(code).ok()?);
    }
    Some(rest)
}

/// The end of the range of all keys that start with `key`; one byte of zero, "to the end", if there is none.
pub fn prefix_end(key: &[u8]) -> Vec<u8> {
    let Some(last) = key.iter().rposition(|byte| *byte < 0xff) else { return vec![0] };
    let mut end = key[..=last].to_vec();
    end[last] += 1;
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_and_read_back() {
        for (bytes, quoted) in [
            (&b"a \"b\" \\"[..], r#""a \"b\" \\""#),
            (b"\x00\x07\n\t\x7f\xff", r#""\x00\a\n\t\x7f\xff""#),
            ("é\u{301}日\u{a0}'".as_bytes(), "\"é\u{301}日\\u00a0'\""),
        ] {
            assert_eq!(quote(bytes), quoted);
            assert_eq!(unquote(quoted.as_bytes()).unwrap(), (bytes.to_vec(), &b""[..]));
        }
        assert_eq!(unquote(br#""\101\u00e9" rest"#).unwrap(), ("Aé".as_bytes().to_vec(), &b" rest"[..]));
        for broken in [&b"\"a"[..], b"a", b"\"\\q\"", b"\"\\xg0\"", b"\"\\x+1\"", b"\"\\ud800\"", b"\"\\777\"", b"\"\\"]
        {
            assert_eq!(unquote(broken), None, "{}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn numbers_are_read_and_refused_in_gos_words() {
        assert_eq!((flag_int("0x10"), flag_int("-7"), int("ff", 16), hex("Ff")), (Ok(16), Ok(-7), Ok(255), Ok(255)));
        assert_eq!(int("x", 10).unwrap_err(), "strconv.ParseInt: parsing \"x\": invalid syntax");
        assert_eq!(hex("+1").unwrap_err(), "strconv.ParseUint: parsing \"+1\": invalid syntax");
        let large = "99999999999999999999";
        assert_eq!(int(large, 10).unwrap_err(), format!("strconv.ParseInt: parsing \"{large}\": value out of range"));
        assert_eq!((switch("T"), switch("no").is_err()), (Ok(true), true));
    }

    #[test]
    fn times_and_sizes_are_short() {
        let times = [0, 999, 1_500, 2_061_418, 1_005_145_977, 60_000_000_000, 3_661_500_000_000];
        let printed = times.map(|nanos| time(Duration::from_nanos(nanos)));
        assert_eq!(printed, ["0s", "999ns", "1.5µs", "2.061418ms", "1.005145977s", "1m0s", "1h1m1.5s"]);
        assert_eq!([9, 20_480, 1_540_000, 999_999].map(size), ["9 B", "20 kB", "1.5 MB", "1000 kB"]);
        assert_eq!(
            (prefix_end(b"a"), prefix_end(b"a\xff"), prefix_end(b"\xff")),
            (b"b".to_vec(), b"b".to_vec(), vec![0])
        );
    }
}
