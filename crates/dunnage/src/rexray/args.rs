//! The command line, as REX-Ray 0.12 had it: its flags are those of Go's pflag, and `-h` is the host.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use dunnage_dvdcli::truth;
use dunnage_model::{Error, NodeId, Result};

use super::print::{Format, Shape};
use crate::cli::{self, InstallArgs};
use crate::config::Places;

/// REX-Ray's command line, answered by Dunnage
///
/// Volumes are created, attached, mounted and listed as 'rexray' did it, by the Dunnage daemon of this node. The exit code
/// is 0 or 1, and errors are on stderr. 'dunnage' can do more, and says more.
#[derive(Debug, Parser)]
#[command(name = super::NAME, disable_help_flag = true, args_override_self = true, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// The configuration file of 'start' [default: as the daemon looks for it]
    #[arg(short = 'c', long, global = true, env = "DUNNAGE_CONFIG", hide_env = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A remote host; there is none: Dunnage runs on each node
    #[arg(short = 'h', long, global = true, env = "REXRAY_HOST", hide_env = true, value_name = "ADDRESS")]
    host: Option<String>,
    /// Only this driver's or this endpoint's volumes
    #[arg(short = 's', long, global = true, env = "REXRAY_SERVICE", hide_env = true, value_name = "NAME")]
    service: Option<String>,
    /// The least that a daemon that is started here logs: error, warn, info or debug
    #[arg(short = 'l', long = "logLevel", alias = "loglevel", global = true, env = "REXRAY_LOGLEVEL", hide_env = true)]
    #[arg(value_name = "LEVEL", ignore_case = true)]
    log_level: Option<LogLevel>,
    /// Print help
    #[arg(short = '?', long, global = true, action = ArgAction::Help, value_parser = clap::value_parser!(bool))]
    help: Option<bool>,
    /// Print more help
    #[arg(short = 'v', long, global = true, action = ArgAction::HelpLong, value_parser = clap::value_parser!(bool))]
    verbose: Option<bool>,
    #[arg(long, global = true, hide = true, env = "DUNNAGE_STATE_DIR", default_value = "/var/lib/dunnage")]
    state_dir: PathBuf,
    #[arg(long, global = true, hide = true, env = "DUNNAGE_RUN_DIR", default_value = "/run/dunnage")]
    run_dir: PathBuf,
    #[arg(long, global = true, hide = true, env = "DUNNAGE_PLUGIN_DIR", default_value = "/run/docker/plugins")]
    plugin_dir: PathBuf,
    #[arg(long, global = true, hide = true, env = "DUNNAGE_NODE")]
    node: Option<NodeId>,
    #[arg(long, global = true, hide = true, env = "DUNNAGE_LOG_FILE", default_value = "/var/log/dunnage/dunnage.log")]
    log_file: PathBuf,
}

/// The levels that REX-Ray's log had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    #[value(aliases = ["fatal", "panic"])]
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    #[value(alias = "trace")]
    Debug,
}

impl GlobalArgs {
    /// Where the daemon of this command line is.
    pub fn places(&self) -> Result<Places> {
        let GlobalArgs { config, state_dir, run_dir, plugin_dir, node, .. } = self;
        let config = config.clone().filter(|config| !config.as_os_str().is_empty());
        if let Some(file) = config.as_ref().filter(|file| !file.exists()) {
            let detail = format!("there is no configuration file {}", file.display());
            return Err(Error::invalid("config", detail, "name one that exists with -c, or name none"));
        }
        for (name, dir) in [("state-dir", state_dir), ("run-dir", run_dir), ("plugin-dir", plugin_dir)] {
            if !dir.is_absolute() {
                return Err(Error::invalid(name, format!("--{name} {} is not an absolute path", dir.display()), "begin it with /"));
            }
        }
        Ok(Places { config, state_dir: state_dir.clone(), run_dir: run_dir.clone(), plugin_dir: plugin_dir.clone(), node: node.clone() })
    }

    /// The driver or the endpoint that is meant, where one is named.
    pub fn service(&self) -> Option<String> {
        self.service.clone().filter(|service| !service.is_empty())
    }

    /// How a daemon is to be started.
    pub fn start(&self, foreground: bool) -> cli::StartArgs {
        let level = match self.log_level {
            Some(LogLevel::Error) => "error",
            Some(LogLevel::Warn) => "warn",
            Some(LogLevel::Info) | None => "info",
            Some(LogLevel::Debug) => "debug",
        };
        let log_file = self.log_file.clone();
        cli::StartArgs { foreground, log_level: level.to_owned(), log_format: cli::LogFormat::Text, log_file, detached: false }
    }

