//! Memory and CPU of a cluster's processes, read from /proc. Values are of this moment; callers compare moments.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Target;
use crate::cluster::process::Process;

/// What one process uses.
#[derive(Clone, Debug)]
pub struct Usage {
    pub name: String,
    pub memory_bytes: u64,
    /// User and system time since its start, in clock ticks of 10 ms.
    pub ticks: u64,
}

/// Clock ticks per second, fixed by the kernel's interface on every Linux that we run on.
pub const TICKS: f64 = 100.0;

/// Servers first, then agents; processes that do not run are left out.
pub fn read(target: &Target) -> Vec<Usage> {
    let state = &target.state;
    let names = state.servers.iter().map(|server| &server.name).chain(state.agents.iter().map(|agent| &agent.name));
    names.filter_map(|name| of(&Process::of(&target.layout, name))).collect()
}

fn of(process: &Process) -> Option<Usage> {
    Some(Usage { name: process.name.clone(), memory_bytes: process.memory()?, ticks: ticks(process.pid()?)? })
}

/// User and system time of a process since its start, in clock ticks.
pub fn ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain anything, so count from its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The same in seconds; zero if it does not run.
pub fn seconds(pid: i32) -> f64 {
    #[allow(clippy::cast_precision_loss)] // ticks of a benchmark's minutes are far below 2^52
    let ticks = ticks(pid).unwrap_or_default() as f64;
    ticks / TICKS
}

/// Resident memory of a process in bytes, a page that others share counted by its part (PSS); and how much of it belongs to no file.
pub fn share_of_memory(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let bytes = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some((bytes("Pss:")?, bytes("Pss_Anon:")?))
}

/// One line per process: memory, and CPU since `before` over `seconds`.
pub fn lines(before: &[Usage], after: &[Usage], seconds: f64) -> String {
    let mut text = String::new();
    for usage in after {
        let cpu = share(before, usage, seconds);
        let memory = usage.memory_bytes / 1_000_000;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<34} {memory:>6} MB   CPU {:>6.1} %", usage.name, cpu * 100.0);
    }
    text
}

/// The same for programs.
pub fn figures(before: &[Usage], after: &[Usage], seconds: f64) -> Value {
    let one = |usage: &Usage| json!({"name": usage.name, "memory_bytes": usage.memory_bytes, "cpu_cores": share(before, usage, seconds)});
    after.iter().map(one).collect()
}

fn share(before: &[Usage], usage: &Usage, seconds: f64) -> f64 {
    let earlier = before.iter().find(|other| other.name == usage.name).map_or(0, |other| other.ticks);
    #[allow(clippy::cast_precision_loss)] // ticks of a benchmark's minutes are far below 2^52
    let spent = usage.ticks.saturating_sub(earlier) as f64 / TICKS;
    spent / seconds.max(0.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process_is_its_own_and_mostly_no_file() {
        let held = vec![1_u8; 64 << 20];
        let (all, anonymous) = share_of_memory(i32::try_from(std::process::id()).expect("a pid")).expect("memory");
        assert!(anonymous >= held.len() as u64 && all >= anonymous, "{all} {anonymous}");
    }

    #[test]
    fn cpu_is_the_difference_of_two_moments() {
        let at = |ticks| vec![Usage { name: "s1".into(), memory_bytes: 90_000_000, ticks }];
        let text = lines(&at(100), &at(200), 10.0);
        assert!(text.contains("90 MB") && text.contains("10.0 %"), "{text}");
        assert_eq!(figures(&[], &at(50), 1.0)[0]["cpu_cores"], 0.5);
    }
}
