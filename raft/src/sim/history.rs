//! What the clients did and saw, and whether a single copy of the data could have answered so.
//!
//! The data is a list to which every client appends values of its own. That makes two checks possible. The strict one knows
//! the final list: every acknowledged append is in it once, where its reply said, never before one that was acknowledged
//! before it began; every read is a beginning of it, as long as what was acknowledged before needs, and no longer than what
//! began before it ended. The other one knows only calls and answers: it takes the last value of the list for a register and
//! looks whether its reads and writes can be put in an order (zones after Gibbons and Korach, 1997).

use std::collections::{BTreeMap, BTreeSet};

/// Never acknowledged: may take effect at any time, or not at all.
pub(super) const NEVER: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// The value appended, and the length of the list after it; 0 if that is not known.
    Appended(String, usize),
    /// Refused: it must not be there.
    Refused(String),
    /// The list as it was read.
    Read(Vec<String>),
}

/// One call; `began` and `ended` come from one counter.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub began: u64,
    pub ended: u64,
    pub seen: Seen,
}

/// What is wrong, if anything is.
pub(super) fn check(calls: &[Call], list: &[String]) -> Vec<String> {
    let mut wrong = against_list(calls, list);
    wrong.extend(as_register(calls));
    wrong
}

fn against_list(calls: &[Call], list: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, value) in list.iter().enumerate() {
        if places.insert(value, at + 1).is_some() {
            wrong.push(format!("{value} is in the list twice"));
        }
    }
    // Calls that took effect, with the length of the list they are tied to.
    let mut tied: Vec<(&Call, usize)> = Vec::new();
    for call in calls {
        match &call.seen {
            Seen::Appended(value, length) => match places.get(value.as_str()) {
                Some(place) if *length == 0 || place == length => tied.push((call, *place)),
                Some(place) => wrong.push(format!("{value} is at {place}, the reply said {length}")),
                None if call.ended != NEVER => wrong.push(format!("{value} was acknowledged and is lost")),
                None => (),
            },
            Seen::Refused(value) if places.contains_key(value.as_str()) => {
                wrong.push(format!("{value} was refused and is there"));
            }
            Seen::Refused(_) => (),
            Seen::Read(found) => {
                if list.get(..found.len()) != Some(found) {
                    wrong.push(format!("a read saw {} values that are not the beginning of the list", found.len()));
                }
                tied.push((call, found.len()));
            }
        }
    }
    for (one, place) in &tied {
        for (later, later_place) in tied.iter().filter(|(later, _)| later.began > one.ended) {
            let fits = match later.seen {
                Seen::Read(_) => place <= later_place,
                _ => place < later_place,
            };
            if !fits {
                wrong.push(format!("{} ended before {} began, but comes after it", shown(one), shown(later)));
            }
        }
    }
    wrong
}

fn shown(call: &Call) -> String {
    match &call.seen {
        Seen::Appended(value, _) | Seen::Refused(value) => format!("append {value}"),
        Seen::Read(found) => format!("read of {}", found.len()),
    }
}

/// The span between the first end and the last beginning of a value's write and reads.
struct Zone {
    value: String,
    first_end: u64,
    last_began: u64,
}

fn as_register(calls: &[Call]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut zones: BTreeMap<String, Zone> = BTreeMap::new();
    let initial = Zone { value: "nothing".to_owned(), first_end: 0, last_began: 0 };
    zones.insert(String::new(), initial);
    let read: BTreeSet<&str> =
        calls.iter().filter_map(|call| last_read(call).filter(|value| !value.is_empty())).collect();
    for call in calls {
        if let Seen::Appended(value, _) = &call.seen
            && (call.ended != NEVER || read.contains(value.as_str()))
        {
            let zone = Zone { value: value.clone(), first_end: call.ended, last_began: call.began };
            zones.insert(value.clone(), zone);
        }
    }
    for call in calls {
        let Some(value) = last_read(call) else { continue };
        match zones.get_mut(value) {
            Some(zone) => {
                if call.ended < zone.last_began && zone.first_end == NEVER {
                    wrong.push(format!("{value} was read before it was written"));
                }
                zone.first_end = zone.first_end.min(call.ended);
                zone.last_began = zone.last_began.max(call.began);
            }
            None => wrong.push(format!("{value} was read and never written")),
        }
    }
    let (forward, backward): (Vec<Zone>, Vec<Zone>) =
        zones.into_values().partition(|zone| zone.first_end < zone.last_began);
    for (at, one) in forward.iter().enumerate() {
        for other in &forward[at + 1..] {
            if one.first_end < other.last_began && other.first_end < one.last_began {
                wrong.push(format!("the register held {} and {} at once", one.value, other.value));
            }
        }
        for other in &backward {
            if one.first_end < other.last_began && other.first_end < one.last_began {
                wrong.push(format!("{} was written while the register had to hold {}", other.value, one.value));
            }
        }
    }
    wrong
}

