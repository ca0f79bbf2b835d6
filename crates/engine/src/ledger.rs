//! The node's list of holders and unfinished operations: one small file per volume, on tmpfs.
//!
//! A file has two slots; a write goes to the older one, so that the newer is whole whatever happens. A slot that fits is
//! rewritten in place: giving something back never needs room that is not there. The ledger lives and dies with the
//! mounts that it describes, so it is stamped with the boot and needs no fsync.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dunnage_host::DeviceNumber;
use dunnage_model::{BootId, CallerKind, Error, Holder, HolderKey, Kind, OperationId, Result, VolumeId};
use serde::{Deserialize, Serialize};

use crate::planner::Staged;

/// The version that we write.
const FORMAT: u32 = 1;
/// `DNLG`, generation, length, checksum.
const HEADER: usize = 4 + 8 + 4 + 4;
const MAGIC: &[u8; 4] = b"DNLG";
/// A slot to begin with: room for some twenty holders.
const SLOT: usize = 4096;
/// What an entry may grow by when it is written to give something back: the name of an operation.
const HEADROOM: usize = 256;

/// What is being done to a volume right now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Which request wants it.
    pub operation: OperationId,
    /// The goal's word.
    pub goal: String,
}

/// All that the ledger knows of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The version of this entry.
    pub format: u32,
    /// The oldest version whose readers understand it.
    pub min_reader: u32,
    /// The boot that it belongs to.
    pub boot: BootId,
    /// The volume.
    pub volume: VolumeId,
    /// What is mounted.
    #[serde(default)]
    pub staged: Option<Staged>,
    /// What is attached for those who want no mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<DeviceNumber>,
    /// Who asked.
    #[serde(default)]
    pub holders: Vec<Holder>,
    /// What is under way.
    #[serde(default)]
    pub intent: Option<Intent>,
}

impl Entry {
    /// An entry that says nothing.
    pub fn new(volume: VolumeId, boot: BootId) -> Self {
        Entry { format: FORMAT, min_reader: 1, boot, volume, staged: None, kept: None, holders: Vec::new(), intent: None }
    }

    /// It says nothing: there need not be a file.
    pub fn is_empty(&self) -> bool {
        self.staged.is_none() && self.kept.is_none() && self.holders.is_empty() && self.intent.is_none()
    }

    /// Its only holder is nameless, and an unmount has come that can only have been its.
    pub fn is_to_be_released(&self) -> bool {
        let marked = |holder: &Holder| holder.key.caller.kind == CallerKind::Unknown && holder.count == 0;
        !self.holders.is_empty() && self.holders.iter().all(marked)
    }

    /// How many holders want it mounted.
    pub fn mounters(&self) -> usize {
        self.holders.iter().filter(|holder| holder.wants_mount()).count()
    }

    /// How many want the device alone.
    pub fn attachers(&self) -> usize {
        self.holders.len() - self.mounters()
    }

    /// The holder under this key.
    pub fn holder(&mut self, key: &HolderKey) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| holder.key == *key)
    }

    /// Drops holders that hold nothing any more.
    pub fn sweep(&mut self) {
        self.holders.retain(|holder| holder.total() > 0);
    }
}

struct Slots {
    file: File,
    slot: usize,
    generation: u64,
}

/// The ledger.
pub struct Ledger {
    folder: PathBuf,
    boot: BootId,
    open: BTreeMap<VolumeId, Slots>,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Entries of this boot.
    pub entries: Vec<Entry>,
    /// What was passed over, and why: for the log.
    pub notes: Vec<String>,
}

impl Ledger {
    /// Opens the ledger and reads what is there. An entry of a newer version is an error: it is not touched.
    pub fn open(folder: PathBuf, boot: BootId) -> Result<(Self, Loaded)> {
        let mut ledger = Ledger { folder, boot, open: BTreeMap::new() };
        DirBuilder::new().recursive(true).mode(0o700).create(&ledger.folder).map_err(ledger.failed("make"))?;
        let mut loaded = Loaded::default();
        for driver in ledger.read_folder(&ledger.folder)? {
            for path in ledger.read_folder(&driver)? {
                ledger.load(&path, &mut loaded)?;
            }
        }
        Ok((ledger, loaded))
    }

    fn failed(&self, what: &str) -> impl FnOnce(std::io::Error) -> Error {
        let what = format!("cannot {what} the ledger {}", self.folder.display());
        move |e| Error::os(what, &e)
    }

