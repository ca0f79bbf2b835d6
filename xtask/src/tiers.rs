//! `cargo xtask test`: every test once, in tiers from "needs nothing" to "needs root and real peers".
//!
//! Tier 0 is what is tested inside the crates and in their documentation, tier 1 their integration tests. Tiers 2 to 4
//! are the integration tests of the package `dunnage-tests`, by the beginning of their names: `tier2_…`, `tier3_…`,
//! `tier4_…`. Those run as root in a [`Sandbox`], and nothing may be left when they end. Tier 4 boots machines with kernels of their
//! own, and runs when it is asked for.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::kernel;
use crate::libtest::{self, Show};
use crate::packages::{self, Consent};
use crate::sandbox::{Sandbox, Who};
use crate::shell::{self, Error, Result, Verdict};
use crate::totals::Book;
use crate::workspace::{Kind, Profile, Programs, TESTS_PACKAGE, TestExecutable, Workspace};

/// The tier that runs when it is asked for, and only then.
const BY_HAND: u8 = 4;

/// How many tests of an executable run at once, where it is not the tier's number.
const THREADS: &[(&str, u32)] = &[("tier3_ceph_crashes", 2), ("tier3_ceph_volumes", 2), ("tier3_swarm", 3)];

#[derive(Args, Default)]
pub struct Options {
    /// Install missing packages without asking (CI=true does the same)
    #[arg(long)]
    pub yes: bool,
    /// Only this tier; may be given several times (4 boots machines of its own, and runs only so)
    #[arg(long = "tier", value_name = "N", value_parser = clap::value_parser!(u8).range(0..=4))]
    pub tiers: Vec<u8>,
    /// Only executables (package::target) or else tests whose name contains TEXT
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Install nothing; tests that lack something are skipped
    #[arg(long, conflicts_with = "yes")]
    pub no_install: bool,
    /// A skipped test is a failed one, as with CI=true
    #[arg(long)]
    pub strict: bool,
}

impl Options {
    fn wants(&self, tier: u8) -> bool {
        if self.tiers.is_empty() { tier != BY_HAND } else { self.tiers.contains(&tier) }
    }

    /// The filter for the tests of an executable: none when the filter names the executable.
    fn within(&self, executable: &str) -> Option<&str> {
        self.filter.as_deref().filter(|filter| !executable.contains(filter))
    }
}

/// As whom the tests of a tier run.
pub fn who(tier: u8) -> Who {
    if tier >= 2 { Who::Root } else { Who::Us }
}

/// The tier of an executable.
///
/// # Errors
/// When it is a file of `dunnage-tests` without a tier in its name: it would never run and nobody would see.
pub fn tier_of(executable: &TestExecutable) -> Result<u8> {
    match executable.kind {
        Kind::Unit => Ok(0),
        Kind::Integration if executable.package != TESTS_PACKAGE => Ok(1),
        Kind::Integration => tier_of_target(&executable.target).ok_or_else(|| {
            Error::new(format!("{TESTS_PACKAGE}::{}: the name must begin with tier2_, tier3_ or tier4_", executable.target))
        }),
    }
}

/// The tier in a target's name: 2 of `tier2_mounts`.
pub fn tier_of_target(target: &str) -> Option<u8> {
    let (tier, _) = target.strip_prefix("tier")?.split_once('_')?;
    tier.parse().ok().filter(|tier| (0..=4).contains(tier))
}

/// How many tests run at once.
pub fn threads(target: &str, tier: u8) -> String {
    let listed = THREADS.iter().find(|(name, _)| *name == target).map(|(_, threads)| *threads);
    let usual = if tier == 2 { 2 } else { 1 };
    std::env::var("DUNNAGE_TEST_THREADS").unwrap_or_else(|_| listed.unwrap_or(usual).to_string())
}

