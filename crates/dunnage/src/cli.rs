//! The words of the command line, and which room each leads to.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use dunnage_model::{Error, NodeId, Result};

use crate::config::{self, Config, Places};
use crate::{client, control, daemon, demo, install, mesos};

/// Persistent volumes for every container scheduler, outside the container and outside the node.
#[derive(Parser)]
#[command(name = "dunnage", version, about, long_about = LONG, after_long_help = AFTER)]
pub struct Cli {
    #[command(flatten)]
    pub places: PlaceArgs,

    #[command(subcommand)]
    pub command: Command,
}

const LONG: &str = "Persistent volumes for every container scheduler, outside the container and outside the node.

A container asks for a volume by name. It is created if need be, attached, checked, mounted and handed over; the data is \
there again after the container, the daemon and the mounts have gone; nothing written is ever formatted over.";

const AFTER: &str = "Try it:
  sudo dunnage demo                                    the main job, narrated, in a temporary place
  sudo dunnage start                                   the daemon
  docker run -v pg:/data --volume-driver dunnage ...   a container with a volume

Exit codes: 0 done, 1 internal, 2 invalid argument, 3 not found, 4 exists and is not what was asked, 5 in use, 6 wrong \
topology, 7 throttled, 8 platform (or daemon) unavailable, 9 permission, 10 not blank, 11 limit reached, 12 timeout. \
'status' alone: 0 running, 20 stopped, 21 degraded.";

/// Where things live. Several daemons run side by side on one machine when these differ.
#[derive(Args, Clone)]
pub struct PlaceArgs {
    /// The configuration file [default: /etc/dunnage/config.yml if it is there]
    #[arg(short = 'c', long, global = true, env = "DUNNAGE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where volumes and records are kept over a reboot
    #[arg(long, global = true, env = "DUNNAGE_STATE_DIR", value_name = "DIR", default_value = "/var/lib/dunnage")]
    pub state_dir: PathBuf,
    /// Where sockets and the ledger of holders are; gone after a reboot
    #[arg(long, global = true, env = "DUNNAGE_RUN_DIR", value_name = "DIR", default_value = "/run/dunnage")]
    pub run_dir: PathBuf,
    /// Where schedulers look for the sockets of volume plugins
    #[arg(long, global = true, env = "DUNNAGE_PLUGIN_DIR", value_name = "DIR", default_value = "/run/docker/plugins")]
    pub plugin_dir: PathBuf,
    /// The name of this node [default: the machine id]
    #[arg(long, global = true, env = "DUNNAGE_NODE", value_name = "NAME")]
    pub node: Option<NodeId>,
}

