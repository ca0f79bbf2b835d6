//! Installing this binary on a machine, offline, and taking it away again.
//!
//! Everything is made from the binary itself: units, completions and manual pages. Beneath `--root` nothing of the
//! running machine is touched, as packages want it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap_complete::Shell;
use dunnage_model::{Error, HERE, Result};

use crate::cli::{InstallArgs, command};
use crate::config::{Config, DEFAULT_FILE, Places};
use crate::{daemon, instance, rexray};

/// The service. Mounts must reach everybody, so it has nothing that gives it a mount namespace of its own; what carries a
/// mount or a device outlives it, so only its main process is killed, and its run directory is not systemd's to remove.
pub const SERVICE: &str = "\
[Unit]
Description=Dunnage: persistent volumes for containers
Documentation=man:dunnage(1)
After=local-fs.target
Before=docker.service podman.service nomad.service kubelet.service mesos-slave.service

[Service]
Type=notify
ExecStart=@BINARY@ start --foreground
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure
RestartSec=1
WatchdogSec=60
TimeoutStartSec=90
LimitNOFILE=65536
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
Also=dunnage-shutdown.service
";

/// The end of a machine's day: stopped after the containers and before the daemon and the network. It only wants the
/// daemon: a daemon that is stopped and started by hand must not take this along. Nobody but a shutdown stops it.
pub const SHUTDOWN: &str = "\
[Unit]
Description=Let go of all Dunnage volumes when the machine shuts down
Documentation=man:dunnage(1)
After=dunnage.service network.target remote-fs.target
Wants=dunnage.service
Before=docker.service podman.service nomad.service kubelet.service mesos-slave.service
DefaultDependencies=yes
RefuseManualStop=yes

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=@BINARY@ stop --release
TimeoutStopSec=120

[Install]
WantedBy=multi-user.target
";

/// Optional: the socket is there before the daemon, so that a container that starts early waits instead of failing.
pub const SOCKET: &str = "\
[Unit]
Description=Dunnage's volume plugin socket (optional: enable it to have the socket before the daemon runs)
Documentation=man:dunnage(1)
Before=docker.service

[Socket]
ListenStream=/run/docker/plugins/dunnage.sock
SocketMode=0600

[Install]
WantedBy=sockets.target
";

/// The small static program dvdcli (`cargo xtask dist`), from where the archive or the installation begins.
const DVDCLI: &str = "libexec/dunnage/dvdcli";
/// What the links beside the binary lead to.
const TO_BINARY: &str = "dunnage";
const TO_DVDCLI: &str = "../libexec/dunnage/dvdcli";

struct Plan {
    root: PathBuf,
    binary: PathBuf,
    /// The same binary under its other names, or, for dvdcli, the program of its own if there is one.
    links: Vec<(PathBuf, &'static str)>,
    /// Where that program goes, and where it is now.
    dvdcli: (PathBuf, Option<PathBuf>),
    share: PathBuf,
    units: PathBuf,
}

impl Plan {
    fn new(args: &InstallArgs) -> Result<Plan> {
        for (name, path) in [("root", &args.root), ("prefix", &args.prefix)] {
            if !path.is_absolute() {
                return Err(Error::invalid(name, format!("--{name} {} is not an absolute path", path.display()), "begin it with /"));
            }
        }
        let prefix = &args.prefix;
        let own = std::env::current_exe().map_err(|e| Error::os("cannot find this binary", &e))?;
        let folder = own.parent().unwrap_or(Path::new("/"));
        // As the archive has it, and as it is installed.
        let dvdcli = [folder.join(DVDCLI), folder.join("..").join(DVDCLI)].into_iter().find(|program| program.is_file());
        let link = |name| prefix.join("bin").join(name);
        Ok(Plan {
            root: args.root.clone(),
            binary: prefix.join("bin/dunnage"),
            links: vec![
                (link(dunnage_dvdcli::NAME), if dvdcli.is_some() { TO_DVDCLI } else { TO_BINARY }),
                (link(rexray::NAME), TO_BINARY),
            ],
            dvdcli: (prefix.join(DVDCLI), dvdcli),
            share: prefix.join("share"),
            units: PathBuf::from("/etc/systemd/system"),
        })
    }

