//! `cargo xtask rounds N`: every failure of a swarm's machine, N times over. One time each is in `cargo xtask test`; this is for long.

use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::shell::{self, Result, Verdict};
use crate::tiers;

/// The tests whose rounds these are.
const TARGET: &str = "tier3_swarm";

#[derive(Args)]
pub struct Options {
    /// How many times
    #[arg(value_name = "N", default_value_t = 20)]
    count: u32,
}

/// Goes on after a round that failed: how many do is the answer.
pub fn run(options: &Options) -> Result<Verdict> {
    let begun = Instant::now();
    let moment = || shell::output(Command::new("date").args(["-u", "+%FT%TZ"]));
    let commit = shell::output(Command::new("git").args(["rev-parse", "--short", "HEAD"])).unwrap_or_else(|_| "no repository".to_owned());
    println!("Begun {} on {}", moment()?.trim(), commit.trim());
    let tests = tiers::Options { tiers: vec![3], filter: Some(TARGET.to_owned()), strict: true, ..tiers::Options::default() };
    let mut passed = 0;
    for round in 1..=options.count {
        println!("\nRound {round} of {}", options.count);
        passed += u32::from(tiers::test(&tests)? == Verdict::Passed);
        println!("{passed} of {round} rounds passed, after {} minutes.", shell::minutes(begun.elapsed()));
    }
    println!("Ended {}; docs/reliability.md has the record.", moment()?.trim());
    Ok(Verdict::passed_if(passed == options.count))
}
