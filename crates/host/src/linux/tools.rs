//! The programs that make and repair filesystems, and the look at a device that goes before them.
//!
//! Programs are found once, in fixed folders (a daemon may have no PATH), and run without a shell, in their own process
//! group, with `LC_ALL=C`, a deadline and a bound on what they may say.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dunnage_model::{Error, FsKind, Kind, Result};
use rustix::fs::{AtFlags, Gid, OFlags, SeekFrom as Sparse, Uid};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::loops::configure_passing;
use super::mounts::{make_inside, mount_nowhere};
use super::sys::{failed, refused};
use crate::crash;
use crate::helpers::{Runner, Task, run};
use crate::{Checked, FillRequest, FormatRequest, GrowRequest, Growth, Probe, signature};

const FOLDERS: [&str; 6] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// mkfs of a sparse file takes milliseconds; a pool that is so slow is as good as gone.
const FORMAT_DEADLINE: Duration = Duration::from_secs(60);

/// Of what rewrites a filesystem that has data: such a program is never killed, not even when we are.
const NO_DEADLINE: Duration = Duration::MAX;

/// What of a program's words is kept.
const SAID: usize = 4096;

/// The programs, by absolute path.
#[derive(Debug, Clone)]
pub struct Tools {
    mke2fs: Program,
    e2fsck: Program,
    mkfs_xfs: Program,
    mkfs_btrfs: Program,
    tune2fs: Program,
    xfs_admin: Program,
    btrfstune: Program,
    resize2fs: Program,
    xfs_growfs: Program,
    btrfs: Program,
}

/// A program, the package that has it, and where it is.
#[derive(Debug, Clone)]
struct Program {
    name: &'static str,
    package: &'static str,
    path: Option<PathBuf>,
}

impl Program {
    fn find(name: &'static str, package: &'static str) -> Program {
        let path = FOLDERS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        Program { name, package, path }
    }

    fn path(&self) -> Result<&Path> {
        let missing = || Error::unavailable(format!("{} is not installed", self.name), format!("install the package {}", self.package));
        self.path.as_deref().ok_or_else(missing)
    }

    /// Runs it on a filesystem that it rewrites.
    async fn to_the_end(&self, args: &[&str], on: &Path) -> Result<()> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        tool(self.path()?, &args, NO_DEADLINE).await?.success(self.name, on)
    }
}

impl Tools {
    /// Looks for them. What is missing is reported when it is needed, and by [`Tools::missing`].
    pub fn find() -> Self {
        Tools {
            mke2fs: Program::find("mke2fs", "e2fsprogs"),
            e2fsck: Program::find("e2fsck", "e2fsprogs"),
            mkfs_xfs: Program::find("mkfs.xfs", "xfsprogs"),
            mkfs_btrfs: Program::find("mkfs.btrfs", "btrfs-progs"),
            tune2fs: Program::find("tune2fs", "e2fsprogs"),
            xfs_admin: Program::find("xfs_admin", "xfsprogs"),
            btrfstune: Program::find("btrfstune", "btrfs-progs"),
            resize2fs: Program::find("resize2fs", "e2fsprogs"),
            xfs_growfs: Program::find("xfs_growfs", "xfsprogs"),
            btrfs: Program::find("btrfs", "btrfs-progs"),
        }
    }

