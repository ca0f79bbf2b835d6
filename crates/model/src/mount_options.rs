//! Mount options that a user gives a volume: `noatime,context="system_u:object_r:svirt_sandbox_file_t:s0:c1,c2"`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Options for mount(2), one each, in the order given. Whether the kernel knows them is found out when the volume is made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MountOptions(Vec<String>);

/// What no volume is mounted with, and why.
const REFUSED: &[(&str, &str)] = &[
    ("ro", "give the option ro=true instead: then it is not mounted for writing by anybody"),
    ("suid", "volumes are mounted nosuid: what a container's root writes is not to be a way to the host's root"),
    ("dev", "volumes are mounted nodev: a device node in a volume is not to be a way to the host's disks"),
    ("remount", "options are the volume's, from its first mount on"),
    ("bind", "a volume is mounted whole"),
    ("rbind", "a volume is mounted whole"),
    ("move", "a volume is mounted at its own place"),
    ("loop", "Dunnage attaches the volume's device itself"),
    ("offset", "Dunnage attaches the volume's device itself"),
    ("user", "volumes are mounted by Dunnage alone"),
    ("users", "volumes are mounted by Dunnage alone"),
];

/// What changes nothing: it is so anyway.
const NEUTRAL: &[&str] =
    &["defaults", "rw", "nosuid", "nodev", "atime", "diratime", "exec", "async", "auto", "noauto", "nofail", "_netdev"];

impl MountOptions {
    /// Each of them: a word, or `key=value`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|option| option.split_once('=').map_or((option.as_str(), None), |(key, value)| (key, Some(value))))
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for MountOptions {
    type Err = Error;

    /// Reads options with `,` or `;` between them; within double quotes both are text.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |detail: String, next: &str| Error::invalid("mountOptions", detail, next);
        let mut options = Vec::new();
        for written in split(text).ok_or_else(|| bad(format!("mount options {text:?} have an open quote"), "close it"))? {
            let key = written.split('=').next().unwrap_or_default();
            if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) || written.len() > 512 {
                return Err(bad(format!("{written:?} is no mount option"), "write them as noatime,commit=30"));
            }
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == key) {
                return Err(bad(format!("a volume cannot be mounted with {written:?}"), why));
            }
            if !NEUTRAL.contains(&written.as_str()) {
                options.push(written);
            }
        }
        if options.len() > 64 {
            return Err(bad("there are more than 64 mount options".to_owned(), "use fewer"));
        }
        Ok(MountOptions(options))
    }
}

/// Takes the text apart, and the quotes away; nothing if one is open at the end.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut options, mut option, mut quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' | ';' if !quoted => options.push(std::mem::take(&mut option)),
            c => option.push(c),
        }
    }
    options.push(option);
    let whole = |option: &String| option.trim().to_owned();
    (!quoted).then(|| options.iter().map(whole).filter(|option| !option.is_empty()).collect())
}

impl fmt::Display for MountOptions {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, option) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match option.split_once('=') {
                Some((key, value)) if value.contains([',', ';']) => write!(f, "{comma}{key}=\"{value}\"")?,
                _ => write!(f, "{comma}{option}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_quotes_belongs_to_the_value() {
        let options: MountOptions = "noatime; context=\"system_u:object_r:t:s0:c1,c2\",commit=30".parse().expect("good");
        let all: Vec<_> = options.iter().collect();
        assert_eq!(all, [("noatime", None), ("context", Some("system_u:object_r:t:s0:c1,c2")), ("commit", Some("30"))]);
        assert_eq!(options.to_string().parse::<MountOptions>().expect("again"), options);
    }

    #[test]
    fn what_would_undo_a_law_is_refused_and_says_what_would_do() {
        for (text, says) in
            [("suid", "nosuid"), ("noatime,dev", "nodev"), ("ro", "ro=true"), ("remount,rw", "first mount"), ("=x", "noatime")]
        {
            let message = text.parse::<MountOptions>().expect_err(text).to_string();
            assert!(message.contains(says) && message.contains("{mountOptions}"), "{message}");
        }
        assert!("a=\"b".parse::<MountOptions>().is_err());
    }

    #[test]
    fn what_is_so_anyway_is_left_out() {
        assert!("defaults,rw,nosuid,nodev".parse::<MountOptions>().expect("good").is_empty());
    }
}
