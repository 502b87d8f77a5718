//! Runs a helper program of the machine (nft, ip, ctr, conntrack) to its end, with a deadline and bounded output.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use pintle_base::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Output kept of one run; what goes beyond is read and dropped.
const OUTPUT: u64 = 1 << 20;

/// Why a helper program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("start {program} (is it installed?)")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} did not end within {limit:?}")]
    Deadline { program: String, limit: Duration },
    #[error("talk to {program}")]
    Pipe {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed with {status}: {output}")]
    Failed { program: String, status: String, output: String },
}

/// Runs `program` with `args`, feeds `input`, and returns what it printed.
///
/// # Errors
/// [`ProgramError`]; the program is killed if the deadline passes.
pub async fn run(program: &str, args: &[&str], input: Option<String>, limit: Duration) -> Result<String, ProgramError> {
    read_all(program, args, input, limit, OUTPUT).await
}

/// As [`run`], with at most `output` bytes of what it printed.
///
/// # Errors
/// As [`run`].
pub async fn read_all(
    program: &str,
    args: &[&str],
    input: Option<String>,
    limit: Duration,
    output: u64,
) -> Result<String, ProgramError> {
    let name = || program.to_owned();
    let mut child = Command::new(program)
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ProgramError::Start { program: name(), source })?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let (Some(mut pipe), Some(text)) = (stdin, input) {
            pipe.write_all(text.as_bytes()).await?;
            pipe.shutdown().await?;
        }
        io::Result::Ok(())
    };
    let everything = async {
        let (fed, out, err) = tokio::join!(feed, read(stdout, output), read(stderr, OUTPUT));
        (child.wait().await, fed, out, err)
    };
    let (status, fed, out, err) =
        clock::timeout(limit, everything).await.map_err(|_| ProgramError::Deadline { program: name(), limit })?;
    let status = status.map_err(|source| ProgramError::Pipe { program: name(), source })?;
    if status.success() {
        fed.map_err(|source| ProgramError::Pipe { program: name(), source })?;
        return Ok(out);
    }
    Err(ProgramError::Failed { program: name(), status: status.to_string(), output: err.trim().to_owned() })
}

async fn read(pipe: Option<impl tokio::io::AsyncRead + Unpin>, output: u64) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    // A pipe that breaks half-way leaves what was read: the exit status decides what it means.
    if (&mut pipe).take(output).read_to_end(&mut kept).await.is_ok() {
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await.unwrap_or_default();
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_input_failure_and_deadline() {
        let limit = Duration::from_secs(10);
        assert_eq!(run("cat", &[], Some("text".into()), limit).await.expect("cat"), "text");
        let error = run("sh", &["-c", "echo no >&2; exit 3"], None, limit).await.expect_err("fails");
        assert!(error.to_string().contains("no"), "{error}");
        let error = run("pintle-no-such-program", &[], None, limit).await.expect_err("absent");
        assert!(matches!(error, ProgramError::Start { .. }));
        let error = run("sleep", &["60"], None, Duration::from_millis(20)).await.expect_err("late");
        assert!(matches!(error, ProgramError::Deadline { .. }));
    }
}
