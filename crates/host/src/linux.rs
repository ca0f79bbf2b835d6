//! The real kernel (5.14 or newer: LOOP_CONFIGURE, mount_setattr, openat2) and the real tools.

mod bind;
pub mod floor;
mod image;
mod loops;
mod mounts;
mod prepare;
mod statmount;
mod sys;
mod table;
mod tools;
mod tree;
mod users;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use dunnage_model::{Bytes, FsKind, Result};

use crate::helpers::{Registry, Runner, run};
use crate::{
    Checked, Detached, DeviceNumber, Filesystems, FillRequest, FormatRequest, GrowRequest, Growth, Host, LoopDevice, LoopRequest, Loops,
    MountEntry, MountRequest, MountedAt, Mounts, Prepared, Probe, Process, Space, Target, Tried, Unmounted,
};

pub use bind::{bind, mount_namespace};
pub use mounts::{folder_number, space_at};
pub use prepare::{give_back, is_ours, mounted_beneath};
pub use sys::{carrier, file_id, free_of_others, lock_folder, open_beneath, to_background, unread_by_peer};
pub use tools::{Tools, probe_file};
pub use tree::remove_tree;

/// The tasks that helpers must know for [`host`] to work.
pub fn tasks(registry: Registry) -> Registry {
    registry
        .with::<prepare::Prepare>()
        .with::<mounts::Mount>()
        .with::<mounts::Unmount>()
        .with::<mounts::ShutDown>()
        .with::<mounts::SpaceOf>()
        .with::<table::Table>()
        .with::<users::Users>()
        .with::<loops::Attach>()
        .with::<loops::Detach>()
        .with::<image::LookAt>()
        .with::<image::Copy>()
        .with::<loops::Find>()
        .with::<loops::Lengthen>()
        .with::<loops::List>()
        .with::<tools::ProbeTask>()
        .with::<tools::Dress>()
        .with::<tools::DressFolder>()
        .with::<tools::Alone>()
        .with::<tools::Settle>()
        .with::<tools::LookInside>()
}

/// The host as it is.
pub fn host(runner: Arc<dyn Runner>, tools: Tools) -> Host {
    let linux = Arc::new(Linux { runner: runner.clone(), tools });
    Host { mounts: linux.clone(), loops: linux.clone(), filesystems: linux, runner }
}

struct Linux {
    runner: Arc<dyn Runner>,
    tools: Tools,
}

#[async_trait]
impl Mounts for Linux {
    async fn prepare(&self, root: &Path) -> Result<Prepared> {
        run(&*self.runner, &prepare::Prepare { root: root.to_owned() }).await
    }
    async fn table(&self, root: &Path) -> Result<Vec<MountEntry>> {
        run(&*self.runner, &table::Table { root: root.to_owned() }).await
    }
    async fn at(&self, target: &Target) -> Result<Option<MountedAt>> {
        // Answered by the kernel's own tables; no filesystem is asked, so it needs no helper.
        mounts::at(target)
    }
    async fn mount(&self, request: &MountRequest) -> Result<Tried> {
        run(&*self.runner, &mounts::Mount { request: request.clone() }).await
    }
    async fn unmount(&self, target: &Target, device: DeviceNumber) -> Result<Unmounted> {
        run(&*self.runner, &mounts::Unmount { target: target.clone(), device }).await
    }
    async fn shut_down(&self, target: &Target, device: DeviceNumber) -> Result<bool> {
        run(&*self.runner, &mounts::ShutDown { target: target.clone(), device }).await
    }
    async fn space(&self, target: &Target) -> Result<Space> {
        run(&*self.runner, &mounts::SpaceOf { target: target.clone() }).await
    }
    async fn users(&self, device: DeviceNumber, at: &Path) -> Result<Vec<Process>> {
        run(&*self.runner, &users::Users { device, at: at.to_owned() }).await
    }
}

#[async_trait]
impl Loops for Linux {
    async fn attach(&self, request: &LoopRequest) -> Result<LoopDevice> {
        run(&*self.runner, &loops::Attach { request: request.clone() }).await
    }
    async fn detach(&self, request: &LoopRequest, device: Option<DeviceNumber>) -> Result<Detached> {
        run(&*self.runner, &loops::Detach { request: request.clone(), device }).await
    }
    async fn find(&self, request: &LoopRequest) -> Result<Option<LoopDevice>> {
        run(&*self.runner, &loops::Find { request: request.clone() }).await
    }
    async fn lengthen(&self, request: &LoopRequest) -> Result<()> {
        run(&*self.runner, &loops::Lengthen { request: request.clone() }).await
    }
    fn has_in_place(&self, request: &LoopRequest, device: DeviceNumber) -> bool {
        loops::backing(&loops::path(device)) == request.path()
    }
    async fn list(&self, folder: &Path) -> Result<Vec<LoopDevice>> {
        run(&*self.runner, &loops::List { folder: folder.to_owned() }).await
    }
}

#[async_trait]
impl Filesystems for Linux {
    async fn probe(&self, path: &Path) -> Result<Probe> {
        run(&*self.runner, &tools::ProbeTask { path: path.to_owned() }).await
    }
    async fn format(&self, request: &FormatRequest) -> Result<()> {
        self.tools.format(&*self.runner, request).await
    }
    async fn look_at_image(&self, path: &Path) -> Result<(Bytes, Probe)> {
        run(&*self.runner, &image::LookAt { path: path.to_owned() }).await
    }
    async fn fill(&self, request: &FillRequest) -> Result<()> {
        self.tools.fill(&*self.runner, request).await
    }
    async fn renew(&self, path: &Path, fs: FsKind, uuid: uuid::Uuid) -> Result<()> {
        self.tools.renew(&*self.runner, path, fs, uuid).await
    }
    async fn look_inside(&self, device: &Path, fs: FsKind) -> Result<Vec<String>> {
        run(&*self.runner, &tools::LookInside { device: device.to_owned(), fs }).await
    }
    fn growth(&self, fs: FsKind) -> Growth {
        tools::growth(fs)
    }
    async fn grow(&self, request: &GrowRequest) -> Result<()> {
        self.tools.grow(&*self.runner, request).await
    }
    async fn check(&self, path: &Path, fs: FsKind) -> Result<Checked> {
        self.tools.check(path, fs).await
    }
}