    /// A path on the machine, beneath the root that is installed to.
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn unit(&self, text: &str) -> String {
        text.replace("@BINARY@", &self.binary.display().to_string())
    }

    /// Every file but the binary, with what is in it.
    fn files(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut files = vec![
            (self.units.join("dunnage.service"), self.unit(SERVICE).into_bytes()),
            (self.units.join("dunnage-shutdown.service"), self.unit(SHUTDOWN).into_bytes()),
            (self.units.join("dunnage.socket"), SOCKET.as_bytes().to_vec()),
        ];
        for face in faces() {
            let name = face.get_name().to_owned();
            let scripts = [
                (Shell::Bash, format!("bash-completion/completions/{name}")),
                (Shell::Zsh, format!("zsh/site-functions/_{name}")),
                (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
            ];
            files.extend(scripts.map(|(shell, path)| (self.share.join(path), script(shell, face.clone()).into_bytes())));
            files.extend(manual(face)?.into_iter().map(|(page, text)| (self.share.join("man/man1").join(page), text)));
        }
        Ok(files)
    }
}

/// The command lines of this binary.
fn faces() -> [clap::Command; 3] {
    [command(), dunnage_dvdcli::command(), rexray::command()]
}

/// The manual pages of a command line: one for the whole, and one for each command.
fn manual(mut face: clap::Command) -> Result<Vec<(String, Vec<u8>)>> {
    fn pages(command: &clap::Command, name: &str, into: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone().name(name.to_owned()).display_name(name.to_owned())).render(&mut page)?;
        into.push((format!("{name}.1"), page));
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            pages(sub, &format!("{name}-{}", sub.get_name()), into)?;
        }
        Ok(())
    }
    let mut all = Vec::new();
    face.build();
    pages(&face, face.get_name(), &mut all).map_err(|e| Error::os("cannot make the manual pages", &e))?;
    Ok(all)
}

/// A shell's completion script.
pub fn completion(shell: Shell) -> String {
    script(shell, command())
}

fn script(shell: Shell, mut face: clap::Command) -> String {
    let (mut script, name) = (Vec::new(), face.get_name().to_owned());
    clap_complete::generate(shell, &mut face, name, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    // rexray's -? would be a pattern for files' names (clap_complete 4.6 does not quote it).
    if shell == Shell::Fish { script.replace(" -s ? ", " -s \\? ") } else { script }
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = |e: std::io::Error| Error::os(format_args!("cannot install {}", path.display()), &e);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // Beside it and moved into place: the binary may be running.
    let fresh = path.with_extension("dunnage-new");
    fs::write(&fresh, content).map_err(failed)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)?;
    println!("installed {}", path.display());
    Ok(())
}

/// Whether a link is one that install has made.
fn is_our_link(path: &Path) -> std::io::Result<bool> {
    fs::read_link(path).map(|target| [TO_BINARY, TO_DVDCLI].iter().any(|ours| target == Path::new(ours)))
}

/// Makes a link to a program of ours. What is there and is not ours stays.
fn relink(path: &Path, to: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::os(format_args!("cannot install {}", path.display()), &e);
    match is_our_link(path) {
        Ok(true) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        _ => {
            let detail = format!("{} is there already, and is not ours", path.display());
            return Err(Error::new(dunnage_model::Kind::ExistsIncompatible, detail, "move it away, and install again"));
        }
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let fresh = path.with_extension("dunnage-new");
    // One that a killed installation has left.
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(to, &fresh).and_then(|()| fs::rename(&fresh, path)).map_err(failed)?;
    println!("installed {} -> {to}", path.display());
    Ok(())
}

/// `dunnage install`
pub fn install(args: &InstallArgs) -> Result<()> {
    if args.root == Path::new("/") && !rustix::process::geteuid().is_root() {
        return Err(daemon::need_root("install"));
    }
    let plan = Plan::new(args)?;
    let this = fs::read("/proc/self/exe").map_err(|e| Error::os("cannot read this binary", &e))?;
    // Before the link that leads to it.
    if let (path, Some(program)) = &plan.dvdcli {
        let content = fs::read(program).map_err(|e| Error::os(format_args!("cannot read {}", program.display()), &e))?;
        write(&plan.at(path), &content, 0o755)?;
    }
    // Before the binary, for it is refused where another program has the name.
    for (link, to) in &plan.links {
        match relink(&plan.at(link), to) {
            // The old service may stay beside us for as long as somebody wants it.
            Err(e) if link.ends_with(rexray::NAME) && args.face != rexray::NAME => eprintln!("dunnage: {e}"),
            outcome => outcome?,
        }
    }
    write(&plan.at(&plan.binary), &this, 0o755)?;
    for (path, content) in plan.files()? {
        write(&plan.at(&path), &content, 0o644)?;
    }
    if args.root == Path::new("/") {
        println!("\nStart it now and at every boot:\n\n  sudo systemctl daemon-reload\n  sudo systemctl enable --now dunnage.service\n");
    }
    Ok(())
}

/// How much is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything that install made.
    All,
    /// The units: the rest is a package manager's.
    Units,
}

