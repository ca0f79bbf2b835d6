//! The server of [`dunnage_tests::fuse::Store`], a process of its own so that a signal can stop it.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    match (args.next(), args.next()) {
        (Some(backing), Some(mountpoint)) => dunnage_tests::fuse::serve(&backing, &mountpoint),
        _ => Err(std::io::Error::other("usage: fuse-store BACKING MOUNTPOINT")),
    }
}
