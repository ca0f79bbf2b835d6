//! Crash points: a daemon that was asked to dies by SIGKILL at a named step. For tests; off unless asked for.
//!
//! `DUNNAGE_CRASH_AT=stage/mount/after` names the goal, the step, and whether it is before or after it.

use dunnage_engine::Watcher;

/// Dies where it was told to.
pub struct CrashAt(Option<String>);

impl CrashAt {
    /// Reads the environment.
    pub fn from_env() -> Self {
        CrashAt(std::env::var("DUNNAGE_CRASH_AT").ok().filter(|at| !at.is_empty()))
    }
}

impl Watcher for CrashAt {
    fn step(&self, goal: &str, step: &str, after: bool) {
        if let Some(at) = &self.0
            && *at == format!("{goal}/{step}/{}", if after { "after" } else { "before" })
        {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