    /// What the default filesystem needs and is not on this machine, and the package that has it.
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        [&self.mke2fs, &self.e2fsck].into_iter().filter(|tool| tool.path.is_none()).map(|tool| (tool.name, tool.package)).collect()
    }

    /// Makes a filesystem in a blank file: empty, owned as asked, with the UUID that was recorded.
    pub(super) async fn format(&self, runner: &dyn Runner, request: &FormatRequest) -> Result<()> {
        let FormatRequest { path, fs, uuid, .. } = request;
        if *fs == FsKind::Folder {
            return run(runner, &DressFolder { request: request.clone() }).await;
        }
        let program = match fs {
            FsKind::Ext4 => &self.mke2fs,
            FsKind::Xfs => &self.mkfs_xfs,
            FsKind::Btrfs | FsKind::Folder => &self.mkfs_btrfs,
        };
        let mkfs = program.path()?;
        // Law 5: once more, right before.
        match run(runner, &ProbeTask { path: path.clone() }).await? {
            // An empty folder is blank for who wants a folder.
            Probe::Blank if path.is_dir() => return Err(not_blank(path, &Probe::Unknown { signature: "a folder".to_owned() })),
            Probe::Blank => {}
            other => return Err(not_blank(path, &other)),
        }
        let uuid_text = uuid.to_string();
        // Blocks and sectors of 4 KiB fit every pool; nothing needs to be discarded in a file that was never written.
        let mut args: Vec<String> = match fs {
            FsKind::Ext4 => {
                let mut extended = "nodiscard,lazy_itable_init=1".to_owned();
                if knows_prezeroed(mkfs).await {
                    // A fresh sparse file reads as zeroes: nothing of its tables needs to be written.
                    extended.push_str(",assume_storage_prezeroed=1");
                }
                let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-e", "remount-ro", "-U", &uuid_text, "-E", &extended];
                args.map(String::from).to_vec()
            }
            FsKind::Xfs => {
                ["-q", "-K", "-b", "size=4096", "-s", "size=4096", "-m", &format!("uuid={uuid_text}")].map(String::from).to_vec()
            }
            FsKind::Btrfs | FsKind::Folder => {
                ["-q", "-K", "--nodesize", "16384", "--sectorsize", "4096", "-U", &uuid_text].map(String::from).to_vec()
            }
        };
        args.push(path.display().to_string());
        tool(mkfs, &args, FORMAT_DEADLINE).await?.success(program.name, path)?;
        run(runner, &Dress { request: request.clone() }).await?;
        match run(runner, &ProbeTask { path: path.clone() }).await? {
            Probe::Known(known) if known.uuid == *uuid && known.fs == *fs => Ok(()),
            other => Err(Error::internal(format!("{} said that it was done, and {} has {other:?}", program.name, path.display()))),
        }
    }

    /// `e2fsck -p`: mends what is safe to mend. xfs and btrfs are never
    /// repaired unasked.
    pub(super) async fn check(&self, path: &Path, fs: FsKind) -> Result<Checked> {
        if fs != FsKind::Ext4 {
            return Err(Error::internal(format!("{fs} was to be checked, and is not checked unasked")));
        }
        let outcome = tool(self.e2fsck.path()?, &["-p".to_owned(), path.display().to_string()], NO_DEADLINE).await?;
        match outcome.code {
            Some(0) => Ok(Checked::Clean),
            Some(1) => Ok(Checked::Repaired),
            _ => Err(Error::unavailable(
                format!("the filesystem on {} has errors that e2fsck does not mend unasked: {}", path.display(), outcome.said),
                "keep a copy of the volume, then run 'e2fsck -f' on it by hand",
            )),
        }
    }
}

impl Tools {
    /// A copy has the UUID of what it was copied from: xfs and btrfs refuse to mount both at once, and identity is gone.
    /// What counts is the superblock read again, never the exit code (`xfs_admin -U` on a dirty one fails with 0).
    pub(super) async fn renew(&self, runner: &dyn Runner, path: &Path, fs: FsKind, uuid: uuid::Uuid) -> Result<()> {
        let (file, text) = (path.display().to_string(), uuid.to_string());
        run(runner, &Alone { path: path.to_owned() }).await?;
        match fs {
            FsKind::Ext4 => {
                // It replays the journal, too.
                self.check_whole(path).await?;
                // Where every block has a checksum with the UUID in it, all would be rewritten, and who is killed in the middle of that
                // leaves what nobody mends unasked. With the old UUID kept as their seed one block is (kernels know that since 4.4). Of
                // one without such checksums this is refused, and nothing is lost: the next line says what is wrong, if anything is.
                let seed = ["-O", "metadata_csum_seed", &file].map(str::to_owned);
                let _ = tool(self.tune2fs.path()?, &seed, NO_DEADLINE).await?;
                self.tune2fs.to_the_end(&["-U", &text, &file], path).await?;
            }
            FsKind::Xfs => {
                run(runner, &Settle { path: path.to_owned(), fs }).await?;
                self.xfs_admin.to_the_end(&["-U", &text, &file], path).await?;
            }
            FsKind::Folder => return Ok(()),
            // Never mounted before: the kernel would take the two for parts of one filesystem.
            FsKind::Btrfs => self.btrfstune.to_the_end(&["-f", "-M", &text, &file], path).await?,
        }
        match run(runner, &ProbeTask { path: path.to_owned() }).await? {
            Probe::Known(known) if known.uuid == uuid => Ok(()),
            other => Err(Error::unavailable(
                format!("{} was to get the UUID {uuid}, and has {other:?}", path.display()),
                "it was not adopted; look at what the tool says by hand",
            )),
        }
    }
}

