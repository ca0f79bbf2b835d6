//! A host in memory, for tests: it remembers what was asked, fails where a plan says so, and hangs until it is let go.
//!
//! Files are real (a driver's pool in a temporary folder), and a filesystem is as much of a superblock as a probe reads;
//! loops and mounts are not. It is passed in where
//! the real host would be, so what is tested is the same code.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dunnage_model::{Bytes, Error, FsKind, Result};
use tokio::sync::Notify;

use crate::helpers::{InProcess, Registry};
use crate::{
    Checked, Detached, DeviceNumber, FileId, Filesystems, FillRequest, FormatRequest, GrowRequest, Growth, Host, LoopDevice, LoopRequest,
    Loops, MountEntry, MountRequest, MountedAt, Mounts, Prepared, Probe, Process, Space, Target, Tried, Unmounted, signature,
};

/// The loop major of the kernel.
const LOOP: u32 = 7;

/// What a plan makes a call do instead of working.
#[derive(Clone)]
pub enum Fault {
    /// It fails, and has done nothing.
    Error(Error),
    /// It does its work, and then fails.
    ErrorAfter(Error),
    /// It does not come back before the bell is rung.
    Hang(Arc<Notify>),
}

#[derive(Default)]
struct State {
    calls: Vec<String>,
    faults: Vec<(&'static str, Fault)>,
    loops: BTreeMap<u32, (FileId, PathBuf)>,
    mounts: BTreeMap<Target, (DeviceNumber, u64)>,
    /// Superblocks that a copy of the mount in another namespace keeps alive.
    copies: Vec<DeviceNumber>,
    busy: Vec<DeviceNumber>,
    next_mount: u64,
    inside: Vec<String>,
    ext4_grows: Option<Growth>,
}

impl PartialOrd for Target {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Target {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.path().cmp(&other.path())
    }
}

/// The host in memory.
#[derive(Clone, Default)]
pub struct FakeHost {
    state: Arc<Mutex<State>>,
}

impl FakeHost {
    /// The host, as engine and drivers take it; `registry` has the drivers' own tasks.
    pub fn host(&self, registry: Registry) -> Host {
        let fake = Arc::new(self.clone());
        Host { mounts: fake.clone(), loops: fake.clone(), filesystems: fake, runner: Arc::new(InProcess(registry)) }
    }

    /// The next call of `operation` (`mount`, `unmount`, `attach`, `detach`, `probe`, `format`, `check`, `at`) does this.
    pub fn plan(&self, operation: &'static str, fault: Fault) {
        self.lock().faults.push((operation, fault));
    }

    /// The next call of `operation` hangs until the returned bell is rung.
    pub fn hang(&self, operation: &'static str) -> Arc<Notify> {
        let bell = Arc::new(Notify::new());
        self.plan(operation, Fault::Hang(bell.clone()));
        bell
    }

    /// Every call so far, as `operation what`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    /// Where something is mounted now.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.lock().mounts.keys().map(Target::path).collect()
    }

    /// How many loops are attached.
    pub fn attached(&self) -> usize {
        self.lock().loops.len()
    }

    /// Sets the error flag of the filesystem in a file.
    pub fn mark_errors(&self, file: &Path) -> Result<()> {
        signature::set_ext4_errors(file, true).map_err(|e| Error::os(file.display(), &e))
    }

    /// Somebody has a file open on every mounted volume from now on, or nobody has any more.
    pub fn set_busy(&self, busy: bool) {
        let mut state = self.lock();
        state.busy = if busy { state.mounts.values().map(|(device, _)| *device).collect() } else { Vec::new() };
    }

    /// Another namespace gets copies of the mounts that there are now, or loses them.
    pub fn copy_mounts(&self, copied: bool) {
        let mut state = self.lock();
        state.copies = if copied { state.mounts.values().map(|(device, _)| *device).collect() } else { Vec::new() };
    }

    /// Every filesystem that is looked into has these names at its root from now on.
    pub fn set_inside(&self, names: &[&str]) {
        self.lock().inside = names.iter().map(|name| (*name).to_owned()).collect();
    }

    /// When an ext4 can become larger from now on.
    pub fn set_ext4_growth(&self, growth: Growth) {
        self.lock().ext4_grows = Some(growth);
    }

