//! `cargo xtask bench`: measures the release build in the same kind of place as the tests that need root.

use std::fs::File;

use clap::Args;

use crate::sandbox::{Sandbox, Who};
use crate::shell::{self, Context, Error, Result, Verdict};
use crate::workspace::{Profile, TESTS_PACKAGE, Workspace};

#[derive(Args)]
pub struct Options {
    /// Only this measurement: single, scale, stuck, dvdcli, io or failover
    name: Option<String>,
    /// How long each run of fio takes: longer runs differ less by chance
    #[arg(long, value_name = "N", default_value = "2.5")]
    seconds: f64,
    /// fio's volumes are in memory: what the disk itself does is left out
    #[arg(long)]
    memory: bool,
}

/// Builds, runs the program `bench` of `dunnage-tests`, and says where the figures are.
pub fn run(options: &Options) -> Result<Verdict> {
    let workspace = Workspace::here()?;
    let programs = workspace.build_programs(Profile::Release)?;
    shell::run(workspace.cargo("build").args(["--release", "-p", TESTS_PACKAGE, "--bin", "bench", "--bin", "fuse-store"]))?;
    let sandbox = Sandbox::open(&workspace)?;
    if let Some(reason) = sandbox.refusal() {
        return Err(Error::new(format!("cannot measure: {reason}")));
    }
    let figures = workspace.target.join("bench.json");
    // Made by us, so that it stays ours when root has written it.
    File::create(&figures).context(format_args!("cannot write {}", figures.display()))?;
    let release = workspace.target.join("release");
    let place = sandbox.place(Who::Root)?;
    let mut command = sandbox.command(&place, &programs, &release.join("bench"), &workspace.root);
    command.args(&options.name).arg("--json").arg(&figures).args(["--seconds", &options.seconds.to_string()]);
    command.args(options.memory.then_some("--memory"));
    let status = command.status().context("cannot run bench")?;
    let (_, leaks) = sandbox.close(&place);
    for leak in &leaks {
        println!("LEFT BEHIND: {leak}");
    }
    println!("Figures: {}", figures.display());
    Ok(Verdict::passed_if(status.success() && leaks.is_empty()))
}