impl Tools {
    /// Makes a copy of an image in a blank file, and it its own: nobody can tell it from the original but by its UUID.
    pub(super) async fn fill(&self, runner: &dyn Runner, request: &FillRequest) -> Result<()> {
        let FillRequest { from, to, fs, uuid } = request;
        run(runner, &super::image::Copy { from: from.clone(), to: to.clone() }).await?;
        match run(runner, &ProbeTask { path: to.clone() }).await? {
            Probe::Known(known) if known.fs == *fs => self.renew(runner, to, *fs, *uuid).await,
            other => Err(Error::unavailable(
                format!("{} was a {fs} when it was looked at, and its copy has {} on it", from.display(), other.signature()),
                "see to it that nobody writes to it, and try again",
            )),
        }
    }
}

/// When a filesystem can become larger: mounted, as the kernel does it, which no crash can hurt. To an ext4 it does that only for who has
/// CAP_SYS_RESOURCE (`ext4_resize_begin`), and a daemon in a container may not: then resize2fs does it while it is not mounted.
pub fn growth(fs: FsKind) -> Growth {
    let resource = rustix::thread::CapabilitySet::SYS_RESOURCE;
    match fs {
        FsKind::Ext4 if rustix::thread::capabilities(None).is_ok_and(|have| have.effective.contains(resource)) => Growth::Mounted,
        FsKind::Ext4 => Growth::Unmounted,
        FsKind::Xfs | FsKind::Btrfs => Growth::Mounted,
        FsKind::Folder => Growth::Always,
    }
}

impl Tools {
    /// Has a filesystem fill its device. The tools find out its size themselves, and do nothing to one that fills it.
    pub(super) async fn grow(&self, runner: &dyn Runner, request: &GrowRequest) -> Result<()> {
        let GrowRequest { device, fs, uuid, at } = request;
        match run(runner, &ProbeTask { path: device.clone() }).await? {
            Probe::Known(known) if known.fs == *fs && known.uuid == *uuid => {}
            // Not even the tool that only checks may touch it.
            other => return Err(not_the_recorded(device, &other)),
        }
        let shown = device.display().to_string();
        match (fs, at) {
            (FsKind::Ext4, Some(_)) => self.resize2fs.to_the_end(&[&shown], device).await,
            (FsKind::Ext4, None) => {
                // It asks for a whole check first.
                self.check_whole(device).await?;
                self.resize2fs.to_the_end(&[&shown], device).await
            }
            (FsKind::Xfs, Some(at)) => self.xfs_growfs.to_the_end(&["-d", &at.display().to_string()], device).await,
            (FsKind::Btrfs, Some(at)) => self.btrfs.to_the_end(&["filesystem", "resize", "max", &at.display().to_string()], device).await,
            (FsKind::Xfs | FsKind::Btrfs, None) => Err(Error::internal(format!("{fs} was to grow while it is not mounted"))),
            (FsKind::Folder, _) => Ok(()),
        }
    }

    async fn check_whole(&self, path: &Path) -> Result<()> {
        let outcome = tool(self.e2fsck.path()?, &["-f".to_owned(), "-p".to_owned(), path.display().to_string()], NO_DEADLINE).await?;
        // 1: something was mended.
        if outcome.code == Some(1) { Ok(()) } else { outcome.success(self.e2fsck.name, path) }
    }
}

