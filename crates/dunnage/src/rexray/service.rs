//! The daemon, in REX-Ray's words: start, stop, restart, status.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dunnage_model::{Error, HERE, Result};

use super::{NAME, note, say};
use crate::cli;
use crate::config::{Config, Places};
use crate::{control, daemon, instance};

/// `rexray start`: in the background, unless systemd starts it or `-f` is given.
pub fn start(places: &Places, how: &cli::StartArgs, force: bool) -> Result<ExitCode> {
    if how.foreground || cli::by_systemd() {
        return daemon::run(places, how).map(|()| ExitCode::SUCCESS);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(daemon::need_root("start"));
    }
    // What is wrong with the configuration is said here, and not in a log.
    Config::load(places)?;
    if let Some(owner) = instance::running(&places.run_dir) {
        if force {
            note(&format!("already running at pid {}", owner.pid));
            return Ok(ExitCode::SUCCESS);
        }
        let detail = format!("service startup failed: already running at pid {}", owner.pid);
        return Err(Error::in_use(vec![], HERE, detail, "use it, or restart it with 'rexray restart'"));
    }
    say("Starting REX-Ray...")?;
    match control::spawn(places, how) {
        Ok(pid) => say(&banner(pid, &myself(), &control::place_flags(places))),
        Err(e) => {
            say("FAILED!\n")?;
            Err(e)
        }
    }
}

/// What follows "Starting REX-Ray...", letter by letter as scripts know it.
fn banner(pid: u32, binary: &Path, flags: &str) -> String {
    let next = format!("    sudo {} stop{flags}\n", binary.display());
    format!(
        "SUCESS!\n\n  The REX-Ray daemon is now running at PID {pid}. To\n  shutdown the daemon execute the following command:\n\n{next}\n"
    )
}

/// This program by the name that it was called by.
fn myself() -> PathBuf {
    let called = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let beside = std::env::current_exe().ok().map(|binary| binary.with_file_name(NAME)).filter(|link| link.exists());
    match called.parent() {
        Some(folder) if called.components().count() > 1 => std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()).join(NAME),
        _ => beside.unwrap_or_else(|| NAME.into()),
    }
}

/// `rexray stop`: one that does not run is stopped.
pub fn stop(places: &Places) -> Result<ExitCode> {
    if instance::running(&places.run_dir).is_none() {
        return say("REX-Ray is stopped\n");
    }
    say("Shutting down REX-Ray...")?;
    match control::end(places) {
        Ok(_) => say("SUCCESS!\n"),
        Err(e) => {
            say("FAILED!\n")?;
            Err(e)
        }
    }
}

/// `rexray restart`
pub fn restart(places: &Places, how: &cli::StartArgs, force: bool) -> Result<ExitCode> {
    if instance::running(&places.run_dir).is_some() {
        stop(places)?;
    }
    start(places, how, force)
}

/// `rexray status`: where systemd has the service, one that is stopped is a failure; elsewhere it is an answer.
pub fn status(places: &Places) -> Result<ExitCode> {
    match instance::running(&places.run_dir) {
        Some(owner) => say(&format!("REX-Ray is running at PID {}\n", owner.pid)),
        None => say("REX-Ray is stopped\n")
            .map(|_| if UNITS.iter().any(|unit| Path::new(unit).exists()) { ExitCode::FAILURE } else { ExitCode::SUCCESS }),
    }
}

/// Where our unit and REX-Ray's are.
const UNITS: [&str; 2] = ["/etc/systemd/system/dunnage.service", "/etc/systemd/system/rexray.service"];

/// What starts services on this machine, by its tools.
pub fn init_system() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let known = [("systemctl", "systemd"), ("update-rc.d", "update-rc.d"), ("chkconfig", "chkconfig")];
    known.into_iter().find(|(tool, _)| has(tool)).map_or("unknown", |(_, system)| system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_is_the_one_that_users_know() {
        let text = format!("Starting REX-Ray...{}", banner(18141, Path::new("/home/ubuntu/rexray"), ""));
        let expected = "Starting REX-Ray...SUCESS!\n\n  The REX-Ray daemon is now running at PID 18141. To\n  shutdown the daemon execute \
                        the following command:\n\n    sudo /home/ubuntu/rexray stop\n\n";
        assert_eq!(text, expected);
    }
}
