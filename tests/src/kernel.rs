//! What the kernel has mounted and attached.

use std::path::{Path, PathBuf};

/// Every mount at or beneath a folder, in the kernel's order.
pub fn mounts_beneath(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(|path| PathBuf::from(path.replace("\\040", " ")));
    points.filter(|path| path.starts_with(folder)).collect()
}

/// The mount id of what is mounted at a path.
pub fn mount_id(path: &Path) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let at = |line: &&str| line.split(' ').nth(4).map(Path::new) == Some(path);
    table.lines().rfind(at).and_then(|line| line.split(' ').next()?.parse().ok())
}

/// Every loop device with a file beneath a folder.
pub fn loops_beneath(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").expect("/sys/block").flatten() {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end()).starts_with(folder) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found
}

/// The programs that carry volumes.
const CARRIERS: &[&str] = &["qemu-storage-daemon", "ceph-fuse"];

/// The processes that carry volumes and have this in their command line.
pub fn processes_with(text: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.split('\0').next().is_some_and(|program| CARRIERS.iter().any(|carrier| program.ends_with(carrier))) && line.contains(text) {
            found.push(pid);
        }
    }
    found
}

/// `kill -9`, and waits until it is gone.
pub fn kill(pid: u32) {
    end(pid, rustix::process::Signal::KILL);
}

/// Ends a process by a signal, and waits until it is gone.
pub fn end(pid: u32, signal: rustix::process::Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return };
    let _ = rustix::process::kill_process(pid, signal);
    let alive = || std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| !line.is_empty());
    crate::eventually("a killed process has died", crate::BOUND, || !alive());
}
