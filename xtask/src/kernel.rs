//! A kernel for the machines that tier 4 emulates: Debian's own, taken apart and never installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::shell::{self, Context, Error, Result};
use crate::workspace::Workspace;

/// Which package depends on the newest.
const NEWEST: &str = "linux-image-amd64";

/// Fetches it once: a folder with `boot` and `lib/modules`.
///
/// # Errors
/// When apt does not know it, or cannot fetch it.
pub fn fetch(workspace: &Workspace) -> Result<PathBuf> {
    let (folder, new) = (workspace.target.join("test-kernel"), workspace.target.join("test-kernel.new"));
    if folder.is_dir() {
        return Ok(folder);
    }
    if new.exists() {
        fs::remove_dir_all(&new).context("cannot clear what an interrupted run left")?;
    }
    fs::create_dir_all(&new).context("cannot make a folder for a kernel")?;
    let depends = shell::output(Command::new("apt-cache").args(["depends", NEWEST]))?;
    let name = depends.split_whitespace().find(|word| word.starts_with("linux-image-") && *word != NEWEST);
    let name = name.ok_or_else(|| Error::new(format!("apt does not say what {NEWEST} is: tier 4 boots Debian's kernel")))?;
    println!("Fetching {name}, which is not installed ...");
    shell::run(Command::new("apt-get").args(["download", name]).current_dir(&new))?;
    let taken_apart = "dpkg-deb -x ./*.deb . && rm ./*.deb && depmod -b . $(ls lib/modules)";
    shell::run(Command::new("sh").args(["-euc", taken_apart]).current_dir(&new))?;
    fs::rename(&new, &folder).context("cannot keep the kernel")?;
    Ok(folder)
}
