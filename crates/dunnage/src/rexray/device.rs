//! `rexray device …`: block devices without a volume around them. Volumes are not touched here, and what is not proven
//! blank is never formatted.

use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunnage_frontend_admin::wire::Volumes;
use dunnage_host::helpers::InProcess;
use dunnage_host::linux::Tools;
use dunnage_host::{DeviceNumber, FormatRequest, Probe};
use dunnage_model::{Error, FsKind, HERE, Kind, Result};
use rustix::mount::{MountFlags, UnmountFlags};

use super::args::{DeviceCommand, FormatArgs};
use super::daemon::{Daemon, get};
use super::note;
use super::print::Answer;
use super::shape::MountInfo;
use crate::config::{Config, DriverConfig, Places};

/// `rexray device …`
pub fn device(places: &Places, daemon: &dyn Daemon, format: &FormatArgs, command: DeviceCommand) -> Result<String> {
    match command {
        DeviceCommand::Ls { device_name, mount_point } => {
            if !device_name.is_empty() && !mount_point.is_empty() {
                return Err(Error::invalid("deviceName", "both --deviceName and --mountPoint are given", "give one of them"));
            }
            let all = table()?.into_iter();
            let mounts = if device_name.is_empty() && mount_point.is_empty() {
                all.filter(MountInfo::of_a_device).collect()
            } else {
                all.filter(|m| (!device_name.is_empty() && m.source == device_name) || m.mount_point == mount_point).collect()
            };
            Answer::mounts(mounts).print(&format.format(false)?)
        }
        DeviceCommand::Mount { device_name, mount_point, mount_options, mount_label } => {
            need_root()?;
            let (device, target) = (canonical("deviceName", &device_name)?, canonical("mountPoint", &mount_point)?);
            outside(places, &target)?;
            let number = block_device(&device)?;
            of_no_volume(places, daemon, &device, Some(number))?;
            mount(&device, &target, [mount_options.as_str(), mount_label.as_str()].into_iter())?;
            Ok(String::new())
        }
        DeviceCommand::Unmount { mount_point } => {
            need_root()?;
            let target = canonical("mountPoint", &mount_point)?;
            outside(places, &target)?;
            rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW).map_err(|e| failed("unmount", &target, e))?;
            Ok(String::new())
        }
        DeviceCommand::Format { device_name, fs_type, overwrite_fs } => {
            need_root()?;
            if overwrite_fs {
                note("--overwriteFS does nothing: data is never overwritten");
            }
            let device = canonical("deviceName", &device_name)?;
            let about = std::fs::metadata(&device).map_err(|e| Error::os(format_args!("cannot look at {}", device.display()), &e))?;
            let number = about.file_type().is_block_device().then(|| number_of(about.rdev()));
            if number.is_none() && !about.is_file() {
                let detail = format!("{} is neither a block device nor a file", device.display());
                return Err(Error::invalid("deviceName", detail, "give the device's node, such as /dev/xvdf"));
            }
            of_no_volume(places, daemon, &device, number)?;
            if let Some(mounted) = table()?.into_iter().find(|m| number.is_some_and(|n| (m.major, m.minor) == (n.major, n.minor))) {
                return Err(Error::in_use(vec![mounted.mount_point], HERE, "it is mounted", "unmount it first"));
            }
            make(device, fs_type.parse()?)?;
            Ok(String::new())
        }
    }
}

fn need_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(Kind::Permission, "what is done to devices needs root", "run the same line with sudo"))
}

fn canonical(flag: &str, path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::invalid(flag, format!("{}: {e}", path.display()), format!("give --{flag} a path that exists")))
}

fn number_of(device: u64) -> DeviceNumber {
    DeviceNumber::new(rustix::fs::major(device), rustix::fs::minor(device))
}

fn block_device(path: &Path) -> Result<DeviceNumber> {
    match std::fs::metadata(path) {
        Ok(about) if about.file_type().is_block_device() => Ok(number_of(about.rdev())),
        _ => Err(Error::invalid("deviceName", format!("{} is no block device", path.display()), "give its node, such as /dev/xvdf")),
    }
}

