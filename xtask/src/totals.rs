//! What the tests came to, tier by tier, and the table at the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::libtest::Outcome;
use crate::limits::{self, Limit};
use crate::shell;

/// The sums of one tier, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
    pub not_possible: u32,
    pub time: Duration,
}

impl Totals {
    /// Every test that was looked at, whether it could run or not.
    pub fn tests(&self) -> u32 {
        self.passed + self.failed + self.skipped + self.not_possible
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.not_possible += other.not_possible;
        self.time += other.time;
    }
}

/// What a test wrote into DUNNAGE_SKIP_LOG.
#[derive(Debug, PartialEq, Eq)]
enum NotRun {
    Skipped(String),
    NotPossible(&'static str),
}

/// Reads one line. "Not possible here" is believed only where the probe says the same; else it is a skip.
fn not_run(line: &str, absent: &[&'static Limit]) -> Option<NotRun> {
    let line = line.trim();
    if line.is_empty() {
        return None;
    }
    if let Some(reason) = line.strip_prefix("NOT POSSIBLE HERE:") {
        return Some(match limits::named_in(reason, absent) {
            Some(limit) => NotRun::NotPossible(limit.name),
            None => NotRun::Skipped(format!("{} (says it is not possible here, but no probe of xtask says so)", reason.trim())),
        });
    }
    Some(NotRun::Skipped(line.strip_prefix("SKIPPED:").unwrap_or(line).trim().to_owned()))
}

/// The whole run as it grows.
#[derive(Default)]
pub struct Book {
    tiers: BTreeMap<u8, Totals>,
    /// What is wrong, in the order in which it was found.
    pub failures: Vec<String>,
    /// Why tests were skipped, and how many for each reason.
    skips: BTreeMap<String, u32>,
    not_possible: BTreeMap<&'static str, u32>,
}

impl Book {
    /// Enters a finished executable.
    pub fn enter(&mut self, tier: u8, name: &str, outcome: &Outcome, skip_log: &str, absent: &[&'static Limit], time: Duration) {
        let counts = &outcome.counts;
        let mut totals = Totals { passed: counts.passed, failed: counts.failed, skipped: counts.ignored, time, ..Totals::default() };
        self.failures.extend(outcome.failures.iter().map(|test| format!("{name}::{test}")));
        if let Some(broken) = &outcome.broken {
            totals.failed += 1;
            self.failures.push(format!("{name}: {broken}"));
        }
        if counts.ignored > 0 {
            *self.skips.entry(format!("{name}: marked #[ignore]")).or_default() += counts.ignored;
        }
        for one in skip_log.lines().filter_map(|line| not_run(line, absent)) {
            // The harness took a test that returned early for one that passed.
            totals.passed = totals.passed.saturating_sub(1);
            match one {
                NotRun::Skipped(reason) => {
                    totals.skipped += 1;
                    *self.skips.entry(format!("{name}: {reason}")).or_default() += 1;
                }
                NotRun::NotPossible(limit) => {
                    totals.not_possible += 1;
                    *self.not_possible.entry(limit).or_default() += 1;
                }
            }
        }
        self.tiers.entry(tier).or_default().add(&totals);
    }

    /// Enters tests that were not even started.
    pub fn skip(&mut self, tier: u8, name: &str, tests: u32, reason: &str) {
        self.tiers.entry(tier).or_default().skipped += tests;
        *self.skips.entry(format!("{name}: {reason}")).or_default() += tests;
    }

    /// Enters a failure that is no test's own, such as a leak.
    pub fn fail(&mut self, tier: u8, what: String) {
        self.tiers.entry(tier).or_default().failed += 1;
        self.failures.push(what);
    }

    pub fn tier(&self, tier: u8) -> Totals {
        self.tiers.get(&tier).cloned().unwrap_or_default()
    }

    pub fn all(&self) -> Totals {
        self.tiers.values().fold(Totals::default(), |mut sum, tier| {
            sum.add(tier);
            sum
        })
    }

    /// What a reader wants at the end; its last line is `N passed, N failed, N skipped`.
    pub fn summary(&self, absent: &[&'static Limit]) -> String {
        let mut text = String::new();
        let mut list = |title: &str, lines: &[String]| {
            if !lines.is_empty() {
                let _ = writeln!(text, "{title}");
                text.extend(lines.iter().map(|line| format!("  {line}\n")));
                text.push('\n');
            }
        };
        list("Failed:", &self.failures);
        let skips: Vec<_> = self.skips.iter().map(|(why, tests)| format!("{why} ({tests} tests)")).collect();
        list("Skipped:", &skips);
        let limits: Vec<_> = absent
            .iter()
            .map(|limit| format!("{:18} {} test(s); {}", limit.name, self.not_possible.get(limit.name).unwrap_or(&0), limit.means))
            .collect();
        list("Not possible here (see docs/limits.md):", &limits);
        let _ = writeln!(text, "{:>5} {:>8} {:>8} {:>8} {:>13} {:>8}", "tier", "passed", "failed", "skipped", "not possible", "minutes");
        let mut row = |name: &str, sums: &Totals| {
            let Totals { passed, failed, skipped, not_possible, time } = sums;
            let _ = writeln!(text, "{name:>5} {passed:>8} {failed:>8} {skipped:>8} {not_possible:>13} {:>8}", shell::minutes(*time));
        };
        self.tiers.iter().for_each(|(tier, sums)| row(&tier.to_string(), sums));
        let all = self.all();
        row("all", &all);
        let _ = write!(text, "\n{} passed, {} failed, {} skipped", all.passed, all.failed, all.skipped);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtest::Counts;

    const RBD: Limit = Limit { name: "kernel rbd", means: "", is_here: || false };

    fn outcome(passed: u32, failed: u32, ignored: u32) -> Outcome {
        Outcome { counts: Counts { passed, failed, ignored }, ..Outcome::default() }
    }

    #[test]
    fn a_test_that_says_it_did_not_run_is_not_counted_as_passed() {
        let mut book = Book::default();
        let log = "SKIPPED: no dockerd\n\nNOT POSSIBLE HERE: no kernel rbd\nNOT POSSIBLE HERE: too tired\n";
        book.enter(3, "t", &outcome(10, 0, 1), log, &[&RBD], Duration::from_secs(60));
        let expected = Totals { passed: 7, failed: 0, skipped: 3, not_possible: 1, time: Duration::from_secs(60) };
        assert_eq!(book.tier(3), expected);
        assert_eq!(book.tier(3).tests(), 11);
    }

    #[test]
    fn the_last_line_is_plain_and_adds_up() {
        let mut book = Book::default();
        book.enter(0, "a", &outcome(10, 1, 0), "", &[], Duration::ZERO);
        book.enter(2, "b", &outcome(5, 0, 0), "", &[], Duration::ZERO);
        book.fail(2, "a leak".into());
        book.skip(3, "c", 4, "no root");
        let summary = book.summary(&[&RBD]);
        assert_eq!(summary.lines().last(), Some("15 passed, 2 failed, 4 skipped"));
        assert!(summary.contains("  a leak\n") && summary.contains("kernel rbd"), "{summary}");
    }

    #[test]
    fn a_run_that_broke_off_is_a_failure() {
        let mut book = Book::default();
        book.enter(0, "a", &Outcome { broken: Some("killed".into()), ..Outcome::default() }, "", &[], Duration::ZERO);
        assert_eq!(book.all().failed, 1);
        assert_eq!(book.failures, ["a: killed"]);
    }
}
