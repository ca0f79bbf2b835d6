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
    /// A Docker volume plugin client that sends an ID: dockerd.
    Docker,
    /// A Docker volume plugin client that sends none: dvdcli and what is like it.
    Plain,
    /// A person or a script at the command line.
    Cli,
    /// Nobody that we know: a mount that was there when the daemon found it.
    Unknown,
}

impl fmt::Display for CallerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CallerKind::Docker => "docker",
            CallerKind::Plain => "plugin client without an ID",
            CallerKind::Cli => "command line",
            CallerKind::Unknown => "unknown",
        })
    }
}

/// A caller's own identity within its endpoint. One without an ID is a single idempotent holder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
            Some(id) => {
                let short: String = id.chars().take(12).collect();
                write!(f, "{} {short} (endpoint {})", self.caller.kind, self.endpoint)
            }
            None => write!(f, "{} (endpoint {})", self.caller.kind, self.endpoint),
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
    /// Everything that keeps the volume mounted for this key.
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
