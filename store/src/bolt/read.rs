//! A file that is read: which of its two metas holds, its buckets, and the checksum behind it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use ring::digest;

use super::format::{BUCKET, HEADER, META, PAGE_MAX, PAGE_MIN, u64_at};
use super::items::{Items, Walk};
use super::meta::{Meta, MetaError};
use crate::limits;

/// Bytes of the SHA-256 at the end of a snapshot that came from a member.
const CHECKSUM: usize = digest::SHA256_OUTPUT_LEN;
/// Databases are whole pages. A snapshot is told by what is left after so many bytes, as etcd does it.
const SECTOR: u64 = 512;

/// Why a file is not read on.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    #[error("read the file")]
    Io(#[source] io::Error),
    #[error("it is no bbolt database")]
    Meta(#[source] MetaError),
    #[error("it is {length} bytes long and should be {pages} pages of {page_size}: its end is missing")]
    Short { length: u64, pages: u64, page_size: usize },
    #[error("it ends without a checksum, as a copied database file does")]
    NoChecksum,
    #[error("its checksum is wrong: expected sha256 {expected}, got {found}")]
    Checksum { expected: String, found: String },
    #[error("page {page} is damaged: {what}")]
    Page { page: u64, what: &'static str },
    #[error("it has more than {} buckets", limits::BOLT_BUCKETS)]
    Buckets,
}

/// An open file. Reads without a lock, so that something else must keep it from changing.
#[derive(Debug)]
pub struct Bolt {
    file: File,
    meta: Meta,
}

impl Bolt {
    /// Opens a database, or a snapshot without looking at its checksum.
    ///
    /// # Errors
    /// It cannot be read, has no valid meta page, or is shorter than that says.
    pub fn open(path: &Path) -> Result<Self, BoltError> {
        Self::with(File::open(path).map_err(BoltError::Io)?)
    }

    /// Opens what `snapshot save` wrote; with `check`, reads all of it first.
    ///
    /// # Errors
    /// Those of [`Bolt::open`]; with `check` also a checksum that is missing or wrong.
    pub fn open_snapshot(path: &Path, check: bool) -> Result<Self, BoltError> {
        let file = File::open(path).map_err(BoltError::Io)?;
        if check {
            check_sum(&file)?;
        }
        Self::with(file)
    }

    fn with(file: File) -> Result<Self, BoltError> {
        let length = file.metadata().map_err(BoltError::Io)?.len();
        let meta = choose_meta(&file)?;
        if meta.pages.checked_mul(meta.page_size as u64).is_none_or(|bytes| bytes > length) {
            return Err(BoltError::Short { length, pages: meta.pages, page_size: meta.page_size });
        }
        Ok(Self { file, meta })
    }

    /// Pages of the database, which the file may be longer than.
    pub fn pages(&self) -> u64 {
        self.meta.pages
    }

    pub fn page_size(&self) -> usize {
        self.meta.page_size
    }

    /// Names of all buckets, ascending.
    ///
    /// # Errors
    /// The file's damage, or more buckets than anybody makes.
    pub fn buckets(&self) -> Result<Vec<Bytes>, BoltError> {
        let mut names = Vec::new();
        let mut walk = Walk::new(self, self.meta.root);
        while let Some((_, bucket)) = walk.next_bucket()? {
            if names.len() == limits::BOLT_BUCKETS {
                return Err(BoltError::Buckets);
            }
            // Copied, so that a few names do not hold pages of anything.
            names.push(Bytes::copy_from_slice(&bucket.key));
        }
        Ok(names)
    }

    /// The items of a bucket; `None` if there is no such bucket.
    ///
    /// # Errors
    /// The file's damage, as far as the way to the bucket goes.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Items<'_>>, BoltError> {
        let mut walk = Walk::new(self, self.meta.root);
        while let Some((page, bucket)) = walk.next_bucket()? {
            if bucket.key != name {
                continue;
            }
            let wrong = |what| BoltError::Page { page, what };
            if bucket.value.len() < BUCKET {
                return Err(wrong("it has a bucket that is shorter than its head"));
            }
            let walk = match u64_at(&bucket.value, 0) {
                0 => Walk::inline(self, page, bucket.value.slice(BUCKET..))?,
                root => Walk::new(self, root),
            };
            return Ok(Some(Items::new(walk)));
        }
        Ok(None)
    }

    /// Reads `span` pages, which the caller knows to be there.
    pub(super) fn read(&self, id: u64, span: u64) -> Result<Vec<u8>, BoltError> {
        let mut raw = vec![0; usize::try_from(span).unwrap_or(usize::MAX).saturating_mul(self.meta.page_size)];
        self.file.read_exact_at(&mut raw, id * self.meta.page_size as u64).map_err(BoltError::Io)?;
        Ok(raw)
    }
}

impl Walk<'_> {
    /// The next item of the tree of buckets.
    fn next_bucket(&mut self) -> Result<Option<(u64, super::page::Item)>, BoltError> {
        match self.next().transpose()? {
            Some((page, item)) if !item.bucket => {
                Err(BoltError::Page { page, what: "it has a value where there are only buckets" })
            }
            found => Ok(found),
        }
    }
}

/// The valid meta of the later transaction. Either may be damaged: the page size is then known from the other.
fn choose_meta(file: &File) -> Result<Meta, BoltError> {
    let at = |offset: usize| -> Result<Result<Meta, MetaError>, BoltError> {
        let mut raw = [0; HEADER + META];
        match file.read_exact_at(&mut raw, offset as u64) {
            Ok(()) => Ok(Meta::decode(&raw)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(MetaError::Magic)),
            Err(error) => Err(BoltError::Io(error)),
        }
    };
    let first = at(0)?;
    let sizes = std::iter::successors(Some(PAGE_MIN), |size| Some(size * 2)).take_while(|size| *size <= PAGE_MAX);
    let mut second = None;
    for size in sizes.filter(|size| first.is_err() || first.is_ok_and(|first| first.page_size == *size)) {
        // With pages of another size this is the inside of some page, which could look like a meta.
        second = second.or(at(size)?.ok().filter(|meta| meta.page_size == size));
    }
    match (first, second) {
        (Ok(first), Some(second)) if second.transaction > first.transaction => Ok(second),
        (Ok(first), _) => Ok(first),
        (Err(_), Some(second)) => Ok(second),
        (Err(error), None) => Err(BoltError::Meta(error)),
    }
}

fn check_sum(file: &File) -> Result<(), BoltError> {
    let length = file.metadata().map_err(BoltError::Io)?.len();
    if length % SECTOR != CHECKSUM as u64 {
        return Err(BoltError::NoChecksum);
    }
    let end = length - CHECKSUM as u64;
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; limits::BOLT_CHECK_BYTES];
    let mut at = 0;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..wanted], at).map_err(BoltError::Io)?;
        sum.update(&buffer[..wanted]);
        at += wanted as u64;
    }
    let mut expected = [0; CHECKSUM];
    file.read_exact_at(&mut expected, end).map_err(BoltError::Io)?;
    let found = sum.finish();
    if found.as_ref() != expected {
        return Err(BoltError::Checksum { expected: hex(&expected), found: hex(found.as_ref()) });
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
