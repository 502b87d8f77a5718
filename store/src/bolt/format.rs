//! Numbers of the format. All integers are little-endian; offsets of elements count from the element itself.

/// Size of the pages that are written: what bbolt takes from the machines it usually runs on.
pub(super) const PAGE: usize = 4096;
/// Sizes of pages that are read: powers of two between these.
pub(super) const PAGE_MIN: usize = 1 << 10;
pub(super) const PAGE_MAX: usize = 1 << 16;
/// Page header: id u64, kind u16, count u16, pages that follow and belong to it u32.
pub(super) const HEADER: usize = 16;
/// Leaf: flags u32, offset u32, key length u32, value length u32. Branch: offset u32, key length u32, page u64.
pub(super) const ELEMENT: usize = 16;
/// Head of a bucket's value: root page u64, sequence u64. A root of 0: the bucket's only page follows.
pub(super) const BUCKET: usize = 16;
/// Fields of a meta page after its header.
pub(super) const META: usize = 64;

pub(super) const KIND_BRANCH: u16 = 0x01;
pub(super) const KIND_LEAF: u16 = 0x02;
pub(super) const KIND_META: u16 = 0x04;
pub(super) const KIND_FREELIST: u16 = 0x10;

/// Flag of a leaf's element whose value is a bucket.
pub(super) const FLAG_BUCKET: u32 = 0x01;

/// bbolt takes no longer keys.
pub(super) const KEY_BYTES_MAX: usize = 32_768;
/// bbolt takes no longer values.
pub(super) const VALUE_BYTES_MAX: usize = (1 << 31) - 2;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// FNV-1a of 64 bits.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV_OFFSET, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

pub(super) fn header(id: u64, kind: u16, count: u16, overflow: u32) -> [u8; HEADER] {
    let mut raw = [0; HEADER];
    raw[..8].copy_from_slice(&id.to_le_bytes());
    raw[8..10].copy_from_slice(&kind.to_le_bytes());
    raw[10..12].copy_from_slice(&count.to_le_bytes());
    raw[12..].copy_from_slice(&overflow.to_le_bytes());
    raw
}

/// The integer at `at`. The caller has made sure that it is there; beyond the end there are zeros.
pub(super) fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(raw, at))
}

pub(super) fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(raw, at))
}

pub(super) fn u16_at(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(raw, at))
}

fn array<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    raw.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}
