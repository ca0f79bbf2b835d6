//! One daemon per state directory.
//!
//! A lock alone does not tell: a thread of a dead daemon that hangs in the kernel keeps it. So the lock's file names its
//! owner, by process and start time, and what counts is whether that one lives.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunnage_model::{Error, HERE, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::config::Places;

/// A process that cannot be mistaken for a later one with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub pid: u32,
    /// In clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub started: u64,
    pub run_dir: PathBuf,
}

impl Owner {
    fn myself(run_dir: &Path) -> Result<Owner> {
        let pid = std::process::id();
        let (_, started) = stat(pid).ok_or_else(|| Error::internal("cannot read /proc/self/stat"))?;
        Ok(Owner { pid, started, run_dir: run_dir.to_owned() })
    }

    /// It runs, and is not a dead process that waits for a thread in the kernel.
    pub fn lives(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }
}

/// The state and the start time of a process.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn pid_file(run_dir: &Path) -> PathBuf {
    run_dir.join("dunnage.pid")
}

/// The daemon that has this run directory, if one lives.
pub fn running(run_dir: &Path) -> Option<Owner> {
    let text = std::fs::read(pid_file(run_dir)).ok()?;
    serde_json::from_slice::<Owner>(&text).ok().filter(Owner::lives)
}

/// The state directory is ours as long as this lives.
pub struct Instance {
    _lock: File,
    pid_file: PathBuf,
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

impl Instance {
    /// Takes the state directory, or says who has it.
    pub fn claim(places: &Places) -> Result<Instance> {
        let path = places.state_dir.join("lock");
        let failed = |e: std::io::Error| Error::os(format_args!("cannot lock {}", path.display()), &e);
        std::fs::create_dir_all(&places.state_dir).map_err(failed)?;
        std::fs::create_dir_all(&places.run_dir).map_err(failed)?;
        let open = |path: &Path| File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let myself = Owner::myself(&places.run_dir)?;
        loop {
            let mut file = open(&path).map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text).map_err(failed)?;
                    match serde_json::from_str::<Owner>(&text) {
                        Ok(owner) if owner.lives() => return Err(taken(&places.state_dir, &owner)),
                        Ok(owner) => {
                            eprintln!(
                                "dunnage: the lock is kept by a dead daemon (pid {}) that hangs in the kernel: passed over",
                                owner.pid
                            );
                            std::fs::remove_file(&path).map_err(failed)?;
                            continue;
                        }
                        // Locked, and not written yet: another one starts this very moment.
                        Err(_) => return Err(Error::in_use(vec![], HERE, "another daemon is starting there", "ask 'dunnage status'")),
                    }
                }
                Err(e) => return Err(failed(e.into())),
            }
            // The file may have been replaced between the opening and the lock.
            let same = std::fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|ours| ours.ino() == now.ino()));
            if !same {
                continue;
            }
            let text = serde_json::to_string(&myself).map_err(|e| Error::internal(e.to_string()))?;
            let write = |file: &mut File| -> std::io::Result<()> {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(text.as_bytes())
            };
            write(&mut file).map_err(failed)?;
            let pid_file = pid_file(&places.run_dir);
            std::fs::write(&pid_file, &text).map_err(|e| Error::os(format_args!("cannot write {}", pid_file.display()), &e))?;
            return Ok(Instance { _lock: file, pid_file });
        }
    }
}

fn taken(state_dir: &Path, owner: &Owner) -> Error {
    let places =
        Places { config: None, state_dir: state_dir.to_owned(), run_dir: owner.run_dir.clone(), plugin_dir: PathBuf::new(), node: None };
    let answers = crate::client::ask::<serde_json::Value>(&places, Duration::from_secs(1), "GET", "/v1/status", &()).is_ok();
    let (how, next) = if answers {
        ("answers", "use it, or stop it with 'dunnage stop'")
    } else {
        ("lives but does not answer", "look at its log; if it is stuck, kill it: mounts stay, and the next daemon takes them over")
    };
    let detail = format!("another daemon has the state directory {} and {how}", state_dir.display());
    Error::in_use(vec![format!("pid {}", owner.pid)], HERE, detail, next)
}
