//! Who asked for a mount. Holders are a multiset: dockerd uses one ID twice for `docker cp` (moby/moby#47964), Podman
//! sends one constant ID for all, and dvdcli sends none.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{EndpointName, PublishMode};

/// What kind of program calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallerKind {
    /// A Docker volume plugin client that sends an ID as dockerd makes them.
    Docker,
    /// A Docker volume plugin client that sends Podman's one ID.
    Podman,
    /// The isolator module of a Mesos agent, for a container.
    Mesos,
    /// A Docker volume plugin client that sends an ID of another form.
    PluginClient,
    /// A Docker volume plugin client that sends none: dvdcli and what is like it.
    Plain,
    /// A person or a script at the command line.
    Cli,
    /// The same, who wants the device alone.
    CliDevice,
    /// Nobody that we know: a mount that was there when the daemon found it.
    Unknown,
}

impl fmt::Display for CallerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CallerKind::Docker => "docker",
            CallerKind::Podman => "podman",
            CallerKind::Mesos => "mesos",
            CallerKind::PluginClient => "plugin client",
            CallerKind::Plain => "plugin client without an ID",
            CallerKind::Cli => "command line",
            CallerKind::CliDevice => "command line, the device alone",
            CallerKind::Unknown => "unknown",
        })
    }
}

/// A caller's own identity within its endpoint. One without an ID is a single idempotent holder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "WrittenCaller")]
pub struct Caller {
    /// What calls.
    pub kind: CallerKind,
    /// The ID it sent, if it sends any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Caller {
    /// The longest ID that is kept: dockerd sends 64 characters, Kubernetes' target paths are longer.
    pub const MAX_ID: usize = 512;

    /// The ID that Podman sends with every Mount and Unmount, whatever the container: the SHA-256 of `placeholder\n`
    /// (libpod's `pseudoCtrID`). It counts its containers itself, and mounts for the first and unmounts for the last.
    pub const PODMAN_ID: &str = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2";

    /// What the IDs begin with that the module of a Mesos agent sends; the container's own follows.
    pub const MESOS: &str = "mesos-";

    /// The client of a Docker volume plugin that sends this ID. An empty one is none.
    pub fn of_plugin(id: Option<String>) -> Caller {
        let id = id.filter(|id| !id.is_empty());
        let kind = match id.as_deref() {
            None => CallerKind::Plain,
            Some(Caller::PODMAN_ID) => CallerKind::Podman,
            Some(id) if id.starts_with(Caller::MESOS) => CallerKind::Mesos,
            Some(id) if is_dockerds(id) => CallerKind::Docker,
            Some(_) => CallerKind::PluginClient,
        };
        Caller { kind, id }
    }

    /// An ID as its sender has it, without what [`Caller::MESOS`] puts before it.
    pub fn bare(id: &str) -> &str {
        id.strip_prefix(Caller::MESOS).unwrap_or(id)
    }

    /// As much of an ID as people need: of a nested container of Mesos (`PARENT.CHILD`) something of each part.
    fn short(id: &str) -> String {
        let parts: Vec<&str> = Caller::bare(id).split('.').collect();
        let length = if parts.len() == 1 { 12 } else { 8 };
        let short = |part: &&str| part.chars().take(length).collect::<String>();
        parts.iter().map(short).collect::<Vec<_>>().join(".")
    }

    /// Whether its ID begins so, as a whole, without what [`Caller::MESOS`] puts before it, or part by part, as it is shown.
    pub fn has_id(&self, asked: &str) -> bool {
        let Some(id) = &self.id else { return false };
        let Some(container) = id.strip_prefix(Caller::MESOS) else { return id.starts_with(asked) };
        let (parts, asked): (Vec<&str>, Vec<&str>) = (container.split('.').collect(), Caller::bare(asked).split('.').collect());
        asked.len() <= parts.len() && asked.iter().zip(&parts).all(|(asked, part)| part.starts_with(asked))
    }
}

/// An ID as dockerd makes them, one for each mount of a container.
fn is_dockerds(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A caller as a ledger has it. What an older version took for dockerd may be another, which has to find its hold again.
#[derive(Deserialize)]
struct WrittenCaller {
    kind: CallerKind,
    #[serde(default)]
    id: Option<String>,
}

impl From<WrittenCaller> for Caller {
    fn from(WrittenCaller { kind, id }: WrittenCaller) -> Caller {
        match kind {
            CallerKind::Docker => Caller::of_plugin(id),
            _ => Caller { kind, id },
        }
    }
}

/// What one count of a holder is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HolderKey {
    /// The endpoint that the call came in by.
    pub endpoint: EndpointName,
    /// Who called.
    #[serde(flatten)]
    pub caller: Caller,
}

