//! The command line, as dvdcli 0.2 had it.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use dunnage_model::{Error, split_options};

use crate::find::Places;
use crate::plugin::Complaint;
use crate::verbs::{self, Asked};

/// The name that picks this face of the binary.
pub const NAME: &str = "dvdcli";

/// Mesos throws away what comes later than a minute after it started the executor.
const PATIENCE: Duration = Duration::from_secs(55);
/// Mesos waits ten minutes for an unmount, and does not repeat one that failed.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(9 * 60);

/// Call any Docker volume plugin from the command line
///
/// The plugin is found as Docker finds it: NAME.sock in /run/docker/plugins; NAME.spec or NAME.json in /etc/docker/plugins
/// and /usr/lib/docker/plugins; or a managed plugin of that name. What was asked for is printed on stdout, and nothing
/// else; everything else goes to stderr. The exit code is 0 or 1.
#[derive(Parser)]
#[command(name = NAME, version, max_term_width = 120, disable_help_subcommand = false)]
struct Cli {
    /// The volume plugin to call, such as dunnage or rexray
    #[arg(long, global = true, value_name = "NAME", allow_hyphen_values = true, overrides_with = "volumedriver")]
    volumedriver: Option<String>,

    /// The volume
    #[arg(long, global = true, value_name = "NAME", allow_hyphen_values = true, overrides_with = "volumename")]
    volumename: Option<String>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Create a volume
    Create(Options),
    /// Remove a volume and its data
    Remove,
    /// Mount a volume, created if there is none of that name, and print the path
    Mount {
        #[command(flatten)]
        options: Options,
        /// Fail when there is no volume of that name, instead of creating it
        #[arg(
            long, alias = "explicitCreate", value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = truth,
            default_value = "false", default_missing_value = "true", hide_default_value = true, overrides_with = "explicitcreate"
        )]
        explicitcreate: bool,
    },
    /// Unmount a volume; one that is not mounted is no error
    Unmount,
    /// Print the path of a volume, if it is mounted
    Path,
    /// Print the name of a volume, if it exists
    Get,
    /// Print the names of all volumes
    List,
    /// Print the version
    Version,
}

#[derive(Args)]
struct Options {
    /// An option of the volume; repeatable. Several may stand together: size=10,fs=ext4
    #[arg(long = "volumeopts", value_name = "KEY=VALUE", allow_hyphen_values = true)]
    volumeopts: Vec<String>,
}

/// What Go's flags take for a truth.
pub fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

/// The command line, for completions and manual pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Where not even this can be written there is nobody to tell.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(said) => {
            if let Some(said) = said {
                println!("{said}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<Option<String>, Complaint> {
    let Some(command) = cli.command else {
        return Ok(Some(Cli::command().render_help().to_string().trim_end().to_owned()));
    };
    let (patience, options) = match &command {
        Command::Version => return Ok(Some(version())),
        Command::Create(options) | Command::Mount { options, .. } => (PATIENCE, read(&options.volumeopts)?),
        Command::Unmount => (UNMOUNT_PATIENCE, Vec::new()),
        _ => (PATIENCE, Vec::new()),
    };
    let name = cli.volumename.unwrap_or_default();
    let driver = cli.volumedriver.filter(|driver| !driver.is_empty()).ok_or_else(|| missing("volumedriver"))?;
    match command {
        Command::List => {}
        // Mesos unmounts what it could not mount; what has no name was never mounted.
        Command::Unmount if name.is_empty() => return Ok(None),
        _ if name.is_empty() => return Err(missing("volumename").into()),
        _ => {}
    }
    let asked = Asked { name, options, id: None, tell: |line| eprintln!("{NAME}: {line}") };
    let work = async {
        let plugin = verbs::activated(&Places::default(), &driver).await?;
        match command {
            Command::Create(_) => verbs::create(&plugin, &asked).await.map(|()| None),
            Command::Remove => verbs::remove(&plugin, &asked).await.map(|()| None),
            Command::Mount { explicitcreate, .. } => {
                verbs::mount(&plugin, &asked, explicitcreate.then_some("--explicitcreate")).await.map(Some)
            }
            Command::Unmount => verbs::unmount(&plugin, &asked).await.map(|()| None),
            Command::Path => verbs::path(&plugin, &asked).await,
            Command::Get => verbs::get(&plugin, &asked).await.map(Some),
            Command::List => verbs::list(&plugin).await.map(|names| (!names.is_empty()).then(|| names.join("\n"))),
            Command::Version => Ok(None),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
    runtime.block_on(async {
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            let detail = format!("plugin {driver:?} did not answer within {} s", patience.as_secs());
            Err(Error::timeout("dvdcli", detail).into())
        })
    })
}

fn missing(flag: &str) -> Error {
    Error::invalid(flag, format!("--{flag} is missing"), format!("give it: --{flag}=NAME"))
}

/// The options of all flags; of a key that comes twice, the last.
fn read(flags: &[String]) -> Result<Vec<(String, String)>, Error> {
    let mut options: Vec<(String, String)> = Vec::new();
    for option in flags.iter().flat_map(|flag| split_options(flag)) {
        let Some((key, value)) = option.split_once('=') else {
            let detail = format!("option {option:?} has no value");
            return Err(Error::invalid("volumeopts", detail, "write it as --volumeopts=KEY=VALUE"));
        };
        options.retain(|(before, _)| before != key);
        options.push((key.to_owned(), value.to_owned()));
    }
    Ok(options)
}

fn version() -> String {
    let binary = std::env::current_exe().unwrap_or_default();
    let system = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    format!("Binary: {}\nSemVer: {}\nOsArch: {system}", binary.display(), env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&NAME).chain(args))
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        for args in [["--volumedriver=d", "--volumename=v", "path"], ["path", "--volumedriver=d", "--volumename=v"]] {
            let cli = parse(&args).expect("good");
            assert_eq!((cli.volumedriver.as_deref(), cli.volumename.as_deref()), (Some("d"), Some("v")), "{args:?}");
        }
    }

    #[test]
    fn both_spellings_of_explicit_create_are_taken_in_every_way_that_go_takes_them() {
        for (flag, expected) in [
            ("--explicitcreate", true),
            ("--explicitCreate", true),
            ("--explicitCreate=true", true),
            ("--explicitcreate=1", true),
            ("--explicitCreate=False", false),
        ] {
            let cli = parse(&["mount", "--volumedriver=d", flag, "--volumename=v"]).expect("good");
            assert!(matches!(cli.command, Some(Command::Mount { explicitcreate, .. }) if explicitcreate == expected), "{flag}");
        }
        assert!(parse(&["mount", "--explicitcreate=maybe"]).is_err());
        assert!(parse(&["create", "--explicitcreate"]).is_err());
    }

    #[test]
    fn a_flag_that_comes_twice_counts_as_it_came_last() {
        let cli = parse(&["get", "--volumename=a", "--volumename=b"]).expect("good");
        assert_eq!(cli.volumename.as_deref(), Some("b"));
    }

    #[test]
    fn options_are_repeatable_and_may_stand_together_and_the_last_of_a_key_counts() {
        let flags = ["size=5,fs=ext4", "labels=a=b=c", "size=7"].map(str::to_owned);
        let expected = [("fs", "ext4"), ("labels", "a=b=c"), ("size", "7")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(read(&flags).expect("good"), expected);
    }

    #[test]
    fn an_option_without_a_value_is_an_error_that_names_it() {
        let error = read(&["size".to_owned()]).expect_err("no value");
        assert!(error.to_string().contains("\"size\""), "{error}");
    }
}