fn not_the_recorded(device: &Path, found: &Probe) -> Error {
    let signature = found.signature();
    let detail = format!("{} has {signature} on it, and not the filesystem that was recorded", device.display());
    Error::new(Kind::NotBlank { signature }, detail, "nothing was written; find out who changed it")
}

/// Makes sure that nobody else has a file, before anything is done to what is in it.
#[derive(Serialize, Deserialize)]
pub struct Alone {
    pub path: PathBuf,
}

impl Task for Alone {
    const NAME: &'static str = "fs.alone";
    type Output = ();

    fn run(self) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let what = format!("cannot look at {}", self.path.display());
        let file = File::options().read(true).write(true).open(&self.path).map_err(failed(&what))?;
        if file.metadata().map_err(failed(&what))?.nlink() > 1 {
            let detail = format!("{} is the same file under another name, and no copy", self.path.display());
            return Err(Error::new(Kind::ExistsIncompatible, detail, "make a copy of it: cp --sparse=always --reflink=auto"));
        }
        if super::sys::free_of_others(&file).map_err(failed(&what))? == Some(false) {
            return Err(in_use_by_others(&self.path));
        }
        Ok(())
    }
}

fn in_use_by_others(path: &Path) -> Error {
    let next = "find out what has it open ('losetup -a', 'fuser'), and end it";
    Error::in_use(Vec::new(), dunnage_model::HERE, format!("{} is in use", path.display()), next)
}

/// Mounts a filesystem where nobody sees it and unmounts it: its journal is replayed, and it is clean.
#[derive(Serialize, Deserialize)]
pub struct Settle {
    pub path: PathBuf,
    pub fs: FsKind,
}

impl Task for Settle {
    const NAME: &'static str = "fs.settle";
    type Output = ();

    fn run(self) -> Result<()> {
        let what = format!("cannot replay the journal of {}", self.path.display());
        let device = configure_passing(&self.path)?;
        let options = if self.fs == FsKind::Xfs { "nouuid".parse()? } else { dunnage_model::MountOptions::default() };
        let mounted = mount_nowhere(self.fs, &device.path, &options, &what)?;
        rustix::fs::syncfs(
            &rustix::fs::openat(&mounted, ".", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty()).map_err(refused(&what))?,
        )
        .map_err(refused(&what))?;
        drop(mounted);
        crash::pass(format_args!("helper/fs.settle/mounted"));
        // The superblock goes a little after the mount does.
        drop(device);
        for _ in 0..200 {
            let file = File::options().read(true).write(true).open(&self.path).map_err(failed(&what))?;
            // Where the pool's filesystem cannot say, the tool's own look has to do.
            if super::sys::free_of_others(&file).map_err(failed(&what))? != Some(false) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(in_use_by_others(&self.path))
    }
}

/// How many names of a root are looked at: two are enough to tell.
const NAMES: usize = 8;

/// What is at the root of a filesystem, mounted where nobody sees it, and never for writing.
#[derive(Serialize, Deserialize)]
pub struct LookInside {
    pub device: PathBuf,
    pub fs: FsKind,
}

impl Task for LookInside {
    const NAME: &'static str = "fs.look-inside";
    type Output = Vec<String>;

