//! Exit codes of the command line, the same for every verb (see `pintle help-exit-codes`).

use std::fmt;

/// What a failed command tells the script that called it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Failure = 1,
    /// Wrong use, or a machine that lacks what the command needs.
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    /// Unhealthy, or not done in time.
    Unhealthy = 5,
}

/// Shown by `help-exit-codes`.
pub const TABLE: &str = "\
  0    done
  1    failed
  2    wrong use, or something this command needs is missing
  3    not found
  4    conflict: the thing is not in the state the command needs
  5    not healthy, or not done in time
  130  interrupted
  143  terminated";

/// An error with the exit code it asks for.
#[derive(Debug)]
struct Coded {
    exit: Exit,
    message: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

pub fn with(exit: Exit, message: String) -> anyhow::Error {
    Coded { exit, message }.into()
}

/// The code for `error`: the one it carries anywhere in its chain, else 1.
pub fn code(error: &anyhow::Error) -> i32 {
    error.chain().find_map(|cause| cause.downcast_ref::<Coded>()).map_or(Exit::Failure, |coded| coded.exit) as i32
}
