//! The command line, as dvdcli 0.2 had it.

use std::ffi::OsString;
use std::io::Write;
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
    volumename: Option<OsString>,

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
    let cli = match Cli::try_parse_from(command_first(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(e) => {
            // Where not even this can be written there is nobody to tell.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let told = run(cli).and_then(|said| match said {
        Some(said) => writeln!(std::io::stdout(), "{said}").map_err(|e| Error::os("cannot say what was asked for", &e).into()),
        None => Ok(()),
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Says what is no answer. Where that cannot be written there is nobody to tell.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{NAME}: {line}");
}

/// A command's own flags may stand before it, as in the old dvdcli: all are its own.
fn command_first(mut args: Vec<OsString>) -> Vec<OsString> {
    const WITH_VALUE: [&str; 3] = ["--volumedriver", "--volumename", "--volumeopts"];
    let mut at = 1;
    while args.get(at).is_some_and(|arg| arg.as_encoded_bytes().starts_with(b"-")) {
        at += if WITH_VALUE.iter().any(|flag| args[at] == **flag) { 2 } else { 1 };
    }
    if let Some(flags_and_command) = args.get_mut(1..=at) {
        flags_and_command.rotate_right(1);
    }
    args
}

fn run(cli: Cli) -> Result<Option<String>, Complaint> {
    let Some(command) = cli.command else {
        return Ok(Some(Cli::command().render_help().to_string().trim_end().to_owned()));
    };
    let options = match &command {
        Command::Version => return Ok(Some(version())),
        Command::Create(options) | Command::Mount { options, .. } => read(&options.volumeopts)?,
        _ => Vec::new(),
    };
    let driver = cli.volumedriver.filter(|driver| !driver.is_empty()).ok_or_else(|| missing("volumedriver"))?;
    let name = match cli.volumename.unwrap_or_default().into_string() {
        Ok(name) if !name.is_empty() => name,
        _ if matches!(command, Command::List) => String::new(),
        // Mesos unmounts what it could not mount; what has no name, or one that is no text, was never mounted.
        _ if matches!(command, Command::Unmount) => return Ok(None),
        Ok(_) => return Err(missing("volumename").into()),
        Err(name) => {
            let detail = format!("{name:?} is not UTF-8, and no volume can have that name");
            return Err(Error::invalid("volumename", detail, "use letters, digits, '_', '.' and '-'").into());
        }
    };
    let asked = Asked { name, options, id: None, tell };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
    runtime.block_on(call(&Places::default(), &driver, command, &asked))
}

/// What the plugin answers to a command, in the time that a caller has.
async fn call(places: &Places, driver: &str, command: Command, asked: &Asked) -> Result<Option<String>, Complaint> {
    let patience = if matches!(command, Command::Unmount) { UNMOUNT_PATIENCE } else { PATIENCE };
    tokio::time::timeout(patience, ask(places, driver, command, asked)).await.unwrap_or_else(|_| {
        let detail = format!("plugin {driver:?} did not answer within {} s", patience.as_secs());
        Err(Error::timeout("dvdcli", detail).into())
    })
}

async fn ask(places: &Places, driver: &str, command: Command, asked: &Asked) -> Result<Option<String>, Complaint> {
    let plugin = verbs::activated(places, driver).await?;
    match command {
        Command::Create(_) => verbs::create(&plugin, asked).await.map(|()| None),
        Command::Remove => verbs::remove(&plugin, asked).await.map(|()| None),
        Command::Mount { explicitcreate, .. } => verbs::mount(&plugin, asked, explicitcreate.then_some("--explicitcreate")).await.map(Some),
        Command::Unmount => verbs::unmount(&plugin, asked).await.map(|()| None),
        Command::Path => verbs::path(&plugin, asked).await,
        Command::Get => verbs::get(&plugin, asked).await.map(Some),
        Command::List => verbs::list(&plugin).await.map(|names| (!names.is_empty()).then(|| names.join("\n"))),
        Command::Version => Ok(None),
    }
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
        Cli::try_parse_from(command_first(std::iter::once(&NAME).chain(args).map(OsString::from).collect()))
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        for args in [["--volumedriver=d", "--volumename=v", "path"], ["path", "--volumedriver=d", "--volumename=v"]] {
            let cli = parse(&args).expect("good");
            assert_eq!((cli.volumedriver.as_deref(), cli.volumename.as_deref()), (Some("d"), Some("v".as_ref())), "{args:?}");
        }
    }

    #[test]
    fn a_command_s_own_flags_may_stand_before_it_and_on_both_sides_and_no_other_s() {
        let args =
            ["--volumeopts=size=5", "--explicitCreate", "--volumeopts", "fs=xfs", "--volumename", "create", "mount", "--volumeopts=uid=1"];
        let Ok(Cli { command: Some(Command::Mount { options, explicitcreate: true }), volumename, .. }) = parse(&args) else {
            panic!("no mount");
        };
        assert_eq!((options.volumeopts, volumename), (["size=5", "fs=xfs", "uid=1"].map(str::to_owned).to_vec(), Some("create".into())));
        assert!(parse(&["--volumeopts=size=5", "unmount", "--volumename=v"]).is_err());
        assert!(parse(&["--volumename", "v"]).expect("no command").command.is_none());
        assert!(parse(&["--volumename"]).is_err());
    }

    /// A plugin that takes a call and never answers it. (The clock goes where it is waited for.)
    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_hangs_is_given_up_while_mesos_still_listens_and_that_is_said_on_one_line() {
        let folder = tempfile::tempdir().expect("tempdir");
        let places = Places { sockets: folder.path().to_owned(), specs: Vec::new(), managed: folder.path().join("none") };
        let listener = tokio::net::UnixListener::bind(folder.path().join("stuck.sock")).expect("bind");
        let kept = tokio::spawn(async move { (listener.accept().await.expect("accept"), listener.accept().await.expect("accept")) });
        let asked = Asked { name: "v".to_owned(), options: Vec::new(), id: None, tell };
        for (command, least, most) in [("mount", 50, 60), ("unmount", 500, 600)] {
            let command = parse(&[command]).ok().and_then(|cli| cli.command).expect("a command");
            let begun = tokio::time::Instant::now();
            let said = call(&places, "stuck", command, &asked).await.expect_err("no answer").to_string();
            assert!((least..most).contains(&begun.elapsed().as_secs()), "Mesos gives up after {most} s: {:?}", begun.elapsed());
            assert!(said.starts_with("timeout{dvdcli}") && said.contains("\"stuck\"") && said.lines().count() == 1, "{said}");
        }
        drop(kept.await.expect("it was called"));
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
        assert_eq!(cli.volumename.as_deref(), Some("b".as_ref()));
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
