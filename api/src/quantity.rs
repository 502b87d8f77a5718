//! Resource quantities (`500m`, `2Gi`, `1e3`): exact arithmetic and the canonical text that Kubernetes stores.
//!
//! A quantity is a whole number of billionths, as precise as upstream's own limit, in 128 bits: enough for every value
//! up to 1.7e29. A finer value is rounded away from zero; a larger one is refused.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

const NANO: i128 = 1_000_000_000;
/// Largest amount a binary quantity holds; a larger one becomes this.
const BINARY_MAX: i128 = (i64::MAX as i128) * NANO;

/// Which family of suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `k`, `M`, `m`...
    DecimalSi,
    /// `Ki`, `Mi`...
    BinarySi,
    /// `e3`, `e-3`...
    DecimalExponent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact amount and the way it is written. Equality and order look at the amount only.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Bytes, written with `Ki`, `Mi`...
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// The quantity in a field: a string, or a number as JSON allows.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(ParseError::Format),
        }
    }

    /// Whole units, rounded away from zero; saturates.
    pub fn units(&self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero; saturates.
    pub fn milli(&self) -> i64 {
        saturate(div_up(self.nanos, NANO / 1000))
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether there is a part smaller than one unit.
    pub fn is_fractional(&self) -> bool {
        self.nanos % NANO != 0
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Rounds away from zero to thousandths.
    #[must_use]
    pub fn rounded_to_milli(self) -> Self {
        let step = NANO / 1000;
        Self { nanos: div_up(self.nanos, step) * step, ..self }
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn div_up(value: i128, step: i128) -> i128 {
    let whole = value / step;
    match value % step {
        0 => whole,
        rest if rest < 0 => whole - 1,
        _ => whole + 1,
    }
}

/// What a suffix means: base, exponent, family.
enum Suffix {
    Ten(i32, Format),
    Two(u32),
}

fn suffix(text: &str) -> Option<Suffix> {
    let ten = |exponent| Some(Suffix::Ten(exponent, Format::DecimalSi));
    match text {
        "n" => ten(-9),
        "u" => ten(-6),
        "m" => ten(-3),
        "" => ten(0),
        "k" => ten(3),
        "M" => ten(6),
        "G" => ten(9),
        "T" => ten(12),
        "P" => ten(15),
        "E" => ten(18),
        "Ki" => Some(Suffix::Two(10)),
        "Mi" => Some(Suffix::Two(20)),
        "Gi" => Some(Suffix::Two(30)),
        "Ti" => Some(Suffix::Two(40)),
        "Pi" => Some(Suffix::Two(50)),
        "Ei" => Some(Suffix::Two(60)),
        _ => {
            let digits = text.strip_prefix(['e', 'E'])?;
            let exponent: i32 = digits.strip_prefix('+').unwrap_or(digits).parse().ok()?;
            Some(Suffix::Ten(exponent, Format::DecimalExponent))
        }
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, tail) = unsigned.split_at(end);
        if number.is_empty() {
            return Err(ParseError::Format);
        }
        check_tail(tail)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseError::Number);
        }
        let (nanos, mut format) = match suffix(tail).ok_or(ParseError::Suffix)? {
            Suffix::Ten(exponent, format) => (decimal_nanos(whole, fraction, exponent)?, format),
            Suffix::Two(exponent) => (binary_nanos(whole, fraction, exponent)?, Format::BinarySi),
        };
        if format == Format::BinarySi && nanos > 0 && nanos < NANO {
            format = Format::DecimalSi;
        }
        Ok(Self { nanos: if text.starts_with('-') { -nanos } else { nanos }, format })
    }
}

/// The characters a suffix may have at all: letters of suffixes, then a signed number.
fn check_tail(tail: &str) -> Result<(), ParseError> {
    let letters = tail.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let digits = letters.strip_prefix(['+', '-']).unwrap_or(letters);
    if digits.bytes().all(|b| b.is_ascii_digit()) { Ok(()) } else { Err(ParseError::Format) }
}

/// Digits whose point stands `shift` places further right, as nanos; what is finer counts as one more.
fn decimal_nanos(whole: &str, fraction: &str, exponent: i32) -> Result<i128, ParseError> {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let fraction_length = i64::try_from(fraction.len()).map_err(|_| ParseError::Number)?;
    let shift = i64::from(exponent) - fraction_length + 9;
    if shift < 0 {
        let dropped = usize::try_from(-shift).unwrap_or(usize::MAX);
        let kept = digits.len().saturating_sub(dropped);
        let value: i128 = if kept == 0 { 0 } else { digits[..kept].parse().map_err(|_| ParseError::Number)? };
        let rest = digits[kept..].bytes().any(|b| b != b'0');
        return value.checked_add(i128::from(rest)).ok_or(ParseError::Number);
    }
    let value: i128 = digits.parse().map_err(|_| ParseError::Number)?;
    let power = u32::try_from(shift).ok().and_then(|shift| 10i128.checked_pow(shift)).ok_or(ParseError::Number)?;
    value.checked_mul(power).ok_or(ParseError::Number)
}

fn binary_nanos(whole: &str, fraction: &str, exponent: u32) -> Result<i128, ParseError> {
    let factor = 1i128 << exponent;
    let whole = whole.trim_start_matches('0');
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(i128::MAX) };
    // Eighteen digits of fraction are finer than a billionth of the largest unit can show after capping.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| ParseError::Number)? };
    let whole = whole.checked_mul(factor).and_then(|units| units.checked_mul(NANO)).unwrap_or(BINARY_MAX);
    let part = part.checked_mul(factor).ok_or(ParseError::Number)?;
    // part / scale units: whole units first, so that the product with NANO stays in range.
    let nanos = (part / scale) * NANO + div_up((part % scale).saturating_mul(NANO), scale);
    Ok(whole.saturating_add(nanos).min(BINARY_MAX))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let fits_binary = self.nanos.abs() >= 1024 * NANO && !self.is_fractional();
        if self.format == Format::BinarySi && fits_binary {
            return write_binary(f, self.nanos / NANO);
        }
        write_decimal(f, self.nanos, self.format)
    }
}

