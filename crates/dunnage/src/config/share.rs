//! A part of a whole, as people write it: `5%`.

use std::fmt;
use std::str::FromStr;

use dunnage_model::{Error, Result};

/// A share of something in percent, exact to a tenth of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// So many percent.
    pub const fn percent(percent: u32) -> Share {
        Share(percent.saturating_mul(10))
    }

    /// So many thousandths.
    pub const fn thousandths(thousandths: u32) -> Share {
        Share(thousandths)
    }

    /// The share in thousandths.
    pub fn per_mille(self) -> u32 {
        self.0
    }
}

impl FromStr for Share {
    type Err = Error;

    /// Reads `5%`, `12.5%`, `200%`. A bare number is refused: 5 could be five percent or five times.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid("share", format!("{text:?} {why}"), "write it in percent, such as 5%");
        let number = text.strip_suffix('%').ok_or_else(|| bad("has no percent sign"))?.trim_end();
        let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str, most: usize| (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        // Six digits are more than any share here allows, and stay within a u32.
        if !digits(whole, 6) || !digits(tenths, 1) {
            return Err(bad("is not a percentage with at most one decimal"));
        }
        match (whole.parse::<u32>(), tenths.parse::<u32>()) {
            (Ok(whole), Ok(tenths)) => Ok(Share(whole * 10 + tenths)),
            _ => Err(bad("is not a percentage")),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, tenth) => write!(f, "{whole}.{tenth}%"),
        }
    }
}
