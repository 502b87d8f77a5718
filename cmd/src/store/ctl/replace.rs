//! `member replace`: one member's place is taken by another, in one command. Beside `cluster`, whose calls it strings together; nothing
//! here needs more of the server than etcd's own API, so that it works on an etcd, too.
//!
//! The command looks at the members, does the next thing that is missing, and looks again: called a second time it goes on where the
//! first was interrupted. The new member learns before it votes and the old one goes last, so that the cluster never needs more members
//! than it has; only where the new one takes the old one's address must the old one go first.

use std::time::Duration;

use pintle_base::clock::{self, Instant};
use pintle_proto::etcdserverpb as e;

use super::client::{CallError, Client};
use super::cluster::{started_with, urls};
use super::print::{self, Format};
use super::{Context, Done, Failure, go};

/// Between two looks at a member that is to be started or has to catch up.
const LOOK: Duration = Duration::from_secs(1);

/// What is asked for.
pub struct Replacement {
    /// The old member: its id in hexadecimal, or its name.
    pub old: String,
    /// The new member's name and peer addresses.
    pub name: String,
    pub peer_urls: String,
    pub patience: Duration,
}

/// What has to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Add,
    /// The new member is known but has not been started.
    AwaitStart(u64),
    Promote(u64),
    /// The old member goes, because the new one votes or needs its address.
    Remove(u64),
    Done(u64),
}

/// The old member's id.
fn find_old(members: &[e::Member], old: &str, urls: &[String]) -> Result<u64, String> {
    if let Some(member) = go::hex(old).ok().and_then(|id| members.iter().find(|member| member.id == id)) {
        return Ok(member.id);
    }
    let named: Vec<&e::Member> = members.iter().filter(|member| member.name == old).collect();
    // The new one may have the same name.
    let others: Vec<&e::Member> = named.iter().copied().filter(|member| !same(&member.peer_ur_ls, urls)).collect();
    match (&named[..], &others[..]) {
        ([one], _) | (_, [one]) => Ok(one.id),
        ([], _) => Err(format!("no member {old}; member list shows who there is")),
        _ => Err(format!("several members are called {old}; give the ID")),
    }
}

/// The next step; `removed` tells whether the old member was removed by this command.
fn next(members: &[e::Member], old: u64, urls: &[String], removed: bool) -> Step {
    let new = members.iter().find(|member| member.id != old && same(&member.peer_ur_ls, urls));
    let old = members.iter().find(|member| member.id == old);
    match (old, new) {
        (Some(old), None) if !removed && old.peer_ur_ls.iter().any(|url| urls.contains(url)) => Step::Remove(old.id),
        (_, None) => Step::Add,
        (_, Some(new)) if new.name.is_empty() => Step::AwaitStart(new.id),
        (_, Some(new)) if new.is_learner => Step::Promote(new.id),
        (Some(old), Some(_)) => Step::Remove(old.id),
        (None, Some(new)) => Step::Done(new.id),
    }
}

fn same(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().all(|url| other.contains(url))
}

/// Refusals that end by themselves: the member has to catch up, or the others have to be heard of.
fn passes(error: &CallError) -> bool {
    const PASSING: [&str; 3] = [
        "etcdserver: can only promote a learner member which is in sync with leader",
        "etcdserver: unhealthy cluster",
        "etcdserver: re-configuration failed due to not enough started members",
    ];
    PASSING.iter().any(|text| error.says(text))
}

/// Does what is missing until the new member votes and the old one is gone.
pub async fn run(context: &Context, wanted: &Replacement) -> Done {
    let urls = urls(&wanted.peer_urls)?;
    let client = context.client().await?;
    let old = find_old(&members(&client).await?, &wanted.old, &urls).map_err(Failure::bad_args)?;
    let (end, mut removed, mut waiting) = (clock::now() + wanted.patience, false, Waiting::default());
    loop {
        let list = members(&client).await?;
        let step = next(&list, old, &urls, removed);
        let why = match step {
            Step::Add => {
                let request = e::MemberAddRequest { peer_ur_ls: urls.clone(), is_learner: true };
                let answer = client.ask(request).await?;
                let new = answer.member.as_ref().map_or(0, |member| member.id);
                say(context, &format!("Member {new:16x} added. Start it, as {}, with:", wanted.name));
                say(context, &started_with(&answer.members, new, &wanted.name, &wanted.peer_urls));
                continue;
            }
            Step::Done(new) => return finished(context, &client, old, new).await,
            Step::AwaitStart(new) => format!("member {new:x} to be started"),
            Step::Promote(id) => match client.ask(e::MemberPromoteRequest { id }).await {
                Ok(_) => continue,
                // It was promoted by itself meanwhile.
                Err(error) if error.says("etcdserver: can only promote a learner member") => continue,
                Err(error) if passes(&error) => format!("member {id:x} to catch up"),
                Err(error) => return Err(error.into()),
            },
            Step::Remove(id) => match client.ask(e::MemberRemoveRequest { id }).await {
                Ok(_) => {
                    removed = true;
                    say(context, &format!("Member {id:16x} removed"));
                    continue;
                }
                Err(error) if passes(&error) => "the other members to be heard of".to_owned(),
                Err(error) => return Err(error.into()),
            },
        };
        waiting.tell(&why);
        if clock::now() >= end {
            let limit = wanted.patience;
            let text = format!("waited {limit:?} for {why}; the same command goes on where this one stopped");
            return Err(Failure::error(text));
        }
        clock::sleep(LOOK).await;
    }
}

