//! The kernel's table of mounts, read whole: at start, never on the way of a mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use dunnage_model::{Error, Result};
use serde::{Deserialize, Serialize};

use super::statmount;
use super::sys::failed;
use crate::helpers::Task;
use crate::{DeviceNumber, MountEntry};

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
pub struct Line {
    pub id: u64,
    pub device: DeviceNumber,
    /// The filesystem's own number, as every table shows it.
    pub shown: DeviceNumber,
    /// Which folder of the filesystem is mounted.
    pub root: PathBuf,
    pub mountpoint: PathBuf,
    /// The group of peers that it tells of its mounts and unmounts, and hears of theirs.
    pub peers: Option<u64>,
    /// The group that it hears of alone.
    pub master: Option<u64>,
    pub fs: String,
    pub source: String,
}

/// The whole table, in the kernel's order: what is mounted over something comes after it.
pub fn read() -> Result<Vec<Line>> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(failed("cannot read the table of mounts"))?;
    parse(&table)
}

pub fn parse(table: &[u8]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for line in table.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        lines.push(parse_line(line).ok_or_else(|| {
            Error::internal(format!("cannot read this line of the table of mounts: {:?}", String::from_utf8_lossy(line)))
        })?);
    }
    Ok(lines)
}

fn parse_line(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mut rest = fields.skip(1);
    let (mut peers, mut master) = (None, None);
    for (tag, group) in rest.by_ref().take_while(|f| *f != b"-").filter_map(|tag| std::str::from_utf8(tag).ok()?.split_once(':')) {
        match tag {
            "shared" => peers = group.parse().ok(),
            "master" => master = group.parse().ok(),
            _ => {}
        }
    }
    let fs = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    let source = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    let device = DeviceNumber::new(major.parse().ok()?, minor.parse().ok()?);
    Some(Line { id, device: behind(device, Path::new(&source)), shown: device, root, mountpoint, peers, master, fs, source })
}

/// The block device behind a mount. Filesystems that may span several devices, as btrfs, show a number of their own
/// instead (its major is 0).
pub fn behind(shown: DeviceNumber, source: &Path) -> DeviceNumber {
    if shown.major != 0 || !source.starts_with("/dev") {
        return shown;
    }
    match rustix::fs::stat(source) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device() => {
            DeviceNumber::new(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
        }
        _ => shown,
    }
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(&byte) = field.get(at) {
        let octal = field.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(value) if byte == b'\\' => {
                out.push(value);
                at += 4;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[derive(Serialize, Deserialize)]
pub struct Table {
    pub root: PathBuf,
}

impl Task for Table {
    const NAME: &'static str = "mount.table";
    type Output = Vec<MountEntry>;

    fn run(self) -> Result<Vec<MountEntry>> {
        if let Some(entries) = asked(&self.root).map_err(failed("cannot list the mounts"))? {
            return Ok(entries);
        }
        let entry = |line: Line| entry(&self.root, &line.mountpoint, line.device, line.fs, line.source);
        Ok(read()?.into_iter().filter_map(entry).collect())
    }
}

/// The mounts beneath `root` alone, however many others there are. `None` where the kernel cannot tell.
fn asked(root: &Path) -> std::io::Result<Option<Vec<MountEntry>>> {
    let Some(id) = statmount::unique_id(root)? else { return Ok(None) };
    let Some(ids) = statmount::beneath(id)? else { return Ok(None) };
    let mut entries = Vec::new();
    for id in ids {
        let Some(mount) = statmount::look(id)? else { return Ok(None) };
        let device = behind(mount.device, &mount.source);
        entries.extend(entry(root, &mount.mountpoint, device, mount.fs, mount.source.display().to_string()));
    }
    Ok(Some(entries))
}

fn entry(root: &Path, mountpoint: &Path, device: DeviceNumber, fs: String, source: String) -> Option<MountEntry> {
    let relative = mountpoint.strip_prefix(root).ok()?.to_owned();
    (!relative.as_os_str().is_empty()).then_some(MountEntry { relative, device, fs, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_read() {
        let text = b"36 35 98:0 /mnt1 /mnt2/a\\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n";
        let lines = parse(text).expect("a line of the manual page");
        assert_eq!(lines[0].mountpoint, PathBuf::from("/mnt2/a b"));
        assert_eq!((lines[0].id, lines[0].device, lines[0].fs.as_str()), (36, DeviceNumber::new(98, 0), "ext3"));
    }

    #[test]
    fn a_line_that_is_none_is_an_error_and_not_passed_over() {
        assert!(parse(b"36 35\n").is_err());
        assert!(parse(b"a b c:d e f g - h i\n").is_err());
    }

    #[test]
    fn the_running_kernel_s_own_table_is_read() {
        assert!(read().expect("mountinfo").iter().any(|line| line.mountpoint == Path::new("/")));
    }
}
