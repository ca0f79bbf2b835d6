//! The daemon's steps as crash points: `stage/mount/after` is the goal, the step, and whether it is before or after it.

use dunnage_engine::Watcher;
use dunnage_host::crash;

/// Dies where a test has asked for it.
pub struct CrashPoints;

impl Watcher for CrashPoints {
    fn step(&self, goal: &str, step: &str, after: bool) {
        crash::pass(format_args!("{goal}/{step}/{}", if after { "after" } else { "before" }));
    }
}