/// Runs the tests.
pub fn test(options: &Options) -> Result<Verdict> {
    let start = Instant::now();
    let strict = options.strict || shell::in_ci();
    let wanted: Vec<u8> = (0..=4).filter(|tier| options.wants(*tier)).collect();
    let consent = match options {
        Options { no_install: true, .. } => Consent::Refused,
        Options { yes: true, .. } => Consent::Given,
        _ if shell::in_ci() => Consent::Given,
        _ => Consent::Ask,
    };
    packages::provide(&wanted, consent)?;

    let workspace = Workspace::here()?;
    shell::run(workspace.cargo("build").arg("--workspace"))?;
    let mut programs = workspace.build_programs(Profile::Dev)?;
    if wanted.contains(&BY_HAND) {
        programs.kernel = Some(kernel::fetch(&workspace)?);
    }
    let mut executables =
        workspace.build_tests(&["--workspace"])?.into_iter().map(|one| Ok((tier_of(&one)?, one))).collect::<Result<Vec<_>>>()?;
    executables
        .sort_by(|(tier, one), (other_tier, other)| (tier, &one.package, &one.target).cmp(&(other_tier, &other.package, &other.target)));
    println!("Built in {} minutes.", shell::minutes(start.elapsed()));

    let run = Run { workspace: &workspace, programs, sandbox: Sandbox::open(&workspace)?, options };
    let mut book = Book::default();
    let mut present = BTreeSet::new();
    for tier in wanted {
        let of_tier: Vec<_> = executables.iter().filter(|(its, _)| *its == tier).map(|(_, one)| one).collect();
        if tier == 0 || !of_tier.is_empty() {
            present.insert(tier);
            run.tier(tier, &of_tier, &mut book)?;
        }
    }
    complain_of_nothing(options, &present, &mut book);
    if strict && book.all().skipped > 0 {
        book.failures.push("tests were skipped, and in CI that is a failure".into());
    }
    println!("\n{}", book.summary(run.sandbox.absent()));
    Ok(Verdict::passed_if(book.failures.is_empty() && book.all().failed == 0))
}

/// A tier that ran no test says nothing, which must not look like success.
fn complain_of_nothing(options: &Options, present: &BTreeSet<u8>, book: &mut Book) {
    let empty: Vec<u8> = match (&options.filter, options.tiers.is_empty()) {
        (Some(_), true) if book.all().tests() > 0 => Vec::new(),
        (_, true) => present.iter().copied().filter(|tier| book.tier(*tier).tests() == 0).collect(),
        // Skipping all of a tier that was asked for by name is not what was asked for.
        (_, false) => options.tiers.iter().copied().filter(|tier| book.tier(*tier).tests() == book.tier(*tier).skipped).collect(),
    };
    empty.into_iter().for_each(|tier| book.fail(tier, format!("tier {tier}: no test ran")));
}

struct Run<'a> {
    workspace: &'a Workspace,
    programs: Programs,
    sandbox: Sandbox,
    options: &'a Options,
}

