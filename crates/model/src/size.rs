//! Sizes in bytes, as people write and read them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// One kibibyte.
    pub const KIB: u64 = 1 << 10;
    /// One mebibyte.
    pub const MIB: u64 = 1 << 20;
    /// One gibibyte.
    pub const GIB: u64 = 1 << 30;

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Bytes(n * Self::MIB)
    }

    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Bytes(n * Self::GIB)
    }

    /// The next multiple of `unit`, which is a power of two; the largest one if there is none above.
    pub fn round_up(self, unit: u64) -> Self {
        Bytes(self.0.checked_next_multiple_of(unit).unwrap_or(u64::MAX - u64::MAX % unit))
    }
}

/// What a size may look like, for error messages.
pub const SIZE_RULE: &str = "give a whole number of GiB such as 10, or a number with a unit such as 512MiB, 10G or 1.5T";

impl FromStr for Bytes {
    type Err = Error;

    /// Reads `10` (GiB when bare, as REX-Ray and Portworx have it), `512MiB`, `10G`, `1.5T`. All units are powers of 1,024.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid("size", format!("size {text:?} {why}"), SIZE_RULE);
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "b" => 1,
            "k" | "kb" | "kib" => Self::KIB,
            "m" | "mb" | "mib" => Self::MIB,
            "" | "g" | "gb" | "gib" => Self::GIB,
            "t" | "tb" | "tib" => Self::GIB << 10,
            "p" | "pb" | "pib" => Self::GIB << 20,
            _ => return Err(bad("is not a size")),
        };
        let bytes = if let Ok(whole) = number.parse::<u64>() {
            whole.checked_mul(unit).ok_or_else(|| bad("is larger than any volume can be"))?
        } else {
            let value: f64 = number.parse().map_err(|_| bad("is not a size"))?;
            let bytes = value * unit as f64;
            if bytes >= u64::MAX as f64 {
                return Err(bad("is larger than any volume can be"));
            }
            bytes as u64
        };
        if bytes == 0 {
            return Err(bad("is nothing"));
        }
        Ok(Bytes(bytes))
    }
}

impl fmt::Display for Bytes {
    /// `16GiB`, `1.5GiB`, `300MiB`, `7B`: a unit that keeps the number short, exact where it is a whole one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(Self::GIB << 10, "TiB"), (Self::GIB, "GiB"), (Self::MIB, "MiB"), (Self::KIB, "KiB")];
        for (unit, word) in units {
            if self.0 >= unit {
                return if self.0.is_multiple_of(unit) {
                    write!(f, "{}{word}", self.0 / unit)
                } else {
                    write!(f, "{:.1}{word}", self.0 as f64 / unit as f64)
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_users_write_are_read() {
        for (text, bytes) in [
            ("10", 10 * Bytes::GIB),
            ("10G", 10 * Bytes::GIB),
            ("10g", 10 * Bytes::GIB),
            ("512MiB", 512 * Bytes::MIB),
            ("512 mb", 512 * Bytes::MIB),
            ("1.5T", 1536 * Bytes::GIB),
            ("4096b", 4096),
        ] {
            assert_eq!(text.parse::<Bytes>().ok(), Some(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused_and_say_what_would_do() {
        for text in ["", "0", "-1", "abc", "10X", "1e3", "0x10", ".", "1.2.3", "99999999999999999999", "99999999P", "∞"] {
            let error = text.parse::<Bytes>().expect_err(text);
            assert!(error.to_string().contains("512MiB"), "{error}");
        }
    }

    #[test]
    fn a_size_is_shown_as_it_was_meant() {
        assert_eq!(Bytes::gib(16).to_string(), "16GiB");
        assert_eq!(Bytes(Bytes::GIB + Bytes::GIB / 2).to_string(), "1.5GiB");
        assert_eq!(Bytes(7).to_string(), "7B");
    }
}
