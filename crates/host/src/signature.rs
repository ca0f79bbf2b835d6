//! Recognising a filesystem of ours from a device's first bytes, without spawning anything.
//!
//! Offsets and magics are the on-disk formats' own (ext4: fs/ext4/ext4.h `struct ext4_super_block`). This never decides
//! that a device is blank, and it has no words for what is not ours: blkid(8) has.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use dunnage_model::FsKind;
use uuid::Uuid;

use crate::KnownFs;

/// How much of a device's beginning [`recognise`] wants to see: btrfs' superblock is at 64 KiB.
pub const HEAD: usize = 68 * 1024;

const EXT_SUPERBLOCK: usize = 1024;
/// The error flag in `s_state`.
const EXT4_ERROR_FS: u16 = 2;
/// The journal wants a replay, in `s_feature_incompat`.
const EXT4_RECOVER: u32 = 4;
/// Extents, in `s_feature_incompat`: ext2 and ext3 never have them.
const EXT4_EXTENTS: u32 = 0x40;

const XFS_MAGIC: &[u8] = b"XFSB";
const BTRFS_SUPERBLOCK: usize = 64 * 1024;
const BTRFS_MAGIC: &[u8] = b"_BHRfS_M";

/// A filesystem of ours, if its superblock is in `head`.
pub fn recognise(head: &[u8]) -> Option<KnownFs> {
    ext4(head).or_else(|| xfs(head)).or_else(|| btrfs(head))
}

