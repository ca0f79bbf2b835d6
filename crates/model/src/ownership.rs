//! Who owns a volume that several nodes can attach: what stands on the platform beside it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{BootId, Error, Kind, NodeId, Result};

/// Whether a volume that another node has is taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preempt {
    /// Never.
    Never,
    /// When that node is proven dead.
    #[default]
    IfDead,
    /// At once, after fencing it.
    Always,
}

impl Preempt {
    /// As it is written.
    pub const WORDS: &'static [(&'static str, Preempt)] =
        &[("never", Preempt::Never), ("if-dead", Preempt::IfDead), ("always", Preempt::Always)];
}

impl FromStr for Preempt {
    type Err = Error;
    /// Also REX-Ray's `true`, which never took anything from a node that lives, and `false`.
    fn from_str(text: &str) -> Result<Self> {
        let known = Self::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, policy)| *policy);
        match (known, text.to_ascii_lowercase().as_str()) {
            (Some(policy), _) => Ok(policy),
            (None, "true" | "yes" | "on" | "1") => Ok(Preempt::IfDead),
            (None, "false" | "no" | "off" | "0") => Ok(Preempt::Never),
            _ => {
                let next = "use preempt=never, preempt=if-dead or preempt=always";
                Err(Error::invalid("preempt", format!("preempt={text:?} is not known"), next))
            }
        }
    }
}

impl fmt::Display for Preempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(_, policy)| policy == self).map_or("", |(word, _)| word);
        f.write_str(word)
    }
}

/// A client of a platform, in the platform's own words: what a fence cuts off. Whoever connects anew is another client, so a
/// node that was fenced and comes back needs no pardon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Client(pub String);

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run of one node. Its next run owns nothing of what this one did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Which run of its kernel.
    pub boot: BootId,
}

/// How a volume stands among the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerState {
    /// Nobody has it.
    Free,
    /// A node has it.
    Held {
        /// Who.
        owner: Owner,
        /// The clients by which it writes. `None`: it is about to attach, and nobody knows them yet.
        clients: Option<BTreeSet<Client>>,
        /// It was taken from another node, and not given up by it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        taken: bool,
    },
    /// A node is about to take it, and cuts off whoever could write until now.
    Fencing {
        /// Who takes it.
        by: Owner,
        /// Whoever must be cut off before.
        victims: BTreeSet<Client>,
        /// The owner's clients were not known: everybody that has it open must be, too.
        everybody: bool,
    },
}

/// What stands on the platform beside a volume. It is changed by compare-and-set only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// The version of this record.
    pub format: u32,
    /// The oldest version whose readers understand it.
    pub min_reader: u32,
    /// Raised at every change of owner. It orders owners, and stops nobody's writes.
    pub epoch: u64,
    /// How it stands.
    pub state: OwnerState,
    /// Who was cut off when it was last taken, and may be seen on the platform for a while yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cut: BTreeSet<Client>,
    /// What a newer version wrote and we do not know: kept.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

impl OwnerRecord {
    /// The version that we write.
    pub const FORMAT: u32 = 1;

    /// Of a volume that nobody ever had.
    pub fn new() -> OwnerRecord {
        let (cut, unknown) = Default::default();
        OwnerRecord { format: Self::FORMAT, min_reader: 1, epoch: 0, state: OwnerState::Free, cut, unknown }
    }

    /// Reads one. `what` names it in errors.
    pub fn read(text: &[u8], what: &str) -> Result<OwnerRecord> {
        #[derive(Deserialize)]
        struct Versions {
            format: u32,
            min_reader: u32,
        }
        let damaged =
            |e| Error::unavailable(format!("{what} is damaged: {e}"), "nothing was attached; look at it with the platform's tools");
        let versions: Versions = serde_json::from_slice(text).map_err(damaged)?;
        if versions.min_reader > Self::FORMAT {
            let (format, own) = (versions.format, Self::FORMAT);
            let detail = format!("{what} has format {format}, which this version cannot read (it reads up to {own})");
            return Err(Error::new(
                Kind::ExistsIncompatible,
                detail,
                "use the newer version of Dunnage that wrote it; nothing was changed",
            ));
        }
        serde_json::from_slice(text).map_err(damaged)
    }

    /// Who has it or is about to.
    pub fn owner(&self) -> Option<&Owner> {
        match &self.state {
            OwnerState::Free => None,
            OwnerState::Held { owner, .. } => Some(owner),
            OwnerState::Fencing { by, .. } => Some(by),
        }
    }

    /// The clients by which its owner writes, as far as they are known.
    pub fn clients(&self) -> Option<&BTreeSet<Client>> {
        match &self.state {
            OwnerState::Held { clients, .. } => clients.as_ref(),
            _ => None,
        }
    }

    /// The same with another state.
    #[must_use]
    pub fn with(&self, state: OwnerState) -> OwnerRecord {
        OwnerRecord { state, ..self.clone() }
    }
}

impl Default for OwnerRecord {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_version_added_survives_being_rewritten() {
        let text = br#"{"format":3,"min_reader":1,"epoch":7,"colour":"red",
            "state":{"held":{"owner":{"node":"a","boot":"b"},"clients":["10.0.0.1:0/5"]}}}"#;
        let record = OwnerRecord::read(text, "it").expect("readable");
        assert!(matches!(&record.state, OwnerState::Held { clients: Some(clients), taken: false, .. } if clients.len() == 1));
        let again = serde_json::to_vec(&record.with(OwnerState::Free)).expect("json");
        let again = OwnerRecord::read(&again, "it").expect("readable");
        assert_eq!((again.epoch, &again.unknown["colour"]), (7, &"red".into()));
        assert_eq!(again.state, OwnerState::Free);
    }

    #[test]
    fn one_that_only_a_newer_version_can_read_is_refused_and_a_torn_one_is_not_taken_for_none() {
        let error = OwnerRecord::read(br#"{"format":9,"min_reader":9,"epoch":7,"state":{"shared":{}}}"#, "it").expect_err("too new");
        assert!(error.to_string().contains("format 9"), "{error}");
        assert!(OwnerRecord::read(b"{\"format\":1,", "it").is_err());
    }
}