/// The daemon's folders: of its mounts, and of what its volumes are made of.
fn folders(places: &Places) -> (PathBuf, Vec<PathBuf>) {
    let mut pools = vec![places.state_dir.clone()];
    let Ok(config) = Config::load(places) else { return (places.state_dir.join("volumes"), pools) };
    pools.extend(config.drivers.into_values().filter_map(|driver| match driver {
        DriverConfig::Local(local) => Some(local.pool),
        DriverConfig::Ceph(_) | DriverConfig::Cephfs(_) | DriverConfig::Unavailable { .. } => None,
    }));
    (config.volumes.path, pools)
}

fn beneath(path: &Path, folder: &Path) -> bool {
    path.starts_with(folder) || folder.canonicalize().is_ok_and(|folder| path.starts_with(folder))
}

/// What is mounted for volumes is the daemon's to mount and to unmount.
fn outside(places: &Places, target: &Path) -> Result<()> {
    let (volumes, _) = folders(places);
    if !beneath(target, &volumes) {
        return Ok(());
    }
    let detail = format!("{} is in the folder of Dunnage's volumes", target.display());
    Err(Error::invalid("mountPoint", detail, "use 'rexray volume mount' and 'rexray volume unmount'"))
}

/// A volume's device is the daemon's, and so is what it is made of.
fn of_no_volume(places: &Places, daemon: &dyn Daemon, device: &Path, number: Option<DeviceNumber>) -> Result<()> {
    let (mounts, pools) = folders(places);
    let refused = |detail: String| Err(Error::invalid("deviceName", detail, "use 'rexray volume' for what is a volume"));
    if pools.iter().any(|pool| beneath(device, pool)) {
        return refused(format!("{} is what a volume of Dunnage is made of", device.display()));
    }
    let Some(number) = number else { return Ok(()) };
    let ours = |m: &MountInfo| (m.major, m.minor) == (number.major, number.minor) && beneath(Path::new(&m.mount_point), &mounts);
    if let Some(mounted) = table()?.into_iter().find(ours) {
        return refused(format!("{} is the device of the volume at {}", device.display(), mounted.mount_point));
    }
    let backing = std::fs::read_to_string(format!("/sys/dev/block/{number}/loop/backing_file")).unwrap_or_default();
    if !backing.is_empty() && pools.iter().any(|pool| beneath(Path::new(backing.trim_end()), pool)) {
        return refused(format!("{} is what a volume of Dunnage is attached as", device.display()));
    }
    // A daemon that does not run has nothing attached that the kernel does not show above.
    if let Ok(volumes) = get::<Volumes>(daemon, "/v1/volumes")
        && let Some(volume) = volumes.volumes.iter().find(|volume| volume.device == Some(number))
    {
        return refused(format!("{} is the device of volume {}", device.display(), volume.info.id));
    }
    Ok(())
}

fn mount<'a>(device: &Path, target: &Path, options: impl Iterator<Item = &'a str>) -> Result<()> {
    let fs = match host().block_on(|host| async move { host.filesystems.probe(device).await })? {
        Probe::Known(known) if known.has_errors => {
            let detail = format!("the {} on {} has errors", known.fs, device.display());
            return Err(Error::unavailable(detail, "check it first, with e2fsck or the like"));
        }
        Probe::Known(known) => known.fs,
        Probe::Blank => {
            let detail = format!("there is nothing on {}", device.display());
            return Err(Error::invalid("deviceName", detail, "make a filesystem first: rexray device format"));
        }
        Probe::Unknown { signature } => {
            let detail = format!("{} has no filesystem that is known here: {signature}", device.display());
            return Err(Error::invalid("deviceName", detail, "mount it with mount(8)"));
        }
    };
    let (flags, data) = mount_options(options);
    let data = CString::new(data).map_err(|_| Error::invalid("mountOptions", "they have a zero byte in them", "leave it out"))?;
    rustix::mount::mount(device, target, fs.as_str(), flags, data.as_c_str()).map_err(|e| failed("mount", device, e))
}

