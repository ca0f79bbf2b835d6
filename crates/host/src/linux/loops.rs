//! Loop devices: one per file, found again rather than made twice, and proven gone.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dunnage_model::{Error, Result};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::sys::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LoopAdd, LoopClear, LoopConfig, LoopGetFree, LoopInfo, absent, device_number, failed, file_id,
    free_of_others, lock_folder, loop_call, loop_configure, loop_set_capacity, loop_set_status, loop_status, open_beneath, patiently,
    refused,
};
use crate::helpers::Task;
use crate::{Detached, DeviceNumber, FileId, LoopDevice, LoopRequest};

/// Another process may take the free number that we were given, or hold the device for a moment (udev looks at it);
/// so many times we try again.
const TRIES: u32 = 64;

#[derive(Serialize, Deserialize)]
pub struct Attach {
    pub request: LoopRequest,
}

impl Task for Attach {
    const NAME: &'static str = "loop.attach";
    type Output = LoopDevice;

    fn run(self) -> Result<LoopDevice> {
        // Another helper may be at it, of a daemon that died while it hung. (Not the file itself is locked: the loop would
        // keep the lock.)
        let _alone = lock_folder(self.request.path().parent().unwrap_or(&self.request.folder))?;
        let (file, id) = open(&self.request)?;
        // The file may be attached already, by us or for a namespace that we do not see. Never attach it twice: two
        // loops are two page caches over one file.
        for _ in 0..TRIES {
            match attached_to(&file, id, &self.request.path())? {
                None => return configure(&file, &self.request.path(), 0).map(|(device, _)| device),
                Some(found) if keep(&found.path, id)? => return Ok(found),
                // It went while we looked.
                Some(_) => {}
            }
        }
        Err(Error::unavailable(format!("{} is being detached", self.request.path().display()), "ask again"))
    }
}

/// A detach that somebody's open device has delayed (udev looks at devices) would come yet, under our mount: it is called
/// off. False when it has come already.
fn keep(path: &Path, id: FileId) -> Result<bool> {
    let Some(device) = absent(File::open(path)).map_err(failed(path.display()))? else { return Ok(false) };
    let Some(info) = loop_status(&device).map_err(failed(path.display()))?.filter(|info| file_of(info) == id) else { return Ok(false) };
    if info.flags & LO_FLAGS_AUTOCLEAR == 0 {
        return Ok(true);
    }
    match loop_set_status(&device, LoopInfo { flags: info.flags & !LO_FLAGS_AUTOCLEAR, ..info }) {
        Ok(()) => Ok(true),
        Err(Errno::NXIO) => Ok(false),
        Err(e) => Err(refused(path.display())(e)),
    }
}

fn open(request: &LoopRequest) -> Result<(File, FileId)> {
    let shown = request.path();
    let file =
        open_beneath(&request.folder, &request.relative, OFlags::RDWR).map_err(failed(format_args!("cannot open {}", shown.display())))?;
    let id = file_id(&file).map_err(failed(format_args!("cannot look at {}", shown.display())))?;
    Ok((file, id))
}

/// The loop that an open file is attached to. Asked for a lease first, the kernel says "none" at once.
fn attached_to(file: &File, id: FileId, shown: &Path) -> Result<Option<LoopDevice>> {
    match free_of_others(file).map_err(failed("cannot ask for a lease"))? {
        Some(true) => Ok(None),
        Some(false) | None => find(id, shown),
    }
}

#[derive(Serialize, Deserialize)]
pub struct Find {
    pub request: LoopRequest,
}

impl Task for Find {
    const NAME: &'static str = "loop.find";
    type Output = Option<LoopDevice>;

    fn run(self) -> Result<Option<LoopDevice>> {
        let (file, id) = open(&self.request)?;
        attached_to(&file, id, &self.request.path())
    }
}

