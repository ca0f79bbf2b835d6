//! What a volume is: what was asked for at create, and what is known of it now.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Access, Bytes, EndpointName, Error, HintPolicy, MountOptions, Preempt, Result, VolumeId};

/// The filesystems that a volume may be asked to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum FsKind {
    /// The default everywhere.
    #[default]
    Ext4,
    /// For large volumes and many writers.
    Xfs,
    /// With checksums of all data.
    Btrfs,
    /// None of its own: a folder of a filesystem that others use too. Nobody can ask for it; it comes with the driver.
    Folder,
}

impl FsKind {
    /// Those that can be asked for.
    pub const ALL: [FsKind; 3] = [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs];

    /// The kernel's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            FsKind::Ext4 => "ext4",
            FsKind::Xfs => "xfs",
            FsKind::Btrfs => "btrfs",
            FsKind::Folder => "folder",
        }
    }

    /// The smallest volume that is made with it. ext4: below it, mkfs leaves out the journal (seen with e2fsprogs 1.47 at
    /// 2 MiB) and little but metadata is left. xfs: mkfs.xfs itself, since xfsprogs 5.19. btrfs: mkfs.btrfs refuses less
    /// than 109 MiB (seen with btrfs-progs 6.2), and some room is to be left.
    pub fn minimum_size(self) -> Bytes {
        match self {
            FsKind::Ext4 => Bytes::mib(16),
            FsKind::Xfs => Bytes::mib(300),
            FsKind::Btrfs => Bytes::mib(128),
            FsKind::Folder => Bytes(0),
        }
    }

    /// The largest volume that is made: ext4's own limit with blocks of 4 KiB; the others could be larger, and a loop's
    /// signed offset does not reach much further.
    pub fn maximum_size(self) -> Bytes {
        Bytes(1 << 60)
    }

    /// Refuses a size above [`FsKind::maximum_size`].
    pub fn refuse_above(self, size: Bytes) -> Result<()> {
        let most = self.maximum_size();
        if size <= most {
            return Ok(());
        }
        Err(Error::invalid("size", format!("size {size} is above {self}'s maximum of {most}"), "ask for less"))
    }
}

impl FromStr for FsKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let known = FsKind::ALL.into_iter().find(|fs| fs.as_str().eq_ignore_ascii_case(text));
        known.ok_or_else(|| {
            Error::invalid("fs", format!("filesystem {text:?} is not supported"), "use fs=ext4, fs=xfs or fs=btrfs, or leave fs out")
        })
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Permission bits, 0 to 7777 octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u32);

impl Mode {
    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        match u32::from_str_radix(digits, 8) {
            Ok(bits) if bits <= 0o7777 && !digits.starts_with('+') => Ok(Mode(bits)),
            _ => Err(Error::invalid("mode", format!("mode {text:?} is not octal permission bits"), "use for example mode=0755")),
        }
    }
}