fn ext4(head: &[u8]) -> Option<KnownFs> {
    let block = head.get(EXT_SUPERBLOCK..EXT_SUPERBLOCK + 1024)?;
    let u16_at = |at: usize| Some(u16::from_le_bytes(block.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
    if u16_at(56)? != 0xEF53 {
        return None;
    }
    let incompatible = u32_at(96)?;
    if incompatible & EXT4_EXTENTS == 0 {
        return None;
    }
    Some(KnownFs {
        fs: FsKind::Ext4,
        uuid: Uuid::from_slice(block.get(104..120)?).ok()?,
        dirty_journal: incompatible & EXT4_RECOVER != 0,
        has_errors: u16_at(58)? & EXT4_ERROR_FS != 0,
    })
}

/// `struct xfs_dsb` of fs/xfs/libxfs/xfs_format.h. Whether its log is dirty stands in the log.
fn xfs(head: &[u8]) -> Option<KnownFs> {
    if head.get(..4)? != XFS_MAGIC {
        return None;
    }
    Some(KnownFs { fs: FsKind::Xfs, uuid: Uuid::from_slice(head.get(32..48)?).ok()?, dirty_journal: false, has_errors: false })
}

/// `struct btrfs_super_block` of include/uapi/linux/btrfs_tree.h.
fn btrfs(head: &[u8]) -> Option<KnownFs> {
    let block = head.get(BTRFS_SUPERBLOCK..BTRFS_SUPERBLOCK + 104)?;
    if block.get(64..72)? != BTRFS_MAGIC {
        return None;
    }
    let log_root = u64::from_le_bytes(block.get(96..104)?.try_into().ok()?);
    Some(KnownFs { fs: FsKind::Btrfs, uuid: Uuid::from_slice(block.get(32..48)?).ok()?, dirty_journal: log_root != 0, has_errors: false })
}

/// The marks of both (bcachefs_format.h, bcache_ondisk.h); the earliest bcachefs had bcache's.
const BCACHE_MAGICS: usize = 4096 + 24;
const BCACHEFS_MAGIC: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
const BCACHE_MAGIC: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";

/// ZFS keeps two labels at the beginning and two at the end; the second half of each is an array of uberblocks, of 1 KiB at least
/// (vdev_impl.h, uberblock_impl.h).
const ZFS_LABEL: u64 = 256 * 1024;
const UBERBLOCK_MAGIC: u64 = 0x00ba_b10c;

/// What is not ours, by as little of it as shows that it is somebody's: who has lost half of it may want the other half.
pub fn foreign(file: &mut File, head: &[u8]) -> std::io::Result<Option<&'static str>> {
    match head.get(BCACHE_MAGICS..BCACHE_MAGICS + 16) {
        Some(BCACHEFS_MAGIC) => return Ok(Some("bcachefs")),
        Some(BCACHE_MAGIC) => return Ok(Some("bcache")),
        _ => {}
    }
    let end = file.seek(SeekFrom::End(0))? / ZFS_LABEL * ZFS_LABEL;
    let mut uberblocks = vec![0; ZFS_LABEL as usize / 2];
    for label in [0, ZFS_LABEL, end.saturating_sub(2 * ZFS_LABEL), end.saturating_sub(ZFS_LABEL)] {
        match file.read_exact_at(&mut uberblocks, label + ZFS_LABEL / 2) {
            Ok(()) if uberblocks.chunks_exact(1024).any(is_uberblock) => return Ok(Some("zfs_member")),
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// In the order of bytes of whoever wrote it.
fn is_uberblock(block: &[u8]) -> bool {
    let magic = block.first_chunk().copied();
    magic == Some(UBERBLOCK_MAGIC.to_le_bytes()) || magic == Some(UBERBLOCK_MAGIC.to_be_bytes())
}

/// The smallest part that a filesystem of ours reads and writes at once, in bytes: no disk beneath it may have larger sectors.
pub fn unit(head: &[u8]) -> Option<u32> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    match recognise(head)?.fs {
        FsKind::Ext4 => 1024_u32.checked_shl(u32_at(EXT_SUPERBLOCK + 24)?),
        FsKind::Xfs => Some(u16::from_be_bytes(head.get(102..104)?.try_into().ok()?).into()),
        FsKind::Btrfs => u32_at(BTRFS_SUPERBLOCK + 144),
        FsKind::Folder => None,
    }
}

/// Writes as much of a superblock as [`recognise`] reads: what the host in memory formats with.
pub(crate) fn write(file: &Path, fs: FsKind, uuid: Uuid) -> std::io::Result<()> {
    let mut head = vec![0; HEAD];
    let parts: &[(usize, &[u8])] = match fs {
        FsKind::Ext4 => &[
            (EXT_SUPERBLOCK + 56, &0xEF53_u16.to_le_bytes()),
            (EXT_SUPERBLOCK + 96, &EXT4_EXTENTS.to_le_bytes()),
            (EXT_SUPERBLOCK + 104, uuid.as_bytes()),
        ],
        FsKind::Xfs => &[(0, XFS_MAGIC), (32, uuid.as_bytes())],
        FsKind::Folder => &[],
        FsKind::Btrfs => &[(BTRFS_SUPERBLOCK + 32, uuid.as_bytes()), (BTRFS_SUPERBLOCK + 64, BTRFS_MAGIC)],
    };
    for (at, bytes) in parts {
        head[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    File::options().write(true).open(file)?.write_all_at(&head, 0)
}

/// Sets or clears ext4's error flag.
pub(crate) fn set_ext4_errors(file: &Path, errors: bool) -> std::io::Result<()> {
    let state = if errors { EXT4_ERROR_FS } else { 0 };
    File::options().write(true).open(file)?.write_all_at(&state.to_le_bytes(), EXT_SUPERBLOCK as u64 + 58)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_filesystem_of_ours_is_told_with_its_uuid() {
        for fs in FsKind::ALL {
            let file = tempfile::NamedTempFile::new().expect("file");
            let uuid = Uuid::new_v4();
            write(file.path(), fs, uuid).expect("write");
            let head = std::fs::read(file.path()).expect("read");
            assert_eq!(recognise(&head), Some(KnownFs { fs, uuid, dirty_journal: false, has_errors: false }));
        }
    }

    fn named(size: u64, at: u64, bytes: &[u8]) -> Option<&'static str> {
        let mut file = tempfile::tempfile().expect("file");
        file.set_len(size).and_then(|()| file.write_all_at(bytes, at)).expect("write");
        let mut head = vec![0; HEAD];
        file.read_exact_at(&mut head, 0).expect("read");
        foreign(&mut file, &head).expect("read")
    }

    #[test]
    fn one_uberblock_in_any_label_in_either_order_of_bytes_is_somebody_s_zfs() {
        // Not a multiple of a label: what is over is after the last.
        let (size, end) = ((64 << 20) + 5000, 64 << 20);
        for label in [0, ZFS_LABEL, end - 2 * ZFS_LABEL, end - ZFS_LABEL] {
            for magic in [UBERBLOCK_MAGIC.to_le_bytes(), UBERBLOCK_MAGIC.to_be_bytes()] {
                for at in [0, 1024, 127 * 1024] {
                    assert_eq!(named(size, label + ZFS_LABEL / 2 + at, &magic), Some("zfs_member"), "{label} + {at}");
                }
            }
        }
        for beside in [0, ZFS_LABEL / 2 + 512, end / 2, end] {
            assert_eq!(named(size, beside, &UBERBLOCK_MAGIC.to_le_bytes()), None, "{beside}");
        }
        assert_eq!(named(100_000, 70_000, &UBERBLOCK_MAGIC.to_le_bytes()), None, "too small for any label");
    }

    #[test]
    fn the_mark_of_bcachefs_and_of_bcache_are_told_at_their_place_alone() {
        assert_eq!(named(1 << 20, 4120, BCACHEFS_MAGIC), Some("bcachefs"));
        assert_eq!(named(1 << 20, 4120, BCACHE_MAGIC), Some("bcache"));
        assert_eq!(named(1 << 20, 4096, BCACHEFS_MAGIC), None);
    }

    #[test]
    fn a_short_read_is_no_filesystem() {
        assert_eq!(recognise(&[]), None);
        assert_eq!(recognise(&[0x53; 1500]), None);
    }
}
