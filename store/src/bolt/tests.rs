//! What is written is read back; what was damaged is refused or is what it was, and nothing panics, hangs or eats memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::format::{FLAG_BUCKET, KIND_LEAF, PAGE, fnv, header};
use super::meta::Meta;
use super::{Bolt, BoltError, Layout};

type Buckets = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

fn layout(buckets: &Buckets) -> Layout {
    let mut builder = Layout::builder();
    for (name, items) in buckets {
        builder.bucket(name).unwrap();
        items.iter().for_each(|(key, value)| builder.item(key.len(), value.len()).unwrap());
    }
    builder.finish().unwrap()
}

fn written(buckets: &Buckets) -> Vec<u8> {
    let layout = layout(buckets);
    let bytes = layout.bytes();
    let mut emitter = layout.write(Vec::new());
    for (name, items) in buckets {
        emitter.bucket(name).unwrap();
        items.iter().for_each(|(key, value)| emitter.item(key, value).unwrap());
    }
    let raw = emitter.finish().unwrap();
    assert_eq!(raw.len() as u64, bytes);
    assert_eq!(bytes % PAGE as u64, 0);
    raw
}

fn with_sum(mut raw: Vec<u8>) -> Vec<u8> {
    let sum = ring::digest::digest(&ring::digest::SHA256, &raw);
    raw.extend_from_slice(sum.as_ref());
    raw
}

/// All a file holds, or the first error. Gives up where a tree does not end.
fn read(path: &Path, check: bool) -> Result<Buckets, BoltError> {
    let bolt = if check { Bolt::open_snapshot(path, true)? } else { Bolt::open(path)? };
    let mut found = Buckets::new();
    for name in bolt.buckets()? {
        let items = bolt.bucket(&name)?.expect("a bucket that was named");
        let items = items.map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())));
        found.insert(name.to_vec(), items.collect::<Result<_, _>>()?);
    }
    Ok(found)
}

fn read_bytes(raw: &[u8]) -> Result<Buckets, BoltError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(raw).unwrap();
    read(file.path(), false)
}

fn bucket(name: &str, items: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> (Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>) {
    (name.as_bytes().to_vec(), items.into_iter().collect())
}

fn numbered(count: u32, value: usize) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    (0..count).map(move |number| (number.to_be_bytes().to_vec(), vec![number.to_le_bytes()[0]; value]))
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let small = prop::collection::vec(any::<u8>(), 0..200);
    let large = (any::<u8>(), 0..40_000usize).prop_map(|(byte, length)| vec![byte; length]);
    prop_oneof![8 => small, 1 => large]
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    let small = prop::collection::vec(any::<u8>(), 1..40);
    let large = (any::<u8>(), any::<u8>(), 1..=32_768usize).prop_map(|(byte, last, length)| {
        let mut key = vec![byte; length];
        key[length - 1] = last;
        key
    });
    prop_oneof![20 => small, 1 => large]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn what_is_written_is_read_back(
        buckets in prop::collection::btree_map(key(), prop::collection::btree_map(key(), value(), 0..120), 0..6)
    ) {
        prop_assert_eq!(read_bytes(&written(&buckets)).unwrap(), buckets);
    }

    #[test]
    fn any_bytes_are_refused(raw in prop::collection::vec(any::<u8>(), 0..10_000)) {
        prop_assert!(read_bytes(&raw).is_err());
    }
}

#[test]
fn trees_of_many_levels_are_read_back() {
    // Keys of which hardly two fit a branch.
    let long = |number: u32| [&number.to_be_bytes()[..], &[7; 1990]].concat();
    let deep: Buckets = [bucket("deep", (0..700).map(|number| (long(number), vec![1])))].into();
    assert_eq!(read_bytes(&written(&deep)).unwrap(), deep);
    let wide: Buckets =
        [bucket("a", numbered(100_000, 20)), bucket("b", []), bucket("c", numbered(1, 2_000_000))].into();
    assert_eq!(read_bytes(&written(&wide)).unwrap(), wide);
}