fn write_binary(f: &mut fmt::Formatter<'_>, mut units: i128) -> fmt::Result {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut step = 0;
    while units % 1024 == 0 && step + 1 < SUFFIXES.len() {
        units /= 1024;
        step += 1;
    }
    write!(f, "{units}{}", SUFFIXES[step])
}

fn write_decimal(f: &mut fmt::Formatter<'_>, mut amount: i128, format: Format) -> fmt::Result {
    const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    let last = if format == Format::DecimalExponent { usize::MAX } else { SUFFIXES.len() - 1 };
    let mut step = 0;
    while amount % 1000 == 0 && step < last {
        amount /= 1000;
        step += 1;
    }
    match (format, step) {
        (Format::DecimalExponent, 3) => write!(f, "{amount}"),
        (Format::DecimalExponent, _) => write!(f, "{amount}e{}", i64::try_from(step).unwrap_or(0) * 3 - 9),
        _ => write!(f, "{amount}{}", SUFFIXES[step]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str) {
        let quantity: Quantity = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(quantity.to_string(), canonical, "{text}");
        let again: Quantity = canonical.parse().expect("canonical text");
        assert_eq!(again, quantity, "{text}");
    }

    #[track_caller]
    fn refused(text: &str, want: ParseError) {
        assert_eq!(text.parse::<Quantity>().map(|q| q.to_string()), Err(want), "{text}");
    }

    #[test]
    fn canonical_texts() {
        for (text, canonical) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1", "1"),
            ("1000", "1k"),
            ("+2", "2"),
            ("-2", "-2"),
            ("1024Mi", "1Gi"),
            ("1Gi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("1025", "1025"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("1E", "1E"),
            ("1e-3", "1e-3"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("100n", "100n"),
            ("1u", "1u"),
            ("129e6", "129e6"),
            ("123M", "123M"),
            ("8Ei", "9223372036854775807"),
            ("110", "110"),
        ] {
            check(text, canonical);
        }
    }

    #[test]
    fn bad_texts() {
        for text in ["", "Mi", "-", "1 Gi", "abc", "1Gi2x", "0x10"] {
            refused(text, ParseError::Format);
        }
        for text in ["1KiB", "1ki", "1mm", "1i", "1e", "1K"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        refused("1.2.3", ParseError::Number);
        refused("1e99", ParseError::Number);
    }

    #[test]
    fn amounts() {
        let cpu: Quantity = "250m".parse().expect("quantity");
        assert_eq!((cpu.milli(), cpu.units()), (250, 1));
        let sum = cpu.plus("1".parse().expect("quantity"));
        assert_eq!(sum.to_string(), "1250m");
        let memory: Quantity = "1Gi".parse().expect("quantity");
        assert_eq!(memory.minus(Quantity::from_bytes(1 << 29)).to_string(), "512Mi");
        assert!("1Gi".parse::<Quantity>().expect("quantity") > "1G".parse().expect("quantity"));
        assert_eq!("0.0001".parse::<Quantity>().expect("quantity").rounded_to_milli().to_string(), "1m");
        assert_eq!(Quantity::from_value(&serde_json::json!(0.5)).expect("number").to_string(), "500m");
    }
}
