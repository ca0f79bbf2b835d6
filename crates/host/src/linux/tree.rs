//! A folder with all that is in it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use uuid::Uuid;

/// Removes a folder and all that is in it. No link is followed, and no mount is gone into: what somebody has mounted inside is
/// theirs, and makes it fail.
pub fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let top = rustix::fs::open(folder, open, Mode::empty())?;
    // The way down to where it is at; a folder is opened anew from the top, so that depth costs no descriptors.
    let mut way: Vec<PathBuf> = Vec::new();
    loop {
        let here = openat2(&top, way.last().map_or(Path::new("."), PathBuf::as_path), open, Mode::empty(), within)?;
        let mut below = None;
        for entry in rustix::fs::Dir::read_from(&here)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match unlinkat(&here, name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(rustix::io::Errno::ISDIR) => {
                    below = Some(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())).to_owned());
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
        match (below, way.last().cloned()) {
            (Some(name), up) => {
                let down = up.map_or_else(|| name.clone(), |path| path.join(&name));
                if down.as_os_str().len() < 2048 {
                    way.push(down);
                } else {
                    // Too deep for one path: it goes on at the top.
                    let anew = PathBuf::from(format!(".removing-{}", Uuid::new_v4()));
                    rustix::fs::renameat(&top, &down, &top, &anew)?;
                    way = vec![anew];
                }
            }
            (None, Some(empty)) => {
                unlinkat(&top, &empty, AtFlags::REMOVEDIR)?;
                way.pop();
            }
            (None, None) => return Ok(unlinkat(CWD, folder, AtFlags::REMOVEDIR)?),
        }
    }
}