impl TryFrom<String> for Mode {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> String {
        mode.to_string()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A folder inside of a volume: `data`, `a/b`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootPath(String);

impl RootPath {
    /// Relative to the volume's root; empty for the root itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The volume's root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for RootPath {
    type Err = Error;
    /// Reads `/data`, `data/`, `a/b`; `` and `/` are the volume's root.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let good = |part: &&str| *part != ".." && !part.contains(|c: char| c.is_control()) && part.len() <= 255;
        if text.len() > 1024 || !parts.iter().all(good) {
            let shown: String = text.chars().take(40).collect();
            return Err(Error::invalid(
                "rootPath",
                format!("rootPath {shown:?} is no path inside a volume"),
                "use for example rootPath=/data, without '..'",
            ));
        }
        Ok(RootPath(parts.join("/")))
    }
}

impl TryFrom<String> for RootPath {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<RootPath> for String {
    fn from(path: RootPath) -> String {
        path.0
    }
}

impl fmt::Display for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

/// What a volume was asked to be: everything but the hints is a guarantee, kept or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// The device's size; a multiple of 4 KiB.
    pub size: Bytes,
    /// The filesystem.
    #[serde(default)]
    pub fs: FsKind,
    /// Owner of the root directory at first format; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group of the root directory at first format; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Mode of the root directory at first format; 0755 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// All of its space is taken from the pool at create.
    #[serde(default)]
    pub thick: bool,
    /// How many copies the platform keeps of it; what is usual there when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repl: Option<u32>,
    /// Whether it is taken from another node; what is usual at its endpoint when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempt: Option<Preempt>,
    /// Who may write.
    #[serde(default)]
    pub access: Access,
    /// The folder inside that holders are given: REX-Ray's `/data`. The root itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_path: Option<RootPath>,
    /// What it is mounted with, besides what all volumes are.
    #[serde(default, skip_serializing_if = "MountOptions::is_empty")]
    pub mount_options: MountOptions,
    /// Free words of the user.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What was asked for and is not followed: no guarantee, but told whenever the volume is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hints: BTreeMap<String, String>,
}

impl VolumeSpec {
    /// Its size, for people; a folder without a quota has none.
    pub fn shown_size(&self) -> String {
        if self.size.0 == 0 { "-".to_owned() } else { self.size.to_string() }
    }
}

/// A [`VolumeSpec`] with holes: what one layer (the call, the endpoint, the configuration) says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are VolumeSpec's
pub struct PartialSpec {
    pub size: Option<Bytes>,
    pub fs: Option<FsKind>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<Mode>,
    pub thick: Option<bool>,
    pub repl: Option<u32>,
    pub preempt: Option<Preempt>,
    pub access: Option<Access>,
    pub shared: Option<bool>,
    pub root_path: Option<RootPath>,
    pub mount_options: Option<MountOptions>,
    pub labels: BTreeMap<String, String>,
    pub hints: BTreeMap<String, String>,
}

impl PartialSpec {
    /// This layer over a lower one: what is said here wins, labels add up.
    pub fn over(mut self, lower: &PartialSpec) -> PartialSpec {
        let mut labels = lower.labels.clone();
        labels.append(&mut self.labels);
        let mut hints = lower.hints.clone();
        hints.append(&mut self.hints);
        PartialSpec {
            size: self.size.or(lower.size),
            fs: self.fs.or(lower.fs),
            uid: self.uid.or(lower.uid),
            gid: self.gid.or(lower.gid),
            mode: self.mode.or(lower.mode),
            thick: self.thick.or(lower.thick),
            repl: self.repl.or(lower.repl),
            preempt: self.preempt.or(lower.preempt),
            access: self.access.or(lower.access),
            shared: self.shared.or(lower.shared),
            root_path: self.root_path.or_else(|| lower.root_path.clone()),
            mount_options: self.mount_options.or_else(|| lower.mount_options.clone()),
            labels,
            hints,
        }
    }

    /// Refuses writers on several nodes, for a driver that has one.
    pub fn has_one_writer(&self, driver: &str) -> Result<()> {
        if self.shared != Some(true) {
            return Ok(());
        }
        let detail = format!("driver {driver} cannot give shared=true: one node at a time writes to its volumes");
        Err(Error::invalid("shared", detail, "leave it out, or use a driver of type cephfs"))
    }

    /// Refuses more than one copy, for a driver that keeps one on one node.
    pub fn keeps_one_copy(&self, driver: &str) -> Result<()> {
        self.has_one_writer(driver)?;
        match self.repl {
            Some(repl) if repl > 1 => Err(Error::invalid(
                "repl",
                format!("driver {driver} cannot give repl={repl}: it keeps one copy"),
                "leave it out, or use a driver that can ('dunnage driver ls')",
            )),
            _ => Ok(()),
        }
    }