#[test]
fn a_file_without_buckets_is_one() {
    let raw = written(&Buckets::new());
    assert_eq!(raw.len(), 4 * PAGE);
    assert_eq!(read_bytes(&raw).unwrap(), Buckets::new());
}

#[test]
fn a_layout_of_millions_of_items_holds_none_of_them() {
    let mut builder = Layout::builder();
    builder.bucket(b"key").unwrap();
    (0..5_000_000).for_each(|_| builder.item(17, 300).unwrap());
    let layout = builder.finish().unwrap();
    let per_page = (PAGE as u64 - 16) / (16 + 17 + 300);
    assert!(layout.bytes() > 5_000_000 / per_page * PAGE as u64, "{}", layout.bytes());
    assert_eq!(layout.buckets.len(), 1);
}

#[test]
fn what_was_not_laid_out_is_an_error() {
    let buckets: Buckets = [bucket("a", numbered(3, 5)), bucket("b", numbered(1, 5))].into();
    let check = |script: &str| {
        let mut emitter = layout(&buckets).write(Vec::new());
        let mut run = || -> std::io::Result<()> {
            for word in script.split_whitespace() {
                match word.split_once(':') {
                    None => emitter.bucket(word.as_bytes())?,
                    Some((key, value)) => {
                        emitter.item(&key.parse::<u32>().unwrap().to_be_bytes(), &vec![0; value.parse().unwrap()])?
                    }
                }
            }
            Ok(())
        };
        run().and_then(|()| emitter.finish().map(drop)).err().map(|error| error.to_string())
    };
    assert_eq!(check("a 0:5 1:5 2:5 b 0:5"), None);
    let of = |name: &str| Some(format!("items of bucket \"{name}\" are not those that were laid out"));
    assert_eq!(check("a 0:5 1:5 b 0:5"), of("a"));
    assert_eq!(check("a 0:5 1:5 2:5 3:5 b 0:5"), of("a"));
    assert_eq!(check("a 0:5 1:4 2:6 b 0:5"), of("a"));
    assert_eq!(check("a 0:5 1:5 2:5 b"), of("b"));
    assert_eq!(check("a 0:5 1:5 2:5"), Some("a bucket that was laid out is missing".to_owned()));
    assert_eq!(check("b"), Some("a bucket that was not laid out here".to_owned()));
    assert_eq!(check("a 1:5 0:5"), Some("keys of a bucket do not ascend, or one is empty".to_owned()));
    assert_eq!(check("0:5"), Some("an item before the first bucket".to_owned()));
}

#[test]
fn layouts_refuse_what_bbolt_does_not_take() {
    let mut builder = Layout::builder();
    assert!(builder.item(1, 1).is_err());
    assert!(builder.bucket(b"").is_err());
    builder.bucket(b"b").unwrap();
    assert!(builder.item(0, 1).is_err());
    assert!(builder.item(32_769, 1).is_err());
    assert!(builder.item(1, 1 << 31).is_err());
    assert!(builder.bucket(b"a").is_err());
}

#[test]
fn sums_are_those_of_the_algorithm() {
    assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
    assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
}

/// A file with one bucket `b` that lies in its tree's only leaf and holds `k` = `v`.
fn by_hand(page_size: usize, transactions: [u64; 2]) -> Vec<u8> {
    let mut raw = vec![0; 4 * page_size];
    for (id, transaction) in (0..).zip(transactions) {
        let meta = Meta { page_size, root: 3, freelist: 2, pages: 4, transaction };
        raw[id * page_size..][..80].copy_from_slice(&meta.encode(id as u64));
    }
    let element = |flags: u32, key: u32, value: u32| {
        [flags, 16, key, value].iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()
    };
    let inline = [&[0; 16], &header(0, KIND_LEAF, 1, 0)[..], &element(0, 1, 1), b"kv"].concat();
    let length = u32::try_from(inline.len()).unwrap();
    let leaf = [&header(3, KIND_LEAF, 1, 0)[..], &element(FLAG_BUCKET, 1, length), b"b", &inline].concat();
    raw[3 * page_size..][..leaf.len()].copy_from_slice(&leaf);
    raw
}

