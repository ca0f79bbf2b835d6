//! Helpers that outlive their daemon.
//!
//! A helper that hangs on a dead store does not die with its daemon: what it was told to do is done when the store
//! answers again, behind the next daemon's back. So the helpers of one daemon share a lock on a file of its own, which
//! goes when the last of them has ended; the next daemon waits for it, and then looks again.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use dunnage_model::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// One daemon's mark: whoever has it open belongs to that daemon.
pub struct Brood(File);

/// The helpers of a daemon that is dead.
pub struct Orphans {
    path: PathBuf,
    lock: File,
}

impl Brood {
    /// A new daemon's mark in `folder`, and those of dead daemons whose helpers have not all ended. Only one daemon may
    /// do this at a time.
    pub fn begin(folder: &Path) -> Result<(Brood, Vec<Orphans>)> {
        let what = format!("cannot mark helpers in {}", folder.display());
        let os = |e: io::Error| Error::os(&what, &e);
        std::fs::create_dir_all(folder).map_err(os)?;
        let mut orphans = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(os)? {
            let path = entry.map_err(os)?.path();
            let lock = File::open(&path).map_err(os)?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => std::fs::remove_file(&path).map_err(os)?,
                Err(Errno::WOULDBLOCK) => orphans.push(Orphans { path, lock }),
                Err(e) => return Err(os(e.into())),
            }
        }
        let mine = File::create_new(folder.join(uuid::Uuid::new_v4().to_string())).map_err(os)?;
        flock(&mine, FlockOperation::LockExclusive).map_err(|e| os(e.into()))?;
        Ok((Brood(mine), orphans))
    }

    /// The same mark for another pool of helpers of this daemon.
    pub fn share(&self) -> Result<Brood> {
        self.0.try_clone().map(Brood).map_err(|e| Error::os("cannot mark helpers", &e))
    }

    /// What marks a process as one of ours as long as it has it open.
    pub(crate) fn mark(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

impl Orphans {
    /// Waits until the last of them has ended, which may be never.
    pub async fn gone(self) {
        let (tell, told) = tokio::sync::oneshot::channel();
        // A thread of its own, which no runtime waits for when the daemon ends.
        std::thread::spawn(move || {
            while flock(&self.lock, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
            // That it stays is no harm: the next daemon finds it free.
            let _ = std::fs::remove_file(&self.path);
            let _ = tell.send(());
        });
        let _ = told.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn helper(brood: &Brood) -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(brood.mark().expect("mark")).spawn().expect("cat")
    }

    #[tokio::test]
    async fn the_helpers_of_a_dead_daemon_are_waited_for_by_every_daemon_after_it() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (first, orphans) = Brood::begin(folder.path()).expect("begin");
        assert!(orphans.is_empty());
        let mut hangs = helper(&first);
        drop(first);
        let (second, orphans) = Brood::begin(folder.path()).expect("begin");
        assert_eq!(orphans.len(), 1);
        drop((second, orphans));
        let (_third, mut orphans) = Brood::begin(folder.path()).expect("begin");
        let orphans = orphans.pop().expect("orphans").gone();
        tokio::pin!(orphans);
        let a_moment = std::time::Duration::from_millis(50);
        tokio::time::timeout(a_moment, &mut orphans).await.expect_err("it runs still");
        drop(hangs.stdin.take());
        orphans.await;
        hangs.wait().expect("wait");
        assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 1, "only the third's own");
    }
}
