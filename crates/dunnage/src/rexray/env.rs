//! `rexray env`: the configuration as the variables that REX-Ray would read.

use dunnage_model::{Error, Result};

use crate::config::Places;

/// The variables, by name.
// TODO(me): write it, when the configuration reads REX-Ray's keys.
pub fn env(_places: &Places) -> Result<Vec<(String, String)>> {
    Err(Error::unavailable("'env' is not built yet", "look at 'dunnage config show'"))
}
