//! Pages as they are read: nothing they say of themselves is believed before it was compared with what is there.

use bytes::Bytes;

use super::format::{ELEMENT, FLAG_BUCKET, HEADER, KIND_BRANCH, KIND_LEAF, u16_at, u32_at, u64_at};

/// A page of items or of children whose elements all lie in it, at least one of them unless it is a root.
#[derive(Debug)]
pub(super) struct Page {
    pub kind: Kind,
    count: usize,
    raw: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Branch,
    Leaf,
}

/// An item of a leaf.
pub(super) struct Item {
    pub key: Bytes,
    pub value: Bytes,
    pub bucket: bool,
}

/// Pages that belong to the one whose header this is, itself among them.
pub(super) fn span(header: &[u8]) -> u64 {
    u64::from(u32_at(header, 12)) + 1
}

/// # Errors
/// What the header says that cannot be, for a page that was asked for as `id`.
pub(super) fn kind(header: &[u8], id: u64) -> Result<Kind, &'static str> {
    if u64_at(header, 0) != id {
        return Err("it says it is another page");
    }
    match u16_at(header, 8) {
        KIND_BRANCH => Ok(Kind::Branch),
        KIND_LEAF => Ok(Kind::Leaf),
        _ => Err("it is neither a branch nor a leaf"),
    }
}

impl Page {
    /// Takes a whole page, pages that follow it and belong to it included.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(raw: Bytes, id: u64) -> Result<Self, &'static str> {
        if raw.len() < HEADER {
            return Err("it ends within its header");
        }
        let page = Self { kind: kind(&raw, id)?, count: usize::from(u16_at(&raw, 10)), raw };
        let table = HEADER + page.count * ELEMENT;
        if table > page.raw.len() {
            return Err("it says it has more elements than it has room for");
        }
        for at in 0..page.count {
            let (start, key, value) = page.extent(at);
            if start < table || start.saturating_add(key).saturating_add(value) > page.raw.len() {
                return Err("an element lies beyond it");
            }
            if at > 0 && page.key(at - 1) >= page.key(at) {
                return Err("its keys do not ascend");
            }
        }
        Ok(page)
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn key(&self, at: usize) -> &[u8] {
        let (start, key, _) = self.extent(at);
        self.raw.get(start..start + key).unwrap_or_default()
    }

    pub fn first(&self) -> &[u8] {
        self.key(0)
    }

    pub fn last(&self) -> &[u8] {
        self.key(self.count.saturating_sub(1))
    }

    /// The key of a child as something that can outlive the page's turn.
    pub fn shared_key(&self, at: usize) -> Option<Bytes> {
        (at < self.count).then(|| self.raw.slice_ref(self.key(at)))
    }

    /// The page number of a branch's child.
    pub fn child(&self, at: usize) -> Option<u64> {
        (at < self.count).then(|| u64_at(&self.raw, HEADER + at * ELEMENT + 8))
    }

    /// A leaf's item.
    pub fn item(&self, at: usize) -> Option<Item> {
        if at >= self.count {
            return None;
        }
        let (start, key, value) = self.extent(at);
        let flags = u32_at(&self.raw, HEADER + at * ELEMENT);
        Some(Item {
            key: self.raw.slice(start..start + key),
            value: self.raw.slice(start + key..start + key + value),
            bucket: flags & FLAG_BUCKET != 0,
        })
    }

    /// Where the data of an element begins, and how long its key and value are.
    fn extent(&self, at: usize) -> (usize, usize, usize) {
        let element = HEADER + at * ELEMENT;
        let number = |field: usize| u32_at(&self.raw, element + field * 4) as usize;
        match self.kind {
            Kind::Branch => (element.saturating_add(number(0)), number(1), 0),
            Kind::Leaf => (element.saturating_add(number(1)), number(2), number(3)),
        }
    }
}