/// A loop that goes when its last user does, and what keeps it until then.
pub fn configure_passing(path: &Path) -> Result<Passing> {
    let what = format!("cannot open {}", path.display());
    let file = File::options().read(true).write(true).open(path).map_err(failed(what))?;
    let (device, open) = configure(&file, path, LO_FLAGS_AUTOCLEAR)?;
    Ok(Passing { path: device.path, _open: open })
}

/// See [`configure_passing`].
pub struct Passing {
    pub path: PathBuf,
    _open: File,
}

fn configure(file: &File, shown: &Path, more_flags: u32) -> Result<(LoopDevice, File)> {
    let what = || format!("cannot attach a loop device to {}", shown.display());
    let control = File::options().read(true).write(true).open("/dev/loop-control").map_err(failed("cannot open /dev/loop-control"))?;
    let fd = u32::try_from(file.as_raw_fd()).map_err(|_| Error::internal("a descriptor below zero"))?;
    // The kernel syncs a file that it makes a loop of, with the loop's lock held; on a store that hangs, every program
    // that asks for a free loop is given that one, and hangs too. So it hangs here, where only this call waits.
    file.sync_data().map_err(failed(what()))?;
    // Direct I/O where the pool's filesystem allows it; it is tried once with and then without. Before Linux 6.14 only a file
    // that is open for it gets a loop with the sectors of the disk beneath, and one with smaller ones gets no direct I/O.
    let buffered = rustix::fs::fcntl_getfl(file).map_err(refused(what()))?;
    let _ = rustix::fs::fcntl_setfl(file, buffered | OFlags::DIRECT);
    let mut flags = LO_FLAGS_DIRECT_IO | more_flags;
    let mut number = loop_call(&control, LoopGetFree).map_err(refused(what()))?;
    for _ in 0..TRIES {
        let path = PathBuf::from(format!("/dev/loop{number}"));
        // The kernel calls a loop free while somebody is in the middle of configuring it, and that somebody may hang on
        // a dead store with the loop's lock held, so that even opening it would hang us. So it is reserved first, by a
        // lock that is given or refused at once.
        let Some(_reserved) = reserve(number).map_err(failed(what()))? else {
            number = loop_call(&control, LoopAdd).map_err(refused(what()))?;
            continue;
        };
        let device = match File::options().read(true).write(true).open(&path) {
            Ok(device) => device,
            // Somebody else takes it down at this very moment, or has removed it: ask for another.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => {
                number = loop_call(&control, LoopGetFree).map_err(refused(what()))?;
                continue;
            }
            Err(e) => return Err(Error::os(format_args!("{}: {}", what(), path.display()), &e)),
        };
        let info = LoopInfo { flags, ..LoopInfo::zeroed() };
        match loop_configure(&device, LoopConfig { fd, block_size: 0, info, reserved: [0; 8] }) {
            Ok(()) => {
                let status = loop_status(&device).map_err(failed(what()))?;
                let gone = || Error::unavailable(format!("{}: it was detached by somebody else", what()), "ask again");
                return Ok((describe(&path, &device, &status.ok_or_else(gone)?, shown, false)?, device));
            }
            Err(Errno::BUSY) => number = loop_call(&control, LoopGetFree).map_err(refused(what()))?,
            Err(Errno::INVAL) if flags != more_flags => {
                rustix::fs::fcntl_setfl(file, buffered).map_err(refused(what()))?;
                flags = more_flags;
            }
            Err(e) => return Err(refused(what())(e)),
        }
    }
    Err(Error::unavailable(format!("{}: every free loop device was taken by somebody else", what()), "ask again"))
}