#[test]
fn other_page_sizes_and_buckets_within_the_tree_are_read() {
    let want: Buckets = [bucket("b", [(b"k".to_vec(), b"v".to_vec())])].into();
    for bits in 10..=16 {
        assert_eq!(read_bytes(&by_hand(1 << bits, [0, 1])).unwrap(), want);
        let mut first_gone = by_hand(1 << bits, [2, 1]);
        first_gone[40] ^= 1;
        assert_eq!(read_bytes(&first_gone).unwrap(), want);
    }
    for bits in [9, 17] {
        assert!(matches!(read_bytes(&by_hand(1 << bits, [0, 1])), Err(BoltError::Meta(_))));
    }
}

#[test]
fn the_later_meta_that_is_whole_holds() {
    let root_of = |raw: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(raw, 0).unwrap();
        Bolt::open(file.path()).unwrap().buckets().map(|names| names.len()).map_err(|error| error.to_string())
    };
    // The second meta of either file points at a page that is no tree.
    let with = |transaction: u64| {
        let mut raw = by_hand(PAGE, [5, 0]);
        let meta = Meta { page_size: PAGE, root: 2, freelist: 2, pages: 4, transaction };
        raw[PAGE..][..80].copy_from_slice(&meta.encode(1));
        raw
    };
    assert_eq!(root_of(&with(4)), Ok(1));
    assert_eq!(root_of(&with(6)), Err("page 2 is damaged: it says it is another page".to_owned()));
    let mut torn = with(6);
    torn[PAGE + 60] ^= 1;
    assert_eq!(root_of(&torn), Ok(1));
}

#[test]
fn checksums_behind_the_pages_are_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let buckets: Buckets = [bucket("a", numbered(1000, 100))].into();
    let raw = written(&buckets);
    std::fs::write(&path, &raw).unwrap();
    assert!(matches!(read(&path, true), Err(BoltError::NoChecksum)));
    let mut whole = with_sum(raw);
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(read(&path, true).unwrap(), buckets);
    whole[20_000] ^= 4;
    std::fs::write(&path, &whole).unwrap();
    let error = read(&path, true).unwrap_err().to_string();
    assert!(error.starts_with("its checksum is wrong: expected sha256 "), "{error}");
}

/// A file of three levels: bucket `a` with 30,000 items, its root near the end.
fn victim() -> (Vec<u8>, Buckets) {
    let buckets: Buckets = [bucket("a", numbered(30_000, 10)), bucket("b", []), bucket("c", numbered(1, 9000))].into();
    (written(&buckets), buckets)
}

/// Page number of the first page of a kind, and of the last.
fn ends(raw: &[u8], kind: u8) -> (usize, usize) {
    let mut found = (3..raw.len() / PAGE).filter(|page| {
        let header = &raw[page * PAGE..];
        header[..8] == (*page as u64).to_le_bytes() && header[8] == kind && header[10..12] != [0, 0]
    });
    let first = found.next().unwrap();
    (first, found.next_back().unwrap_or(first))
}

#[test]
fn damage_is_told_with_its_page() {
    let (raw, _) = victim();
    let (first_leaf, _) = ends(&raw, 2);
    let (first_branch, last_branch) = ends(&raw, 1);
    let check = |page: usize, offset: usize, bytes: &[u8], want: &str| {
        let mut raw = raw.clone();
        raw[page * PAGE + offset..][..bytes.len()].copy_from_slice(bytes);
        let error = read_bytes(&raw).err().map_or_else(|| "no error".to_owned(), |error| error.to_string());
        assert!(error.contains(want) && error.starts_with("page "), "{want}: {error}");
    };
    let child = |page: usize| page.to_le_bytes();
    check(first_leaf, 0, &[9], "it says it is another page");
    check(first_leaf, 8, &[4], "neither a branch nor a leaf");
    check(first_leaf, 10, &[0xff, 0xff], "more elements than it has room for");
    check(first_leaf, 10, &[0, 0], "it is empty");
    check(first_leaf, 20, &[0, 0xff], "an element lies beyond it");
    check(first_leaf, 20, &[0, 0, 0, 0], "an element lies beyond it");
    check(first_leaf, 24, &[0xff, 0xff, 0xff, 0xff], "an element lies beyond it");
    check(first_leaf, 28, &[0xff, 0xff, 0xff, 0xff], "an element lies beyond it");
    check(first_leaf, 36, &[255], "its keys do not ascend");
    check(first_leaf, 12, &[0xff, 0xff, 0xff], "it goes on beyond the end");
    check(first_branch, 24, &child(last_branch), "it lies below itself");
    check(first_branch, 24, &child(first_leaf + 1), "the branch above it");
    check(first_branch, 24 + 16, &child(first_leaf), "the branch above it");
    check(first_branch, 24, &child(1 << 60), "it lies beyond the end");
    check(first_branch, 24, &child(0), "neither a branch nor a leaf");
}