    fn run(self) -> Result<Vec<String>> {
        let what = format!("cannot look into {}", self.device.display());
        if self.fs == FsKind::Folder {
            let entries = std::fs::read_dir(&self.device).map_err(failed(&what))?;
            let mut names: Vec<String> =
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).take(NAMES).collect();
            names.sort();
            return Ok(names);
        }
        let mounted = super::mounts::mount_nowhere_readonly(self.fs, &self.device, &what)?;
        let root = rustix::fs::openat(&mounted, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(root.map_err(refused(&what))?).map_err(refused(&what))? {
            let name = entry.map_err(refused(&what))?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." && names.len() < NAMES {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Gives a new filesystem's root the owner and the mode that were asked for, and takes mkfs' own things out of it: a
/// container is to see an empty folder (postgres' initdb refuses one with lost+found in it).
///
/// It is mounted for that, where no path leads to, on a loop that goes with its last user: however this ends, a kill
/// included, the kernel takes both down.
#[derive(Serialize, Deserialize)]
pub struct Dress {
    pub request: FormatRequest,
}

impl Task for Dress {
    const NAME: &'static str = "fs.dress";
    type Output = ();

    fn run(self) -> Result<()> {
        let FormatRequest { path, fs, uid, gid, mode, root_path, options, .. } = &self.request;
        let what = format!("cannot prepare the new {fs} in {}", path.display());
        let device = configure_passing(path)?;
        let mounted = mount_nowhere(*fs, &device.path, options, &what)?;
        crash::pass(format_args!("helper/fs.dress/mounted"));
        let root = rustix::fs::openat(&mounted, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .map_err(refused(&what))?;
        if *fs == FsKind::Ext4 {
            rustix::fs::unlinkat(&root, "lost+found", AtFlags::REMOVEDIR).map_err(refused(&what))?;
        }
        dress(root.as_fd(), root_path.as_ref(), *uid, *gid, *mode).map_err(refused(&what))?;
        rustix::fs::syncfs(&root).map_err(refused(&what))
    }
}

/// Gives a new folder the owner and the mode that were asked for.
#[derive(Serialize, Deserialize)]
pub struct DressFolder {
    pub request: FormatRequest,
}

impl Task for DressFolder {
    const NAME: &'static str = "fs.dress-folder";
    type Output = ();

    fn run(self) -> Result<()> {
        let FormatRequest { path, uid, gid, mode, root_path, options, .. } = &self.request;
        let what = format!("cannot prepare the new folder {}", path.display());
        super::mounts::folder_attributes(options)?;
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, open, rustix::fs::Mode::empty()).map_err(refused(&what))?;
        // Law 5: once more, right before.
        match folder_probe(&root).map_err(refused(&what))? {
            Probe::Blank => {}
            other => return Err(not_blank(path, &other)),
        }
        dress(root.as_fd(), root_path.as_ref(), *uid, *gid, *mode).map_err(refused(&what))?;
        rustix::fs::fsync(&root).map_err(refused(what))
    }
}

/// A folder that has nothing in it is blank; one that has is somebody's.
fn folder_probe(folder: &std::os::fd::OwnedFd) -> rustix::io::Result<Probe> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(Probe::Unknown { signature: "a folder that is not empty".to_owned() });
        }
    }
    Ok(Probe::Blank)
}

/// Gives a volume its owner and mode: its root, or the folder inside that holders are given. Around that one the root is the
/// host's own: who owns what is inside must not be able to put a link in its place, which an engine would follow. (Sticky, it may
/// be open to all, as /tmp is.)
fn dress(
    root: std::os::fd::BorrowedFd<'_>,
    inside: Option<&dunnage_model::RootPath>,
    uid: u32,
    gid: u32,
    mode: u32,
) -> rustix::io::Result<()> {
    const STICKY: u32 = 0o1000;
    let give = |folder: std::os::fd::BorrowedFd<'_>, uid: u32, gid: u32, mode: u32| {
        rustix::fs::fchown(folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(folder, rustix::fs::Mode::from_raw_mode(mode))
    };
    let Some(inside) = inside else { return give(root, uid, gid, mode) };
    let own = (uid, gid) != (0, 0);
    give(root, 0, 0, if own { 0o755 } else { mode | STICKY })?;
    give(make_inside(root, inside.as_str())?.as_fd(), uid, gid, mode)
}

/// The error for a device that was to be blank and is not.
pub fn not_blank(path: &Path, found: &Probe) -> Error {
    let signature = found.signature();
    let detail = format!("{} was to be formatted, and there is something on it", path.display());
    Error::new(Kind::NotBlank { signature }, detail, "nothing was written; look at what it is, and remove it if nobody needs it")
}

/// mke2fs has known `assume_storage_prezeroed` since 1.47 (February 2023); an older one refuses it.
async fn knows_prezeroed(mke2fs: &Path) -> bool {
    let Ok(outcome) = tool(mke2fs, &["-V".to_owned()], Duration::from_secs(5)).await else { return false };
    let version = outcome.said.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 47)
}

struct Outcome {
    code: Option<i32>,
    said: String,
}

