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
