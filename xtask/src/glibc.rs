//! Which glibc a binary needs, by the versions of the symbols that it asks for, and which systems have it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::shell::{self, Error, Result};

/// A glibc version; 2.4 is older than 2.34.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What releases came with which glibc (their package lists of `libc6`).
const RELEASES: &[(Version, &str)] = &[
    (Version(2, 31), "Debian 11"),
    (Version(2, 31), "Ubuntu 20.04"),
    (Version(2, 35), "Ubuntu 22.04"),
    (Version(2, 36), "Debian 12"),
    (Version(2, 39), "Ubuntu 24.04"),
    (Version(2, 41), "Debian 13"),
];

/// What belongs to glibc, or to gcc's runtime that is on every Debian system.
const ALLOWED: &[&str] = &["linux-vdso.", "ld-linux", "libc.", "libm.", "libgcc_s.", "libpthread.", "libdl.", "librt."];

/// The oldest glibc that a binary runs with.
pub fn needed_by(binary: &Path) -> Result<Version> {
    let text = if shell::find("readelf").is_some() {
        let all = shell::output(Command::new("readelf").args(["-W", "-V"]).arg(binary))?;
        all.split_once("Version needs section").map(|(_, needs)| needs.to_owned()).unwrap_or_default()
    } else if shell::find("objdump").is_some() {
        shell::output(Command::new("objdump").arg("-T").arg(binary))?
    } else {
        return Err(Error::new(
            "neither readelf nor objdump is here to say which glibc the binary needs; they come with the package binutils",
        ));
    };
    newest(&text).ok_or_else(|| Error::new(format!("{} names no glibc version", binary.display())))
}

/// The newest `GLIBC_x.y` in what readelf or objdump says.
fn newest(text: &str) -> Option<Version> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != '.').filter_map(symbol_version).max()
}

fn symbol_version(word: &str) -> Option<Version> {
    // Not a number, but it came with 2.36 and no older loader takes the binary.
    if word == "GLIBC_ABI_DT_RELR" {
        return Some(Version(2, 36));
    }
    let mut numbers = word.strip_prefix("GLIBC_")?.split('.').map(str::parse);
    Some(Version(numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The releases whose glibc is at least this one.
pub fn releases(needed: Version) -> Vec<&'static str> {
    RELEASES.iter().filter(|(has, _)| *has >= needed).map(|(_, name)| *name).collect()
}

/// The libraries that a binary is linked with.
///
/// # Errors
/// When one of them is not glibc's: the archive would not run where it is unpacked.
pub fn libraries(binary: &Path) -> Result<Vec<String>> {
    let linked = parse_ldd(&shell::output(Command::new("ldd").arg(binary))?);
    let foreign: Vec<_> = linked.iter().filter(|library| !ALLOWED.iter().any(|allowed| library.starts_with(allowed))).cloned().collect();
    if foreign.is_empty() { Ok(linked) } else { Err(Error::new(format!("linked with more than glibc: {}", foreign.join(", ")))) }
}

fn parse_ldd(text: &str) -> Vec<String> {
    let name = |line: &str| Some(line.split_whitespace().next()?.rsplit('/').next()?.to_owned());
    text.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_and_not_by_letter() {
        assert!(Version(2, 4) < Version(2, 34));
        assert!(Version(2, 34) < Version(3, 0));
    }

    #[test]
    fn the_newest_symbol_is_found_in_what_readelf_and_objdump_say() {
        let readelf = "  0x0010:   Name: GLIBC_2.9  Flags: none  Version: 11\n  0x0020:   Name: GLIBC_2.28  Flags: none  Version: 3\n  0x0: Name: GLIBC_2.2.5";
        assert_eq!(newest(readelf), Some(Version(2, 28)));
        let objdump = "0000 DF *UND* 0000 (GLIBC_2.34) __libc_start_main\n0000 DF *UND* 0000 (GLIBC_2.2.5) read\n0000 (GCC_4.2.0)";
        assert_eq!(newest(objdump), Some(Version(2, 34)));
        assert_eq!(newest("Name: GLIBC_2.31\nName: GLIBC_ABI_DT_RELR"), Some(Version(2, 36)));
        assert_eq!(newest("GLIBC_PRIVATE"), None);
    }

    #[test]
    fn a_release_is_named_when_its_glibc_is_new_enough() {
        assert_eq!(releases(Version(2, 36)), ["Debian 12", "Ubuntu 24.04", "Debian 13"]);
        assert_eq!(releases(Version(2, 30)).len(), RELEASES.len());
        assert!(releases(Version(2, 99)).is_empty());
    }

    #[test]
    fn a_library_is_named_without_its_folder() {
        let ldd = "\tlinux-vdso.so.1 (0x7ff)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(parse_ldd(ldd), ["linux-vdso.so.1", "libc.so.6", "ld-linux-x86-64.so.2"]);
    }
}