#[test]
fn a_page_larger_than_any_is_not_read() {
    let pages = 100_000u64;
    let file = tempfile::NamedTempFile::new().unwrap();
    let meta = Meta { page_size: PAGE, root: 3, freelist: 2, pages, transaction: 1 };
    file.as_file().set_len(pages * PAGE as u64).unwrap();
    file.as_file().write_all_at(&meta.encode(0), 0).unwrap();
    file.as_file().write_all_at(&header(3, KIND_LEAF, 1, 90_000), 3 * PAGE as u64).unwrap();
    let error = Bolt::open(file.path()).unwrap().buckets().unwrap_err().to_string();
    assert_eq!(error, "page 3 is damaged: it is larger than any is read");
}

#[test]
fn truncated_files_are_refused() {
    let (raw, _) = victim();
    for length in (0..raw.len()).step_by(997).chain([raw.len() - 1]) {
        let error = read_bytes(&raw[..length]).unwrap_err();
        assert!(matches!(error, BoltError::Meta(_) | BoltError::Short { .. }), "{length}: {error}");
    }
}

#[test]
fn flipped_bits_are_refused_or_change_nothing_but_a_value_or_a_key() {
    let (raw, buckets) = victim();
    let sum = with_sum(raw.clone());
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&sum, 0).unwrap();
    let items: usize = buckets.values().map(BTreeMap::len).sum();
    let mut seed = 88_172_645_463_325_252u64;
    let mut next = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    let mut refused = 0;
    for turn in 0..4000 {
        // Half of them where they hurt: headers and tables of elements.
        let at = if turn % 2 == 0 { next(raw.len()) } else { next(raw.len() / PAGE) * PAGE + next(400) };
        let flip = |file: &File| file.write_all_at(&[sum[at] ^ (1 << (turn % 8))], at as u64).unwrap();
        flip(file.as_file());
        match read(file.path(), false) {
            Ok(found) => {
                let count: usize = found.values().map(BTreeMap::len).sum();
                assert!(count <= items, "{at}: {count} items");
            }
            Err(_) => refused += 1,
        }
        if turn % 40 == 0 {
            assert!(matches!(read(file.path(), true), Err(BoltError::Checksum { .. })));
        }
        file.as_file().write_all_at(&sum[at..=at], at as u64).unwrap();
    }
    assert!(refused > 1000, "{refused}");
    assert_eq!(read(file.path(), true).unwrap(), buckets);
}

#[test]
fn a_reader_stops_after_an_error() {
    let (mut raw, _) = victim();
    let (first_leaf, _) = ends(&raw, 2);
    raw[(first_leaf + 1) * PAGE] ^= 1;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&raw).unwrap();
    let bolt = Bolt::open(file.path()).unwrap();
    let mut items = bolt.bucket(b"a").unwrap().unwrap();
    let before = items.by_ref().take_while(Result::is_ok).count();
    assert!(before > 0 && before < 30_000, "{before}");
    assert!(items.next().is_none());
    assert!(bolt.bucket(b"nobody").unwrap().is_none());
    let first: Option<(Bytes, Bytes)> = bolt.bucket(b"c").unwrap().unwrap().next().map(Result::unwrap);
    assert_eq!(first.map(|(key, value)| (key.len(), value.len())), Some((4, 9000)));
}