/// The right to configure a loop, until it is dropped; `None` when somebody has it.
fn reserve(number: u32) -> io::Result<Option<File>> {
    let file = File::open(format!("/sys/block/loop{number}/size"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A loop that has a file, by what its own status says (direct I/O is what became of the wish for it).
fn describe(path: &Path, device: &File, info: &LoopInfo, backing: &Path, found: bool) -> Result<LoopDevice> {
    let number = device_number(device).map_err(failed(path.display()))?;
    let direct_io = info.flags & LO_FLAGS_DIRECT_IO != 0;
    Ok(LoopDevice { path: path.to_owned(), number, file: file_of(info), backing: backing.to_owned(), direct_io, found })
}

pub fn path(device: DeviceNumber) -> PathBuf {
    PathBuf::from(format!("/dev/loop{}", device.minor))
}

/// The path of the file behind a loop, as the kernel shows it; empty when there is none.
pub fn backing(path: &Path) -> PathBuf {
    let file = Path::new("/sys/devices/virtual/block").join(path.file_name().unwrap_or_default()).join("loop/backing_file");
    // The kernel gives it whole in one read, of one page at most.
    let mut page = [0; 4096];
    let read = File::open(file).and_then(|mut file| file.read(&mut page)).unwrap_or(0);
    let text = page.get(..read).unwrap_or_default();
    PathBuf::from(OsStr::from_bytes(text.strip_suffix(b"\n").unwrap_or(text)))
}

/// The loop devices that the kernel has, attached or not.
fn devices() -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir("/sys/block").map_err(failed("cannot list /sys/block"))?;
    let mut devices = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("cannot list /sys/block"))?.file_name().to_string_lossy().into_owned();
        if name.starts_with("loop") && Path::new("/sys/block").join(&name).join("loop/backing_file").exists() {
            devices.push(Path::new("/dev").join(name));
        }
    }
    Ok(devices)
}

/// The loop that a file is attached to. Those that show the file's own path are asked first, so that one on a store that
/// hangs is not asked for another's sake.
fn find(id: FileId, shown: &Path) -> Result<Option<LoopDevice>> {
    let mut candidates = devices()?;
    candidates.sort_by_cached_key(|path| backing(path) != *shown);
    for path in candidates {
        let Some(device) = absent(File::open(&path)).map_err(failed(path.display()))? else { continue };
        let info = match loop_status(&device) {
            Ok(Some(info)) => info,
            Ok(None) => continue,
            Err(e) if backing(&path) == *shown => return Err(failed(path.display())(e)),
            // Another's, whose file is out of reach, as on a FUSE server that has died. Ours is not: we have it open.
            Err(_) => continue,
        };
        if file_of(&info) == id {
            return describe(&path, &device, &info, &backing(&path), true).map(Some);
        }
    }
    Ok(None)
}

/// The file behind a loop. (`huge_encode_dev`, which the kernel packs the number with here, and stat(2)'s packing are
/// the same for all numbers in use.)
fn file_of(info: &LoopInfo) -> FileId {
    FileId { device: info.device, inode: info.inode }
}

#[derive(Serialize, Deserialize)]
pub struct Detach {
    pub request: LoopRequest,
    pub device: Option<DeviceNumber>,
}

impl Task for Detach {
    const NAME: &'static str = "loop.detach";
    type Output = Detached;

    fn run(self) -> Result<Detached> {
        let shown = self.request.path();
        let open = open_beneath(&self.request.folder, &self.request.relative, OFlags::RDWR);
        if open.as_ref().is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))) {
            return patiently(|| without_file(&shown), |outcome| *outcome == Detached::Lingering);
        }
        let file = open.map_err(failed(format_args!("cannot open {}", shown.display())))?;
        let id = file_id(&file).map_err(failed(format_args!("cannot look at {}", shown.display())))?;
        patiently(|| self.once(&file, id), |outcome| *outcome == Detached::Lingering)
    }
}

/// One try, where the server of the file has died, so that nobody can open it: the loops that show its path have it.
fn without_file(shown: &Path) -> Result<Detached> {
    let mut outcome = Detached::NotThere;
    for path in devices()?.into_iter().filter(|path| backing(path) == *shown) {
        match clear(&path, |_| backing(&path) == *shown)? {
            Some(Detached::Lingering) => return Ok(Detached::Lingering),
            Some(Detached::Done) if backing(&path) == *shown => return Ok(Detached::Lingering),
            Some(done) => outcome = done,
            None => {}
        }
    }
    Ok(outcome)
}

