//! What `cluster up` and `down` show: one line per step with its time, written in place on a terminal, once when piped.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use pintle_base::clock::{self, Instant};
use serde_json::json;

/// How steps are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Text,
    /// One JSON object per finished step on standard output.
    Json,
}

pub struct Progress {
    started: Instant,
    output: Output,
    in_place: bool,
}

/// A step that runs; ends with [`Progress::done`] or an error.
pub struct Step {
    name: &'static str,
}

impl Progress {
    pub fn new(output: Output) -> Self {
        Self { started: clock::now(), output, in_place: output == Output::Text && std::io::stderr().is_terminal() }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn begin(&self, name: &'static str) -> Step {
        if self.in_place {
            eprint!("\r\x1b[K  … {name}");
            let _flushed = std::io::stderr().flush();
        }
        Step { name }
    }

    /// Shows what a running step waits for; only where it can be overwritten.
    pub fn waiting(&self, step: &Step, detail: &str) {
        if self.in_place {
            eprint!("\r\x1b[K  … {:<20} {detail}", step.name);
            let _flushed = std::io::stderr().flush();
        }
    }

    pub fn done(&self, step: Step, detail: &str) {
        let seconds = self.elapsed().as_secs_f64();
        match self.output {
            Output::Text => {
                let clear = if self.in_place { "\r\x1b[K" } else { "" };
                eprintln!("{clear}  ✓ {:<20} {detail:<58} {seconds:>5.1}s", step.name);
            }
            Output::Json => println!("{}", json!({"step": step.name, "detail": detail, "seconds": seconds})),
        }
    }

    pub fn note(&self, text: &str) {
        if self.output == Output::Text {
            eprintln!("{text}");
        }
    }
}
