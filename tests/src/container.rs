//! A container as far as a volume sees one: a process with a mount namespace of its own, which writes to what it was given.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::{BOUND, eventually};

/// A mount namespace begins as a copy of all that is mounted, the neighbours' volumes too, until the container has dropped them.
static COPIES: RwLock<()> = RwLock::new(());

/// As long as this is kept no container of this program's begins: no mount is in a namespace that it was not made for.
pub fn none_begins() -> RwLockReadGuard<'static, ()> {
    COPIES.read().unwrap_or_else(PoisonError::into_inner)
}

/// A running one.
pub struct Container {
    process: Child,
    /// What it writes, as it sees it itself.
    log: PathBuf,
}

impl Container {
    /// Begins one that has this folder, and no other volume, as its own root filesystem has it.
    pub fn with(folder: &Path) -> Container {
        let _copies = COPIES.write().unwrap_or_else(PoisonError::into_inner);
        let base = crate::base();
        let others = format!("grep -o ' {}/[^ ]*' /proc/self/mountinfo | sort -ru | while read m; do umount -l $m; done", base.display());
        let write = "while echo x >>/mnt/log && sync /mnt/log; do sleep 0.01; done";
        let script = format!("mkdir -p /mnt; mount --bind {} /mnt; ({others}) 2>/dev/null; {write}", folder.display());
        let mut process = Command::new("unshare");
        let process = process.args(["--mount", "--propagation", "private", "sh", "-c", &script]).stdin(Stdio::null()).spawn();
        let process = process.expect("unshare");
        let log = PathBuf::from(format!("/proc/{}/root/mnt/log", process.id()));
        let container = Container { process, log };
        eventually("the container writes", BOUND, || container.written() > 0);
        container
    }

    /// How much it has written.
    pub fn written(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.written();
        eventually("the container goes on writing", BOUND, || self.written() > before);
    }

    /// `kill -9`.
    pub fn end(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
