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

/// The calls that a kernel before 6.8 does not have: their numbers are the same everywhere.
pub const STATMOUNT: u32 = 457;
pub const LISTMOUNT: u32 = 458;

/// For this thread and whom it starts from now on, the kernel has none of these calls (seccomp(2)).
#[allow(unsafe_code)]
pub fn refuse(calls: &[u32]) {
    let step = |code: u32, k: u32, jt: u8| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut filter = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (n, call) in calls.iter().enumerate() {
        filter.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *call, (calls.len() - n) as u8));
    }
    filter.push(step(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0));
    filter.push(step(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its steps live until the call returns, and it has as many as it says.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a call that is refused before it looks at what it is given.
    let refused = calls.iter().all(|call| unsafe { libc::syscall((*call).into(), 0, 0, 0, 0) } == -1 && errno() == Some(libc::ENOSYS));
    assert!(refused, "the kernel has them still");
}

fn errno() -> Option<i32> {
    std::io::Error::last_os_error().raw_os_error()
}
