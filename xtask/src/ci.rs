//! `cargo xtask ci`: everything that a change must pass, in one go. It runs all of it even after a failure, so that one
//! run tells everything.

use std::process::Command;
use std::time::Instant;

use crate::shell::{self, Result, Rights, Verdict};
use crate::tiers;
use crate::workspace::Workspace;

/// How one part ended.
enum End {
    Passed,
    Failed(String),
    NotRun(&'static str),
}

impl From<Result<()>> for End {
    fn from(done: Result<()>) -> Self {
        done.map_or_else(|error| Self::Failed(error.to_string()), |()| Self::Passed)
    }
}

type Part = (&'static str, fn(&Workspace) -> End);

const PARTS: &[Part] = &[("format", format), ("clippy", clippy), ("cargo-deny", deny), ("tests", tests), ("demo", demo)];

/// Runs every part and prints what each came to.
pub fn run() -> Result<Verdict> {
    let workspace = Workspace::here()?;
    let mut lines = Vec::new();
    let mut passed = true;
    for (name, part) in PARTS {
        println!("\n==== {name} ====");
        let start = Instant::now();
        let end = part(&workspace);
        let said = match &end {
            End::Passed => "passed".to_owned(),
            End::Failed(why) => format!("FAILED: {why}"),
            End::NotRun(why) => format!("not run: {why}"),
        };
        passed &= !matches!(end, End::Failed(_));
        println!("{name}: {said}");
        lines.push(format!("{name:12} {:>5} minutes  {said}", shell::minutes(start.elapsed())));
    }
    println!("\n{}", lines.join("\n"));
    Ok(Verdict::passed_if(passed))
}

fn format(workspace: &Workspace) -> End {
    shell::run(workspace.cargo("fmt").args(["--all", "--check"])).into()
}

fn clippy(workspace: &Workspace) -> End {
    shell::run(workspace.cargo("clippy").args(["--workspace", "--all-targets", "--", "-D", "warnings"])).into()
}

/// Not a must: cargo-deny has to be compiled for minutes, and what it would find comes with a new dependency or a new
/// advisory, not with most changes.
fn deny(workspace: &Workspace) -> End {
    if !shell::succeeds(workspace.cargo("deny").arg("--version")) {
        return End::NotRun("cargo-deny is not installed, and compiling it takes minutes: cargo install --locked cargo-deny");
    }
    shell::run(workspace.cargo("deny").arg("check")).into()
}

/// The README's `cargo xtask test --yes`, with skips as failures.
fn tests(_: &Workspace) -> End {
    match tiers::test(&tiers::Options { yes: true, strict: true, ..tiers::Options::default() }) {
        Ok(Verdict::Passed) => End::Passed,
        Ok(Verdict::Failed) => End::Failed("see above".into()),
        Err(error) => End::Failed(error.to_string()),
    }
}

/// The README's `cargo run --release -- demo`. Under sudo only the program runs, not cargo.
fn demo(workspace: &Workspace) -> End {
    match Rights::here() {
        Rights::Root => shell::run(workspace.cargo("run").args(["--release", "--", "demo"])).into(),
        Rights::Sudo => shell::run(workspace.cargo("build").args(["--release", "-p", "dunnage"]))
            .and_then(|()| shell::run(Command::new("sudo").arg(workspace.target.join("release/dunnage")).arg("demo")))
            .into(),
        Rights::None => End::NotRun("it needs root, and there is no sudo that works"),
    }
}
