//! The envelope of Kubernetes protobuf: four bytes of magic, then `runtime.Unknown` (kind, raw message, encodings).

use super::{
    MAGIC,
    settle::Head,
    wire::{Reader, Scalar, WireError, Writer},
};
use crate::kinds::{self, Kind};

/// An opened envelope.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_encoding: &'a str,
    pub content_type: &'a str,
}

impl Envelope<'_> {
    /// The kind it names, if we know it.
    pub fn known(&self) -> Option<&'static Kind> {
        let (group, version) = kinds::split_api_version(self.api_version)?;
        kinds::by_gvk(group, version, self.kind)
    }

    pub fn head(&self) -> Head {
        Head { kind: Some(self.kind.to_owned()), api_version: Some(self.api_version.to_owned()) }
    }
}

/// Opens `body`, which must start with [`MAGIC`].
pub(super) fn open(body: &[u8]) -> Result<Envelope<'_>, WireError> {
    let mut envelope = Envelope { api_version: "", kind: "", raw: &[], content_encoding: "", content_type: "" };
    let mut reader = Reader::new(body.strip_prefix(MAGIC).unwrap_or(body));
    while let Some((number, scalar)) = reader.field()? {
        match (number, scalar) {
            (1, Scalar::Bytes(bytes)) => (envelope.api_version, envelope.kind) = type_meta(bytes)?,
            (2, Scalar::Bytes(bytes)) => envelope.raw = bytes,
            (3, Scalar::Bytes(bytes)) => envelope.content_encoding = word(bytes)?,
            (4, Scalar::Bytes(bytes)) => envelope.content_type = word(bytes)?,
            _ => (),
        }
    }
    Ok(envelope)
}

fn type_meta(bytes: &[u8]) -> Result<(&str, &str), WireError> {
    let (mut reader, mut words) = (Reader::new(bytes), ("", ""));
    while let Some((number, scalar)) = reader.field()? {
        match (number, scalar) {
            (1, Scalar::Bytes(bytes)) => words.0 = word(bytes)?,
            (2, Scalar::Bytes(bytes)) => words.1 = word(bytes)?,
            _ => (),
        }
    }
    Ok(words)
}

fn word(bytes: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::Utf8("typeMeta"))
}

/// Puts a message into an envelope.
pub(super) fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes_field(4, b"");
    out.bytes_field(3, b"");
    out.bytes_field(2, raw);
    let end = out.len();
    out.bytes_field(2, kind.as_bytes());
    out.bytes_field(1, api_version.as_bytes());
    out.close(1, end);
    out.raw(MAGIC);
    out.finish()
}