async fn members(client: &Client) -> Result<Vec<e::Member>, Failure> {
    Ok(client.ask(e::MemberListRequest { linearizable: true }).await?.members)
}

async fn finished(context: &Context, client: &Client, old: u64, new: u64) -> Done {
    let answer = client.ask(e::MemberListRequest { linearizable: true }).await?;
    let cluster = answer.header.unwrap_or_default().cluster_id;
    let text = format!("Member {old:16x} replaced by {new:16x} in cluster {cluster:16x}");
    context.printer.tell_only(text, &answer)
}

/// To standard error: what is printed in another format is for programs.
fn say(context: &Context, text: &str) {
    if context.printer.format == Format::Simple {
        // Whoever closed standard output still wants the member replaced.
        let _ = print::out(format!("{text}\n"));
    } else {
        eprintln!("{text}");
    }
}

/// Tells what is waited for, once for each reason, and then how long it has been.
#[derive(Default)]
struct Waiting {
    why: String,
    since: Option<Instant>,
    told: u64,
}

impl Waiting {
    /// Seconds between two lines about the same.
    const EVERY: u64 = 10;

    fn tell(&mut self, why: &str) {
        if self.why != why {
            *self = Self { why: why.to_owned(), since: Some(clock::now()), told: 0 };
            eprintln!("waiting for {why}");
        }
        let seconds = self.since.map_or(0, |since| since.elapsed().as_secs());
        if seconds >= self.told + Self::EVERY {
            self.told = seconds;
            eprintln!("waiting for {why}, {seconds} s");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://new:2380";

    fn member(id: u64, name: &str, url: &str, is_learner: bool) -> e::Member {
        e::Member { id, name: name.to_owned(), peer_ur_ls: vec![url.to_owned()], is_learner, ..e::Member::default() }
    }

    fn step(members: &[e::Member], removed: bool) -> Step {
        next(members, 2, &[URL.to_owned()], removed)
    }

    #[test]
    fn the_new_one_votes_before_the_old_one_goes() {
        let (first, old) = (member(1, "a", "http://a", false), member(2, "b", "http://b", false));
        let with = |new: e::Member| [first.clone(), old.clone(), new];
        assert_eq!(step(&[first.clone(), old.clone()], false), Step::Add);
        assert_eq!(step(&with(member(3, "", URL, true)), false), Step::AwaitStart(3));
        assert_eq!(step(&with(member(3, "c", URL, true)), false), Step::Promote(3));
        assert_eq!(step(&with(member(3, "c", URL, false)), false), Step::Remove(2));
        assert_eq!(step(&[first.clone(), member(3, "c", URL, false)], true), Step::Done(3));
    }

    #[test]
    fn an_address_is_free_only_once_the_old_one_has_gone() {
        let (first, old) = (member(1, "a", "http://a", false), member(2, "b", URL, false));
        assert_eq!(step(&[first.clone(), old], false), Step::Remove(2));
        assert_eq!(step(std::slice::from_ref(&first), true), Step::Add);
        assert_eq!(step(&[first, member(4, "", URL, true)], true), Step::AwaitStart(4));
    }

    #[test]
    fn the_old_one_is_found_by_id_or_by_a_name_that_is_its_alone() {
        let urls = [URL.to_owned()];
        let list = [member(0xa, "m", "http://a", false), member(0xb, "b", "http://b", false)];
        assert_eq!(find_old(&list, "a", &urls), Ok(0xa));
        assert_eq!(find_old(&list, "m", &urls), Ok(0xa));
        assert!(find_old(&list, "x", &urls).unwrap_err().contains("no member x"));
        let renewed = [list[0].clone(), member(0xc, "m", URL, true)];
        assert_eq!(find_old(&renewed, "m", &urls), Ok(0xa));
        let doubled = [list[0].clone(), member(0xc, "m", "http://c", true)];
        assert!(find_old(&doubled, "m", &urls).unwrap_err().contains("several"));
    }
}
