//! Every command that README shows is run, in its order, in one shell, as a reader would.

use std::path::PathBuf;
use std::process::Command;

use pintle_tests::{can_run_containers, home, ran, root, tool};

/// Targets that README names and that are not run here: this test is part of the first, the others take minutes.
const NOT_HERE: [&str; 3] = ["make test", "make failover", "make bench"];

/// The lines of all `sh` blocks.
fn commands(text: &str) -> Vec<&str> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside && !line.is_empty() => lines.push(line),
            _ => (),
        }
    }
    lines
}

#[test]
fn readme_is_true() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("read README");
    let commands = commands(&text);
    assert!(commands.iter().any(|line| line.starts_with("make up")), "the first command is there");
    for target in NOT_HERE {
        let known = ran(Command::new("make").args(["-n", target.trim_start_matches("make ")]).current_dir(root()));
        assert_eq!(known.code, 0, "{target}: {}", known.stderr);
    }
    if let Err(reason) = can_run_containers() {
        println!("skipped: no real containers here: {reason}");
        return;
    }
    let home = home();
    let _down = Down { home: home.path().to_owned() };
    let run = commands.iter().filter(|line| !NOT_HERE.iter().any(|target| line.starts_with(target)));
    // The build was made before, and the cargo that runs this test holds the lock a second one would wait for.
    let run = run.map(|line| line.replacen("make up", "make -o build up", 1));
    let script: Vec<String> =
        run.map(|line| format!("echo \"+ {}\"\n{line}", line.replace(['"', '$', '`'], "'"))).collect();
    let script = format!("set -euo pipefail\n{}\n", script.join("\n"));
    let output = ran(Command::new("timeout")
        .args(["--kill-after=5", "400", "bash", "-c", &script])
        .current_dir(root())
        .env("PINTLE_HOME", home.path())
        .env("KUBECONFIG", home.path().join("kubeconfig"))
        .env("PATH", path()));
    assert_eq!(output.code, 0, "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("leader"), "the status is shown: {}", output.stdout);
}

/// The tools as set-up unpacked them come first: another kubectl of the machine is not what is tested.
fn path() -> std::ffi::OsString {
    let tools = tool("sid", "kubectl").parent().expect("a directory").to_owned();
    let rest = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&rest))).expect("a path")
}

/// Takes the cluster down, however the test ends.
struct Down {
    home: PathBuf,
}

impl Drop for Down {
    fn drop(&mut self) {
        let down = ran(Command::new(pintle_tests::pintle())
            .args(["cluster", "down"])
            .env("PINTLE_HOME", &self.home)
            .env("KUBECONFIG", self.home.join("kubeconfig")));
        assert!(down.code == 0 || std::thread::panicking(), "cluster down: {}", down.stderr);
    }
}