impl Run<'_> {
    fn tier(&self, tier: u8, executables: &[&TestExecutable], book: &mut Book) -> Result<()> {
        println!("\n== tier {tier} ==");
        let refusal = if who(tier) == Who::Root { self.sandbox.refusal() } else { None };
        for executable in executables {
            match &refusal {
                Some(reason) => self.skip(tier, executable, reason, book)?,
                None => self.executable(tier, executable, book)?,
            }
        }
        if tier == 0 {
            self.doc_tests(book)?;
        }
        let sums = book.tier(tier);
        println!("tier {tier}: {} passed, {} failed, {} minutes", sums.passed, sums.failed, shell::minutes(sums.time));
        Ok(())
    }

    fn executable(&self, tier: u8, executable: &TestExecutable, book: &mut Book) -> Result<()> {
        let name = format!("{}::{}", executable.package, executable.target);
        println!("\n-- {name}");
        let place = self.sandbox.place(who(tier))?;
        let mut command = self.sandbox.command(&place, &self.programs, &executable.path, &executable.dir);
        if who(tier) == Who::Root {
            command.args(["--test-threads", &threads(&executable.target, tier)]);
        }
        command.args(self.options.within(&name));
        let start = Instant::now();
        let outcome = libtest::run(command, Show::Everything)?;
        let time = start.elapsed();
        let (skips, leaks) = self.sandbox.close(&place);
        book.enter(tier, &name, &outcome, &skips, self.sandbox.absent(), time);
        for leak in leaks {
            println!("LEFT BEHIND: {leak}");
            book.fail(tier, format!("{name} left something behind: {leak}"));
        }
        Ok(())
    }

    /// Counts what cannot be run. Listing needs no rights.
    fn skip(&self, tier: u8, executable: &TestExecutable, reason: &str, book: &mut Book) -> Result<()> {
        let name = format!("{}::{}", executable.package, executable.target);
        let mut list = Command::new(&executable.path);
        list.args(["--list", "--format", "terse"]).args(self.options.within(&name));
        let tests = libtest::listed(&shell::output(&mut list)?);
        println!("SKIPPED: {name}, {tests} tests: {reason}");
        book.skip(tier, &name, tests, reason);
        Ok(())
    }

    fn doc_tests(&self, book: &mut Book) -> Result<()> {
        let mut cargo = self.workspace.cargo("test");
        cargo.args(["--workspace", "--doc"]);
        if let Some(filter) = &self.options.filter {
            cargo.args(["--", filter]);
        }
        println!("\n-- {}", shell::shown(&cargo));
        let start = Instant::now();
        let outcome = libtest::run(cargo, Show::Everything)?;
        book.enter(0, "doc", &outcome, "", &[], start.elapsed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::libtest::{Counts, Outcome};

    fn executable(package: &str, target: &str, kind: Kind) -> TestExecutable {
        TestExecutable { package: package.into(), target: target.into(), kind, path: "/x".into(), dir: "/".into() }
    }

    #[test]
    fn an_executable_finds_its_tier() {
        assert_eq!(tier_of(&executable("dunnage-engine", "dunnage_engine", Kind::Unit)).unwrap(), 0);
        assert_eq!(tier_of(&executable("dunnage-engine", "conformance", Kind::Integration)).unwrap(), 1);
        assert_eq!(tier_of(&executable(TESTS_PACKAGE, "dunnage_tests", Kind::Unit)).unwrap(), 0);
        assert_eq!(tier_of(&executable(TESTS_PACKAGE, "tier2_mounts", Kind::Integration)).unwrap(), 2);
        assert_eq!(tier_of(&executable(TESTS_PACKAGE, "tier3_docker", Kind::Integration)).unwrap(), 3);
    }

    #[test]
    fn a_file_without_a_tier_is_not_silently_forgotten() {
        assert!(tier_of(&executable(TESTS_PACKAGE, "mounts", Kind::Integration)).is_err());
        assert!(tier_of(&executable(TESTS_PACKAGE, "tier9_mounts", Kind::Integration)).is_err());
    }

    #[test]
    fn a_tier_that_was_asked_for_and_ran_nothing_is_a_failure() {
        let mut book = Book::default();
        let counts = Counts { passed: 1, failed: 0, ignored: 0 };
        book.enter(0, "a", &Outcome { counts, ..Outcome::default() }, "", &[], Duration::ZERO);
        complain_of_nothing(&Options::default(), &BTreeSet::from([0]), &mut book);
        assert!(book.failures.is_empty(), "tiers that have no executable were not asked for by name");
        complain_of_nothing(&Options { tiers: vec![0, 3], ..Options::default() }, &BTreeSet::from([0]), &mut book);
        assert_eq!(book.failures, ["tier 3: no test ran"]);
        assert_eq!(book.all().failed, 1);
    }

    #[test]
    fn a_filter_that_finds_nothing_is_a_failure() {
        let mut book = Book::default();
        complain_of_nothing(&Options { filter: Some("x".into()), ..Options::default() }, &BTreeSet::from([0, 2]), &mut book);
        assert_eq!(book.failures.len(), 2);
    }

    #[test]
    fn a_filter_that_names_an_executable_runs_all_of_it() {
        let options = Options { filter: Some("tier2_mounts".into()), ..Options::default() };
        assert_eq!(options.within("dunnage-tests::tier2_mounts"), None);
        assert_eq!(options.within("dunnage-tests::tier2_loops"), Some("tier2_mounts"));
    }
}
