//! The items of one bucket in ascending order of their keys.
//!
//! Always holds: it ends. No more pages are read than the file has, keys ascend over all of them, and no page below the root
//! is empty; a tree that leads back into itself fails one of these.

use bytes::Bytes;

use super::format::HEADER;
use super::page::{self, Item, Kind, Page};
use super::read::{Bolt, BoltError};
use crate::limits;

/// Reads a bucket page by page. Ends after an error. What it gives away pins the page it lies in.
pub struct Items<'a>(Walk<'a>);

impl<'a> Items<'a> {
    pub(super) fn new(walk: Walk<'a>) -> Self {
        Self(walk)
    }
}

impl Iterator for Items<'_> {
    type Item = Result<(Bytes, Bytes), BoltError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (page, item) = match self.0.next()? {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        if item.bucket {
            self.0.end();
            return Some(Err(BoltError::Page {
                page,
                what: "it has a bucket within a bucket, which etcd has nowhere",
            }));
        }
        Some(Ok((item.key, item.value)))
    }
}

/// A tree from left to right, with the page that each item lies in.
pub(super) struct Walk<'a> {
    bolt: &'a Bolt,
    /// The branches above the leaf, the root first.
    branches: Vec<Branch>,
    leaf: Option<Leaf>,
    /// The next page to read; none if that is up to the branches.
    start: Option<u64>,
    /// Pages that may still be read.
    left: u64,
    last: Option<Bytes>,
}

struct Branch {
    id: u64,
    page: Page,
    /// The child that comes next.
    at: usize,
    /// All keys below are below it.
    end: Option<Bytes>,
}

struct Leaf {
    id: u64,
    page: Page,
    at: usize,
}

impl<'a> Walk<'a> {
    /// The tree that begins at page `root`.
    pub fn new(bolt: &'a Bolt, root: u64) -> Self {
        Self { bolt, branches: Vec::new(), leaf: None, start: Some(root), left: bolt.pages(), last: None }
    }

    /// The one page that lies in the value of a bucket, found in page `id`.
    pub fn inline(bolt: &'a Bolt, id: u64, raw: Bytes) -> Result<Self, BoltError> {
        let page = Page::parse(raw, 0).map_err(|_| "it has a bucket whose own page is damaged");
        let page = page.and_then(|page| match page.kind {
            Kind::Leaf => Ok(page),
            Kind::Branch => Err("it has a bucket whose own page is a branch"),
        });
        let page = page.map_err(|what| BoltError::Page { page: id, what })?;
        let leaf = Some(Leaf { id, page, at: 0 });
        Ok(Self { bolt, branches: Vec::new(), leaf, start: None, left: 0, last: None })
    }

    pub fn next(&mut self) -> Option<Result<(u64, Item), BoltError>> {
        let found = self.step();
        if found.is_err() {
            self.end();
        }
        found.transpose()
    }

    /// Nothing comes any more.
    pub fn end(&mut self) {
        self.branches.clear();
        (self.leaf, self.start) = (None, None);
    }

    fn step(&mut self) -> Result<Option<(u64, Item)>, BoltError> {
        loop {
            if let Some(leaf) = &mut self.leaf {
                if let Some(item) = leaf.page.item(leaf.at) {
                    leaf.at += 1;
                    self.last = Some(item.key.clone());
                    return Ok(Some((leaf.id, item)));
                }
                self.leaf = None;
            }
            if let Some(root) = self.start.take() {
                self.enter(root, None, None)?;
                continue;
            }
            let Some(branch) = self.branches.last_mut() else { return Ok(None) };
            let Some(child) = branch.page.child(branch.at) else {
                self.branches.pop();
                continue;
            };
            let first = branch.page.shared_key(branch.at);
            let end = branch.page.shared_key(branch.at + 1).or_else(|| branch.end.clone());
            branch.at += 1;
            self.enter(child, first, end)?;
        }
    }

    /// Goes down to page `id`, whose keys are from `first` to below `end`.
    fn enter(&mut self, id: u64, first: Option<Bytes>, end: Option<Bytes>) -> Result<(), BoltError> {
        let wrong = |what| BoltError::Page { page: id, what };
        let page = self.read(id)?;
        if page.len() == 0 {
            // A bucket that lost its items may have an empty root; nothing else is ever empty.
            return match (page.kind, self.branches.is_empty()) {
                (Kind::Leaf, true) => Ok(()),
                _ => Err(wrong("it is empty")),
            };
        }
        if first.is_some_and(|first| page.first() < first) || end.as_ref().is_some_and(|end| page.last() >= end) {
            return Err(wrong("its keys are not those that the branch above it says"));
        }
        match page.kind {
            Kind::Leaf => {
                if self.last.as_ref().is_some_and(|last| page.first() <= last) {
                    return Err(wrong("its keys are not above those of the leaf before it"));
                }
                self.leaf = Some(Leaf { id, page, at: 0 });
            }
            Kind::Branch => {
                if self.branches.len() >= limits::BOLT_DEPTH {
                    return Err(wrong("it lies deeper than any tree needs to be"));
                }
                self.branches.push(Branch { id, page, at: 0, end });
            }
        }
        Ok(())
    }

    fn read(&mut self, id: u64) -> Result<Page, BoltError> {
        let wrong = |what| BoltError::Page { page: id, what };
        if self.branches.iter().any(|branch| branch.id == id) {
            return Err(wrong("it lies below itself"));
        }
        if id >= self.bolt.pages() {
            return Err(wrong("it lies beyond the end"));
        }
        let mut raw = self.bolt.read(id, 1)?;
        let span = page::span(&raw);
        let most = match page::kind(&raw[..HEADER], id).map_err(wrong)? {
            Kind::Branch => limits::BOLT_BRANCH_BYTES,
            Kind::Leaf => limits::BOLT_LEAF_BYTES,
        };
        if span > self.bolt.pages() - id {
            return Err(wrong("it goes on beyond the end"));
        }
        if span > 1 && span.saturating_mul(raw.len() as u64) > most as u64 {
            return Err(wrong("it is larger than any is read"));
        }
        self.left = self.left.checked_sub(span).ok_or_else(|| wrong("it shares pages with another"))?;
        if span > 1 {
            raw = self.bolt.read(id, span)?;
        }
        Page::parse(raw.into(), id).map_err(wrong)
    }
}
