//! One binary per node: the daemon, its helpers and the command line. The name it is called by picks the face.
#![allow(clippy::print_stdout)] // this is the command line

mod cli;
mod client;
mod config;
mod control;
mod crash;
mod daemon;
mod demo;
mod endpoints;
mod export;
mod install;
mod instance;
mod logging;
mod mesos;
mod output;
mod rexray;

use std::process::ExitCode;

use dunnage_host::helpers::{HELPER_NAME, Registry, helper_main};

/// What helper processes can do.
fn registry() -> Registry {
    let registry = dunnage_host::linux::tasks(Registry::default());
    dunnage_witnesses::tasks(dunnage_driver_cephfs::tasks(dunnage_driver_ceph::tasks(dunnage_driver_local::tasks(registry))))
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if name == HELPER_NAME {
        return match helper_main(&registry()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{HELPER_NAME}: {e}");
                ExitCode::FAILURE
            }
        };
    }
    match std::path::Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some(dunnage_dvdcli::NAME) => return dunnage_dvdcli::main(),
        Some(rexray::NAME) => return rexray::main(),
        _ => {}
    }
    // Written to by a pipe that is closed (`dunnage volume ls | head`): end, as every other tool does.
    let outcome = cli::run();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dunnage: {error}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}