    /// For a driver whose volumes are plain folders: what such a one does not have is refused, or kept as a hint where those are told.
    pub fn in_a_folder(mut self, driver: &str, hints: HintPolicy) -> Result<PartialSpec> {
        let cannot = [
            ("size", self.size.replace(Bytes(0)).map(|size| size.to_string())),
            ("fs", self.fs.take().map(|fs| fs.to_string())),
            ("thick", self.thick.take().filter(|thick| *thick).map(|thick| thick.to_string())),
        ];
        for (key, value) in cannot {
            let Some(value) = value else { continue };
            if hints == HintPolicy::Refuse {
                let detail = format!("driver {driver} cannot give {key}={value}: its volumes are folders");
                return Err(Error::invalid(key, detail, "leave it out, use a driver with images, or set 'hints: warn'"));
            }
            self.hints.insert(key.to_owned(), value);
        }
        Ok(PartialSpec { fs: Some(FsKind::Folder), thick: Some(false), ..self })
    }

    /// The spec of a new volume, with the last defaults (16 GiB, ext4) filled in and the size checked.
    pub fn complete(self) -> Result<VolumeSpec> {
        let fs = self.fs.unwrap_or_default();
        let size = self.size.unwrap_or(Bytes::gib(16));
        if size < fs.minimum_size() {
            let least = fs.minimum_size();
            return Err(Error::invalid(
                "size",
                format!("size {size} is below {fs}'s minimum of {least}"),
                format!("ask for size={least} or more"),
            ));
        }
        fs.refuse_above(size)?;
        Ok(VolumeSpec {
            size: size.round_up(4 * Bytes::KIB),
            fs,
            uid: self.uid,
            gid: self.gid,
            mode: self.mode,
            thick: self.thick.unwrap_or(false),
            repl: self.repl,
            preempt: self.preempt,
            access: match self.access {
                Some(Access::ManyReaders) => Access::ManyReaders,
                _ if self.shared == Some(true) => Access::ManyWriters,
                _ => Access::SingleWriter,
            },
            root_path: self.root_path.filter(|path| !path.is_root()),
            mount_options: self.mount_options.unwrap_or_default(),
            labels: self.labels,
            hints: self.hints,
        })
    }

    /// What of this, asked explicitly, an existing volume does not have: `size (asked 2GiB, is 1GiB)`.
    ///
    /// Owner, mode, labels, preempt and the folder for holders are set at create and then the user's; they are not compared.
    pub fn differences(&self, existing: &VolumeSpec) -> Vec<String> {
        let mut differs = Vec::new();
        // What a folder cannot have was never promised; one with a quota has a size.
        let (whole, sized) = (existing.fs != FsKind::Folder, existing.size.0 > 0);
        let mut say = |key: &str, asked: Option<String>, is: String| {
            if let Some(asked) = asked.filter(|asked| *asked != is) {
                differs.push(format!("{key} (asked {asked}, is {is})"));
            }
        };
        let asked_size = self.size.filter(|_| sized).map(|s| s.round_up(4 * Bytes::KIB)).filter(|s| *s != existing.size);
        say(
            "size",
            asked_size.map(|size| size.to_string()),
            if asked_size.is_some() { format!("{}", existing.size) } else { String::new() },
        );
        say("fs", self.fs.filter(|_| whole).map(|f| f.to_string()), existing.fs.to_string());
        let ro = |access: Access| (access == Access::ManyReaders).to_string();
        say("ro", self.access.map(ro), ro(existing.access));
        say("shared", self.shared.map(|shared| shared.to_string()), (existing.access == Access::ManyWriters).to_string());
        say("mountOptions", self.mount_options.as_ref().map(ToString::to_string), existing.mount_options.to_string());
        let copies = |repl: u32| repl.to_string();
        say("repl", self.repl.map(copies), existing.repl.map_or_else(|| "what is usual there".to_owned(), copies));
        say("thick", self.thick.filter(|_| whole).map(|t| t.to_string()), existing.thick.to_string());
        differs
    }
}

/// Where a volume stands on its platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Made and formatted: it may be mounted.
    Ready,
    /// A create that has not finished, or was interrupted.
    Creating,
    /// A removal that has not finished, or was interrupted.
    Removing,
    /// Its record is there and its data is not where it should be, or is not what was recorded.
    Damaged,
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VolumeState::Ready => "ready",
            VolumeState::Creating => "creating",
            VolumeState::Removing => "removing",
            VolumeState::Damaged => "damaged",
        })
    }
}

