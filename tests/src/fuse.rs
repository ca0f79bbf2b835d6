//! Stores that a test makes for itself, to fill, to stop and to break: a small ext4 filesystem in a file, and the same
//! on top of a FUSE server that a signal brings to a halt, as a dead disk or a dead server in the network would be, and that can lose a block.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{BOUND, eventually, is_mounted, kernel, sh};

/// A small ext4 filesystem of the test's own.
pub struct Disk {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Disk {
    /// A fresh one in a sparse file, mounted with `discard`.
    pub fn new(folder: &Path, size: u64) -> Disk {
        std::fs::create_dir_all(folder).expect("folder");
        let image = folder.join("disk.img");
        File::create(&image).and_then(|file| file.set_len(size)).expect("image");
        Disk::format(&image, folder, "discard")
    }

    fn format(image: &Path, folder: &Path, options: &str) -> Disk {
        let path = folder.join("mnt");
        std::fs::create_dir_all(&path).expect("folder");
        let (image, at) = (image.display(), path.display());
        // No lazy work of the kernel's own: what is written here is what the test writes.
        sh(&format!("mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 {image}"));
        mount_loop(&image.to_string(), options, &at.to_string());
        Disk { path }
    }
}

/// `mount -o loop`, which gives up when somebody else is quicker to take the loop device that it found free.
fn mount_loop(image: &str, options: &str, at: &str) {
    let mount = format!("mount -o loop,{options} {image} {at}");
    sh(&format!("for try in 1 2 3 4 5 6 7 8 9; do if {mount}; then exit 0; fi; done; {mount}"));
}

impl Drop for Disk {
    /// What a test has left on it keeps it busy and is reported there.
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).stderr(Stdio::null()).status();
    }
}

/// A disk whose every read and write passes through a process that can be brought to a halt.
pub struct Store {
    disk: Option<Disk>,
    server: Child,
    /// Tells the server which block of 4 KiB it cannot read.
    lost: PathBuf,
    /// The FUSE filesystem itself, with the one file `disk` in it.
    pub fuse: PathBuf,
}

impl Store {
    /// Starts the server (`env!("CARGO_BIN_EXE_fuse-store")`) and puts a filesystem of `size` on it.
    pub fn new(server: &str, folder: &Path, size: u64) -> Store {
        let fuse = folder.join("fuse");
        std::fs::create_dir_all(&fuse).expect("folder");
        let backing = folder.join("backing");
        File::create(&backing).and_then(|file| file.set_len(size)).expect("backing file");
        let server = Command::new(server).arg(&backing).arg(&fuse).stdin(Stdio::null()).spawn().expect("the server runs");
        let mut store = Store { disk: None, server, lost: lost(&backing), fuse };
        eventually("the FUSE filesystem is mounted", BOUND, || is_mounted(&store.fuse));
        // Without discard: the server does not know how to punch holes.
        store.disk = Some(Disk::format(&store.fuse.join("disk"), folder, "nodiscard"));
        store
    }

    /// Where the filesystem on it is mounted.
    pub fn path(&self) -> &Path {
        &self.disk.as_ref().expect("mounted").path
    }

    /// Has the kernel forget all that it has read of it. Nothing may be mounted on it.
    pub fn forget(&self) {
        let (mounted, file) = (self.path().display().to_string(), self.fuse.join("disk").display().to_string());
        sh(&format!("umount {mounted}; dd if={file} iflag=nocache count=0 status=none"));
        mount_loop(&file, "nodiscard", &mounted);
    }

    /// From now on every read and write waits.
    pub fn halt(&self) {
        self.signal(Signal::STOP);
        let state = format!("/proc/{}/stat", self.server.id());
        let stopped = || std::fs::read_to_string(&state).is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')));
        eventually("the server has stopped", BOUND, stopped);
    }

    /// From now on the first block of a file on it cannot be read: its disk answers with an error. The kernel forgets what it
    /// has read of it; the file must not be in use.
    pub fn lose(&self, file: &Path) {
        let (file, disk) = (file.display(), self.fuse.join("disk"));
        let find = format!("sync {file}; filefrag -v -b4096 {file} | awk '$1 == \"0:\" {{ print int($4) }}'");
        std::fs::write(&self.lost, sh(&find)).expect("written");
        sh(&format!("for f in {file} {}; do dd if=$f iflag=nocache count=0 status=none; done", disk.display()));
    }

    /// All of it can be read again.
    pub fn find_again(&self) {
        std::fs::remove_file(&self.lost).expect("something was lost");
    }

    /// It answers again.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.server), signal).expect("signal");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.go_on();
        drop(self.disk.take());
        // The loop device goes a moment after its mount, and keeps the file open until then.
        let begun = Instant::now();
        while !kernel::loops_beneath(&self.fuse).is_empty() && begun.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = Command::new("umount").arg(&self.fuse).stderr(Stdio::null()).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The file beside the server's own that has the number of the block that cannot be read.
fn lost(backing: &Path) -> PathBuf {
    backing.with_extension("lost")
}

/// The server: serves one file, `MOUNTPOINT/disk`, whose bytes are those of `backing`.
///
/// # Errors
/// When it cannot be mounted, or the kernel ends the session.
pub fn serve(backing: &Path, mountpoint: &Path) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(backing)?;
    let size = file.metadata()?.len();
    fuser::mount(OneFile { file, size, lost: lost(backing) }, mountpoint, &Config::default())
}

const DISK: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

struct OneFile {
    file: File,
    size: u64,
    lost: PathBuf,
}

impl OneFile {
    fn has_lost(&self, at: u64, size: u32) -> bool {
        let number = std::fs::read_to_string(&self.lost).ok().and_then(|number| number.trim().parse::<u64>().ok());
        number.is_some_and(|number| at < (number + 1) * 4096 && number * 4096 < at + u64::from(size))
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = if ino == DISK { (FileType::RegularFile, 0o600, self.size) } else { (FileType::Directory, 0o700, 0) };
        let time = UNIX_EPOCH;
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" { reply.entry(&TTL, &self.attributes(DISK), Generation(0)) } else { reply.error(Errno::ENOENT) }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(&self, _: &Request, _: INodeNo, _: FileHandle, at: u64, size: u32, _: OpenFlags, _: Option<LockOwner>, reply: ReplyData) {
        let mut bytes = vec![0; size as usize];
        match self.file.read_at(&mut bytes, at) {
            Ok(_) if self.has_lost(at, size) => reply.error(Errno::EIO),
            Ok(n) => reply.data(&bytes[..n]),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file.write_all_at(data, at) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
