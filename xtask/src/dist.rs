//! `cargo xtask dist`: the release archive. The same commit and the same binary make the same archive, byte for byte.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::glibc;
use crate::shell::{self, Context, Error, Result, Verdict};
use crate::workspace::{Profile, Programs, Workspace};

/// What goes in besides the binary; a folder goes in with what git knows of it.
const CONTENTS: &[&str] = &["LICENSE", "README.md", "CHANGELOG.md", "docs"];

/// Builds the release and packs it.
pub fn run() -> Result<Verdict> {
    let workspace = Workspace::here()?;
    let Programs { dunnage: binary, dvdcli, .. } = workspace.build_programs(Profile::Release)?;
    let needed = glibc::needed_by(&binary)?;
    let libraries = glibc::libraries(&binary)?;

    let name = format!("dunnage-{}-{}-linux-gnu", workspace.version_of("dunnage")?, std::env::consts::ARCH);
    let dist = workspace.target.join("dist");
    let stage = dist.join(&name);
    if stage.exists() {
        fs::remove_dir_all(&stage).context(format_args!("cannot clear {}", stage.display()))?;
    }
    copy(&binary, &stage.join("dunnage"))?;
    copy(&dvdcli, &stage.join("libexec/dunnage/dvdcli"))?;
    for file in contents(&workspace.root)? {
        copy(&workspace.root.join(&file), &stage.join(&file))?;
    }
    let archive = format!("{name}.tar.gz");
    pack(&workspace.root, &dist, &name, &archive)?;
    fs::remove_dir_all(&stage).context(format_args!("cannot clear {}", stage.display()))?;
    let sum = shell::output(Command::new("sha256sum").arg(&archive).current_dir(&dist))?;
    fs::write(dist.join(format!("{archive}.sha256")), &sum).context("cannot write the checksum")?;

    let releases = glibc::releases(needed);
    println!("\n{}\n{}", dist.join(&archive).display(), sum.trim_end());
    println!("oldest glibc: {needed}");
    println!(
        "runs on:      {} and newer",
        if releases.is_empty() { "none of the releases known here".to_owned() } else { releases.join(", ") }
    );
    println!("linked with:  {}", libraries.join(", "));
    Ok(Verdict::Passed)
}

/// The tracked files that go in, so that no editor's leftover does.
fn contents(root: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    let listed = shell::output(git.args(["ls-files", "-z", "--"]).args(CONTENTS).current_dir(root))?;
    let files: Vec<String> = listed.split_terminator('\0').map(str::to_owned).collect();
    let holds = |wanted: &str| files.iter().any(|file| Path::new(file).starts_with(wanted));
    match CONTENTS.iter().find(|wanted| !holds(wanted)) {
        Some(lacking) => Err(Error::new(format!("{lacking} belongs in the archive and git does not know it"))),
        None => Ok(files),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).context(format_args!("cannot make {}", folder.display()))?;
    fs::copy(from, to).context(format_args!("cannot copy {}", from.display()))?;
    Ok(())
}

fn pack(root: &Path, dist: &Path, name: &str, archive: &str) -> Result<()> {
    let committed = shell::output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root))?;
    let mtime = format!("--mtime=@{}", committed.trim());
    let fixed = ["--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner", "--mode=u+rwX,go+rX,go-w", &mtime];
    // gzip -n leaves out its own time stamp.
    shell::run(Command::new("tar").args(fixed).args(["-I", "gzip -n -9", "-cf", archive, name]).current_dir(dist))
}
