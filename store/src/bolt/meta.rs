//! Meta pages: where the tree of buckets begins, and how many pages there are. A file has two, so that one is always whole.

use super::format::{HEADER, KIND_META, META, PAGE_MAX, PAGE_MIN, fnv, header, u16_at, u32_at, u64_at};

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// Bytes before the checksum, which it is over.
const SUMMED: usize = META - 8;

/// What a valid meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub page_size: usize,
    /// First page of the tree whose items are the buckets.
    pub root: u64,
    pub freelist: u64,
    /// The first page that is not there: pages of the file.
    pub pages: u64,
    pub transaction: u64,
}

/// Why a meta page is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    #[error("no meta page is there")]
    Magic,
    #[error("its format version is {0}, and 2 is read here")]
    Version(u32),
    #[error("its checksum is wrong")]
    Checksum,
    #[error("its page size {0} is none")]
    PageSize(u32),
}

impl Meta {
    /// The page up to what nobody reads.
    pub fn encode(&self, id: u64) -> [u8; HEADER + META] {
        let mut raw = [0; HEADER + META];
        raw[..HEADER].copy_from_slice(&header(id, KIND_META, 0, 0));
        let body = &mut raw[HEADER..];
        let page_size = u32::try_from(self.page_size).unwrap_or_default();
        for (at, number) in [MAGIC, VERSION, page_size, 0].into_iter().enumerate() {
            body[at * 4..at * 4 + 4].copy_from_slice(&number.to_le_bytes());
        }
        for (at, number) in [self.root, 0, self.freelist, self.pages, self.transaction].into_iter().enumerate() {
            body[16 + at * 8..24 + at * 8].copy_from_slice(&number.to_le_bytes());
        }
        let sum = fnv(&body[..SUMMED]);
        body[SUMMED..].copy_from_slice(&sum.to_le_bytes());
        raw
    }

    /// Reads a page that begins with `raw`.
    ///
    /// # Errors
    /// It is no meta page, of another version, or damaged.
    pub fn decode(raw: &[u8]) -> Result<Self, MetaError> {
        let body = raw.get(HEADER..HEADER + META).ok_or(MetaError::Magic)?;
        if u32_at(body, 0) != MAGIC || u16_at(raw, 8) != KIND_META {
            return Err(MetaError::Magic);
        }
        if fnv(&body[..SUMMED]) != u64_at(body, SUMMED) {
            return Err(MetaError::Checksum);
        }
        if u32_at(body, 4) != VERSION {
            return Err(MetaError::Version(u32_at(body, 4)));
        }
        let page_size = u32_at(body, 8);
        let size = usize::try_from(page_size).unwrap_or_default();
        if !size.is_power_of_two() || !(PAGE_MIN..=PAGE_MAX).contains(&size) {
            return Err(MetaError::PageSize(page_size));
        }
        Ok(Self {
            page_size: size,
            root: u64_at(body, 16),
            freelist: u64_at(body, 32),
            pages: u64_at(body, 40),
            transaction: u64_at(body, 48),
        })
    }
}

/// Gives whatever stands where metas are the marks and checksums of metas: what a fuzzer would not find.
#[cfg(any(test, debug_assertions))]
pub(crate) fn mend(raw: &mut [u8]) {
    for at in [0, super::format::PAGE] {
        let Some(page) = raw.get_mut(at..at + HEADER + META) else { continue };
        page[8..10].copy_from_slice(&KIND_META.to_le_bytes());
        let body = &mut page[HEADER..];
        body[..4].copy_from_slice(&MAGIC.to_le_bytes());
        body[4..8].copy_from_slice(&VERSION.to_le_bytes());
        let sum = fnv(&body[..SUMMED]);
        body[SUMMED..].copy_from_slice(&sum.to_le_bytes());
    }
}
