//! What was copied, whether it arrived, and what could not be kept.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;

use super::source::Outline;
use super::target::{Before, Leases, Sum, Written};
use crate::store::ctl::go;

pub struct Report {
    pub to: String,
    pub outline: Outline,
    pub before: Before,
    pub leases: Leases,
    pub written: Written,
    /// What the target has afterwards: keys that no lease ends, and how many others.
    pub there: (Sum, u64),
    pub took: Duration,
}

impl Report {
    /// Whether the target has what the source had. One that had keys of its own may have more.
    pub fn verified(&self) -> bool {
        let (there, _) = self.there;
        there == self.written.lasting || self.others() > 0
    }

    /// Keys of the target that the source has not.
    fn others(&self) -> u64 {
        match self.before.keys {
            0 => 0,
            _ => self.there.0.keys.saturating_sub(self.written.lasting.keys),
        }
    }

    pub fn text(&self) -> String {
        let Self { to, outline, leases, written, .. } = self;
        let mut text = String::new();
        let _ = self.copied(&mut text);
        let _ = writeln!(text, "{}", self.comparison());
        let _ = writeln!(text, "\nNot kept, since a client cannot write it:");
        for (what, why) in self.not_kept() {
            let _ = writeln!(text, "  {what:<10} {why}");
        }
        if let Some(why) = &outline.auth.hidden {
            let _ = writeln!(text, "  {:<10} could not be read: {why}", "users");
        }
        let commands = outline.auth.commands();
        if !commands.is_empty() {
            let _ = writeln!(text, "\nUsers and roles, to be made at {to} (each user's password is asked for):");
            commands.iter().for_each(|command| {
                let _ = writeln!(text, "  {command}");
            });
        }
        if leases.ended + written.ended > 0 {
            let (keys, leases) = (written.ended, leases.ended);
            let _ = writeln!(text, "\nEnded meanwhile: {leases} leases, and {keys} keys with theirs.");
        }
        text
    }

    fn copied(&self, text: &mut String) -> std::fmt::Result {
        let Self { to, outline, leases, written, .. } = self;
        writeln!(text, "Copied {} as of revision {} to {to}:", outline.name, outline.revision)?;
        let (bytes, transactions) = (go::size(written.bytes), written.transactions);
        let took = self.took.as_secs_f64();
        writeln!(text, "  {} keys, {bytes}, in {transactions} transactions, {took:.1} s", written.keys)?;
        write!(text, "  {} leases with their ids", leases.made + leases.found)?;
        match leases.found {
            0 => writeln!(text),
            found => writeln!(text, ", {found} of which were there already and stay as they are"),
        }
    }

    fn comparison(&self) -> String {
        let (there, leased) = self.there;
        let aside = match leased {
            0 => String::new(),
            leased => format!("; {leased} more hang on leases and are not compared"),
        };
        match (there == self.written.lasting, self.others()) {
            (true, _) => format!("Verified: the target has the same {} keys with the same values{aside}.", there.keys),
            (false, 0) => format!(
                "DIFFERENT: the target has {} keys and should have {}, or their values differ: something else writes there{aside}.",
                there.keys, self.written.lasting.keys
            ),
            (false, others) => format!(
                "Not compared: the target has {others} keys of its own beside the {} of the source{aside}.",
                self.written.lasting.keys
            ),
        }
    }

    /// Each with what it means.
    fn not_kept(&self) -> Vec<(&'static str, String)> {
        let outline = &self.outline;
        let mut list = vec![
            (
                "revisions",
                "every key was created anew, as its version 1: whoever holds revisions starts over".to_owned(),
            ),
            ("history", format!("nothing before revision {} can be read or watched", outline.revision)),
        ];
        if !outline.auth.is_empty() && outline.auth.hidden.is_none() {
            let (users, roles) = (outline.auth.users.len(), outline.auth.roles.len());
            let on = if outline.auth.enabled { "authentication is on" } else { "authentication is off" };
            list.push(("users", format!("{users} users and {roles} roles; {on} at the source")));
        }
        if outline.alarms > 0 {
            list.push(("alarms", format!("{} at the source", outline.alarms)));
        }
        list
    }

    pub fn json(&self) -> String {
        let Self { to, outline, leases, written, there, .. } = self;
        let report = json!({
            "from": outline.name,
            "revision": outline.revision,
            "to": to,
            "keys": written.keys,
            "bytes": written.bytes,
            "transactions": written.transactions,
            "leases": leases.made + leases.found,
            "leasesFound": leases.found,
            "seconds": self.took.as_secs_f64(),
            "verified": there.0 == written.lasting,
            "otherKeys": self.others(),
            "ended": { "leases": leases.ended, "keys": written.ended },
            "notKept": {
                "users": outline.auth.users.len(),
                "roles": outline.auth.roles.len(),
                "authEnabled": outline.auth.enabled,
                "authUnread": outline.auth.hidden,
                "commands": outline.auth.commands(),
                "alarms": outline.alarms,
            },
        });
        format!("{report}\n")
    }
}
