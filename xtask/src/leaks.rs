//! What tests must not leave behind: loop devices, mounts and processes that belong to their folder.
//!
//! Each executable gets a folder that did not exist before, so whatever belongs to that folder when the executable has
//! ended is its doing; what others do on the same machine meanwhile is not mistaken for it. A loop device whose file lay
//! on a filesystem that only the test's namespace had mounted has lost its path with it: such a device is the test's when
//! it came meanwhile, and no living process can reach its file.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::shell::{self, Rights};

/// Something that is still there after the tests have ended.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leak {
    Loop { device: String, backing: String },
    Mount { point: String, line: String },
    Process { pid: u32, command: String },
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop { device, backing } => write!(f, "loop device {device} still has {backing}"),
            Self::Mount { point, line } => write!(f, "the host still has {point} mounted ({line})"),
            Self::Process { pid, command } => write!(f, "process {pid} still runs: {command}"),
        }
    }
}

/// The names of the loop devices that are in use, for [`left`] to know which have come since.
pub fn in_use(rights: Rights) -> BTreeSet<String> {
    let listed = loops(rights);
    let devices = listed["loopdevices"].as_array().map(Vec::as_slice).unwrap_or_default();
    devices.iter().filter_map(|device| device["name"].as_str().map(str::to_owned)).collect()
}

/// What belongs to `dir` or came since `before` and is nobody's, and is still there. The kernel takes a namespace apart after its last process has gone, so
/// this waits a bounded time for it to be done. Without root's rights nested loop devices are not seen.
pub fn left(dir: &Path, before: &BTreeSet<String>, rights: Rights) -> Vec<Leak> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let start = Instant::now();
    loop {
        let listed = loops(rights);
        let mut left = loops_of(&listed, dir);
        // Without root's rights a test makes none, and who reaches what cannot be seen.
        if rights != Rights::None {
            left.extend(nobodys(&listed, before, |file| Path::new(file).exists() || somebody_reaches(file, rights)));
        }
        left.extend(mounts_of(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), dir));
        left.extend(processes_of(dir));
        if left.is_empty() || start.elapsed() > PATIENCE {
            return left;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Every loop device in use, as losetup has it in JSON. Without losetup nobody has made any.
fn loops(rights: Rights) -> Value {
    let mut losetup = rights.command("losetup");
    let listed = shell::output(losetup.args(["--list", "--json", "--output", "NAME,MAJ:MIN,BACK-MAJ:MIN,BACK-FILE"]));
    // It prints nothing at all when there is none.
    listed.ok().and_then(|listed| serde_json::from_str(&listed).ok()).unwrap_or_default()
}

/// The loop devices that came since `before` with a file that nobody reaches any more, those on other loop devices first.
/// (A file that was deleted is nobody's in any case, and may be anybody's.)
fn nobodys(listed: &Value, before: &BTreeSet<String>, is_reached: impl Fn(&str) -> bool) -> Vec<Leak> {
    let devices = listed["loopdevices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |device: &Value, key: &str| device[key].as_str().unwrap_or_default().trim().to_owned();
    let is_nobodys = |file: &str| !file.ends_with(" (deleted)") && !is_reached(file);
    let new = devices.iter().filter(|device| !before.contains(&text(device, "name")) && is_nobodys(&text(device, "back-file")));
    let mut new: Vec<&Value> = new.collect();
    new.sort_by_key(|device| !text(device, "back-maj:min").starts_with("7:"));
    new.into_iter().map(|device| Leak::Loop { device: text(device, "name"), backing: text(device, "back-file") }).collect()
}

/// Whether a process in whatever mount namespace has a file of this path.
fn somebody_reaches(file: &str, rights: Rights) -> bool {
    const LOOK: &str = r#"for root in /proc/[0-9]*/root; do if [ -e "$root$1" ]; then exit 0; fi; done; exit 1"#;
    shell::succeeds(rights.command("sh").args(["-c", LOOK, "sh", file]))
}

/// The loop devices of a folder, innermost first: those with a file in it, and those whose file is on a filesystem on
/// one of these. The latter's files have no path out here once the namespace with that filesystem is gone.
fn loops_of(listed: &Value, dir: &Path) -> Vec<Leak> {
    let devices = listed["loopdevices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |device: &Value, key: &str| device[key].as_str().unwrap_or_default().trim().to_owned();
    let mut ours: Vec<&Value> = devices.iter().filter(|device| is_below(Path::new(&text(device, "back-file")), dir)).collect();
    let mut next = 0;
    while let Some(below) = ours.get(next).map(|device| text(device, "maj:min")) {
        let nested = devices.iter().filter(|device| text(device, "back-maj:min") == below);
        let nested: Vec<_> = nested.filter(|device| !ours.contains(device)).collect();
        ours.extend(nested);
        next += 1;
    }
    ours.reverse();
    ours.into_iter().map(|device| Leak::Loop { device: text(device, "name"), backing: text(device, "back-file") }).collect()
}

fn mounts_of(mountinfo: &str, dir: &Path) -> Vec<Leak> {
    let tail: PathBuf = dir.components().skip(dir.components().count().saturating_sub(3)).collect();
    let of_dir = |line: &str| {
        let fields: Vec<String> = line.split(' ').map(unescape).collect();
        let (root, point) = (fields.get(3)?, fields.get(4)?);
        // A bind mount shows where its root lies within its filesystem, not in our tree: compare the end of the path.
        let bound = format!("{root}/").contains(&format!("/{}/", tail.display()));
        let source = fields.iter().skip_while(|field| *field != "-").nth(2);
        let from = source.is_some_and(|source| is_below(Path::new(source), dir));
        (is_below(Path::new(point), dir) || bound || from).then(|| Leak::Mount { point: point.clone(), line: line.to_owned() })
    };
    mountinfo.lines().filter_map(of_dir).collect()
}

/// The type of the filesystem that a path is on.
pub fn filesystem_of(path: &Path, mountinfo: &str) -> Option<String> {
    let on = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let point = PathBuf::from(unescape(fields.get(4)?));
        let kind = fields.iter().skip_while(|field| **field != "-").nth(1)?;
        is_below(path, &point).then(|| (point.as_os_str().len(), (*kind).to_owned()))
    };
    // The last one of those with the longest path lies on top.
    mountinfo.lines().filter_map(on).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

/// Spaces and the like stand in mountinfo as three octal digits.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn processes_of(dir: &Path) -> Vec<Leak> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let of_dir = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mentions = command.windows(dir.as_os_str().len()).any(|part| part == dir.as_os_str().as_bytes());
        let lives = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| is_below(&cwd, dir));
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        (pid != std::process::id() && (mentions || lives)).then_some(Leak::Process { pid, command })
    };
    entries.flatten().filter_map(of_dir).collect()
}

