//! dvdcli as a program of its own: a tenth of the binary `dunnage`, which answers to this name too. Linked statically it starts
//! in a third of the time (`cargo xtask dist`, `cargo xtask bench dvdcli`).

use std::process::ExitCode;

fn main() -> ExitCode {
    dunnage_dvdcli::main()
}
