//! The bytes of protobuf: a reader over a slice that trusts nothing, and a writer that works from the end to the front,
//! so that the length of every nested message is known when it is written.

/// Why bytes are no protobuf message.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    #[error("proto: illegal tag {0}")]
    Tag(u64),
    #[error("proto: wrong wireType = {got} for field {field}")]
    Mismatch { field: &'static str, got: u8 },
    #[error("proto: field {0} is not valid UTF-8")]
    Utf8(&'static str),
    #[error("proto: field {field}: {why}")]
    Value { field: &'static str, why: String },
    #[error("proto: the object is nested too deeply")]
    TooDeep,
    #[error("proto: the object has too many values")]
    TooLarge,
}

pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const BYTES: u8 = 2;
pub(super) const FIXED32: u8 = 5;

/// What a field's tag announces, read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// No field of the API has this type; it is skipped.
    Fixed32,
}

impl Scalar<'_> {
    pub fn wire_type(self) -> u8 {
        match self {
            Self::Varint(_) => VARINT,
            Self::Fixed64(_) => FIXED64,
            Self::Bytes(_) => BYTES,
            Self::Fixed32 => FIXED32,
        }
    }
}

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(WireError::Truncated)?;
            self.0 = rest;
            if shift == 63 && *byte > 1 {
                return Err(WireError::Overflow);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Overflow)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    /// The next field, or `None` at the end.
    pub fn field(&mut self) -> Result<Option<(u32, Scalar<'a>)>, WireError> {
        if self.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n != 0).ok_or(WireError::Tag(tag))?;
        let scalar = match (tag & 7) as u8 {
            VARINT => Scalar::Varint(self.varint()?),
            FIXED64 => Scalar::Fixed64(u64::from_le_bytes(self.array()?)),
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
                Scalar::Bytes(self.take(length)?)
            }
            FIXED32 => {
                self.take(4)?;
                Scalar::Fixed32
            }
            other => return Err(WireError::WireType(other)),
        };
        Ok(Some((number, scalar)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Truncated)
    }
}

/// Collects bytes in reverse.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes in their true order.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.reverse();
        self.0
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().rev());
    }

    fn varint(&mut self, mut value: u64) {
        let at = self.0.len();
        loop {
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            self.0.push(if value == 0 { byte } else { byte | 0x80 });
            if value == 0 {
                break;
            }
        }
        self.0[at..].reverse();
    }

    fn tag(&mut self, number: u32, wire_type: u8) {
        self.varint(u64::from(number) << 3 | u64::from(wire_type));
    }

    pub fn varint_field(&mut self, number: u32, value: u64) {
        self.varint(value);
        self.tag(number, VARINT);
    }

    pub fn double_field(&mut self, number: u32, value: f64) {
        self.raw(&value.to_le_bytes());
        self.tag(number, FIXED64);
    }

    pub fn bytes_field(&mut self, number: u32, bytes: &[u8]) {
        let end = self.len();
        self.raw(bytes);
        self.close(number, end);
    }

    /// Announces everything written since `end` as a field of nested bytes.
    pub fn close(&mut self, number: u32, end: usize) {
        let length = self.len() - end;
        self.varint(length as u64);
        self.tag(number, BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.bytes_field(3, b"abc");
        writer.double_field(2, 1.5);
        writer.varint_field(1, u64::MAX);
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        assert!(matches!(reader.field(), Ok(Some((1, Scalar::Varint(u64::MAX))))));
        assert!(matches!(reader.field(), Ok(Some((2, Scalar::Fixed64(_))))));
        assert!(matches!(reader.field(), Ok(Some((3, Scalar::Bytes(b"abc"))))));
        assert!(matches!(reader.field(), Ok(None)));
    }

    #[test]
    fn broken_bytes_are_errors() {
        for bytes in [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0xff; 11],
            &[0x00],
            &[0x0b],
            &[0x0d, 1],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ] {
            assert!(Reader::new(bytes).field().is_err(), "{bytes:?}");
        }
    }
}
