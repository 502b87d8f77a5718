//! Log output of a process: human one-liners on a terminal, JSON lines elsewhere, always on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?} is not valid: {reason}")]
pub struct FilterError {
    filter: String,
    reason: String,
}

/// Installs the process-wide subscriber. Call once; a second call changes nothing.
///
/// `filter` is a level (`info`) or directives (`info,pintle_raft=debug`).
///
/// # Errors
/// [`FilterError`] if `filter` cannot be parsed.
pub fn init(filter: &str, format: Format) -> Result<(), FilterError> {
    // A plain level is about us: what the consensus library finds worth a warning, such as a peer that is down, comes
    // several times a second and is told once by our own lines.
    let filter = if filter.contains(['=', ',']) { filter.to_owned() } else { format!("{filter},openraft=error") };
    let directives = EnvFilter::try_new(&filter)
        .map_err(|error| FilterError { filter: filter.clone(), reason: error.to_string() })?;
    let json = match format {
        Format::Auto => !std::io::stderr().is_terminal(),
        Format::Text => false,
        Format::Json => true,
    };
    let registry = tracing_subscriber::registry().with(directives);
    let installed = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_writer(std::io::stderr)).try_init()
    };
    if installed.is_err() {
        tracing::debug!("log output was already set up");
    }
    Ok(())
}