impl Outcome {
    fn success(&self, name: &str, path: &Path) -> Result<()> {
        if self.code == Some(0) {
            return Ok(());
        }
        let how = self.code.map_or("was killed".to_owned(), |code| format!("exited {code}"));
        let detail = format!("{name} {how} on {}: {}", path.display(), self.said);
        Err(if self.said.contains("No space left") {
            Error::new(Kind::LimitReached, detail, "free space in the pool, or give it more")
        } else {
            Error::internal(detail)
        })
    }
}

async fn tool(program: &Path, args: &[String], deadline: Duration) -> Result<Outcome> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failure = |what: &str, e: &std::io::Error| Error::os(format_args!("cannot run {}: {what}", program.display()), e);
    let mut command = Command::new(program);
    command.args(args).env_clear().env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    let dies = deadline != NO_DEADLINE;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(dies);
    // SAFETY: prctl(2) and signal(2) are async-signal-safe and touch no memory of ours.
    unsafe {
        command.pre_exec(move || {
            let done = if dies {
                // It dies with us: what a killed mkfs left is made anew from zeroes.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
            } else {
                // Nor does it die of having nobody who reads what it says.
                libc::signal(libc::SIGPIPE, libc::SIG_IGN) != libc::SIG_ERR
            };
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let mut child = command.spawn().map_err(|e| failure("start", &e))?;
    if crash::is_asked(format_args!("tool/{name}/running")) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        child.start_kill().map_err(|e| failure("kill", &e))?;
    }
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (out, err) = tokio::join!(capped(stdout), capped(stderr));
        let status = child.wait().await.map_err(|e| failure("wait", &e))?;
        let said = [out, err].concat();
        Ok(Outcome { code: status.code(), said: said.split_whitespace().collect::<Vec<_>>().join(" ") })
    };
    if deadline == NO_DEADLINE {
        return work.await;
    }
    match tokio::time::timeout(deadline, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::timeout(name, format!("{} did not end within {} s and was killed", program.display(), deadline.as_secs()))),
    }
}

/// The first [`SAID`] bytes; the rest is read and dropped, so that the program does not block.
async fn capped(stream: Option<impl AsyncReadExt + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut kept = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(n) = stream.read(&mut chunk).await
        && n > 0
    {
        let room = SAID.saturating_sub(kept.len());
        kept.extend_from_slice(chunk.get(..n.min(room)).unwrap_or_default());
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[derive(Serialize, Deserialize)]
pub struct ProbeTask {
    pub path: PathBuf,
}

impl Task for ProbeTask {
    const NAME: &'static str = "fs.probe";
    type Output = Probe;

    fn run(self) -> Result<Probe> {
        let what = format!("cannot look at {}", self.path.display());
        let file = rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty()).map_err(refused(&what))?;
        if rustix::fs::fstat(&file).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()) {
            return folder_probe(&file).map_err(refused(what));
        }
        probe_file(&mut File::from(file)).map_err(failed(what))
    }
}

