//! What a table looks like from outside: enough to notice that somebody else flushed, deleted or cut it. Pure.
//!
//! Elements of client sets come and go with packets and are left out; so are the texts of rules, which nft writes in its
//! own way.

use std::collections::{BTreeMap, BTreeSet};

/// Rules of each chain, sets, and elements of each map that has some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub chains: BTreeMap<String, usize>,
    pub sets: BTreeSet<String>,
    pub elements: BTreeMap<String, usize>,
}

impl Shape {
    /// Reads what `nft` lists: the table without the contents of its sets, and maps with theirs, one after the other.
    pub fn read(table: &str, maps: &str) -> Self {
        let mut shape = Self::default();
        let mut chain = None;
        for line in table.lines().map(str::trim) {
            match line.strip_suffix(" {").and_then(|head| head.split_once(' ')) {
                Some(("chain", name)) => {
                    shape.chains.insert(name.to_owned(), 0);
                    chain = Some(name.to_owned());
                    continue;
                }
                Some(("set", name)) => {
                    shape.sets.insert(name.to_owned());
                }
                _ => (),
            }
            if line == "}" {
                chain = None;
            }
            let Some(rules) = chain.as_ref().and_then(|chain| shape.chains.get_mut(chain)) else { continue };
            // The first line of a chain with a hook says where it hangs.
            *rules += usize::from(!line.is_empty() && !line.starts_with("type "));
        }
        let mut map = None;
        for line in maps.lines().map(str::trim) {
            if let Some(("map", name)) = line.strip_suffix(" {").and_then(|head| head.split_once(' ')) {
                shape.elements.insert(name.to_owned(), 0);
                map = Some(name.to_owned());
            }
            if let Some(count) = map.as_ref().and_then(|map| shape.elements.get_mut(map)) {
                *count += line.matches(" : goto ").count() + line.matches(" : drop").count();
            }
        }
        shape
    }

    /// True if all of `part` is in here as it should be.
    pub fn holds(&self, part: &Self) -> bool {
        part.chains.iter().all(|(name, rules)| self.chains.get(name) == Some(rules))
            && part.sets.is_subset(&self.sets)
            && part.elements.iter().all(|(name, count)| self.elements.get(name) == Some(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "table ip pintle {\n\tmap services {\n\t\ttype ipv4_addr . inet_proto . inet_service : verdict\n\t}\n\n\tset s {\n\t\ttype ipv4_addr\n\t\tsize 65535\n\t}\n\n\tchain a {\n\t\tnumgen inc mod 2 vmap { 0 : drop, 1 : goto b }\n\t\treject\n\t}\n\n\tchain pre {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t}\n}\n";
    const MAPS: &str = "table ip pintle {\n\tmap services {\n\t\ttype ipv4_addr . inet_proto . inet_service : verdict\n\t\telements = { 10.96.0.5 . tcp . 80 : goto a,\n\t\t\t     10.96.0.6 . tcp . 80 : drop }\n\t}\n}\n";

    #[test]
    fn a_listing_is_counted() {
        let shape = Shape::read(TABLE, MAPS);
        let chains = [("a", 2), ("pre", 0)].map(|(name, rules)| (name.to_owned(), rules));
        assert_eq!(shape.chains, BTreeMap::from(chains));
        assert_eq!(shape.sets, BTreeSet::from(["s".to_owned()]));
        assert_eq!(shape.elements, BTreeMap::from([("services".to_owned(), 2)]));
        assert_eq!(Shape::read("nonsense } {\nchain", "map"), Shape::default());
        let mut less = shape.clone();
        less.chains.remove("pre");
        assert!(shape.holds(&less) && !less.holds(&shape));
        *less.chains.entry("a".to_owned()).or_default() = 0;
        assert!(!less.holds(&shape) && !shape.holds(&less));
    }
}