    fn read_folder(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder).map_err(self.failed("list"))?;
        entries.map(|entry| entry.map(|e| e.path()).map_err(self.failed("list"))).collect()
    }

    fn load(&mut self, path: &Path, loaded: &mut Loaded) -> Result<()> {
        if path.extension().is_some_and(|ext| ext == "new!") {
            return std::fs::remove_file(path).map_err(self.failed("tidy"));
        }
        let file = File::options().read(true).write(true).open(path).map_err(self.failed("open"))?;
        let mut content = vec![0; usize::try_from(file.metadata().map_err(self.failed("read"))?.len()).unwrap_or(0)];
        file.read_exact_at(&mut content, 0).map_err(self.failed("read"))?;
        let slot = content.len() / 2;
        let newest = content.chunks_exact(slot.max(1)).filter_map(read_slot).max_by_key(|(generation, _)| *generation);
        let Some((generation, text)) = newest else {
            loaded.notes.push(format!("{} has no whole entry; what the kernel shows decides", path.display()));
            return std::fs::remove_file(path).map_err(self.failed("tidy"));
        };
        #[derive(Deserialize)]
        struct Versions {
            format: u32,
            min_reader: u32,
            boot: BootId,
        }
        let unreadable = |e: serde_json::Error| {
            Error::unavailable(format!("cannot read the ledger's entry {}: {e}", path.display()), "move the file away, and start again")
        };
        let versions: Versions = serde_json::from_slice(text).map_err(unreadable)?;
        if versions.boot != self.boot {
            loaded.notes.push(format!("{} is of an earlier boot", path.display()));
            return std::fs::remove_file(path).map_err(self.failed("tidy"));
        }
        if versions.min_reader > FORMAT {
            return Err(Error::new(
                Kind::ExistsIncompatible,
                format!("{} has format {}, which this version cannot read (it reads up to {FORMAT})", path.display(), versions.format),
                "use the newer version of Dunnage that wrote it; nothing was changed",
            ));
        }
        let entry: Entry = serde_json::from_slice(text).map_err(unreadable)?;
        self.open.insert(entry.volume.clone(), Slots { file, slot, generation });
        loaded.entries.push(entry);
        Ok(())
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.folder.join(volume.driver.as_str()).join(volume.name.as_str())
    }

    /// Writes an entry, or removes it if it says nothing.
    pub fn write(&mut self, entry: &Entry) -> Result<()> {
        if entry.is_empty() {
            return self.forget(&entry.volume);
        }
        let text = serde_json::to_vec(entry).map_err(|e| Error::internal(format!("cannot write a ledger entry: {e}")))?;
        let needed = HEADER + text.len();
        match self.open.get_mut(&entry.volume) {
            Some(slots) if needed <= slots.slot => {
                slots.generation += 1;
                let at = if slots.generation.is_multiple_of(2) { 0 } else { slots.slot as u64 };
                let bytes = frame(slots.generation, &text);
                slots.file.write_all_at(&bytes, at).map_err(self.failed("write"))
            }
            _ => self.grow(entry, &text, (needed + HEADROOM).next_power_of_two().max(SLOT)),
        }
    }

    /// A new file with larger slots, both of them filled so that tmpfs has given them their pages.
    fn grow(&mut self, entry: &Entry, text: &[u8], slot: usize) -> Result<()> {
        let path = self.path(&entry.volume);
        let generation = self.open.get(&entry.volume).map_or(0, |slots| slots.generation) + 1;
        let parent = path.parent().unwrap_or(&self.folder);
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(self.failed("write"))?;
        let temporary = parent.join(format!("{}.new!", entry.volume.name));
        let make = || -> std::io::Result<File> {
            let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            let mut content = vec![0; 2 * slot];
            let at = if generation.is_multiple_of(2) { 0 } else { slot };
            let bytes = frame(generation, text);
            if let Some(room) = content.get_mut(at..at + bytes.len()) {
                room.copy_from_slice(&bytes);
            }
            file.write_all_at(&content, 0)?;
            std::fs::rename(&temporary, &path)?;
            Ok(file)
        };
        let file = make().map_err(self.failed("write"))?;
        self.open.insert(entry.volume.clone(), Slots { file, slot, generation });
        Ok(())
    }

    fn forget(&mut self, volume: &VolumeId) -> Result<()> {
        if self.open.remove(volume).is_none() {
            return Ok(());
        }
        match std::fs::remove_file(self.path(volume)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(self.failed("write")(e)),
            _ => Ok(()),
        }
    }
}

fn frame(generation: u64, text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + text.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&checksum(generation, text).to_le_bytes());
    bytes.extend_from_slice(text);
    bytes
}

fn checksum(generation: u64, text: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(text);
    hasher.finalize()
}

fn read_slot(slot: &[u8]) -> Option<(u64, &[u8])> {
    let generation = u64::from_le_bytes(slot.get(4..12)?.try_into().ok()?);
    let length = u32::from_le_bytes(slot.get(12..16)?.try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(slot.get(16..20)?.try_into().ok()?);
    let text = slot.get(HEADER..HEADER.checked_add(length)?)?;
    (slot.starts_with(MAGIC) && checksum(generation, text) == sum).then_some((generation, text))
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
