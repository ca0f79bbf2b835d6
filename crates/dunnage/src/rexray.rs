//! The face that `rexray` had: the same words in, the same shapes out, and Dunnage behind it.
//!
//! `args` has the command line, `matching` what a VOLUME argument means, `shape` the words of the JSON, `print`, `template`
//! and `tabs` how an answer looks; the other rooms carry out one group of commands each.

mod adapter;
mod args;
mod daemon;
mod device;
mod env;
mod matching;
mod print;
mod service;
mod shape;
mod tabs;
mod template;
#[cfg(test)]
mod tests;
mod token;
mod volume;

use std::io::Write;
use std::process::ExitCode;

use dunnage_model::{Error, Result};

use crate::config::Places;
use crate::install;

pub use args::command;
use args::{Cli, Command, ServiceCommand};

/// The name that picks this face of the binary.
pub const NAME: &str = "rexray";

/// Reads the command line and does what it says; 0 or 1.
pub fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(e) => {
            // Where not even this can be written there is nobody to tell.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    run(cli).unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let places = cli.global.places()?;
    cli.global.refuse_remote()?;
    let live = daemon::Live { places: places.clone() };
    let asked = volume::Asked { daemon: &live, service: cli.global.service() };
    let Some(command) = cli.command else { return usage(&[]) };
    match command {
        Command::Version => say(&version()),
        Command::Env => say(&env::env(&places)?.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect::<String>()),
        Command::Install => {
            install::rexray_config(&args::everywhere()).and_then(|()| install::install(&args::everywhere())).map(|()| ExitCode::SUCCESS)
        }
        Command::Uninstall { package } => {
            let extent = if package { install::Extent::Units } else { install::Extent::All };
            install::uninstall(&args::everywhere(), &places, extent).map(|()| ExitCode::SUCCESS)
        }
        Command::Service(command) | Command::ServiceGroup { command: Some(command) } => serve(&cli.global, &places, command),
        Command::ServiceGroup { command: None } => usage(&["service"]),
        Command::Adapter(group) => say(&adapter::adapter(&asked, group)?),
        Command::Device(group) => match group.command {
            None => usage(&["device"]),
            Some(command) => say(&device::device(&places, &live, &group.format, command)?),
        },
        Command::Volume(group) => match group.command {
            None => usage(&["volume"]),
            Some(command) => {
                let format = group.format.format(group.quiet)?;
                outcome(volume::volume(&asked, &format, group.dry_run, command)?)
            }
        },
        Command::Snapshot(group) => Err(adapter::snapshot(group.command)),
        Command::Scripts(_) => Err(Error::invalid(
            "scripts",
            "nothing downloads programs any more",
            "keep your scripts where your other programs are, and call 'dunnage' or 'rexray' in them",
        )),
        Command::Flexrex(_) => Err(Error::invalid(
            "flexrex",
            "Kubernetes has given FlexVolume up",
            "configure a CSI endpoint (endpoints.csi in the configuration), and use it by a StorageClass",
        )),
        Command::Token { command: None } => usage(&["token"]),
        Command::Token { command: Some(command) } => say(&token::token(command)?),
    }
}

fn serve(global: &args::GlobalArgs, places: &Places, command: ServiceCommand) -> Result<ExitCode> {
    match command {
        ServiceCommand::Start(start) => service::start(places, &global.start(start.foreground), start.force),
        ServiceCommand::Restart(start) => service::restart(places, &global.start(start.foreground), start.force),
        ServiceCommand::Stop => service::stop(places),
        ServiceCommand::Status => service::status(places),
        ServiceCommand::Initsys => say(&format!("{}\n", service::init_system())),
    }
}

/// What a group of commands says that is given none.
fn usage(path: &[&str]) -> Result<ExitCode> {
    let mut command = command();
    command.build();
    let mut at = &mut command;
    for name in path {
        match at.find_subcommand_mut(name) {
            Some(sub) => at = sub,
            None => return Err(Error::internal(format!("there is no command {name:?}"))),
        }
    }
    say(&at.render_help().to_string())
}

/// What was done is on stdout, whatever came after; what went wrong is on stderr.
fn outcome(done: volume::Done) -> Result<ExitCode> {
    say(&done.said)?;
    done.failed.iter().for_each(complain);
    Ok(if done.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(text: &str) -> Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        // Whoever reads has what it wanted.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(e) => Err(Error::os("cannot write to stdout", &e)),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn complain(error: &Error) {
    eprintln!("{NAME}: {error}");
}

/// Something that the user should know, and that is no error.
fn note(text: &str) {
    eprintln!("{NAME}: {text}");
}

fn version() -> String {
    let binary = std::env::current_exe().unwrap_or_default();
    let system = format!("Linux-{}", std::env::consts::ARCH);
    let version = env!("CARGO_PKG_VERSION");
    format!("REX-Ray\n-------\nBinary: {}\nFlavor: dunnage\nSemVer: {version}\nOsArch: {system}\n", binary.display())
}