/// The register's value that a read saw; empty before the first write.
fn last_read(call: &Call) -> Option<&str> {
    match &call.seen {
        Seen::Read(found) => Some(found.last().map_or("", String::as_str)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls as `append a 1 @2-5`, `read a,b @3-4`, `refused c @1-2`; `@2-` was never answered. The list as `a,b`.
    #[track_caller]
    fn check_script(script: &str, list: &str, want: &[&str]) {
        let values = |text: &str| -> Vec<String> {
            text.split(',').filter(|value| !value.is_empty()).map(str::to_owned).collect()
        };
        let calls: Vec<Call> = script
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (what, when) = line.split_once('@').expect("a time");
                let (began, ended) = when.split_once('-').expect("a span");
                let words: Vec<&str> = what.split_whitespace().collect();
                let seen = match words.as_slice() {
                    ["append", value, length] => Seen::Appended((*value).to_owned(), length.parse().expect("length")),
                    ["append", value] => Seen::Appended((*value).to_owned(), 0),
                    ["refused", value] => Seen::Refused((*value).to_owned()),
                    ["read"] => Seen::Read(Vec::new()),
                    ["read", found] => Seen::Read(values(found)),
                    _ => panic!("{line}"),
                };
                Call { began: began.parse().expect("began"), ended: ended.parse().unwrap_or(NEVER), seen }
            })
            .collect();
        assert_eq!(check(&calls, &values(list)), want);
    }

    #[test]
    fn what_one_copy_could_have_answered_passes() {
        check_script("append a 1 @1-2\n read a @3-4\n append b 2 @5-6\n read a,b @7-8", "a,b", &[]);
        check_script("read @1-6\n append a 1 @2-5\n read a @3-4", "a", &[]);
        check_script("append a @1-\n read @2-3\n read a @4-5\n append b @6-", "a", &[]);
        check_script("refused a @1-2\n append b 1 @3-4", "b", &[]);
    }

    #[test]
    fn a_lost_write_is_found() {
        let lost = "a was acknowledged and is lost";
        check_script("append a 1 @1-2\n append b 1 @3-4", "b", &[lost]);
    }

    #[test]
    fn stale_and_impossible_reads_are_found() {
        check_script(
            "append a 1 @1-2\n append b 2 @3-4\n read a @5-6",
            "a,b",
            &[
                "append b ended before read of 1 began, but comes after it",
                "b was written while the register had to hold a",
            ],
        );
        check_script(
            "append a 1 @1-2\n append b 2 @3-10\n read a,b @4-5\n read a @6-7\n read a,b @8-9",
            "a,b",
            &["read of 2 ended before read of 1 began, but comes after it", "the register held a and b at once"],
        );
        check_script(
            "read x @1-2",
            "",
            &["a read saw 1 values that are not the beginning of the list", "x was read and never written"],
        );
        check_script(
            "read a @1-2\n append a @3-",
            "a",
            &["read of 1 ended before append a began, but comes after it", "a was read before it was written"],
        );
    }

    #[test]
    fn refused_doubled_and_misplaced_writes_are_found() {
        check_script("refused a @1-2", "a", &["a was refused and is there"]);
        check_script("append a @1-", "a,a", &["a is in the list twice"]);
        check_script("append a 2 @1-2", "a", &["a is at 1, the reply said 2"]);
    }
}