impl fmt::Display for HolderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.caller.id {
            // Podman's ID would say nothing.
            Some(id) if self.caller.kind != CallerKind::Podman => {
                write!(f, "{} {} (endpoint {})", self.caller.kind, Caller::short(id), self.endpoint)
            }
            _ => write!(f, "{} (endpoint {})", self.caller.kind, self.endpoint),
        }
    }
}

/// One holder as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    #[serde(flatten)]
    pub key: HolderKey,
    /// Answers delivered and not yet given back.
    pub count: u32,
    /// Answers on their way: recorded, not yet known to be read by the caller.
    #[serde(default)]
    pub provisional: u32,
    /// Answers that were on their way when the daemon died: their caller may have read them or not. A retry with the
    /// same key takes one over instead of counting twice; an unmount gives one back.
    #[serde(default)]
    pub undecided: u32,
    /// When the first of them came.
    pub since: Timestamp,
    /// What it was given.
    #[serde(default)]
    pub mode: PublishMode,
    /// The path it was given.
    pub target: String,
}

impl Holder {
    /// It wants the volume mounted, and not only attached.
    pub fn wants_mount(&self) -> bool {
        self.mode != PublishMode::Device
    }

    /// Everything that keeps the volume here for this key.
    pub fn total(&self) -> u32 {
        self.count + self.provisional + self.undecided
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} since {:.0}", self.key, self.since)?;
        if self.total() > 1 {
            write!(f, " ×{}", self.total())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> HolderKey {
        serde_json::from_str(text).expect("a holder's key")
    }

    #[test]
    fn what_kind_of_client_calls_is_seen_from_the_id() {
        let kind = |id: Option<&str>| Caller::of_plugin(id.map(str::to_owned)).kind;
        assert_eq!(kind(None), CallerKind::Plain);
        assert_eq!(kind(Some("")), CallerKind::Plain);
        assert_eq!(kind(Some(Caller::PODMAN_ID)), CallerKind::Podman);
        assert_eq!(kind(Some(&"7f".repeat(32))), CallerKind::Docker);
        assert_eq!(kind(Some("mesos-0a1b.2c3d")), CallerKind::Mesos);
        for other in ["c1", &"7f".repeat(31), &"7F".repeat(32), &"7g".repeat(32), &"7f".repeat(33)] {
            assert_eq!(kind(Some(other)), CallerKind::PluginClient, "{other}");
        }
    }

    #[test]
    fn a_holder_is_written_and_read_again() {
        for id in [None, Some(Caller::PODMAN_ID), Some("7f"), Some(&"7f".repeat(32))] {
            let key = HolderKey { endpoint: "dunnage".parse().expect("a name"), caller: Caller::of_plugin(id.map(str::to_owned)) };
            assert_eq!(read(&serde_json::to_string(&key).expect("json")), key);
        }
    }

    #[test]
    fn who_was_taken_for_dockerd_by_an_older_version_is_the_one_that_calls_now() {
        for id in [Caller::PODMAN_ID, "c1", &"7f".repeat(32)] {
            let written = format!(r#"{{"endpoint":"dunnage","kind":"docker","id":"{id}"}}"#);
            assert_eq!(read(&written).caller, Caller::of_plugin(Some(id.to_owned())));
        }
    }

    #[test]
    fn a_nested_container_of_mesos_is_shown_with_its_own_part_and_found_by_what_is_shown() {
        let caller = Caller::of_plugin(Some("mesos-8ccf57a8-706d-4b0f.275abe00-11e2".to_owned()));
        let key = HolderKey { endpoint: "rexray".parse().expect("a name"), caller: caller.clone() };
        assert_eq!(key.to_string(), "mesos 8ccf57a8.275abe00 (endpoint rexray)");
        for asked in ["8ccf57a8.275abe00", "mesos-8ccf", "8ccf57a8-706d-4b0f.2", "8ccf57a8-70", ""] {
            assert!(caller.has_id(asked), "{asked}");
        }
        for asked in ["8ccf57a8.9", "275abe00", "8ccf57a8.275abe00.1", "podman"] {
            assert!(!caller.has_id(asked), "{asked}");
        }
        let docker = Caller::of_plugin(Some("7f00".to_owned()));
        assert!(docker.has_id("7f") && !docker.has_id("00"));
    }

    #[test]
    fn people_are_not_shown_an_id_that_says_nothing() {
        let shown = |id: &str| {
            HolderKey { endpoint: "dunnage".parse().expect("a name"), caller: Caller::of_plugin(Some(id.to_owned())) }.to_string()
        };
        assert_eq!(shown(Caller::PODMAN_ID), "podman (endpoint dunnage)");
        assert_eq!(shown("7f0123456789abcdef"), "plugin client 7f0123456789 (endpoint dunnage)");
        assert_eq!(shown(&"7f".repeat(32)), "docker 7f7f7f7f7f7f (endpoint dunnage)");
    }
}
