//! The program that stands in for this one where the network is needed: `dunnage`, which is dvdcli under that name, too.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use dunnage_model::Error;

use crate::cli::NAME;

/// Where it is from our own folder: as it is installed, and as the archive has it.
const PLACES: [&str; 2] = ["../../bin/dunnage", "../../dunnage"];

/// Becomes it, with the same arguments. Whoever gets an answer is still here.
pub fn hand_over(address: &impl std::fmt::Display) -> Error {
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("/"));
    let Some(binary) = PLACES.iter().map(|place| folder.join(place)).find(|binary| binary.exists()) else {
        let detail = format!("{address} is on the network, which this program leaves to 'dunnage', and that is not where it belongs");
        return Error::unavailable(detail, format!("install it again, or call a link to dunnage by the name {NAME}"));
    };
    let e = Command::new(&binary).arg0(NAME).args(std::env::args_os().skip(1)).exec();
    Error::os(format_args!("cannot run {}", binary.display()), &e)
}