    /// A controller on another machine is a thing of the past; this machine by any name is not.
    pub fn refuse_remote(&self) -> Result<()> {
        let Some(host) = self.host.as_deref().filter(|host| !host.is_empty()) else { return Ok(()) };
        let address = host.split_once("://").map_or(host, |(_, address)| address);
        let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
        if host.starts_with("unix://") || ["localhost", "127.0.0.1", "[::1]"].iter().any(|here| name.eq_ignore_ascii_case(here)) {
            return Ok(());
        }
        Err(Error::invalid(
            "host",
            format!("{host:?} is a remote host, and Dunnage has no controller: it runs on each node"),
            "leave --host and rexray.host out, and configure the driver where the volumes are used",
        ))
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The volume manager
    Volume(VolumeArgs),
    /// The adapter manager
    Adapter(AdapterArgs),
    /// The device manager
    Device(DeviceArgs),
    /// The snapshot manager
    Snapshot(SnapshotArgs),
    /// The service controller
    #[command(name = "service")]
    ServiceGroup {
        #[command(subcommand)]
        command: Option<ServiceCommand>,
    },
    #[command(flatten)]
    Service(ServiceCommand),
    /// Print the environment that means the same as the configuration
    Env,
    /// The token manager
    Token {
        #[command(subcommand)]
        command: Option<TokenCommand>,
    },
    /// Not any more: nothing downloads programs
    Scripts(Anything),
    /// Not any more: Kubernetes uses a CSI endpoint
    Flexrex(Anything),
    /// Install this binary, its units, completions and manual pages
    Install,
    /// Remove what install made; volumes and their data stay
    Uninstall {
        /// A package manager removes the rest: remove the units only
        #[arg(long)]
        package: bool,
    },
    /// Print the version
    Version,
}

/// Words that are not read.
#[derive(Debug, Args)]
pub struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _words: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Start the service
    Start(StartArgs),
    /// Stop the service; what is mounted stays mounted
    Stop,
    /// Restart the service
    #[command(visible_aliases = ["reload", "force-reload"])]
    Restart(StartArgs),
    /// Print the service status; the exit code is 1 for a stopped service that systemd has, else 0
    Status,
    /// Print the detected init system type
    Initsys,
}

#[derive(Debug, Args, Clone, Copy)]
pub struct StartArgs {
    /// Stay in the foreground
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// Accepted; there is one daemon per state directory
    #[arg(long)]
    nopid: bool,
    /// A service that runs already is no error
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct FormatArgs {
    /// The output format (tmpl, json, jsonp), or a template for each line
    #[arg(short = 'f', long, global = true, value_name = "FORMAT", default_value = "tmpl")]
    format: String,
    /// The Go template to use when --format is tmpl; the answer is its .D
    #[arg(long, global = true, value_name = "TEMPLATE", default_value = "", hide_default_value = true)]
    template: String,
    /// Align what tabs part
    #[arg(
        long = "templateTabs", global = true, action = ArgAction::Set, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = truth,
        default_value = "true", default_missing_value = "true", hide_default_value = true
    )]
    template_tabs: bool,
}

impl FormatArgs {
    /// What is asked for.
    pub fn format(&self, quiet: bool) -> Result<Format> {
        let shape = match self.format.as_str() {
            json if json.eq_ignore_ascii_case("json") => Shape::Json,
            pretty if pretty.eq_ignore_ascii_case("jsonp") => Shape::JsonPretty,
            _ if !self.template.is_empty() => Shape::Template(self.template.clone()),
            table if table.eq_ignore_ascii_case("tmpl") => Shape::Table,
            each if each.contains("{{") => Shape::Each(each.to_owned()),
            other => {
                let detail = format!("{other:?} is no format");
                return Err(Error::invalid("format", detail, "use tmpl, json, jsonp, or a template such as '{{.Name}}'"));
            }
        };
        Ok(Format { shape, tabs: self.template_tabs, quiet })
    }
}

#[derive(Debug, Args)]
pub struct VolumeArgs {
    #[command(flatten)]
    pub format: FormatArgs,
    /// Suppress table headers
    #[arg(short = 'q', long, global = true)]
    pub quiet: bool,
    /// Show what action(s) will occur, but do not execute them
    #[arg(short = 'n', long = "dryRun", global = true)]
    pub dry_run: bool,
    #[command(subcommand)]
    pub command: Option<VolumeCommand>,
}

