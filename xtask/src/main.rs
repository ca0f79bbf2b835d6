//! What a developer runs: `cargo xtask test`, `ci`, `dist`, `mutate-laws`, `bench`, `rounds`, `fuzz`.
//!
//! This package knows the project only from the outside, by what cargo says of it and by its files: it depends on none
//! of the other crates, so that it builds in seconds and still works when they do not.

#![allow(clippy::print_stdout, reason = "a command line prints; that is all that it is for")]

mod bench;
mod ci;
mod dist;
mod fuzz;
mod glibc;
mod kernel;
mod laws;
mod leaks;
mod libtest;
mod limits;
mod mutation;
mod packages;
mod rounds;
mod sandbox;
mod shell;
mod tiers;
mod totals;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::shell::Verdict;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "What a developer of Dunnage runs", disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every test, tier by tier, after asking for the packages that they need
    Test(tiers::Options),
    /// Run what a change must pass: format, clippy, cargo-deny, every test, the demo
    Ci,
    /// Make the release archive and say which systems it runs on
    Dist,
    /// Break each law on purpose and see that its test notices
    MutateLaws(laws::Options),
    /// Measure, as JSON and as a table
    Bench(bench::Options),
    /// Run every failure of a swarm's machine many times over
    Rounds(rounds::Options),
    /// Try what hostile tasks may say, for long
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let done = match Line::parse().task {
        Task::Test(options) => tiers::test(&options),
        Task::Ci => ci::run(),
        Task::Dist => dist::run(),
        Task::MutateLaws(options) => laws::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Rounds(options) => rounds::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
    };
    match done {
        Ok(Verdict::Passed) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
