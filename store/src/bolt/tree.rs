//! The shape of one tree, made from left to right: which items share a page, and which page gets which number.
//!
//! Both passes go through here, one with keys' lengths and one with keys, so that they cannot come to different shapes. A page
//! is numbered, and given to [`Pages`], once it is full: children come before their parents, and a level holds one open page.

use std::io;

use super::format::{ELEMENT, HEADER, PAGE};

/// A branch has so many children before it may be full, however long their keys: each level is at most half of the one below.
const CHILDREN_MIN: usize = 2;

/// What is known of a key: all of it, or its length.
pub(super) trait Key {
    fn length(&self) -> usize;
}

/// A key of which only the length is known.
pub(super) struct Length(pub usize);

impl Key for Length {
    fn length(&self) -> usize {
        self.0
    }
}

impl Key for Vec<u8> {
    fn length(&self) -> usize {
        self.len()
    }
}

pub(super) struct Child<K> {
    pub key: K,
    pub page: u64,
}

/// Takes pages that are full and numbers them.
pub(super) trait Pages<K> {
    /// The items added since the last leaf are one, of `span` pages.
    fn leaf(&mut self, span: u64) -> io::Result<u64>;
    fn branch(&mut self, span: u64, children: &[Child<K>]) -> io::Result<u64>;
}

pub(super) struct Tree<K> {
    /// First key of the open leaf; none if it is empty.
    first: Option<K>,
    leaf_bytes: usize,
    levels: Vec<Level<K>>,
}

struct Level<K> {
    children: Vec<Child<K>>,
    bytes: usize,
}

impl<K: Key> Tree<K> {
    pub fn new() -> Self {
        Self { first: None, leaf_bytes: HEADER, levels: Vec::new() }
    }

    /// Makes room for the next item; a leaf that has none for it goes to `pages` before.
    pub fn add(
        &mut self,
        key_length: usize,
        value_length: usize,
        key: impl FnOnce() -> K,
        pages: &mut impl Pages<K>,
    ) -> io::Result<()> {
        let bytes = ELEMENT + key_length + value_length;
        if self.first.is_some() && self.leaf_bytes + bytes > PAGE {
            self.close_leaf(pages)?;
        }
        self.first.get_or_insert_with(key);
        self.leaf_bytes += bytes;
        Ok(())
    }

    /// Ends the tree: its root page, none if there was no item.
    pub fn finish(mut self, pages: &mut impl Pages<K>) -> io::Result<Option<u64>> {
        self.close_leaf(pages)?;
        let mut at = 0;
        while let Some(level) = self.levels.get(at) {
            if let ([only], true) = (&level.children[..], at + 1 == self.levels.len()) {
                return Ok(Some(only.page));
            }
            if let Some(parent) = self.close(at, pages)? {
                self.push(at + 1, parent, pages)?;
            }
            at += 1;
        }
        Ok(None)
    }

    fn close_leaf(&mut self, pages: &mut impl Pages<K>) -> io::Result<()> {
        let Some(key) = self.first.take() else { return Ok(()) };
        let page = pages.leaf(span(self.leaf_bytes))?;
        self.leaf_bytes = HEADER;
        self.push(0, Child { key, page }, pages)
    }

    fn push(&mut self, mut at: usize, mut child: Child<K>, pages: &mut impl Pages<K>) -> io::Result<()> {
        loop {
            if self.levels.len() == at {
                self.levels.push(Level { children: Vec::new(), bytes: HEADER });
            }
            let bytes = ELEMENT + child.key.length();
            let open = &self.levels[at];
            let full = open.children.len() >= CHILDREN_MIN && open.bytes + bytes > PAGE;
            let parent = if full { self.close(at, pages)? } else { None };
            self.levels[at].bytes += bytes;
            self.levels[at].children.push(child);
            let Some(parent) = parent else { return Ok(()) };
            (at, child) = (at + 1, parent);
        }
    }

    /// The open page of a level as a child of the level above; the level is empty after.
    fn close(&mut self, at: usize, pages: &mut impl Pages<K>) -> io::Result<Option<Child<K>>> {
        let open = std::mem::replace(&mut self.levels[at], Level { children: Vec::new(), bytes: HEADER });
        let page = pages.branch(span(open.bytes), &open.children)?;
        Ok(open.children.into_iter().next().map(|first| Child { key: first.key, page }))
    }
}

/// Pages that so many bytes need.
fn span(bytes: usize) -> u64 {
    bytes.div_ceil(PAGE) as u64
}