    /// What a reboot leaves: no mounts, no loops, the files.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.loops.clear();
        state.mounts.clear();
        state.copies.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call and carries out what the plan has for it; `Some` is the error to give after the work.
    async fn enter(&self, operation: &'static str, what: impl std::fmt::Display) -> Result<Option<Error>> {
        let fault = {
            let mut state = self.lock();
            state.calls.push(format!("{operation} {what}"));
            let at = state.faults.iter().position(|(of, _)| *of == operation);
            at.map(|at| state.faults.remove(at).1)
        };
        match fault {
            None => Ok(None),
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::ErrorAfter(error)) => Ok(Some(error)),
            Some(Fault::Hang(bell)) => {
                bell.notified().await;
                Ok(None)
            }
        }
    }

    /// The real file behind a path, which may be that of a loop.
    fn real(&self, path: &Path) -> Result<PathBuf> {
        let minor = path.to_str().and_then(|p| p.strip_prefix("/dev/loop")).and_then(|n| n.parse().ok());
        match minor {
            Some(minor) => self.lock().loops.get(&minor).map(|(_, file)| file.clone()).ok_or_else(|| Error::internal("no such loop")),
            None => Ok(path.to_owned()),
        }
    }

    fn probe_now(&self, path: &Path) -> Result<Probe> {
        let real = self.real(path)?;
        let look = || crate::linux::probe_file(&mut std::fs::File::open(&real)?);
        look().map_err(|e| Error::os(real.display(), &e))
    }
}

fn id_of(path: &Path) -> Result<FileId> {
    let meta = std::fs::metadata(path).map_err(|e| Error::os(path.display(), &e))?;
    Ok(FileId { device: meta.dev(), inode: meta.ino() })
}

fn after<T>(error: Option<Error>, value: T) -> Result<T> {
    error.map_or(Ok(value), Err)
}

fn number(minor: u32) -> DeviceNumber {
    DeviceNumber::new(LOOP, minor)
}

#[async_trait]
impl Mounts for FakeHost {
    async fn prepare(&self, root: &Path) -> Result<Prepared> {
        self.enter("prepare", root.display()).await?;
        Ok(Prepared::AlreadyThere)
    }

    async fn table(&self, root: &Path) -> Result<Vec<MountEntry>> {
        self.enter("table", root.display()).await?;
        let state = self.lock();
        let beneath = state.mounts.iter().filter(|(target, _)| target.root == root);
        Ok(beneath
            .map(|(target, (device, _))| MountEntry {
                relative: target.relative.clone(),
                device: *device,
                fs: "ext4".into(),
                source: format!("/dev/loop{}", device.minor),
            })
            .collect())
    }

    async fn at(&self, target: &Target) -> Result<Option<MountedAt>> {
        self.enter("at", target.relative.display()).await?;
        Ok(self.lock().mounts.get(target).map(|(device, mount_id)| MountedAt { device: *device, mount_id: *mount_id }))
    }

    async fn mount(&self, request: &MountRequest) -> Result<Tried> {
        let late = self.enter("mount", request.target.relative.display()).await?;
        match self.probe_now(&request.device)? {
            Probe::Known(known) if known.fs == request.fs && known.uuid == request.uuid && !known.has_errors => {}
            other => return after(late, Tried::Found(other)),
        }
        let mut state = self.lock();
        state.next_mount += 1;
        let mount_id = state.next_mount;
        state.mounts.insert(request.target.clone(), (request.number, mount_id));
        after(late, Tried::Mounted(MountedAt { device: request.number, mount_id }))
    }

    async fn unmount(&self, target: &Target, device: DeviceNumber) -> Result<Unmounted> {
        let late = self.enter("unmount", target.relative.display()).await?;
        let mut state = self.lock();
        let outcome = match state.mounts.get(target).map(|(there, _)| *there) {
            None => Unmounted::NotThere,
            Some(there) if there != device => Unmounted::Foreign(there),
            Some(there) if state.busy.contains(&there) => Unmounted::Busy,
            Some(_) => {
                state.mounts.remove(target);
                Unmounted::Done
            }
        };
        after(late, outcome)
    }

    async fn shut_down(&self, target: &Target, device: DeviceNumber) -> Result<bool> {
        let late = self.enter("shut-down", target.relative.display()).await?;
        let there = self.lock().mounts.get(target).is_some_and(|(there, _)| *there == device);
        after(late, there)
    }

    async fn space(&self, target: &Target) -> Result<Space> {
        self.enter("space", target.relative.display()).await?;
        Ok(Space { total: Bytes::gib(1), used: Bytes::mib(1), available: Bytes::mib(1023) })
    }

    async fn users(&self, device: DeviceNumber, _at: &Path) -> Result<Vec<Process>> {
        self.enter("users", device).await?;
        let state = self.lock();
        let mut users = Vec::new();
        if state.busy.contains(&device) {
            users.push(Process { pid: 4711, name: "tail".into(), namespace_only: false });
        }
        if state.copies.contains(&device) {
            users.push(Process { pid: 4712, name: "sleep".into(), namespace_only: true });
        }
        Ok(users)
    }
}

