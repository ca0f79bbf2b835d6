//! Names and identities. Each is checked once, at the door, and is safe to put into a path or a log line from then on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest name, in bytes: CSI's limit, so that every frontend can carry every name.
pub const MAX_NAME: usize = 128;

/// Checks `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most [`MAX_NAME`] bytes (the rule of Docker's own volume names).
fn check_name(what: &str, text: &str) -> Result<()> {
    let refuse = |why: String| {
        let shown: String = text.chars().take(40).collect();
        let dots = if shown.len() < text.len() { "…" } else { "" };
        Err(Error::invalid("name", format!("{what} name {shown:?}{dots} {why}"), NAME_RULE))
    };
    if text.is_empty() {
        return refuse("is empty".into());
    }
    if text.len() > MAX_NAME {
        return refuse(format!("has {} bytes, at most {MAX_NAME} are allowed", text.len()));
    }
    match text.char_indices().find(|&(i, c)| !(c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '_' | '.' | '-')))) {
        Some((at, c)) => refuse(format!("has {c:?} at position {}", at + 1)),
        None => Ok(()),
    }
}

const NAME_RULE: &str = "use letters, digits, '_', '.' and '-', beginning with a letter or a digit, at most 128 bytes";

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $what:literal),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                check_name($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

names! {
    /// A volume's name: what users say.
    VolumeName = "volume",
    /// The name of a configured driver, such as `local`.
    DriverName = "driver",
    /// The name of an endpoint: what a scheduler calls us.
    EndpointName = "endpoint",
    /// The name of a node.
    NodeId = "node",
}

/// A volume's identity: two drivers may each have a volume of one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId {
    /// Which driver has it.
    pub driver: DriverName,
    /// What it is called there.
    pub name: VolumeName,
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.driver, self.name)
    }
}

/// One run of the kernel: what lives under `/run` belongs to it and dies with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub String);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One request, from the caller's words to the last log line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OperationId(pub String);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_use_are_accepted() {
        for good in ["pg", "a", "9", "stack_vol", "x.y-z", &"a".repeat(128), &"f".repeat(64)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
        }
    }

    #[test]
    fn names_that_could_leave_the_box_are_refused_with_their_position() {
        for bad in ["", "..", ".", "-x", "a/b", "../a", "a\0b", "a b", "données", "卷", &"a".repeat(129), &"a".repeat(4096)] {
            let error = bad.parse::<VolumeName>().expect_err(bad);
            assert_eq!(error.word(), "invalid_argument");
            assert!(error.to_string().len() < 400, "the message repeats the whole name");
        }
        let message = "a/b".parse::<VolumeName>().expect_err("slash").to_string();
        assert!(message.contains("position 2"), "{message}");
    }
}
