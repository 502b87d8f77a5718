//! Values whose JSON is not that of their protobuf fields: times, durations, quantities, int-or-string.
//!
//! `canonical` brings JSON into the form Go writes; the other functions convert to and from protobuf's parts.

use jiff::Timestamp;
use serde_json::Value;

use crate::{quantity::Quantity, schema::Shape};

/// Checks and canonicalises a special value; the error is Go's text.
pub(super) fn canonical(shape: Shape, value: Value) -> Result<Value, String> {
    match shape {
        Shape::Time => time_text(&value).and_then(|text| parse_time(text).map(format_time)).map(Value::String),
        Shape::MicroTime => time_text(&value).and_then(|text| parse_time(text).map(format_micro)).map(Value::String),
        Shape::Duration => {
            let Value::String(text) = &value else { return Err(wrong_kind(&value, "string")) };
            parse_duration(text).map(|nanos| Value::String(format_duration(nanos)))
        }
        Shape::Quantity => quantity(&value).map(Value::String),
        Shape::IntOrString => int_or_string(value),
        _ => Ok(value),
    }
}

fn time_text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| wrong_kind(value, "string"))
}

/// `json: cannot unmarshal number into Go value of type string`
fn wrong_kind(value: &Value, want: &str) -> String {
    format!("json: cannot unmarshal {} into Go value of type {want}", json_kind(value))
}

/// How Go's errors call a JSON value.
pub(super) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// RFC 3339 as Go reads it. jiff alone would also take blanks, missing seconds and week dates.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    let bad = || format!(r#"parsing time {text:?} as "2006-01-02T15:04:05Z07:00": cannot parse {text:?} as "2006""#);
    let bytes = text.as_bytes();
    let shape = |at: usize, want: u8| bytes.get(at) == Some(&want);
    let digits = |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
    let date = digits(0..4) && shape(4, b'-') && digits(5..7) && shape(7, b'-') && digits(8..10) && shape(10, b'T');
    let clock = digits(11..13) && shape(13, b':') && digits(14..16) && shape(16, b':') && digits(17..19);
    let rest = bytes.get(19..).unwrap_or_default();
    let fraction = match rest.first() {
        Some(b'.') => 1 + rest[1..].iter().take_while(|b| b.is_ascii_digit()).count(),
        _ => 0,
    };
    let zone = match &rest[fraction..] {
        [b'Z'] => true,
        [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].iter().all(|x| x.is_ascii_digit()),
        _ => false,
    };
    if !(date && clock && zone) || fraction == 1 || fraction > 10 {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

pub(super) fn format_time(time: Timestamp) -> String {
    jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%SZ", time).unwrap_or_default()
}

pub(super) fn format_micro(time: Timestamp) -> String {
    jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%S.%6fZ", time).unwrap_or_default()
}

/// A time from protobuf's parts; `None` if it lies outside the years JSON can show.
pub(super) fn time_from_parts(seconds: i64, nanos: i32) -> Option<Timestamp> {
    (0..1_000_000_000).contains(&nanos).then(|| Timestamp::new(seconds, nanos).ok()).flatten()
}

fn quantity(value: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => {
            return Err(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".into()
            );
        }
    };
    text.parse::<Quantity>().map(|q| q.to_string()).map_err(|error| error.to_string())
}

fn int_or_string(value: Value) -> Result<Value, String> {
    match &value {
        Value::String(_) => Ok(value),
        Value::Number(n) if n.as_i64().is_some_and(|i| i32::try_from(i).is_ok()) => Ok(value),
        Value::Number(n) => Err(format!("json: cannot unmarshal number {n} into Go value of type int32")),
        _ => Err(wrong_kind(&value, "int32")),
    }
}

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Go's `time.ParseDuration`, in nanoseconds.
pub(super) fn parse_duration(text: &str) -> Result<i64, String> {
    let bad = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() || text.len() > 128 {
        return Err(bad());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
        let (number, after) = rest.split_at(number_len);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_len);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        total = total.checked_add(scaled(number, *scale).ok_or_else(bad)?).ok_or_else(bad)?;
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| bad())
}

/// `1.5` times the scale.
fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    let mut value = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()?.checked_mul(scale)? };
    let mut unit = scale;
    for digit in fraction.bytes() {
        unit /= 10;
        value += i128::from(digit - b'0') * unit;
    }
    Some(value)
}

/// Go's `Duration.String`.
pub(super) fn format_duration(nanos: i64) -> String {
    let (sign, n) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let decimals = |value: u64, unit: u64, width: usize| {
        let fraction = format!("{:0width$}", value % unit);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}", value / unit)
    };
    match n {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{n}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", decimals(n, 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimals(n, 1_000_000, 6)),
        _ => {
            let (minutes, seconds) = (n / 60_000_000_000, decimals(n % 60_000_000_000, 1_000_000_000, 9));
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_become_utc_and_nonsense_is_refused() {
        let time = |text: &str| canonical(Shape::Time, json!(text));
        assert_eq!(time("2026-01-02T03:04:05Z").unwrap(), "2026-01-02T03:04:05Z");
        assert_eq!(time("2026-01-02T03:04:05.999+02:00").unwrap(), "2026-01-02T01:04:05Z");
        assert_eq!(canonical(Shape::MicroTime, json!("2026-01-02T03:04:05Z")).unwrap(), "2026-01-02T03:04:05.000000Z");
        for bad in ["", "x", "2026-01-02", "2026-01-02 03:04:05Z", "2026-13-02T03:04:05Z", "2026-01-02T03:04Z", "T"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert!(canonical(Shape::Time, json!(1)).unwrap_err().contains("cannot unmarshal number"));
    }

    #[test]
    fn durations_are_gos() {
        for (text, want) in [("90s", "1m30s"), ("1.5h", "1h30m0s"), ("100ms", "100ms"), ("0", "0s"), ("-1us", "-1µs")]
        {
            assert_eq!(format_duration(parse_duration(text).unwrap()), want);
        }
        for bad in ["", "1", "s", "1x", ".s", "1..2s", "99999999999999h", "--1s", "é"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn int_or_string_takes_no_fractions() {
        let check = |v: Value| canonical(Shape::IntOrString, v);
        assert!(check(json!(80)).is_ok() && check(json!("25%")).is_ok());
        assert!(check(json!(1.5)).is_err() && check(json!(1u64 << 40)).is_err() && check(json!([])).is_err());
    }
}