#[derive(Debug, Args)]
pub struct Several {
    /// An ID or a name in any letter case, the beginning of one, or a /regular expression/
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
    /// Go on with the others when one fails
    #[arg(long = "continueOnError")]
    pub continue_on_error: bool,
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List volumes
    #[command(visible_aliases = ["l", "list", "get", "inspect"])]
    Ls {
        /// Only those that are meant: IDs or names, the beginnings of some, or /regular expressions/
        #[arg(value_name = "VOLUME")]
        volumes: Vec<String>,
        /// Only those attached to this node
        #[arg(long)]
        attached: bool,
        /// Only those that are not attached
        #[arg(long)]
        available: bool,
        /// Only those attached to this node, with their paths
        #[arg(long)]
        path: bool,
    },
    /// Create a new volume
    #[command(visible_aliases = ["c", "n", "new"])]
    Create(CreateArgs),
    /// Remove a volume; it must be named whole, or by a /regular expression/
    #[command(visible_aliases = ["r", "remove", "delete", "del"])]
    Rm {
        #[command(flatten)]
        several: Several,
        /// Accepted; a volume that is in use is not removed
        #[arg(long)]
        force: bool,
    },
    /// Attach a volume
    #[command(visible_alias = "a")]
    Attach {
        #[command(flatten)]
        several: Several,
        /// Those that are attached already are fine; who may take a volume from another node is configured
        #[arg(long)]
        force: bool,
        /// Those that are attached already are fine
        #[arg(short = 'i', long)]
        idempotent: bool,
    },
    /// Detach a volume
    #[command(visible_alias = "d")]
    Detach {
        #[command(flatten)]
        several: Several,
        /// Accepted; a volume that is in use is not detached
        #[arg(long)]
        force: bool,
        /// Those that are not attached are fine
        #[arg(short = 'i', long)]
        idempotent: bool,
    },
    /// Mount a volume
    #[command(visible_alias = "m")]
    Mount {
        #[command(flatten)]
        several: Several,
        /// Accepted; data is never overwritten
        #[arg(long = "overwriteFS", alias = "overwriteFs", alias = "overwritefs")]
        overwrite_fs: bool,
        /// Accepted; a volume has the filesystem that it was created with
        #[arg(long = "fsType", value_name = "FS", default_value = "", hide_default_value = true)]
        fs_type: String,
        /// Those that are mounted already are fine
        #[arg(short = 'i', long)]
        idempotent: bool,
    },
    /// Unmount a volume
    #[command(visible_aliases = ["u", "umount"])]
    Unmount {
        #[command(flatten)]
        several: Several,
        /// Those that are not mounted are fine
        #[arg(short = 'i', long)]
        idempotent: bool,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The names
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// What kind; a hint
    #[arg(long = "volumeType", value_name = "TYPE", default_value = "", hide_default_value = true)]
    pub volume_type: String,
    /// The snapshot that it begins as; refused where there are none
    #[arg(long = "snapshotID", value_name = "ID", default_value = "", hide_default_value = true)]
    pub snapshot_id: String,
    /// How many operations a second; a hint
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    pub iops: u64,
    /// In GiB; 0 is the default size. Units may be given: 512MiB
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true)]
    pub size: String,
    /// Where; a hint
    #[arg(long = "availabilityZone", value_name = "ZONE", default_value = "", hide_default_value = true)]
    pub availability_zone: String,
    /// Attach the new volume
    #[arg(long)]
    pub attach: bool,
    /// Attach and mount the new volume
    #[arg(long)]
    pub amount: bool,
    /// Accepted; a new volume is taken from nobody
    #[arg(long)]
    pub force: bool,
    /// Accepted; data is never overwritten
    #[arg(long = "overwriteFS", alias = "overwriteFs", alias = "overwritefs")]
    pub overwrite_fs: bool,
    /// ext4, xfs or btrfs
    #[arg(long = "fsType", value_name = "FS", default_value = "", hide_default_value = true)]
    pub fs_type: String,
    /// Encrypt it; refused where that cannot be
    #[arg(long)]
    pub encrypted: bool,
    /// What to encrypt it with
    #[arg(long = "encryptionKey", value_name = "KEY", default_value = "", hide_default_value = true)]
    pub encryption_key: String,
    /// Go on with the others when one fails
    #[arg(long = "continueOnError")]
    pub continue_on_error: bool,
}

#[derive(Debug, Args)]
pub struct AdapterArgs {
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(subcommand)]
    pub command: Option<AdapterCommand>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum AdapterCommand {
    /// List the configured services: Dunnage's drivers
    #[command(visible_aliases = ["ls", "list"])]
    Types,
    /// List what each of them calls this node
    Instances,
}

#[derive(Debug, Args)]
pub struct DeviceArgs {
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(subcommand)]
    pub command: Option<DeviceCommand>,
}

