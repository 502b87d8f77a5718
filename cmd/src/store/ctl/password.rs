//! Passwords typed at a terminal, which does not show them; read as a line where there is no terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use super::Failure;

/// Asks on standard error, so that what a pipeline reads stays clean.
///
/// # Errors
/// The terminal cannot be set, or standard input ends first.
pub fn ask(prompt: &str) -> io::Result<String> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return line();
    }
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
    let read = line();
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &shown)?;
    eprintln!();
    read
}

/// One line of standard input, without its end.
pub fn line() -> io::Result<String> {
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// A new password for `name`, typed twice.
pub fn ask_twice(name: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::bad_args(format!("failed to ask password: {error}"));
    let first = ask(&format!("Password of {name}: ")).map_err(failed)?;
    if first.is_empty() {
        return Err(Failure::bad_args("empty password"));
    }
    let second = ask(&format!("Type password of {name} again for confirmation: ")).map_err(failed)?;
    if first != second {
        return Err(Failure::bad_args("given passwords are different"));
    }
    Ok(first)
}
