//! statmount(2) and listmount(2): one mount, or those beneath one, without reading the whole table. Linux 6.8 has them;
//! who calls must do without where they are not.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use linux_raw_sys::general::{
    __NR_listmount, __NR_statmount, STATMOUNT_FS_TYPE, STATMOUNT_MNT_POINT, STATMOUNT_SB_BASIC, STATMOUNT_SB_SOURCE, mnt_id_req, statmount,
};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::DeviceNumber;

/// STATX_MNT_ID_UNIQUE: a number that no other mount ever has, which is what these calls take.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The number of the mount that a path leads to. `None` where the kernel has none to tell.
pub fn unique_id(path: &Path) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC, MNT_ID_UNIQUE)?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(MNT_ID_UNIQUE);
    Ok(told.then_some(stat.stx_mnt_id))
}

/// One mount, as the table of mounts has it.
pub struct Mount {
    /// As the filesystem shows it: see `table::behind`.
    pub device: DeviceNumber,
    pub mountpoint: PathBuf,
    pub fs: String,
    /// May be empty where the device's major is not 0.
    pub source: PathBuf,
}

/// Looks at a mount. `None` where the kernel cannot tell enough of it, or it has gone meanwhile.
pub fn look(id: u64) -> io::Result<Option<Mount>> {
    // What a kernel does not know it leaves out.
    let request = request(id, ALWAYS | SOURCE);
    let mut buffer = [0_u64; 2048];
    // SAFETY: the request and the buffer live until the call returns, and their sizes are what is passed.
    let done = unsafe { libc::syscall(__NR_statmount.into(), &raw const request, buffer.as_mut_ptr(), size_of_val(&buffer), 0) };
    if done != 0 {
        return unless(&[libc::ENOSYS, libc::EPERM, libc::ENOENT], None);
    }
    // SAFETY: the kernel has filled a `statmount`, which is plain numbers, at the beginning of the buffer, which is larger
    // and aligned as its largest number is.
    let told = unsafe { &*buffer.as_ptr().cast::<statmount>() };
    if !is_enough(told.mask, told.sb_dev_major) {
        return Ok(None);
    }
    // SAFETY: the buffer's bytes are all initialised, and live as long as the slice.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), size_of_val(&buffer)) };
    let text = |at: u32| -> &[u8] {
        let text = bytes.get(size_of::<statmount>() + at as usize..).unwrap_or_default();
        text.split(|b| *b == 0).next().unwrap_or_default()
    };
    let path = |at: u32| PathBuf::from(OsStr::from_bytes(text(at)));
    Ok(Some(Mount {
        device: DeviceNumber::new(told.sb_dev_major, told.sb_dev_minor),
        mountpoint: path(told.mnt_point),
        fs: String::from_utf8_lossy(text(told.fs_type)).into_owned(),
        // Where it was not told, the place where it would stand is that of another text.
        source: if told.mask & SOURCE == 0 { PathBuf::new() } else { path(told.sb_source) },
    }))
}

const ALWAYS: u64 = (STATMOUNT_SB_BASIC | STATMOUNT_MNT_POINT | STATMOUNT_FS_TYPE) as u64;
const SOURCE: u64 = STATMOUNT_SB_SOURCE as u64;

/// The source is told since Linux 6.14, and only what has no block device's number needs it: see `table::behind`.
fn is_enough(told: u64, major: u32) -> bool {
    let needed = if major == 0 { ALWAYS | SOURCE } else { ALWAYS };
    told & needed == needed
}

/// The mounts beneath a mount, in the order in which they were made. `None` where the kernel has no such call.
pub fn beneath(id: u64) -> io::Result<Option<Vec<u64>>> {
    let mut all: Vec<u64> = Vec::new();
    let mut chunk = [0_u64; 512];
    loop {
        let request = request(id, all.last().copied().unwrap_or(0));
        // SAFETY: as above; the kernel writes at most as many numbers as the array has.
        let count = unsafe { libc::syscall(__NR_listmount.into(), &raw const request, chunk.as_mut_ptr(), chunk.len(), 0) };
        let Ok(count) = usize::try_from(count) else { return unless(&[libc::ENOSYS, libc::EPERM], None) };
        all.extend(chunk.iter().take(count));
        if count < chunk.len() {
            return Ok(Some(all));
        }
    }
}

fn request(id: u64, param: u64) -> mnt_id_req {
    // SAFETY: a structure of numbers, for which zeroes mean "nothing asked".
    let mut request: mnt_id_req = unsafe { std::mem::zeroed() };
    request.size = u32::try_from(size_of::<mnt_id_req>()).unwrap_or(0);
    (request.mnt_id, request.param) = (id, param);
    request
}

/// The last call's error, but where it is one of these.
fn unless<T>(codes: &[i32], value: T) -> io::Result<T> {
    match io::Error::last_os_error() {
        e if e.raw_os_error().is_some_and(|code| codes.contains(&code)) => Ok(value),
        e => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_tells_no_source_is_asked_about_all_but_what_shows_a_number_of_its_own() {
        assert!(is_enough(ALWAYS, 7) && !is_enough(ALWAYS, 0));
        assert!(is_enough(ALWAYS | SOURCE, 0));
        assert!(!is_enough(SOURCE, 7) && !is_enough(0, 7));
    }
}