impl PlaceArgs {
    fn places(&self) -> Places {
        let PlaceArgs { config, state_dir, run_dir, plugin_dir, node } = self.clone();
        Places { config, state_dir, run_dir, plugin_dir, node }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Start the daemon
    Start(StartArgs),
    /// Stop the daemon; what is mounted stays mounted
    Stop {
        /// First unmount and detach everything, whoever holds it: for a machine that shuts down
        #[arg(long)]
        release: bool,
        /// Then make the folder of mounts a plain one again, what is mounted staying mounted: for another service, such as
        /// REX-Ray, that is to go on with it. Only where mounts lie at PATH/NAME
        #[arg(long)]
        hand_over: bool,
    },
    /// Stop and start the daemon; what is mounted stays mounted
    Restart,
    /// Say whether the daemon runs, and what does not work (exit 0, 20 stopped, 21 degraded)
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show what Dunnage is for: the main job end to end, in a temporary place, needing no other software
    Demo,
    /// Make, look at, mount and remove volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Look at the drivers and how full they are
    #[command(subcommand)]
    Driver(DriverCommand),
    /// Look at who holds volumes, and let go for those who will not do so themselves
    #[command(subcommand)]
    Holder(HolderCommand),
    /// Look at the nodes that share volumes with this one, and cut off one that is gone
    #[command(subcommand)]
    Node(NodeCommand),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// For operators of Mesos, Marathon and DC/OS
    #[command(subcommand)]
    Mesos(MesosCommand),
    /// Install this binary, its units, completions and manual pages
    Install(InstallArgs),
    /// Remove what install made; volumes and their data stay
    Uninstall(InstallArgs),
    /// Print the completion script of a shell
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[derive(Args, Clone)]
pub struct StartArgs {
    /// Stay in the foreground and log to stderr
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// The least that is logged: error, warn, info, debug or trace
    #[arg(long, env = "DUNNAGE_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// How a line of the log looks
    #[arg(long, env = "DUNNAGE_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Where the log goes when the daemon is in the background
    #[arg(long, env = "DUNNAGE_LOG_FILE", value_name = "FILE", default_value = "/var/log/dunnage/dunnage.log")]
    pub log_file: PathBuf,
    /// The daemon that a `start` without -f starts
    #[arg(long, hide = true)]
    pub detached: bool,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Args, Clone, Copy)]
pub struct OutputArgs {
    /// How it is printed
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

#[derive(Args, Clone)]
pub struct WhichArgs {
    /// The volume
    pub name: String,
    /// Its driver, where two have a volume of that name
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// For how many seconds to wait; the work goes on after that
    #[arg(long, value_name = "SECONDS", default_value_t = 110.0)]
    pub timeout: f64,
}

impl WhichArgs {
    pub fn patience(&self) -> Result<Duration> {
        patience(self.timeout)
    }
}

/// A number of seconds as a time to wait.
pub fn patience(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|e| Error::invalid("timeout", format!("{seconds} is not a number of seconds: {e}"), "give for example --timeout 30"))
}

#[derive(Subcommand)]
pub enum VolumeCommand {
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
        /// Only those of this driver
        #[arg(long, value_name = "DRIVER")]
        driver: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say all there is to say of a volume
    Inspect {
        #[command(flatten)]
        which: WhichArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a volume
    Create {
        #[command(flatten)]
        which: WhichArgs,
        /// An option, such as size=2G, uid=1000, gid=1000, mode=0750, thick=true, ro=true, labels=team=db
        #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE")]
        options: Vec<String>,
        /// The endpoint that shall list it [default: the driver's first]
        #[arg(long, value_name = "ENDPOINT")]
        endpoint: Option<String>,
    },
    /// Make a volume that is a copy of a raw image: a file, or a device that nothing uses
    Import {
        #[command(flatten)]
        made: WhichArgs,
        /// The image, with ext4, xfs or btrfs on it and no partition table
        image: PathBuf,
        /// An option as of 'create', such as labels=team=db; size and fs are the image's
        #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE")]
        options: Vec<String>,
        /// The endpoint that shall list it [default: the driver's first]
        #[arg(long, value_name = "ENDPOINT")]
        endpoint: Option<String>,
    },
    /// Copy a volume that is not mounted to a file, as a raw image
    Export {
        #[command(flatten)]
        which: WhichArgs,
        /// A new file; - is standard output
        file: PathBuf,
    },
    /// Make a volume larger, in use or not; none becomes smaller
    Resize {
        #[command(flatten)]
        which: WhichArgs,
        /// How large it shall be in all, such as 20GiB (see 'size' of 'volume create')
        size: String,
    },
    /// Take what somebody else has put into a driver's store, with its data, and list it as a volume
    Adopt {
        /// Its name; not with --all
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Its driver, where there is more than one
        #[arg(long, value_name = "DRIVER")]
        driver: Option<String>,
        /// The endpoint that shall list it; one that another endpoint lists goes to this one [default: the driver's first]
        #[arg(long, value_name = "ENDPOINT")]
        endpoint: Option<String>,
        /// Everything that could be adopted
        #[arg(long)]
        all: bool,
        /// With --all: only names that this regular expression fits as a whole
        #[arg(long, value_name = "REGEX", requires = "all")]
        r#match: Option<String>,
        /// With --all: only say what would be adopted
        #[arg(long, requires = "all")]
        dry_run: bool,
        /// The folder inside that containers are given, such as /data, or / [default: /data if there is nothing else, as
        /// REX-Ray left it]
        #[arg(long, value_name = "PATH")]
        root_path: Option<String>,
        /// Destroy what is there, and make an empty volume of its size
        #[arg(long, conflicts_with = "all")]
        overwrite: bool,
        /// For how many seconds to wait; the work goes on after that
        #[arg(long, value_name = "SECONDS", default_value_t = 110.0)]
        timeout: f64,
    },
    /// Remove a volume and its data
    #[command(visible_alias = "remove")]
    Rm {
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Make a volume's device appear on this node, without a mount, and print it
    Attach {
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Take back what 'attach' did; the device stays while the volume is mounted
    Detach {
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Mount a volume on this node and print where
    Mount {
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Take back what 'mount' did; the volume stays mounted while containers hold it
    #[command(visible_alias = "umount")]
    Unmount {
        #[command(flatten)]
        which: WhichArgs,
    },
}

#[derive(Subcommand)]
pub enum DriverCommand {
    /// List the drivers
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Subcommand)]
pub enum HolderCommand {
    /// List the holders of all volumes on this node, and whose container is gone
    #[command(visible_alias = "list")]
    Ls {
        /// Only those whose container is gone
        #[arg(long)]
        gone: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Let go of a volume for a holder that will not do so itself; refused while a process has it mounted
    Release {
        #[command(flatten)]
        which: WhichArgs,
        /// The beginning of the holder's ID, where there is more than one
        #[arg(long, value_name = "ID")]
        id: Option<String>,
    },
}

#[derive(Subcommand)]
pub enum NodeCommand {
    /// List the nodes, how they stand and how that is known
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this driver
        #[arg(long, value_name = "NAME")]
        driver: Option<String>,
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Cut off a node that is gone: its volumes are free at once, and it takes none until 'unfence'
    Fence {
        #[command(flatten)]
        which: NodeArgs,
        /// Cut off one that lives: its containers lose their volumes at once
        #[arg(long)]
        force: bool,
        /// Seconds to wait; the work goes on after that
        #[arg(long, value_name = "SECONDS", default_value_t = 110.0)]
        timeout: f64,
    },
    /// Let a node that was cut off take volumes again
    Unfence {
        #[command(flatten)]
        which: NodeArgs,
    },
}

#[derive(Args, Clone)]
pub struct NodeArgs {
    /// The node
    #[arg(value_name = "NODE")]
    pub which: String,
    /// Only with the volumes of this driver
    #[arg(long, value_name = "NAME")]
    pub driver: Option<String>,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration that is in force
    Show,
    /// Read the configuration, and say what is wrong with it and where
    Check,
}

#[derive(Subcommand)]
pub enum MesosCommand {
    /// Say what a Marathon app, a TaskInfo or an svc.yml would ask for, and what would be refused (exit 0: nothing)
    Check {
        /// The file; - is standard input
        file: PathBuf,
        /// A variable of a template, for {{NAME}}
        #[arg(long, value_name = "NAME=VALUE")]
        set: Vec<String>,
        #[command(flatten)]
        module: mesos::Module,
        /// Exit 2 on a notice, too
        #[arg(long)]
        strict: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a volume in a container that is about to start; run by the module, in the container's namespace of mounts
    #[command(hide = true)]
    Bind {
        /// The namespace in which this is not to be done
        #[arg(long, value_name = "INODE")]
        outside: u64,
        /// Links on the way are followed, beneath the root
        #[arg(long)]
        links: bool,
        /// Where the volume is
        source: PathBuf,
        /// Beneath which folder it is to be shown
        root: PathBuf,
        /// Where, beneath that
        target: String,
    },
}

#[derive(Args, Clone)]
pub struct InstallArgs {
    /// Install beneath this directory, as for a package
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Where programs and manual pages go
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    pub prefix: PathBuf,
    /// The name that we are called by
    #[arg(skip = "dunnage")]
    pub face: &'static str,
}

pub fn command() -> clap::Command {
    Cli::command()
}

/// It is a unit's main process, which is not to go to the background.
pub fn by_systemd() -> bool {
    // The variable alone does not tell: shells of a desktop session have it too.
    std::env::var_os("INVOCATION_ID").is_some() && std::os::unix::process::parent_id() == 1
}

/// Reads the command line and does what it says.
pub fn run() -> Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // clap's own words and its own exit code: 2 for a bad argument, 0 for --help.
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            let _ = e.print();
            return Ok(ExitCode::from(code));
        }
    };
    let places = cli.places.places();
    for (name, dir) in [("state-dir", &places.state_dir), ("run-dir", &places.run_dir), ("plugin-dir", &places.plugin_dir)] {
        if !dir.is_absolute() {
            let detail = format!("--{name} {} is not an absolute path", dir.display());
            return Err(Error::invalid(name, detail, "begin it with /"));
        }
    }
    match cli.command {
        Command::Start(args) => {
            if args.foreground || args.detached || by_systemd() {
                daemon::run(&places, &args)?;
            } else {
                control::start(&places, &args)?;
            }
        }
        Command::Stop { release, hand_over } => {
            control::stop(&places, release)?;
            if hand_over {
                control::hand_over(&places)?;
            }
        }
        Command::Restart => control::restart(&places)?,
        Command::Status { output } => return control::status(&places, output),
        Command::Demo => demo::run()?,
        Command::Volume(command) => client::volume(&places, command)?,
        Command::Driver(DriverCommand::Ls { quiet, output }) => client::drivers(&places, quiet, output)?,
        Command::Holder(command) => client::holder(&places, command)?,
        Command::Node(command) => return client::node(&places, command),
        Command::Mesos(MesosCommand::Check { file, set, module, strict, output }) => {
            return mesos::check(&places, &file, &set, &module, strict, output);
        }
        Command::Mesos(MesosCommand::Bind { outside, links, source, root, target }) => {
            dunnage_host::linux::bind(&source, &root, &target, links, outside)?;
        }
        Command::Config(ConfigCommand::Show) => print!("{}", Config::load(&places)?.to_yaml()),
        Command::Config(ConfigCommand::Check) => print!("{}", config::check_report(&Config::load(&places)?)),
        Command::Install(args) => install::install(&args)?,
        Command::Uninstall(args) => install::uninstall(&args, &places, install::Extent::All)?,
        Command::Completion { shell } => print!("{}", install::completion(shell)),
        Command::Version => println!("dunnage {} ({})", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        super::command().debug_assert();
    }
}
