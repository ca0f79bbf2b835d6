//! dvdcli as a program of its own: a fifth of the binary `dunnage`, which answers to this name too. Linked statically it starts in
//! less than half the time (`cargo xtask dist`, `cargo xtask bench dvdcli`).

use std::process::ExitCode;

fn main() -> ExitCode {
    dunnage_dvdcli::main()
}