/// What mount(2) wants as bits, and what it passes on to the filesystem.
fn mount_options<'a>(options: impl Iterator<Item = &'a str>) -> (MountFlags, String) {
    let (mut flags, mut rest) = (MountFlags::empty(), Vec::new());
    for option in options.flat_map(|options| options.split(',')).map(str::trim).filter(|option| !option.is_empty()) {
        match option {
            "defaults" | "rw" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

fn failed(verb: &str, what: &Path, errno: rustix::io::Errno) -> Error {
    let detail = format!("cannot {verb} {}", what.display());
    match errno {
        rustix::io::Errno::BUSY => Error::in_use(vec![], HERE, format!("{detail}: somebody uses it"), "end what uses it: see fuser -vm"),
        rustix::io::Errno::INVAL if verb == "unmount" => {
            Error::invalid("mountPoint", format!("{detail}: nothing is mounted there"), "look at 'rexray device ls'")
        }
        errno => Error::os(detail, &errno.into()),
    }
}

/// mkfs, on what is proven blank: the host's own rule, and its own look right before.
fn make(path: PathBuf, fs: FsKind) -> Result<()> {
    let request = FormatRequest::plain(path, fs, uuid::Uuid::new_v4());
    host().block_on(|host| async move { host.filesystems.format(&request).await }).map_err(|mut error| {
        if matches!(error.kind, Kind::NotBlank { .. }) {
            error.next = "nothing was written; a device that was ever written is not proven blank: make a volume instead ('rexray volume \
                          create'), or run mkfs yourself if nobody needs what is there"
                .to_owned();
        }
        error
    })
}

struct Here;

fn host() -> Here {
    Here
}

impl Here {
    /// Runs one call on this machine's kernel, in this process: whoever waits for it can end it.
    fn block_on<T, F: Future<Output = Result<T>>>(self, work: impl FnOnce(dunnage_host::Host) -> F) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
        let runner = Arc::new(InProcess(crate::registry()));
        runtime.block_on(work(dunnage_host::linux::host(runner, Tools::find())))
    }
}

impl MountInfo {
    /// It shows a block device: by its number, or (btrfs has numbers of its own) by its source.
    fn of_a_device(&self) -> bool {
        self.major != 0 || self.source.starts_with("/dev/")
    }

    /// A line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
    fn parse(line: &str) -> Option<MountInfo> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (major, minor) = fields.next()?.split_once(':')?;
        let (root, mount_point, opts) = (fields.next()?, fields.next()?, fields.next()?);
        let optional: Vec<&str> = fields.collect();
        let mut filesystem = filesystem.split(' ');
        Some(MountInfo {
            id,
            parent,
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            root: unescape(root),
            mount_point: unescape(mount_point),
            opts: opts.to_owned(),
            optional: optional.join(" "),
            fs_type: filesystem.next()?.to_owned(),
            source: unescape(filesystem.next()?),
            vfs_opts: filesystem.next().unwrap_or_default().to_owned(),
        })
    }
}

fn table() -> Result<Vec<MountInfo>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| Error::os("cannot read the table of mounts", &e))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(MountInfo::parse).collect())
}

/// The kernel writes blanks, tabs, line ends and backslashes as `\040`.
fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        let octal =
            after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_s_table_is_read_whole() {
        let line = r"36 35 98:0 /a\040b /mnt\134x rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let expected = serde_json::json!({
            "id": 36, "parent": 35, "major": 98, "root": "/a b", "mountPoint": "/mnt\\x", "opts": "rw,noatime",
            "optional": "master:1 shared:2", "fsType": "ext3", "source": "/dev/root", "vfsOpts": "rw,errors=continue",
        });
        assert_eq!(serde_json::to_value(MountInfo::parse(line).expect("a mount")).expect("json"), expected);
        assert_eq!(MountInfo::parse("nonsense"), None);
    }

    #[test]
    fn options_are_parted_into_the_kernel_s_and_the_filesystem_s() {
        let (flags, data) = mount_options(["ro,noatime,discard", "context=\"x\""].into_iter());
        assert_eq!((flags, data.as_str()), (MountFlags::RDONLY | MountFlags::NOATIME, "discard,context=\"x\""));
    }
}
