//! First pass: from the lengths of all keys and values to the length of the file and the numbers of its pages.
//!
//! Pages: two metas, the free list (empty), the trees of the buckets in their order, the tree whose items are the buckets.

use std::io::{self, Write};

use super::format::{BUCKET, HEADER, KEY_BYTES_MAX, PAGE, VALUE_BYTES_MAX};
use super::tree::{Child, Length, Pages, Tree};
use super::write::Emitter;

/// The page after the metas and the free list.
pub(super) const FIRST_PAGE: u64 = 3;

/// Where everything comes to stand. Its memory depends on the number of buckets only.
#[derive(Debug)]
pub struct Layout {
    pub(super) buckets: Vec<Planned>,
    pub(super) root: u64,
    pub(super) pages: u64,
}

/// A bucket as it was announced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub name: Vec<u8>,
    /// `None` if it is empty: then it has no page of its own.
    pub root: Option<u64>,
    pub lengths: Lengths,
}

/// What the lengths of a bucket's items come to, to see whether they were the same both times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lengths {
    items: u64,
    digest: u64,
}

/// Takes the lengths of all items, in the order in which they will be written.
pub struct LayoutBuilder {
    buckets: Vec<Planned>,
    open: Option<Open>,
    pages: Counter,
}

struct Open {
    name: Vec<u8>,
    tree: Tree<Length>,
    lengths: Lengths,
}

impl Layout {
    pub fn builder() -> LayoutBuilder {
        LayoutBuilder { buckets: Vec::new(), open: None, pages: Counter(FIRST_PAGE) }
    }

    /// Length of the file: a multiple of the page size.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE as u64
    }

    /// Begins the second pass, into `sink`.
    pub fn write<W: Write>(self, sink: W) -> Emitter<W> {
        Emitter::new(self, sink)
    }
}

impl LayoutBuilder {
    /// Begins a bucket. Names ascend.
    ///
    /// # Errors
    /// The name is not above the one before, empty or too long.
    pub fn bucket(&mut self, name: &[u8]) -> io::Result<()> {
        self.close()?;
        check_key(name.len())?;
        if self.buckets.last().is_some_and(|last| last.name.as_slice() >= name) {
            return Err(invalid("names of buckets do not ascend"));
        }
        self.open = Some(Open { name: name.to_owned(), tree: Tree::new(), lengths: Lengths::default() });
        Ok(())
    }

    /// Announces the next item of the bucket.
    ///
    /// # Errors
    /// There is no bucket, or bbolt takes no key or value so long.
    pub fn item(&mut self, key_len: usize, value_len: usize) -> io::Result<()> {
        let open = self.open.as_mut().ok_or_else(|| invalid("an item before the first bucket"))?;
        open.lengths.add(key_len, value_len)?;
        open.tree.add(key_len, value_len, || Length(key_len), &mut self.pages)
    }

    /// # Errors
    /// None that the calls before did not have.
    pub fn finish(mut self) -> io::Result<Layout> {
        self.close()?;
        let mut tree = Tree::new();
        for bucket in &self.buckets {
            let name = bucket.name.len();
            tree.add(name, bucket_value(bucket.root).len(), || Length(name), &mut self.pages)?;
        }
        let root = match tree.finish(&mut self.pages)? {
            Some(root) => root,
            None => self.pages.leaf(1)?,
        };
        Ok(Layout { buckets: self.buckets, root, pages: self.pages.0 })
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let root = open.tree.finish(&mut self.pages)?;
        self.buckets.push(Planned { name: open.name, root, lengths: open.lengths });
        Ok(())
    }
}

impl Lengths {
    /// # Errors
    /// bbolt takes no key or value so long.
    pub fn add(&mut self, key: usize, value: usize) -> io::Result<()> {
        check_key(key)?;
        if value > VALUE_BYTES_MAX {
            return Err(invalid(format!("a value of {value} bytes, bbolt takes {VALUE_BYTES_MAX}")));
        }
        self.items += 1;
        for length in [key as u64, value as u64] {
            self.digest = (self.digest ^ length).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        Ok(())
    }
}

/// What the tree of buckets holds for a bucket.
pub(super) fn bucket_value(root: Option<u64>) -> Vec<u8> {
    let mut value = vec![0; BUCKET];
    match root {
        Some(root) => value[..8].copy_from_slice(&root.to_le_bytes()),
        // As bbolt does it: an empty leaf that lies in the value itself.
        None => value.extend(super::format::header(0, super::format::KIND_LEAF, 0, 0)),
    }
    debug_assert!(value.len() == BUCKET || value.len() == BUCKET + HEADER);
    value
}

fn check_key(length: usize) -> io::Result<()> {
    match length {
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(invalid(format!("a key of {length} bytes, bbolt takes 1 to {KEY_BYTES_MAX}"))),
    }
}

pub(super) fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

/// Numbers pages that nobody writes yet: the next one.
struct Counter(u64);

impl Pages<Length> for Counter {
    fn leaf(&mut self, span: u64) -> io::Result<u64> {
        let page = self.0;
        self.0 += span;
        Ok(page)
    }

    fn branch(&mut self, span: u64, _: &[Child<Length>]) -> io::Result<u64> {
        self.leaf(span)
    }
}
