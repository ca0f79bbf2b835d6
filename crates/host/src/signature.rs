//! Recognising a filesystem of ours from a device's first bytes, without spawning anything.
//!
//! Offsets and magics are the on-disk formats' own (ext4: fs/ext4/ext4.h `struct ext4_super_block`). This never decides
//! that a device is blank, and it has no words for what is not ours: blkid(8) has.

use std::fs::File;
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

    #[test]
    fn a_short_read_is_no_filesystem() {
        assert_eq!(recognise(&[]), None);
        assert_eq!(recognise(&[0x53; 1500]), None);
    }
}
