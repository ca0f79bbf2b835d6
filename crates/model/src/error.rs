//! One taxonomy of failures. Every error says what, which volume, who stands in the way, and what to do next; each
//! frontend turns it into its protocol's words in one place.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{OperationId, VolumeName};

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of failure that a caller may treat differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// There is no such volume, holder or driver.
    NotFound,
    /// It exists, and is not what was asked for.
    ExistsIncompatible,
    /// Somebody holds it.
    InUse {
        /// Who, as people read it.
        holders: Vec<String>,
        /// On which node.
        node: String,
    },
    /// It cannot be reached from here.
    WrongTopology,
    /// The platform wants fewer calls.
    Throttled,
    /// The platform, or the daemon itself, does not answer.
    PlatformUnavailable,
    /// Not allowed, or not with these rights.
    Permission,
    /// An input is wrong.
    InvalidArgument {
        /// Which one.
        key: String,
    },
    /// There is data where none may be.
    NotBlank {
        /// What was found.
        signature: String,
    },
    /// No room, or too many.
    LimitReached,
    /// It took too long; it may be running still.
    Timeout {
        /// What was being done.
        operation: String,
    },
    /// Our fault, or the machine's.
    Internal,
}

/// What stands for the node in an error of who does not know its name; [`Error::on`] fills it in.
pub const HERE: &str = "this node";

impl Kind {
    /// The word of the taxonomy.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::NotFound => "not_found",
            Kind::ExistsIncompatible => "exists_incompatible",
            Kind::InUse { .. } => "in_use",
            Kind::WrongTopology => "wrong_topology",
            Kind::Throttled => "throttled",
            Kind::PlatformUnavailable => "platform_unavailable",
            Kind::Permission => "permission",
            Kind::InvalidArgument { .. } => "invalid_argument",
            Kind::NotBlank { .. } => "not_blank",
            Kind::LimitReached => "limit_reached",
            Kind::Timeout { .. } => "timeout",
            Kind::Internal => "internal",
        }
    }

    /// All words of the taxonomy.
    pub const WORDS: [&str; 12] = [
        "not_found",
        "exists_incompatible",
        "in_use",
        "wrong_topology",
        "throttled",
        "platform_unavailable",
        "permission",
        "invalid_argument",
        "not_blank",
        "limit_reached",
        "timeout",
        "internal",
    ];

    /// The exit code of the command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            Kind::Internal => 1,
            Kind::InvalidArgument { .. } => 2,
            Kind::NotFound => 3,
            Kind::ExistsIncompatible => 4,
            Kind::InUse { .. } => 5,
            Kind::WrongTopology => 6,
            Kind::Throttled => 7,
            Kind::PlatformUnavailable => 8,
            Kind::Permission => 9,
            Kind::NotBlank { .. } => 10,
            Kind::LimitReached => 11,
            Kind::Timeout { .. } => 12,
        }
    }
}

/// A failure. It can be cloned, because everybody who joined a job gets the same answer, and it can be sent, because
/// the command line reads what the daemon says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Error {
    /// What kind.
    pub kind: Kind,
    /// Which volume, where one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeName>,
    /// What happened, with the source's own words.
    pub detail: String,
    /// What to do next.
    pub next: String,
    /// The operation to look for in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

impl Error {
    /// An error of any kind. `next` is what the reader should do; it is never optional.
    pub fn new(kind: Kind, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Error { kind, volume: None, detail: detail.into(), next: next.into(), operation: None }
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, detail, next)
    }

    /// There is no volume of that name.
    pub fn no_volume(name: &VolumeName) -> Self {
        Self::not_found("there is no volume of that name", "create it, or look at 'dunnage volume ls'").of(name)
    }

    /// The input `key` is wrong.
    pub fn invalid(key: impl Into<String>, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument { key: key.into() }, detail, next)
    }

    /// Somebody holds it.
    pub fn in_use(holders: Vec<String>, node: impl fmt::Display, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Kind::InUse { holders, node: node.to_string() }, detail, next)
    }

    /// The platform does not answer, or not well.
    pub fn unavailable(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Kind::PlatformUnavailable, detail, next)
    }

    /// Our fault, or the machine's.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(Kind::Internal, detail, "look at the daemon's log, and report it if it happens again")
    }

    /// `operation` took longer than it may.
    pub fn timeout(operation: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(
            Kind::Timeout { operation: operation.into() },
            detail,
            "ask again: the same call joins the one that runs; 'dunnage volume inspect' shows how far it is",
        )
    }

    /// A call to the operating system failed: `what` says which, in words.
    pub fn os(what: impl fmt::Display, error: &std::io::Error) -> Self {
        let detail = format!("{what}: {error}");
        match error.raw_os_error() {
            Some(28 | 122) => Self::new(Kind::LimitReached, detail, "free space in the pool, or give it more"),
            Some(1 | 13) => Self::new(Kind::Permission, detail, "run as root, or look at who may write there"),
            Some(30) => Self::new(Kind::Permission, detail, "the filesystem is read only: look at 'dmesg' for why"),
            Some(5) => Self::unavailable(detail, "the disk below reports errors: look at 'dmesg'"),
            _ => Self::internal(detail),
        }
    }

    /// The same error, about this volume, unless it names one already.
    pub fn of(mut self, name: &VolumeName) -> Self {
        self.volume.get_or_insert_with(|| name.clone());
        self
    }

    /// The same error, with this node's name where it only says "this node".
    pub fn on(mut self, name: impl fmt::Display) -> Self {
        if let Kind::InUse { node, .. } = &mut self.kind
            && node == HERE
        {
            *node = name.to_string();
        }
        self
    }

    /// The same error, with the operation that the log has more of.
    pub fn during(mut self, operation: &OperationId) -> Self {
        self.operation.get_or_insert_with(|| operation.clone());
        self
    }

    /// The word of the taxonomy.
    pub fn word(&self) -> &'static str {
        self.kind.word()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::InvalidArgument { key: inside } | Kind::NotBlank { signature: inside } | Kind::Timeout { operation: inside } => {
                write!(f, "{}{{{inside}}}: ", self.word())?;
            }
            Kind::InUse { node, .. } => write!(f, "in_use{{{node}}}: ")?,
            _ => write!(f, "{}: ", self.word())?,
        }
        if let Some(volume) = &self.volume {
            write!(f, "volume \"{volume}\": ")?;
        }
        write!(f, "{}", self.detail)?;
        if let Kind::InUse { holders, .. } = &self.kind
            && !holders.is_empty()
        {
            write!(f, ": {}", holders.join(", "))?;
        }
        write!(f, "; {}", self.next)?;
        if let Some(operation) = &self.operation {
            write!(f, " [{operation}]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_which_who_and_what_next() {
        let name = "pg".parse().expect("name");
        let error = Error::in_use(vec!["docker 7f".into()], "n1", "it is held", "stop the container").of(&name);
        assert_eq!(error.to_string(), "in_use{n1}: volume \"pg\": it is held: docker 7f; stop the container");
        assert_eq!(error.kind.exit_code(), 5);
    }

    #[test]
    fn an_error_crosses_the_wire_whole() {
        let error = Error::timeout("mount", "it took 60 s").during(&OperationId("op-1".into()));
        let text = serde_json::to_string(&error).expect("json");
        assert_eq!(serde_json::from_str::<Error>(&text).expect("back"), error);
    }
}