impl Detach {
    /// One try, at the loop that the caller knows of, if it has the file, or had it until it was deleted and put back;
    /// else at the one that is found.
    fn once(&self, file: &File, id: FileId) -> Result<Detached> {
        let shown = self.request.path();
        let deleted = format!("{} (deleted)", shown.display());
        let known = self.device.map(path);
        let cleared = match known.as_deref().map(|path| clear(path, |info| file_of(info) == id || *backing(path) == *deleted)) {
            Some(Ok(None)) | None => match attached_to(file, id, &shown)? {
                Some(found) => clear(&found.path, |info| file_of(info) == id)?,
                None => None,
            },
            Some(cleared) => cleared?,
        };
        match cleared {
            // With other openers the kernel only promises to clear it later: look.
            Some(Detached::Done) if attached_to(file, id, &shown)?.is_some() => Ok(Detached::Lingering),
            Some(done) => Ok(done),
            None => Ok(Detached::NotThere),
        }
    }
}

/// Clears a loop, if it is ours. `None`: it is not, or has no file any more.
fn clear(path: &Path, ours: impl Fn(&LoopInfo) -> bool) -> Result<Option<Detached>> {
    let what = format!("cannot detach {}", path.display());
    let belongs = |device: &File| -> Result<bool> { Ok(loop_status(device).map_err(failed(&what))?.is_some_and(|info| ours(&info))) };
    for _ in 0..TRIES {
        // O_EXCL is refused as long as any superblock, in whatever namespace, lives on it.
        let device = match absent(File::options().read(true).custom_flags(libc::O_EXCL).open(path)) {
            Ok(Some(device)) => device,
            Ok(None) => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let Some(device) = absent(File::open(path)).map_err(failed(&what))? else { return Ok(None) };
                return Ok(belongs(&device)?.then_some(Detached::Lingering));
            }
            Err(e) => return Err(Error::os(what, &e)),
        };
        // Held open: from here on the number cannot become another file's.
        if !belongs(&device)? {
            return Ok(None);
        }
        match loop_call(&device, LoopClear) {
            Ok(()) => return Ok(Some(Detached::Done)),
            Err(Errno::BUSY | Errno::NXIO) => {}
            Err(e) => return Err(refused(what)(e)),
        }
    }
    Ok(Some(Detached::Lingering))
}

/// Has a loop see that its file has become longer.
#[derive(Serialize, Deserialize)]
pub struct Lengthen {
    pub request: LoopRequest,
}

impl Task for Lengthen {
    const NAME: &'static str = "loop.lengthen";
    type Output = ();

    fn run(self) -> Result<()> {
        let (file, id) = open(&self.request)?;
        let Some(found) = attached_to(&file, id, &self.request.path())? else { return Ok(()) };
        let Some(device) = absent(File::open(&found.path)).map_err(failed(found.path.display()))? else { return Ok(()) };
        // It may have become another file's since it was found: then that one sees its own length once more.
        match loop_set_capacity(&device) {
            Ok(()) | Err(Errno::NXIO) => Ok(()),
            Err(e) => Err(refused(format_args!("cannot lengthen {}", found.path.display()))(e)),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub struct List {
    pub folder: PathBuf,
}

impl Task for List {
    const NAME: &'static str = "loop.list";
    type Output = Vec<LoopDevice>;

    fn run(self) -> Result<Vec<LoopDevice>> {
        let mut list = Vec::new();
        for path in devices()? {
            if !backing(&path).starts_with(&self.folder) {
                continue;
            }
            let Some(device) = absent(File::open(&path)).map_err(failed(path.display()))? else { continue };
            let Some(info) = loop_status(&device).map_err(failed(path.display()))? else { continue };
            list.push(describe(&path, &device, &info, &backing(&path), true)?);
        }
        Ok(list)
    }
}