/// `dunnage uninstall`
pub fn uninstall(args: &InstallArgs, places: &Places, extent: Extent) -> Result<()> {
    if args.root == Path::new("/") {
        if !rustix::process::geteuid().is_root() {
            return Err(daemon::need_root("uninstall"));
        }
        refuse_while_held(places)?;
        // Our folder for mounts, which is empty now. It is nobody's but ours, and not there if we never ran.
        let folder = volumes(places);
        if dunnage_host::linux::is_ours(&folder)? {
            let _ = rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::NOFOLLOW);
        }
    }
    let plan = Plan::new(args)?;
    let links = plan.links.iter().map(|(link, _)| link).filter(|link| is_our_link(&plan.at(link)).unwrap_or_default()).cloned();
    let programs = [plan.dvdcli.0.clone(), plan.binary.clone()];
    let paths = plan.files()?.into_iter().map(|(path, _)| path).chain(links).chain(programs);
    let paths = paths.filter(|path| extent == Extent::All || path.starts_with(&plan.units));
    for path in paths.map(|path| plan.at(&path)) {
        match fs::remove_file(&path) {
            Ok(()) => println!("removed {}", path.display()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::os(format_args!("cannot remove {}", path.display()), &e)),
        }
    }
    let _ = plan.dvdcli.0.parent().map(|folder| fs::remove_dir(plan.at(folder)));
    println!("volumes and their data stay in {}", places.state_dir.display());
    Ok(())
}

/// The folder for mounts; where it usually is, if the configuration cannot be read any more.
fn volumes(places: &Places) -> PathBuf {
    Config::load(places).map_or_else(|_| places.state_dir.join("volumes"), |config| config.volumes.path)
}

/// What `rexray install` leaves for who had no configuration: our own driver, under REX-Ray's names.
const REXRAY_CONFIG: &str = "\
# Written by 'rexray install'. 'dunnage config check' says what becomes of each key.
libstorage:
  service: local
";

/// Writes a configuration with the endpoint `rexray`, if there is none of any kind.
pub fn rexray_config(args: &InstallArgs) -> Result<()> {
    let home = crate::config::rexray::Home::of(&|name| std::env::var(name).ok());
    let at = |path: &Path| args.root.join(path.strip_prefix("/").unwrap_or(path));
    let [rexray, config] = home.files();
    let there = [&rexray, &config, &PathBuf::from(DEFAULT_FILE)].into_iter().map(|file| at(file)).find(|file| file.exists());
    match there {
        Some(file) => println!("the configuration {} stays as it is", file.display()),
        None => write(&at(&config), REXRAY_CONFIG.as_bytes(), 0o644)?,
    }
    Ok(())
}

/// Volumes that are mounted need the daemon to be let go.
fn refuse_while_held(places: &Places) -> Result<()> {
    let held: Vec<String> = dunnage_host::linux::mounted_beneath(&volumes(places))?.iter().map(|path| path.display().to_string()).collect();
    if !held.is_empty() {
        let next = "stop what uses them, or run 'dunnage stop --release'";
        return Err(Error::in_use(held, HERE, "volumes are mounted", next));
    }
    match instance::running(&places.run_dir) {
        Some(owner) => {
            let who = vec![format!("pid {}", owner.pid)];
            Err(Error::in_use(who, HERE, "the daemon runs", "stop it first: sudo systemctl disable --now dunnage.service, or dunnage stop"))
        }
        None => Ok(()),
    }
}
