//! The place in which tests run as root: namespaces of their own, so that every mount and process dies with them, and a
//! folder of their own on a real disk, so that what outlives them (a loop device) can be told by its path.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::leaks::{self, Leak};
use crate::libtest;
use crate::limits::{self, Limit};
use crate::shell::{self, Context, Error, Result, Rights};
use crate::workspace::{Programs, Workspace};

/// What PID 1 of the namespace does: an empty /run, then the tests. A shell and not the tests themselves, because PID 1
/// must take in orphans and is deaf to signals; `exit` on a line of its own keeps it from making way with exec.
const INIT: &str = "\
mount -t tmpfs -o mode=755,nosuid,nodev dunnage-tests /run && mkdir -p /run/lock /run/docker/plugins || exit 97
\"$@\"
status=$?
exit $status";

/// Variables of the caller that tests may see; all others stay outside.
const KEPT: &[&str] =
    &["CI", "RUST_BACKTRACE", "RUST_LOG", "PROPTEST_CASES", "TERM", "DUNNAGE_TEST_PEER", "http_proxy", "https_proxy", "no_proxy"];

/// Makes places for tests, one after the other, below one folder of this process.
pub struct Sandbox {
    rights: Rights,
    base: PathBuf,
    made: Cell<u32>,
    absent: Vec<&'static Limit>,
}

/// As whom tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// As root, in namespaces of their own.
    Root,
    /// As whoever started us, like any program.
    Us,
}

/// A fresh place for one executable.
pub struct Place {
    who: Who,
    /// The folder for its files: `DUNNAGE_TEST_TMP`.
    pub dir: PathBuf,
    /// Where it notes what it did not run: `DUNNAGE_SKIP_LOG`.
    pub skip_log: PathBuf,
    /// The loop devices that were in use before.
    loops: BTreeSet<String>,
}

