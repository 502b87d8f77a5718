//! Second pass: the pages, each written once and in the order of their numbers.
//!
//! Always holds: what comes out is the file that was laid out, or an error; a sink after an error holds no file.

use std::io::{self, Write};

use super::format::{ELEMENT, FLAG_BUCKET, HEADER, KIND_BRANCH, KIND_FREELIST, KIND_LEAF, PAGE, header};
use super::layout::{FIRST_PAGE, Layout, Lengths, bucket_value, invalid};
use super::meta::Meta;
use super::tree::{Child, Pages, Tree};

/// Number of the free list's page.
const FREELIST: u64 = 2;

/// Takes all that was laid out, in the same order.
pub struct Emitter<W> {
    layout: Layout,
    pages: Writer<W>,
    started: bool,
    /// Buckets that are done.
    done: usize,
    open: Option<Open>,
}

struct Open {
    tree: Tree<Vec<u8>>,
    lengths: Lengths,
    last: Vec<u8>,
}

impl<W: Write> Emitter<W> {
    pub(super) fn new(layout: Layout, sink: W) -> Self {
        let pages = Writer { sink, next: FIRST_PAGE, elements: Vec::new(), data: Vec::new(), page: Vec::new() };
        Self { layout, pages, started: false, done: 0, open: None }
    }

    /// Begins a bucket.
    ///
    /// # Errors
    /// It is not the one that was laid out next, the one before is not as it was laid out, or the sink's.
    pub fn bucket(&mut self, name: &[u8]) -> io::Result<()> {
        self.start()?;
        self.close()?;
        if self.layout.buckets.get(self.done).is_none_or(|planned| planned.name != name) {
            return Err(invalid("a bucket that was not laid out here"));
        }
        self.open = Some(Open { tree: Tree::new(), lengths: Lengths::default(), last: Vec::new() });
        Ok(())
    }

    /// Writes the next item. Keys ascend.
    ///
    /// # Errors
    /// There is no bucket, the key is not above the one before, or the sink's. Lengths that were not laid out are an error at the
    /// end of the bucket.
    pub fn item(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let open = self.open.as_mut().ok_or_else(|| invalid("an item before the first bucket"))?;
        if open.last.as_slice() >= key {
            return Err(invalid("keys of a bucket do not ascend, or one is empty"));
        }
        open.lengths.add(key.len(), value.len())?;
        open.tree.add(key.len(), value.len(), || key.to_owned(), &mut self.pages)?;
        open.last.clear();
        open.last.extend_from_slice(key);
        self.pages.item(0, key, value)
    }

    /// Writes what is left and gives the sink back, flushed.
    ///
    /// # Errors
    /// Something that was laid out was not written, or the sink's.
    pub fn finish(mut self) -> io::Result<W> {
        self.start()?;
        self.close()?;
        if self.done != self.layout.buckets.len() {
            return Err(invalid("a bucket that was laid out is missing"));
        }
        let mut tree = Tree::new();
        for bucket in &self.layout.buckets {
            let value = bucket_value(bucket.root);
            tree.add(bucket.name.len(), value.len(), || bucket.name.clone(), &mut self.pages)?;
            self.pages.item(FLAG_BUCKET, &bucket.name, &value)?;
        }
        let root = match tree.finish(&mut self.pages)? {
            Some(root) => root,
            None => self.pages.leaf(1)?,
        };
        if root != self.layout.root || self.pages.next != self.layout.pages {
            return Err(invalid("the pages written are not those that were laid out"));
        }
        self.pages.sink.flush()?;
        Ok(self.pages.sink)
    }

    fn start(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        for id in 0..FREELIST {
            let (root, pages) = (self.layout.root, self.layout.pages);
            let meta = Meta { page_size: PAGE, root, freelist: FREELIST, pages, transaction: id };
            self.pages.padded(&meta.encode(id))?;
        }
        self.pages.padded(&header(FREELIST, KIND_FREELIST, 0, 0))
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let root = open.tree.finish(&mut self.pages)?;
        let planned = &self.layout.buckets[self.done];
        if planned.lengths != open.lengths || planned.root != root {
            let name = String::from_utf8_lossy(&planned.name);
            return Err(invalid(format!("items of bucket {name:?} are not those that were laid out")));
        }
        self.done += 1;
        Ok(())
    }
}

/// The sink, and the leaf that is open.
struct Writer<W> {
    sink: W,
    next: u64,
    /// Flags, length of the key and of the value of each item.
    elements: Vec<[usize; 3]>,
    data: Vec<u8>,
    /// A page while it is put together; kept for its memory.
    page: Vec<u8>,
}

impl<W: Write> Writer<W> {
    fn item(&mut self, flags: u32, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.elements.push([flags as usize, key.len(), value.len()]);
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
        Ok(())
    }

    /// Writes `raw` and zeros up to the end of its last page.
    fn padded(&mut self, raw: &[u8]) -> io::Result<()> {
        const ZEROS: [u8; PAGE] = [0; PAGE];
        self.sink.write_all(raw)?;
        self.sink.write_all(&ZEROS[..raw.len().next_multiple_of(PAGE) - raw.len()])
    }

    /// Numbers the page that was put together, with its header in place, and writes it.
    fn put(&mut self, kind: u16, count: usize, span: u64) -> io::Result<u64> {
        let id = self.next;
        let too_large = |_| invalid("a page is larger than the format allows");
        let overflow = u32::try_from(span - 1).map_err(too_large)?;
        let count = u16::try_from(count).map_err(too_large)?;
        let mut page = std::mem::take(&mut self.page);
        page[..HEADER].copy_from_slice(&header(id, kind, count, overflow));
        if page.len().div_ceil(PAGE) as u64 != span {
            return Err(invalid("a page has another length than was laid out"));
        }
        self.padded(&page)?;
        page.clear();
        self.page = page;
        self.next += span;
        Ok(id)
    }

    fn number(&mut self, number: usize) -> io::Result<()> {
        let number = u32::try_from(number).map_err(|_| invalid("a page is larger than the format allows"))?;
        self.page.extend_from_slice(&number.to_le_bytes());
        Ok(())
    }
}

impl<W: Write> Pages<Vec<u8>> for Writer<W> {
    fn leaf(&mut self, span: u64) -> io::Result<u64> {
        let mut elements = std::mem::take(&mut self.elements);
        self.page.resize(HEADER, 0);
        let mut start = HEADER + elements.len() * ELEMENT;
        for (at, [flags, key, value]) in elements.iter().enumerate() {
            let element = HEADER + at * ELEMENT;
            for number in [*flags, start - element, *key, *value] {
                self.number(number)?;
            }
            start += key + value;
        }
        self.page.append(&mut self.data);
        let count = elements.len();
        elements.clear();
        self.elements = elements;
        self.put(KIND_LEAF, count, span)
    }

    fn branch(&mut self, span: u64, children: &[Child<Vec<u8>>]) -> io::Result<u64> {
        self.page.resize(HEADER, 0);
        let mut start = HEADER + children.len() * ELEMENT;
        for (at, child) in children.iter().enumerate() {
            self.number(start - (HEADER + at * ELEMENT))?;
            self.number(child.key.len())?;
            self.page.extend_from_slice(&child.page.to_le_bytes());
            start += child.key.len();
        }
        children.iter().for_each(|child| self.page.extend_from_slice(&child.key));
        self.put(KIND_BRANCH, children.len(), span)
    }
}