/// What a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Usage {
    /// What the platform really spends on it; nothing where that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Bytes>,
}

/// A volume as its platform tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Driver and name.
    pub id: VolumeId,
    /// The endpoint it was made through, which lists it.
    pub endpoint: EndpointName,
    /// What it was asked to be.
    pub spec: VolumeSpec,
    /// When it was made.
    pub created: Timestamp,
    /// Where it stands.
    pub state: VolumeState,
    /// Why it is in that state, when that is not obvious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The UUID of its filesystem: identity over time.
    pub fs_uuid: Option<uuid::Uuid>,
    /// It has become larger, and its filesystem has not yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub growing: bool,
    /// What it takes.
    #[serde(default)]
    pub usage: Usage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_writers_are_had_where_they_can_be_and_refused_by_name_where_not() {
        let shared = PartialSpec { shared: Some(true), ..Default::default() };
        let said = shared.keeps_one_copy("local").expect_err("one writer").to_string();
        assert!(said.starts_with("invalid_argument{shared}") && said.contains("cephfs"), "{said}");
        let spec = shared.clone().complete().expect("good");
        assert_eq!(spec.access, Access::ManyWriters);
        assert_eq!(
            PartialSpec { access: Some(Access::ManyReaders), ..shared.clone() }.complete().map(|s| s.access),
            Ok(Access::ManyReaders)
        );
        assert_eq!(shared.differences(&spec), [""; 0]);
        let other = PartialSpec { shared: Some(false), ..Default::default() };
        assert_eq!(other.differences(&spec), ["shared (asked false, is true)"]);
        assert!(other.keeps_one_copy("local").is_ok());
    }

    #[test]
    fn a_folder_has_a_size_where_it_has_a_quota_and_nothing_else_of_a_filesystem() {
        let asked = PartialSpec { size: Some(Bytes::gib(1)), fs: Some(FsKind::Xfs), ..Default::default() };
        let said = asked.clone().in_a_folder("files", HintPolicy::Refuse).expect_err("no size").to_string();
        assert!(said.starts_with("invalid_argument{size}"), "{said}");
        let plain = asked.in_a_folder("files", HintPolicy::Warn).expect("told as hints").complete().expect("good");
        assert_eq!((plain.size, plain.fs, plain.hints.len(), plain.shown_size()), (Bytes(0), FsKind::Folder, 2, "-".to_owned()));
        let kept = VolumeSpec { size: Bytes::gib(1), ..plain.clone() };
        let more = PartialSpec { size: Some(Bytes::gib(2)), ..Default::default() };
        assert_eq!((more.differences(&kept).len(), more.differences(&plain).len()), (1, 0));
    }

    #[test]
    fn a_layer_above_wins_and_labels_add_up() {
        let low = PartialSpec { size: Some(Bytes::gib(1)), labels: [("a".into(), "1".into())].into(), ..Default::default() };
        let high = PartialSpec { size: Some(Bytes::gib(2)), labels: [("b".into(), "2".into())].into(), ..Default::default() };
        let both = high.over(&low);
        assert_eq!(both.size, Some(Bytes::gib(2)));
        assert_eq!(both.labels.len(), 2);
    }

    #[test]
    fn a_size_below_the_filesystem_s_minimum_is_refused_by_name() {
        let small = PartialSpec { size: Some(Bytes::mib(1)), ..Default::default() };
        let message = small.complete().expect_err("too small").to_string();
        assert!(message.contains("invalid_argument{size}") && message.contains("16MiB"), "{message}");
    }

    #[test]
    fn an_existing_volume_is_compared_only_in_what_was_asked() {
        let spec = PartialSpec::default().complete().expect("defaults");
        assert!(PartialSpec::default().differences(&spec).is_empty());
        let asked = PartialSpec { size: Some(Bytes::gib(2)), ..Default::default() };
        assert_eq!(asked.differences(&spec), ["size (asked 2GiB, is 16GiB)"]);
    }
}