/// What is on a file or device. Only a regular file in which SEEK_DATA finds nothing is ever blank: it was never
/// written. What cannot be read is unknown.
pub fn probe_file(file: &mut File) -> std::io::Result<Probe> {
    // ext4's and xfs' superblocks are in the first 2 KiB; reading them is all that a clean mount costs.
    let mut head = vec![0; 2048];
    match read_head(file, &mut head) {
        Ok(()) => {
            if let Some(known) = signature::recognise(&head) {
                return Ok(Probe::Known(known));
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {}
        Err(e) => return Ok(unreadable(&e)),
    }
    if file.metadata()?.is_file() {
        match rustix::fs::seek(&*file, Sparse::Data(0)) {
            Err(rustix::io::Errno::NXIO) => return Ok(Probe::Blank),
            Ok(_) => {}
            Err(e) => return Ok(unreadable(&e.into())),
        }
    }
    head.resize(signature::HEAD, 0);
    let signature = match read_head(file, &mut head) {
        Ok(()) => match signature::recognise(&head) {
            Some(known) => return Ok(Probe::Known(known)),
            None => match name(file, &head) {
                Ok(name) => name,
                Err(e) => return Ok(unreadable(&e)),
            },
        },
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => "too little for any filesystem".to_owned(),
        Err(e) => return Ok(unreadable(&e)),
    };
    Ok(Probe::Unknown { signature })
}

fn unreadable(e: &std::io::Error) -> Probe {
    Probe::Unknown { signature: format!("nobody knows: it cannot be read ({e})") }
}

/// What people call what is there; libblkid first, for it tells two kinds that stand beside each other.
fn name(file: &mut File, head: &[u8]) -> std::io::Result<String> {
    if let Some(name) = blkid(file) {
        return Ok(name);
    }
    Ok(signature::foreign(file, head)?.unwrap_or("data of an unknown kind").to_owned())
}

/// What libblkid calls it: `crypto_LUKS`, `LVM2_member`, `gpt` …
fn blkid(file: &File) -> Option<String> {
    let blkid = FOLDERS.iter().map(|dir| Path::new(dir).join("blkid")).find(|path| path.is_file())?;
    let stdin = file.try_clone().ok()?;
    let mut command = std::process::Command::new(blkid);
    command.args(["-p", "-o", "export", "/dev/stdin"]).env_clear().env("LC_ALL", "C").stdin(stdin).stderr(Stdio::null());
    let output = command.output().ok()?;
    // blkid(8): several that cannot both be true.
    if output.status.code() == Some(8) {
        return Some("signatures of several kinds".to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned));
    value("TYPE").or_else(|| value("PTTYPE").map(|kind| format!("{kind} partition table")))
}

fn read_head(file: &mut File, head: &mut [u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn probe(write: impl FnOnce(&mut File)) -> Probe {
        let mut file = tempfile::tempfile_in("/var/tmp").expect("file");
        write(&mut file);
        probe_file(&mut file).expect("probe")
    }

    /// A shell that writes a file a little later, and before that speaks to whom may have gone.
    async fn given_up(deadline: Duration, marker: &Path) {
        let line = format!("sleep 0.3; echo said; echo said >&2; echo done >{}", marker.display());
        let args = ["-c".to_owned(), line];
        let work = tool(Path::new("/bin/sh"), &args, deadline);
        assert!(tokio::time::timeout(Duration::from_millis(50), work).await.is_err(), "it was given up in the middle");
    }

    #[tokio::test]
    async fn law_3_what_rewrites_a_filesystem_goes_on_when_nobody_waits_for_it_and_what_makes_one_does_not() {
        let folder = tempfile::tempdir().expect("dir");
        let (rewritten, made) = (folder.path().join("rewritten"), folder.path().join("made"));
        // In this order: when the second has written, the first would have.
        given_up(FORMAT_DEADLINE, &made).await;
        given_up(NO_DEADLINE, &rewritten).await;
        for _ in 0..500 {
            if rewritten.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(rewritten.exists() && !made.exists());
    }

    #[test]
    fn a_file_that_was_never_written_is_blank_and_one_of_written_zeroes_is_not() {
        assert_eq!(probe(|f| f.set_len(1 << 20).expect("len")), Probe::Blank);
        let zeroes = probe(|f| {
            f.write_all(&[0; 70_000]).expect("write");
            f.sync_all().expect("sync");
        });
        assert!(matches!(zeroes, Probe::Unknown { .. }), "{zeroes:?}");
    }

    #[test]
    fn a_foreign_signature_is_named_and_never_blank() {
        // A partition table of the old kind: the mark at the end of the first sector, and one partition.
        let table = probe(|f| {
            f.write_all(&[0; 446]).expect("write");
            f.write_all(&[0x80, 1, 1, 0, 0x83, 1, 1, 0, 1, 0, 0, 0, 100, 0, 0, 0]).expect("write");
            f.write_all(&[0; 48]).expect("write");
            f.write_all(&[0x55, 0xaa]).expect("write");
            f.set_len(1 << 20).expect("len");
        });
        assert_eq!(table, Probe::Unknown { signature: "dos partition table".into() });
    }

    #[test]
    fn a_short_file_with_bytes_in_it_is_unknown() {
        assert!(matches!(probe(|f| f.write_all(b"x").expect("write")), Probe::Unknown { .. }));
    }
}
