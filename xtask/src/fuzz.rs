//! `cargo xtask fuzz`: what hostile tasks may say, tried for long. What it is measured by is in `fuzz/`, a workspace of its own.
//!
//! libFuzzer, which needs a C++ compiler; the coverage that leads it is asked of the stable compiler, so that no other is needed.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::{Args, ValueEnum};

use crate::shell::{self, Context, Result, Verdict};
use crate::workspace::Workspace;

/// What libFuzzer wants to be told by the program: which edges were taken, and what was compared with what.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    /// The environment of a Mesos task
    Environment,
    /// The files that `dunnage mesos check` reads
    TaskFile,
    /// The Mesos module's C interface, with a plugin behind it
    CInterface,
}

#[derive(Args)]
pub struct Options {
    /// What is tried; all, one after the other, when it is left out
    #[arg(value_enum, value_name = "TARGET")]
    targets: Vec<Target>,
    /// How long each
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
    /// Where its chance begins
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
}

/// Stops at the first input that breaks something, and says where it lies.
pub fn run(options: &Options) -> Result<Verdict> {
    let workspace = Workspace::here()?;
    let (fuzz, folder) = (workspace.root.join("fuzz"), workspace.target.join("fuzz"));
    let triple = shell::output(Command::new("rustc").args(["--print", "host-tuple"]))?.trim().to_owned();
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked", "--target", &triple, "--manifest-path"]).arg(fuzz.join("Cargo.toml"));
    shell::run(build.arg("--target-dir").arg(&folder).env("RUSTFLAGS", COVERAGE))?;
    println!("On {}", shell::output(Command::new("git").args(["rev-parse", "--short", "HEAD"])).unwrap_or_default().trim());
    let wanted = |target: &&Target| options.targets.is_empty() || options.targets.contains(target);
    for target in Target::value_variants().iter().filter(wanted) {
        let Some(name) = target.to_possible_value().map(|value| value.get_name().to_owned()) else { continue };
        let (corpus, broken) = (folder.join("corpus").join(&name), folder.join("broken").join(&name));
        for made in [&corpus, &broken] {
            fs::create_dir_all(made).context("cannot make a folder for what it finds")?;
        }
        let mut fuzzer = Command::new(folder.join(&triple).join("release").join(&name));
        fuzzer.arg(&corpus).args(seeds(&fuzz, &name).iter().filter(|folder| folder.is_dir()));
        fuzzer.arg(format!("-dict={}", fuzz.join("words.dict").display())).arg(format!("-artifact_prefix={}/", broken.display()));
        fuzzer.args([format!("-max_total_time={}", options.seconds), format!("-seed={}", options.seed)]);
        fuzzer.args(["-max_len=4096", "-timeout=25", "-print_final_stats=1", "-verbosity=0"]);
        if shell::run(&mut fuzzer).is_err() {
            println!("{name} is broken: what broke it is in {}", broken.display());
            return Ok(Verdict::Failed);
        }
    }
    Ok(Verdict::Passed)
}

/// What it begins with: ours, and the documents that the project was asked to implement.
fn seeds(fuzz: &Path, name: &str) -> [std::path::PathBuf; 2] {
    [fuzz.join("seeds").join(name), fuzz.join("../tests/fixtures/seeds")]
}