#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List the mounts of block devices
    #[command(visible_aliases = ["get", "list"])]
    Ls {
        /// Only the mounts of this device
        #[arg(long = "deviceName", alias = "devicename", value_name = "DEVICE", default_value = "", hide_default_value = true)]
        device_name: String,
        /// Only what is mounted there
        #[arg(long = "mountPoint", alias = "mountpoint", value_name = "PATH", default_value = "", hide_default_value = true)]
        mount_point: String,
    },
    /// Mount a device that is no volume's
    Mount {
        /// The block device
        #[arg(long = "deviceName", alias = "devicename", value_name = "DEVICE")]
        device_name: PathBuf,
        /// Where to
        #[arg(long = "mountPoint", alias = "mountpoint", value_name = "PATH")]
        mount_point: PathBuf,
        /// Options of mount(8), parted by commas
        #[arg(long = "mountOptions", alias = "mountoptions", value_name = "OPTIONS", default_value = "", hide_default_value = true)]
        mount_options: String,
        /// One more of them
        #[arg(long = "mountLabel", alias = "mountlabel", value_name = "OPTION", default_value = "", hide_default_value = true)]
        mount_label: String,
    },
    /// Unmount what is no volume
    Unmount {
        /// Where it is mounted
        #[arg(long = "mountPoint", alias = "mountpoint", value_name = "PATH")]
        mount_point: PathBuf,
    },
    /// Make a filesystem on what is proven blank
    Format {
        /// The block device, or a file
        #[arg(long = "deviceName", alias = "devicename", value_name = "DEVICE")]
        device_name: PathBuf,
        /// ext4, xfs or btrfs
        #[arg(long = "fsType", alias = "fstype", value_name = "FS", default_value = "ext4")]
        fs_type: String,
        /// Accepted; data is never overwritten
        #[arg(long = "overwriteFS", alias = "overwriteFs", alias = "overwritefs")]
        overwrite_fs: bool,
    },
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    _format: FormatArgs,
    #[command(subcommand)]
    pub command: Option<SnapshotCommand>,
}

/// What REX-Ray asked a snapshot's driver for.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Get one or more snapshots
    #[command(visible_aliases = ["ls", "list"])]
    Get(SnapshotFlags),
    /// Create a new snapshot
    #[command(visible_alias = "new")]
    Create(SnapshotFlags),
    /// Remove a snapshot
    #[command(visible_alias = "rm")]
    Remove(SnapshotFlags),
    /// Copy a snapshot
    Copy(SnapshotFlags),
}

#[derive(Debug, Args)]
pub struct SnapshotFlags {
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    snapshotname: String,
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub volumeid: String,
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub snapshotid: String,
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    destinationsnapshotname: String,
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    destinationregion: String,
    #[arg(long)]
    runasync: bool,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create new tokens
    #[command(visible_aliases = ["create", "c", "n"])]
    New {
        /// Whom they are for
        #[arg(value_name = "SUBJECT", required = true)]
        subjects: Vec<String>,
        /// The key, or the file that it is in
        #[arg(long, env = "REXRAY_TOKEN_KEY", hide_env_values = true, value_name = "KEY", default_value = "", hide_default_value = true)]
        key: String,
        /// HS256, HS384 or HS512
        #[arg(long, env = "REXRAY_TOKEN_ALG", value_name = "NAME", default_value = "HS256")]
        alg: String,
        /// The time until they expire, such as 8760h or 1h30m
        #[arg(long, env = "REXRAY_TOKEN_EXP", value_name = "DURATION", default_value = "8760h")]
        exp: String,
    },
    /// Say what is in tokens
    #[command(visible_aliases = ["dec", "d"])]
    Decode {
        /// The tokens; read from stdin, a line each, when none is given
        #[arg(value_name = "TOKEN")]
        tokens: Vec<String>,
        /// The key, or the file that it is in
        #[arg(long, env = "REXRAY_TOKEN_KEY", hide_env_values = true, value_name = "KEY", default_value = "", hide_default_value = true)]
        key: String,
        /// Refuse those that were not signed with the key, or whose time is not now
        #[arg(long)]
        verify: bool,
    },
}

/// The command line, for completions and manual pages too.
pub fn command() -> clap::Command {
    like_pflag(Cli::command())
}

/// A switch may be given a value (`--force=false`), and a flag's value may begin with a hyphen.
fn like_pflag(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .value_parser(truth)
            .default_value("false")
            .default_missing_value("true")
            .hide_default_value(true),
        ArgAction::Set if !arg.is_positional() && !arg.is_require_equals_set() => arg.allow_hyphen_values(true),
        _ => arg,
    });
    command.mut_subcommands(like_pflag)
}

/// Reads a command line, the name of the program included.
pub fn parse<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> Result<Cli, clap::Error> {
    let mut matches = command().try_get_matches_from(args)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut command()))
}

/// Where 'install' puts things: REX-Ray's had no say in it.
pub fn everywhere() -> InstallArgs {
    InstallArgs { root: "/".into(), prefix: "/usr/local".into(), face: super::NAME }
}
