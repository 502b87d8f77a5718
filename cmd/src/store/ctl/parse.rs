//! Command lines as etcdctl takes them, where the parser's own ways differ: switches with a value, prefixes of commands,
//! and the words in which a wrong line is refused.

use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, FromArgMatches};

use super::{Failure, go};

/// The grammar with etcdctl's manners, all the way down: a flag may be repeated, its value may start with a dash, and a
/// command may be cut short.
pub fn tuned(command: clap::Command) -> clap::Command {
    let valued = |arg: &clap::Arg| {
        !arg.is_positional()
            && matches!(arg.get_action(), ArgAction::Set)
            && !arg.is_require_equals_set()
            && arg.get_num_args().is_none_or(|count| count.takes_values())
    };
    command
        .infer_subcommands(true)
        .args_override_self(true)
        .mut_args(move |arg| if valued(&arg) { arg.allow_hyphen_values(true) } else { arg })
        .mut_subcommands(|sub| if sub.get_name() == "serve" { sub } else { tuned(sub) })
}

/// Reads a line that a user typed inside a command.
pub fn parsed<T: clap::CommandFactory + FromArgMatches>(args: Vec<OsString>) -> Result<T, clap::Error> {
    let command = tuned(T::command()).disable_help_flag(true).no_binary_name(true);
    let args = plain_switches(&command, args);
    T::from_arg_matches(&command.try_get_matches_from(args)?)
}

/// Turns `--switch=true` into `--switch` and drops `--switch=false`, for switches that are off by default.
pub fn plain_switches(command: &clap::Command, args: Vec<OsString>) -> Vec<OsString> {
    let mut switches = Vec::new();
    collect_switches(command, &mut switches);
    let mut plain = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    for arg in args.by_ref() {
        let text = arg.to_string_lossy();
        if text == "--" {
            plain.push(arg);
            break;
        }
        let set = text.strip_prefix("--").and_then(|word| word.split_once('='));
        match set
            .filter(|(name, _)| switches.iter().any(|known| known == name))
            .map(|(name, value)| (name, go::switch(value)))
        {
            Some((name, Ok(true))) => plain.push(format!("--{name}").into()),
            Some((_, Ok(false))) => (),
            Some((_, Err(_))) | None => plain.push(arg),
        }
    }
    plain.extend(args);
    plain
}

fn collect_switches(command: &clap::Command, found: &mut Vec<String>) {
    let switches = command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    found.extend(switches.filter_map(|arg| arg.get_long().map(str::to_owned)));
    command.get_subcommands().for_each(|sub| collect_switches(sub, found));
}

/// A refused line in etcdctl's words; `None` if it asked for help, which is `error` itself.
pub fn refused(error: &clap::Error, program: &str) -> Option<Failure> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    let flag = argument.split([' ', '=']).next().unwrap_or_default();
    let text = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand => return None,
        ErrorKind::UnknownArgument if flag.starts_with("--") => format!("unknown flag: {flag}"),
        ErrorKind::UnknownArgument if flag.starts_with('-') => {
            let letter = flag.chars().nth(1).unwrap_or('-');
            format!("unknown shorthand flag: {} in {flag}", go::quote(letter.to_string().as_bytes()).replace('"', "'"))
        }
        ErrorKind::UnknownArgument => format!("unknown command {flag:?} for {program:?}"),
        ErrorKind::InvalidSubcommand => {
            format!("unknown command {:?} for {program:?}", context(ContextKind::InvalidSubcommand))
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let value = context(ContextKind::InvalidValue);
            match error.source() {
                Some(why) => format!("invalid argument {} for {flag:?} flag: {why}", go::quote(value.as_bytes())),
                None => format!("flag needs an argument: {flag}"),
            }
        }
        ErrorKind::TooManyValues => {
            let value = context(ContextKind::InvalidValue);
            let why = go::switch(&value).err().unwrap_or_default();
            format!("invalid argument {} for {flag:?} flag: {why}", go::quote(value.as_bytes()))
        }
        _ => error.to_string().trim().trim_start_matches("error: ").to_owned(),
    };
    Some(Failure::error(text))
}

#[cfg(test)]
mod tests {
    use super::super::grammar::{Command, Etcdctl};
    use super::*;
    use clap::CommandFactory;

    fn read(line: &str) -> Result<Etcdctl, String> {
        let command = tuned(Etcdctl::command());
        let args = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect();
        let args = plain_switches(&command, args);
        let matches = command.try_get_matches_from(args);
        matches
            .and_then(|matches| Etcdctl::from_arg_matches(&matches))
            .map_err(|error| refused(&error, "etcdctl").map_or_else(|| "help".to_owned(), |failure| failure.text))
    }

    #[test]
    fn the_grammar_is_sound() {
        tuned(Etcdctl::command()).debug_assert();
    }

    #[test]
    fn lines_are_read_as_etcdctl_reads_them() {
        let get = |line| match read(line).unwrap().command {
            Command::Get(args) => args,
            _ => panic!("{line} is a get"),
        };
        let args = get("etcdctl -w json get --prefix=true a --keys-only=false --rev=0x10 --limit 1 --limit=-2 b");
        assert_eq!((args.prefix, args.keys_only, args.rev, args.limit), (true, false, 16, -2));
        assert_eq!(args.words, ["a", "b"]);
        assert_eq!(get("etcdctl get a -- --prefix=true").words, ["a", "--prefix=true"]);
        assert!(matches!(read("etcdctl compact 5").unwrap().command, Command::Compaction(_)));
        let read = read("etcdctl endpoint st --cluster -wtable --password -x --hex").unwrap().globals;
        assert_eq!(read.write_out.as_deref(), Some("table"));
        assert_eq!((read.password.as_deref(), read.hex.as_deref()), (Some("-x"), Some("true")));
    }

    #[test]
    fn wrong_lines_are_refused_in_etcdctls_words() {
        for (line, text) in [
            ("etcdctl get --nope", "unknown flag: --nope"),
            ("etcdctl get -x", "unknown shorthand flag: 'x' in -x"),
            ("etcdctl lease grant -5", "unknown shorthand flag: '5' in -5"),
            ("etcdctl nope", "unknown command \"nope\" for \"etcdctl\""),
            ("etcdctl get a --rev", "flag needs an argument: --rev"),
            (
                "etcdctl get a --rev=x",
                "invalid argument \"x\" for \"--rev\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                "etcdctl get a --prefix=x",
                "invalid argument \"x\" for \"--prefix\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            ("etcdctl", "help"),
            ("etcdctl lease", "help"),
            ("etcdctl get --help", "help"),
        ] {
            assert_eq!(read(line).map(|_| ()).unwrap_err(), text, "{line}");
        }
    }
}
