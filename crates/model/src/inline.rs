//! A volume's name with its options in it, as Portworx had it: `size=10,repl=3,name=pg`.
//!
//! The volume is `name` and nothing else; whoever asked is answered with the words they used, because Docker keeps what it
//! asked for as the volume's name. A text that looks like such a spec and is none is refused with the position: it never
//! becomes a volume of that literal name.

use crate::options::{find, is_free, split_at_options};
use crate::{Error, Result, VolumeName, nearest};

/// A name as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedName {
    /// The volume.
    pub name: VolumeName,
    /// The options that stood in it, in their order.
    pub options: Vec<(String, String)>,
}

/// Reads a volume's name, or a name with options in it. No plain name holds `=`.
pub fn parse_name(text: &str) -> Result<AskedName> {
    if !text.contains('=') {
        return Ok(AskedName { name: text.parse()?, options: Vec::new() });
    }
    if text.len() > 4096 {
        return Err(Error::invalid("name", "the name has more than 4096 bytes", "give the options apart from the name"));
    }
    let (mut name, mut options) = (None, Vec::new());
    for (at, option) in split_at_options(text) {
        let begin = at + option.len() - option.trim_start().len();
        let position = text.get(..begin).map_or(0, |before| before.chars().count()) + 1;
        let Some((key, value)) = option.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            return Err(wrong(
                "name",
                position,
                format!("{:?} is no key=value", shorten(option.trim())),
                "write it as key=value, or leave it out",
            ));
        };
        if key.eq_ignore_ascii_case("name") {
            let parsed: VolumeName = value.parse().map_err(|e: Error| wrong("name", position, e.detail, &e.next))?;
            if name.replace(parsed).is_some() {
                return Err(wrong("name", position, "name is given twice".to_owned(), "give it once"));
            }
            continue;
        }
        let Some(known) = find(key) else {
            let words = std::iter::once("name")
                .chain(crate::known_keys().iter().flat_map(|k| std::iter::once(k.name).chain(k.aliases.iter().copied())));
            let next = nearest(key, words)
                .map_or("known are name, size, fs, repl and the like".to_owned(), |word| format!("did you mean {word:?}?"));
            return Err(wrong(&shorten(key), position, format!("option {:?} is unknown", shorten(key)), &next));
        };
        // Portworx writes `#` in a schedule where its options have a comma.
        let value = if known.name == "snap_schedule" { value.replace('#', ",") } else { value.to_owned() };
        if !is_free(known) && value.contains([',', ';']) {
            return Err(wrong(
                key,
                position,
                format!("{key} has the value {:?}", shorten(&value)),
                "',' and ';' stand between options, as key=value",
            ));
        }
        options.push((key.to_owned(), value));
    }
    let name = name.ok_or_else(|| wrong("name", 1, "there is no name=".to_owned(), "add name=NAME: it alone is the volume's identity"))?;
    Ok(AskedName { name, options })
}

fn wrong(key: &str, position: usize, what: String, next: &str) -> Error {
    Error::invalid(key, format!("at position {position} of the name: {what}"), next)
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, Vec<(String, String)>) {
        let asked = parse_name(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        (asked.name.to_string(), asked.options)
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_plain_name_is_itself() {
        assert_eq!(read("pg"), ("pg".to_owned(), vec![]));
    }

    #[test]
    fn options_stand_in_any_order_with_either_sign_between_them() {
        let expected = pairs(&[("size", "10"), ("repl", "3")]);
        for text in ["size=10,repl=3,name=pg", "name=pg;size=10;repl=3", "size=10, name=pg; repl=3", "NAME=pg,size=10,repl=3"] {
            assert_eq!(read(text), ("pg".to_owned(), expected.clone()), "{text}");
        }
    }

    #[test]
    fn a_key_within_another_is_not_that_key() {
        assert_eq!(read("block_size=4096,name=a"), ("a".to_owned(), pairs(&[("block_size", "4096")])));
        assert_eq!(read("zones=us-east-1,name=a"), ("a".to_owned(), pairs(&[("zones", "us-east-1")])));
    }

    #[test]
    fn a_value_may_hold_the_signs_that_stand_between_options() {
        assert_eq!(read("name=a;nodes=n1;n2;size=5"), ("a".to_owned(), pairs(&[("nodes", "n1;n2"), ("size", "5")])));
        assert_eq!(read("name=a,passphrase=,size=5"), ("a".to_owned(), pairs(&[("passphrase", ""), ("size", "5")])));
        let schedule = "snap_schedule=periodic=60#4;daily=12:00#3,name=a";
        assert_eq!(read(schedule), ("a".to_owned(), pairs(&[("snap_schedule", "periodic=60,4;daily=12:00,3")])));
        assert_eq!(read("name=a,labels=x=1,y=2"), ("a".to_owned(), pairs(&[("labels", "x=1,y=2")])));
    }

    #[test]
    fn what_is_no_spec_is_refused_with_its_position_and_is_no_name() {
        for (text, position, says) in [
            ("size=10,repll=3,name=pg", "position 9", "did you mean \"repl\"?"),
            ("size=10,repl=3", "position 1", "add name=NAME"),
            ("name=a/b,size=3", "position 1", "use letters"),
            ("size=1,name=a,name=b", "position 15", "twice"),
            ("name=pg,ro", "position 1", "use letters"),
            ("=x", "position 1", "known are"),
            ("name=", "position 1", "use letters"),
            ("size=10,5,name=a", "position 1", "between options"),
        ] {
            let message = parse_name(text).expect_err(text).to_string();
            assert!(message.contains(position) && message.contains(says), "{text}: {message}");
        }
        assert!(parse_name(&format!("name={}", "a=".repeat(4000))).is_err());
    }
}