fn is_below(path: &Path, dir: &Path) -> bool {
    path.starts_with(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:30 / /tmp rw - tmpfs tmpfs rw
41 27 7:0 / /p/target/test-tmp/1/0/my\\040pool rw shared:4 - ext4 /dev/loop0 rw
42 27 254:0 /p/other /mnt rw - ext4 /dev/vda rw
43 27 254:1 /home/p/target/test-tmp/1/2/a /mnt/a rw - ext4 /dev/vdb rw
";

    #[test]
    fn a_loop_device_on_a_loop_device_of_the_folder_is_a_leak_too_and_comes_first() {
        let listed = serde_json::json!({ "loopdevices": [
            { "name": "/dev/loop0", "maj:min": "7:0", "back-maj:min": "254:0", "back-file": "/p/test-tmp/1/0/a.img" },
            { "name": "/dev/loop1", "maj:min": "  7:1", "back-maj:min": "7:0", "back-file": "/inner.img (deleted)" },
            { "name": "/dev/loop2", "maj:min": "7:2", "back-maj:min": "254:0", "back-file": "/p/test-tmp/1/01.img" },
            { "name": "/dev/loop3", "maj:min": "7:3", "back-maj:min": null, "back-file": "/else.img" },
        ]});
        let devices: Vec<_> = loops_of(&listed, Path::new("/p/test-tmp/1/0"))
            .into_iter()
            .filter_map(|leak| if let Leak::Loop { device, .. } = leak { Some(device) } else { None })
            .collect();
        assert_eq!(devices, ["/dev/loop1", "/dev/loop0"]);
        assert!(loops_of(&Value::Null, Path::new("/p")).is_empty());
    }

    #[test]
    fn a_loop_device_that_came_meanwhile_with_a_file_that_nobody_reaches_is_a_leak_and_others_are_not() {
        let listed = serde_json::json!({ "loopdevices": [
            { "name": "/dev/loop0", "maj:min": "7:0", "back-maj:min": "0:60", "back-file": "/disk" },
            { "name": "/dev/loop1", "maj:min": "7:1", "back-maj:min": "7:0", "back-file": "/pool/a/image" },
            { "name": "/dev/loop2", "maj:min": "7:2", "back-maj:min": "254:0", "back-file": "/somebody/else" },
            { "name": "/dev/loop3", "maj:min": "7:3", "back-maj:min": "0:50", "back-file": "/of/old" },
        ]});
        let left = nobodys(&listed, &["/dev/loop3".to_owned()].into(), |file| file == "/somebody/else");
        let loop_of = |name: &str, file: &str| Leak::Loop { device: name.into(), backing: file.into() };
        assert_eq!(left, [loop_of("/dev/loop1", "/pool/a/image"), loop_of("/dev/loop0", "/disk")]);
    }

    #[test]
    fn a_mount_below_the_folder_is_a_leak_and_others_are_not() {
        let left = mounts_of(MOUNTINFO, Path::new("/p/target/test-tmp/1/0"));
        assert_eq!(left.len(), 1);
        assert!(left[0].to_string().contains("/p/target/test-tmp/1/0/my pool mounted"), "{}", left[0]);
    }

    #[test]
    fn a_bind_mount_of_something_in_the_folder_is_a_leak_wherever_it_is() {
        assert_eq!(mounts_of(MOUNTINFO, Path::new("/p/target/test-tmp/1/2")).len(), 1);
    }

    #[test]
    fn a_folder_with_the_same_beginning_is_another_folder() {
        assert!(mounts_of(MOUNTINFO, Path::new("/p/target/test-tmp/1/0/my")).is_empty());
    }

    #[test]
    fn a_path_is_on_the_mount_with_the_longest_path() {
        assert_eq!(filesystem_of(Path::new("/tmp/x"), MOUNTINFO).as_deref(), Some("tmpfs"));
        assert_eq!(filesystem_of(Path::new("/tmpx"), MOUNTINFO).as_deref(), Some("ext4"));
    }

    #[test]
    fn a_process_that_lives_in_the_folder_is_seen() {
        let dir = std::env::temp_dir().join(format!("xtask-leak-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&dir).spawn().unwrap();
        let seen = processes_of(&dir);
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir(&dir).unwrap();
        assert!(seen.iter().any(|leak| matches!(leak, Leak::Process { pid, .. } if *pid == child.id())), "{seen:?}");
    }
}