impl Sandbox {
    /// Opens the place of this process and clears those of dead ones.
    ///
    /// # Errors
    /// When there is no real disk to put it on.
    pub fn open(workspace: &Workspace) -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        let is_disk = |path: &Path| !leaks::filesystem_of(path, &mountinfo).is_some_and(|kind| matches!(kind.as_str(), "tmpfs" | "ramfs"));
        let folders = [workspace.target.join("test-tmp"), "/var/tmp/dunnage-test-tmp".into()];
        let folder = folders.into_iter().find(|folder| is_disk(folder));
        let folder = folder
            .ok_or_else(|| Error::new("the tests need a folder on a real disk: both the target folder and /var/tmp are in memory"))?;
        let sandbox = Self {
            rights: Rights::here(),
            base: folder.join(std::process::id().to_string()),
            made: Cell::new(0),
            absent: limits::absent(),
        };
        for stale in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !Path::new("/proc").join(stale.file_name()).exists() {
                println!("Clearing {}, which an interrupted run left.", stale.path().display());
                sandbox.clear(&stale.path(), &leaks::in_use(sandbox.rights), sandbox.rights);
            }
        }
        fs::create_dir_all(&sandbox.base).context(format_args!("cannot make {}", sandbox.base.display()))?;
        Ok(sandbox)
    }

    /// What the machine lacks.
    pub fn absent(&self) -> &[&'static Limit] {
        &self.absent
    }

    /// Why tests cannot run as root here, if they cannot.
    pub fn refusal(&self) -> Option<String> {
        if self.rights == Rights::None {
            return Some("needs root, and there is no sudo that works".into());
        }
        if let Some(lacking) = ["unshare", "mount", "timeout"].iter().find(|command| shell::find(command).is_none()) {
            return Some(format!("needs the command {lacking}"));
        }
        let mut probe = self.rights.command("unshare");
        probe.args(UNSHARE).args(["sh", "-c", INIT, "sh", "true"]);
        (!shell::succeeds(&mut probe)).then(|| "needs to make namespaces and mounts, which this machine refuses even to root".into())
    }

    /// A fresh, empty place.
    pub fn place(&self, who: Who) -> Result<Place> {
        let number = self.made.replace(self.made.get() + 1);
        // Short, because the paths of sockets below must fit in 108 bytes.
        let dir = self.base.join(number.to_string());
        fs::create_dir_all(&dir).context(format_args!("cannot make {}", dir.display()))?;
        let skip_log = self.base.join(format!("{number}.skips"));
        fs::write(&skip_log, "").context(format_args!("cannot make {}", skip_log.display()))?;
        Ok(Place { who, dir, skip_log, loops: leaks::in_use(self.rights) })
    }

    /// What tests are told by their environment, wherever they run.
    fn variables(&self, place: &Place, programs: &Programs) -> Vec<(&'static str, OsString)> {
        let lacking: Vec<_> = self.absent.iter().map(|limit| limit.name).collect();
        let mut variables: Vec<(&'static str, OsString)> = vec![
            ("DUNNAGE_BIN", programs.dunnage.clone().into()),
            ("DUNNAGE_DVDCLI", programs.dvdcli.clone().into()),
            ("DUNNAGE_MESOS_MODULE", programs.mesos_module.clone().into()),
            ("DUNNAGE_TEST_TMP", place.dir.clone().into()),
            ("DUNNAGE_SKIP_LOG", place.skip_log.clone().into()),
            ("DUNNAGE_NOT_POSSIBLE", lacking.join(",").into()),
            ("TMPDIR", place.dir.clone().into()),
        ];
        variables.extend(programs.kernel.clone().map(|kernel| ("DUNNAGE_TEST_KERNEL", kernel.into())));
        // A Mesos that somebody has, for what is run by hand.
        variables
            .extend(["MESOS_BIN", "MESOS_INCLUDES", "MESOS_IMAGES"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        variables
    }

    /// A command that runs `executable` in its place.
    pub fn command(&self, place: &Place, programs: &Programs, executable: &Path, cwd: &Path) -> Command {
        match place.who {
            Who::Root => self.root_command(place, programs, executable, cwd),
            Who::Us => {
                let mut command = libtest::limited(Command::new("timeout"), &executable.to_string_lossy(), libtest::LIMIT);
                command.envs(self.variables(place, programs)).env("CARGO_MANIFEST_DIR", cwd).current_dir(cwd);
                command
            }
        }
    }

    /// The environment goes in as words of `env -i`, because sudo would drop it, and so that root's tests see the same
    /// with and without sudo.
    fn root_command(&self, place: &Place, programs: &Programs, executable: &Path, cwd: &Path) -> Command {
        let mut command = libtest::limited(self.rights.command("timeout"), "unshare", libtest::LIMIT);
        command.args(UNSHARE).args(["sh", "-c", INIT, "sh", "env", "-i"]);
        let mut set = |name: &str, value: &OsStr| {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            command.arg(word);
        };
        set("PATH", &shell::search_path());
        set("HOME", OsStr::new("/root"));
        set("LANG", OsStr::new("C.UTF-8"));
        set("CARGO_MANIFEST_DIR", cwd.as_os_str());
        self.variables(place, programs).iter().for_each(|(name, value)| set(name, value));
        KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))).for_each(|(name, value)| set(name, &value));
        command.arg(executable).current_dir(cwd);
        command
    }

    /// Closes a place: what the tests said that they did not run, and what they left behind.
    pub fn close(&self, place: &Place) -> (String, Vec<Leak>) {
        let skips = fs::read_to_string(&place.skip_log).unwrap_or_default();
        let _ = fs::remove_file(&place.skip_log);
        (skips, self.clear(&place.dir, &place.loops, if place.who == Who::Root { self.rights } else { Rights::None }))
    }

    /// Looks for leaks, lets go of loop devices (they are ours: their files lie here) and removes the folder. Mounts
    /// and processes are left for the person to look at, and the folder with them.
    fn clear(&self, dir: &Path, loops: &BTreeSet<String>, rights: Rights) -> Vec<Leak> {
        let leaks = leaks::left(dir, loops, rights);
        for leak in &leaks {
            if let Leak::Loop { device, .. } = leak {
                shell::succeeds(rights.command("losetup").args(["-d", device]));
            }
        }
        if !dir.exists() || (!leaks.is_empty() && !leaks::left(dir, loops, rights).is_empty()) {
            return leaks;
        }
        let remove = || shell::succeeds(rights.command("rm").args(["-r", "--one-file-system", "--"]).arg(dir));
        if !remove() {
            // An empty mountpoint may be immutable, so that nobody writes into it.
            shell::succeeds(rights.command("chattr").args(["-R", "-f", "-i", "-a"]).arg(dir));
            if !remove() {
                println!("{} could not be removed.", dir.display());
            }
        }
        leaks
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Only when empty: what a leak still uses stays.
        let _ = fs::remove_dir(&self.base);
        let _ = self.base.parent().map(fs::remove_dir);
    }
}

const UNSHARE: &[&str] = &["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"];
