//! Images that somebody has made elsewhere, copied into a volume.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dunnage_model::{Bytes, Error, Result};
use rustix::fs::SeekFrom as Sparse;
use serde::{Deserialize, Serialize};

use super::sys::{failed, free_of_others};
use super::tools::{not_blank, probe_file};
use crate::helpers::Task;
use crate::{Probe, crash};

/// How much is copied at a time; what is zero in it is not written.
const PART: usize = 1 << 20;

/// Opens an image for reading, a file or a device, that nothing else uses.
fn open(path: &Path) -> Result<File> {
    let what = format!("cannot read {}", path.display());
    let kind = match std::fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::invalid("image", format!("{what}: there is nothing of that name"), "name a raw image on the daemon's node"));
        }
        found => found.map_err(failed(&what))?.file_type(),
    };
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::invalid("image", format!("{what}: it is neither a file nor a block device"), "name a raw image"));
    }
    let in_use =
        || Error::in_use(Vec::new(), dunnage_model::HERE, format!("{what}: something uses it"), "end what uses it, such as a mount, first");
    let exclusive = if kind.is_block_device() { libc::O_EXCL } else { 0 };
    let file = File::options().read(true).custom_flags(exclusive | libc::O_CLOEXEC).open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => in_use(),
        _ => failed(&what)(e),
    })?;
    // A copy of what is written meanwhile would be no image of anything. (Where the filesystem cannot say, nobody can.)
    if kind.is_file() && free_of_others(&file).map_err(failed(&what))? == Some(false) {
        return Err(in_use());
    }
    Ok(file)
}

#[derive(Serialize, Deserialize)]
pub struct LookAt {
    pub path: PathBuf,
}

impl Task for LookAt {
    const NAME: &'static str = "image.look-at";
    type Output = (Bytes, Probe);

    fn run(self) -> Result<Self::Output> {
        let what = format!("cannot read {}", self.path.display());
        let mut file = open(&self.path)?;
        let length = file.seek(SeekFrom::End(0)).map_err(failed(&what))?;
        Ok((Bytes(length), probe_file(&mut file).map_err(failed(&what))?))
    }
}

/// Copies an image into a blank file that is long enough.
#[derive(Serialize, Deserialize)]
pub struct Copy {
    pub from: PathBuf,
    pub to: PathBuf,
}

impl Task for Copy {
    const NAME: &'static str = "image.copy";
    type Output = ();

    fn run(self) -> Result<()> {
        let what = format!("cannot copy {} to {}", self.from.display(), self.to.display());
        let mut from = open(&self.from)?;
        let mut to = File::options().read(true).write(true).open(&self.to).map_err(failed(&what))?;
        // Law 5: once more, right before.
        match probe_file(&mut to).map_err(failed(&what))? {
            Probe::Blank => {}
            other => return Err(not_blank(&self.to, &other)),
        }
        let (mut part, mut at) = (vec![0; PART], 0);
        while let Some(start) = next_data(&from, at).map_err(failed(&what))? {
            from.seek(SeekFrom::Start(start)).map_err(failed(&what))?;
            let read = from.read(&mut part).map_err(failed(&what))?;
            let data = part.get(..read).unwrap_or_default();
            if data.is_empty() {
                break;
            }
            if data.iter().any(|byte| *byte != 0) {
                to.write_all_at(data, start).map_err(failed(&what))?;
            }
            at = start + read as u64;
            crash::pass(format_args!("helper/image.copy/part"));
        }
        to.sync_all().map_err(failed(what))
    }
}

/// Where data comes next, as far as it is known where there is none.
fn next_data(file: &File, at: u64) -> std::io::Result<Option<u64>> {
    match rustix::fs::seek(file, Sparse::Data(at)) {
        Ok(start) => Ok(Some(start)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A device does not say.
        Err(rustix::io::Errno::INVAL) => Ok(Some(at)),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lies beneath has proven it once; this is the look right before.
    #[test]
    fn law_5_nothing_is_copied_over_what_is_not_blank_or_from_what_is_in_use() {
        let folder = tempfile::tempdir_in("/var/tmp").expect("dir");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("from"), vec![7; 100_000]).expect("write");
        std::fs::write(path("to"), b"somebody's").expect("write");
        let copy = || Copy { from: path("from"), to: path("to") }.run();
        assert_eq!(copy().expect_err("not blank").word(), "not_blank");
        assert_eq!(std::fs::read(path("to")).expect("read"), b"somebody's");
        File::create(path("to")).and_then(|file| file.set_len(200_000)).expect("blank");
        let writer = File::options().write(true).open(path("from")).expect("open");
        assert_eq!(copy().expect_err("in use").word(), "in_use");
        drop(writer);
        assert_eq!(copy(), Ok(()));
        let copied = std::fs::read(path("to")).expect("read");
        assert!(copied.starts_with(&[7; 100_000]) && copied[100_000..].iter().all(|byte| *byte == 0));
    }
}
