//! Crash points: places where the real daemon, a helper of it, or a tool that it runs dies by SIGKILL because a test has asked
//! for it. Compiled in, and off unless [`VARIABLE`] names a folder.
//!
//! In the folder, `die` has the name of a point: whoever comes by it first dies there, and the file goes, so that one death
//! was asked for and one comes. `passed` gets the name of every point that somebody came by, in order.
//!
//! | point | who dies |
//! |---|---|
//! | `stage/mount/before`, `stage/mount/after` | the daemon, at a step of a goal |
//! | `helper/loop.attach/before`, `…/after` | a helper, with its call not begun, or done and not answered |
//! | `helper/local.remove/marked` | a helper, in the middle of its call |
//! | `tool/mke2fs/running` | the tool, a moment after its start |

use std::fmt::Arguments;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Names the folder.
pub const VARIABLE: &str = "DUNNAGE_CRASH_POINTS";

/// The folder, if tests have one.
pub fn folder() -> Option<&'static PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from)).as_ref()
}

/// Whether somebody is to die at this point.
pub fn is_asked(point: Arguments<'_>) -> bool {
    let Some(folder) = folder() else { return false };
    let point = point.to_string();
    // One write, or the lines of two processes are mixed.
    let line = format!("{point}\n");
    let noted = File::options().append(true).create(true).open(folder.join("passed")).and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(e) = noted {
        tracing::error!("a crash point cannot be noted: {e}");
    }
    let die = folder.join("die");
    std::fs::read_to_string(&die).is_ok_and(|asked| asked.trim() == point) && std::fs::remove_file(die).is_ok()
}

/// Comes by a point, and dies there if asked to.
pub fn pass(point: Arguments<'_>) {
    if is_asked(point) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