#[async_trait]
impl Loops for FakeHost {
    async fn attach(&self, request: &LoopRequest) -> Result<LoopDevice> {
        let late = self.enter("attach", request.relative.display()).await?;
        let path = request.folder.join(&request.relative);
        let file = id_of(&path)?;
        let mut state = self.lock();
        let found = state.loops.iter().find(|(_, (id, _))| *id == file).map(|(minor, _)| *minor);
        let minor = found.unwrap_or_else(|| (0..).find(|n| !state.loops.contains_key(n)).unwrap_or(0));
        state.loops.insert(minor, (file, path.clone()));
        let device = LoopDevice {
            path: format!("/dev/loop{minor}").into(),
            number: number(minor),
            file,
            backing: path,
            direct_io: true,
            found: found.is_some(),
        };
        after(late, device)
    }

    async fn detach(&self, request: &LoopRequest, _device: Option<DeviceNumber>) -> Result<Detached> {
        let late = self.enter("detach", request.relative.display()).await?;
        let file = id_of(&request.folder.join(&request.relative))?;
        let mut state = self.lock();
        let attached = state.loops.iter().find(|(_, (id, _))| *id == file).map(|(minor, _)| *minor);
        let outcome = match attached {
            None => Detached::NotThere,
            Some(minor) => {
                let mounted = state.mounts.values().any(|(there, _)| *there == number(minor));
                if mounted || state.copies.contains(&number(minor)) {
                    Detached::Lingering
                } else {
                    state.loops.remove(&minor);
                    Detached::Done
                }
            }
        };
        after(late, outcome)
    }

    async fn find(&self, request: &LoopRequest) -> Result<Option<LoopDevice>> {
        let path = request.folder.join(&request.relative);
        let file = id_of(&path)?;
        Ok(self.list(&request.folder).await?.into_iter().find(|device| device.file == file))
    }

    async fn lengthen(&self, request: &LoopRequest) -> Result<()> {
        let late = self.enter("lengthen", request.relative.display()).await?;
        after(late, ())
    }

    fn has_in_place(&self, request: &LoopRequest, device: DeviceNumber) -> bool {
        let file = id_of(&request.path()).ok();
        self.lock().loops.get(&device.minor).is_some_and(|(id, _)| Some(*id) == file)
    }

    async fn list(&self, folder: &Path) -> Result<Vec<LoopDevice>> {
        self.enter("list", folder.display()).await?;
        let state = self.lock();
        let beneath = state.loops.iter().filter(|(_, (_, path))| path.starts_with(folder));
        Ok(beneath
            .map(|(minor, (file, path))| LoopDevice {
                path: format!("/dev/loop{minor}").into(),
                number: number(*minor),
                file: *file,
                backing: path.clone(),
                direct_io: true,
                found: true,
            })
            .collect())
    }
}

#[async_trait]
impl Filesystems for FakeHost {
    async fn probe(&self, path: &Path) -> Result<Probe> {
        self.enter("probe", path.display()).await?;
        self.probe_now(path)
    }

    async fn format(&self, request: &FormatRequest) -> Result<()> {
        let late = self.enter("format", request.path.display()).await?;
        signature::write(&request.path, request.fs, request.uuid).map_err(|e| Error::os(request.path.display(), &e))?;
        after(late, ())
    }

    async fn look_at_image(&self, path: &Path) -> Result<(Bytes, Probe)> {
        let late = self.enter("look-at-image", path.display()).await?;
        let length = std::fs::metadata(path).map_err(|e| Error::os(path.display(), &e))?.len();
        after(late, (Bytes(length), self.probe_now(path)?))
    }

    async fn fill(&self, request: &FillRequest) -> Result<()> {
        let late = self.enter("fill", request.to.display()).await?;
        signature::write(&request.to, request.fs, request.uuid).map_err(|e| Error::os(request.to.display(), &e))?;
        after(late, ())
    }

    async fn renew(&self, path: &Path, fs: FsKind, uuid: uuid::Uuid) -> Result<()> {
        let late = self.enter("renew", path.display()).await?;
        signature::write(path, fs, uuid).map_err(|e| Error::os(path.display(), &e))?;
        after(late, ())
    }

    async fn look_inside(&self, device: &Path, _fs: FsKind) -> Result<Vec<String>> {
        let late = self.enter("look-inside", device.display()).await?;
        after(late, self.lock().inside.clone())
    }

    fn growth(&self, fs: FsKind) -> Growth {
        match fs {
            FsKind::Ext4 => self.lock().ext4_grows.unwrap_or(Growth::Mounted),
            FsKind::Xfs | FsKind::Btrfs => Growth::Mounted,
            FsKind::Folder => Growth::Always,
        }
    }

    async fn grow(&self, request: &GrowRequest) -> Result<()> {
        let how = if request.at.is_some() { "mounted" } else { "unmounted" };
        let late = self.enter("grow", format!("{how} {}", request.device.display())).await?;
        after(late, ())
    }

    async fn check(&self, path: &Path, _fs: FsKind) -> Result<Checked> {
        let late = self.enter("check", path.display()).await?;
        let real = self.real(path)?;
        signature::set_ext4_errors(&real, false).map_err(|e| Error::os(real.display(), &e))?;
        after(late, Checked::Repaired)
    }
}
