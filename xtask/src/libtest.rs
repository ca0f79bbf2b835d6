//! Runs a test executable of the standard harness: its output goes on as it comes, and what it says is counted.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::shell::{Context, Result};

/// No executable may take longer: all tiers together are to fit in an hour.
pub const LIMIT: Duration = Duration::from_secs(20 * 60);

/// What an executable's tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
}

/// A finished run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub counts: Counts,
    /// The names of the tests that failed.
    pub failures: Vec<String>,
    /// Why the run as a whole is not to be trusted: it was killed, or never came to an end.
    pub broken: Option<String>,
    pub output: String,
}

impl Outcome {
    /// The first thing that a failed test said: a panic's message, on one line.
    pub fn first_failure(&self) -> Option<String> {
        let after = self.output.split_once("panicked at ")?.1;
        let said = |line: &&str| !line.is_empty() && !line.starts_with("note:") && !line.starts_with("stack backtrace:");
        let lines: Vec<_> = after.lines().skip(1).map(str::trim).skip_while(|line| line.is_empty()).take_while(said).collect();
        (!lines.is_empty()).then(|| lines.join(" ").chars().take(200).collect())
    }
}

/// Whether a run is shown while it goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Show {
    Everything,
    Nothing,
}

/// `program` under a time limit. coreutils' `timeout` and not our own kill, because under sudo we may not kill; and
/// SIGKILL, because what it hits there is `unshare`, whose death takes the whole namespace with it.
pub fn limited(mut command: Command, program: &str, limit: Duration) -> Command {
    command.args(["--foreground", "--signal=KILL", &limit.as_secs().to_string(), program]);
    command
}

/// Runs it to its end.
///
/// # Errors
/// When it cannot be started; a failed test is no error.
pub fn run(command: Command, show: Show) -> Result<Outcome> {
    run_for(command, show, Duration::from_secs(5))
}

/// `grace`: how long to wait for the end of the output after the end of the executable. A process that it left may
/// hold the pipe open for ever.
fn run_for(mut command: Command, show: Show, grace: Duration) -> Result<Outcome> {
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(if show == Show::Everything { Stdio::inherit() } else { Stdio::piped() });
    let mut child = command.spawn().context("cannot start the tests")?;
    let (sender, receiver) = mpsc::channel();
    let pipes: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|pipe| Box::new(pipe) as _), child.stderr.take().map(|pipe| Box::new(pipe) as _)];
    for mut pipe in pipes.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut output = Vec::new();
    let mut ended: Option<Instant> = None;
    let mut held_open = false;
    loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(bytes) => {
                if show == Show::Everything {
                    let mut out = io::stdout().lock();
                    out.write_all(&bytes).and_then(|()| out.flush()).context("cannot show the tests' output")?;
                }
                output.extend(bytes);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() && child.try_wait().context("cannot wait for the tests")?.is_some() {
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|ended| ended.elapsed() > grace) {
            held_open = true;
            break;
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    let mut outcome = read(String::from_utf8_lossy(&output).into_owned(), status.success());
    if start.elapsed() >= LIMIT && !status.success() {
        outcome.broken = Some(format!("took longer than {} minutes and was killed", LIMIT.as_secs() / 60));
    } else if held_open {
        outcome.broken = Some("a process that it started still runs and holds its output open".into());
    } else if let Some(broken) = &mut outcome.broken {
        broken.push_str(&format!(" ({status})"));
    }
    Ok(outcome)
}

/// Reads the whole output of a run, or of several (`cargo test --doc` prints one for each crate).
fn read(output: String, success: bool) -> Outcome {
    let mut outcome = Outcome { output, ..Outcome::default() };
    let mut results = 0;
    for line in outcome.output.lines() {
        if let Some(counts) = result(line) {
            results += 1;
            outcome.counts.passed += counts.passed;
            outcome.counts.failed += counts.failed;
            outcome.counts.ignored += counts.ignored;
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            outcome.failures.push(name.to_owned());
        }
    }
    if !success && outcome.counts.failed == 0 {
        outcome.broken = Some("failed without naming a test".into());
    } else if success && results == 0 {
        outcome.broken = Some("ended well but did not say how many tests ran".into());
    }
    outcome
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`.
fn result(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some(Counts { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
}

/// The tests in an executable, of `--list --format terse`.
pub fn listed(output: &str) -> u32 {
    u32::try_from(output.lines().filter(|line| line.ends_with(": test")).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";

    #[test]
    fn the_harness_result_line_is_counted() {
        assert_eq!(result(GOOD), Some(Counts { passed: 3, failed: 0, ignored: 1 }));
        assert_eq!(result("test result_line ... ok"), None);
        assert_eq!(result("all doctests ran in 0.26s; merged doctests compilation took 0.21s"), None);
    }

    #[test]
    fn several_results_add_up_and_failed_tests_are_named() {
        let bad = "test a::b ... ok\ntest a::c ... FAILED\n\nthread 'a::c' panicked at src/x.rs:1:1:\nassertion `left == right` failed\n  left: 1\n right: 2\nnote: run\n\
                   test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        let outcome = read(format!("{bad}{GOOD}\n"), false);
        assert_eq!(outcome.counts, Counts { passed: 4, failed: 1, ignored: 1 });
        assert_eq!(outcome.failures, ["a::c"]);
        assert_eq!(outcome.broken, None);
        assert_eq!(outcome.first_failure().as_deref(), Some("assertion `left == right` failed left: 1 right: 2"));
    }

    #[test]
    fn an_executable_that_dies_or_says_nothing_is_broken() {
        assert!(read("test a ... ".into(), false).broken.is_some());
        assert!(read(String::new(), true).broken.is_some());
        assert!(read(GOOD.into(), true).broken.is_none());
    }

    #[test]
    fn only_tests_are_listed() {
        assert_eq!(listed("a::b: test\nc: benchmark\nd: test\n"), 2);
    }

    #[test]
    fn what_holds_the_output_open_does_not_hold_us() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 30 & echo 'test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'; echo $!"]);
        let outcome = run_for(command, Show::Nothing, Duration::from_millis(200)).unwrap();
        assert!(outcome.broken.unwrap().contains("holds its output open"));
        let left = outcome.output.lines().last().unwrap();
        assert!(Command::new("kill").arg(left).status().unwrap().success());
    }
}
