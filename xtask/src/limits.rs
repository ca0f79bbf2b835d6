//! What a machine may not have at all, so that no package and no right would help: each with its probe.
//!
//! A test that meets one of these is `not possible here`: counted apart from skips and no failure in CI. Only what this
//! table names and its probe confirms passes as such. `docs/limits.md` says the same to readers.

use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::shell::{self, Rights};

/// One thing that a machine may lack.
pub struct Limit {
    /// How tests name it in `NOT POSSIBLE HERE: …` and in `DUNNAGE_NOT_POSSIBLE`.
    pub name: &'static str,
    /// What its absence keeps from being tested.
    pub means: &'static str,
    pub is_here: fn() -> bool,
}

const LIMITS: &[Limit] = &[
    Limit { name: "kernel rbd", means: "the kernel has no rbd module: Ceph images are not mapped by the kernel", is_here: has_rbd },
    Limit { name: "device-mapper", means: "the kernel has no device-mapper: no dm-crypt, no failing devices", is_here: has_device_mapper },
    Limit { name: "online ext4 growth", means: "root lacks CAP_SYS_RESOURCE: a mounted ext4 does not grow", is_here: may_grow_ext4_online },
    Limit {
        name: "unprivileged user namespaces",
        means: "users who are not root have no namespaces (Ubuntu's AppArmor, a sysctl): no rootless engine runs",
        is_here: gives_users_namespaces,
    },
    Limit { name: "outside peer", means: "DUNNAGE_TEST_PEER=HOST:PORT names no machine outside that answers", is_here: has_outside_peer },
];

/// What this machine lacks.
pub fn absent() -> Vec<&'static Limit> {
    LIMITS.iter().filter(|limit| !(limit.is_here)()).collect()
}

/// The limit that a test's reason speaks of.
pub fn named_in<'a>(reason: &str, absent: &[&'a Limit]) -> Option<&'a Limit> {
    let reason = reason.to_lowercase();
    absent.iter().find(|limit| reason.contains(limit.name)).copied()
}

fn has_rbd() -> bool {
    Path::new("/sys/bus/rbd").exists() || has_module("rbd")
}

fn has_device_mapper() -> bool {
    let misc = fs::read_to_string("/proc/misc").unwrap_or_default();
    misc.lines().any(|line| line.ends_with(" device-mapper")) || has_module("dm-mod")
}

/// Whether modprobe would find it.
fn has_module(name: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = Path::new("/lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        let list = fs::read_to_string(folder.join(list)).unwrap_or_default();
        list.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{name}.ko"))))
    })
}

/// EXT4_IOC_RESIZE_FS asks for CAP_SYS_RESOURCE, which containers and some sandboxes take from root.
fn may_grow_ext4_online() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    // A plain user has no capability now; what sudo can give is what the bounding set still has.
    let field = if Rights::here() == Rights::Root { "CapEff" } else { "CapBnd" };
    shell::status_field(field).is_some_and(|set| has_capability(&set, CAP_SYS_RESOURCE))
}

fn has_capability(set: &str, bit: u32) -> bool {
    u64::from_str_radix(set, 16).is_ok_and(|set| set >> bit & 1 == 1)
}

fn gives_users_namespaces() -> bool {
    let program = if Rights::here() == Rights::Root { "setpriv" } else { "unshare" };
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "unshare"];
    let before: &[&str] = if Rights::here() == Rights::Root { &nobody } else { &[] };
    Command::new(program).args(before).args(["-Ur", "true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn has_outside_peer() -> bool {
    let Ok(peer) = std::env::var("DUNNAGE_TEST_PEER") else { return false };
    peer.to_socket_addrs()
        .is_ok_and(|addresses| addresses.into_iter().any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_read_from_its_bit() {
        assert!(has_capability("000001ffffffffff", 24));
        assert!(!has_capability("000001fffeffffff", 24));
        assert!(!has_capability("", 24));
    }

    #[test]
    fn a_reason_counts_only_when_it_names_what_the_machine_lacks() {
        let absent: Vec<_> = LIMITS.iter().filter(|limit| limit.name == "kernel rbd").collect();
        assert!(named_in("no kernel rbd", &absent).is_some());
        assert!(named_in("No Kernel RBD: modprobe failed", &absent).is_some());
        assert!(named_in("no device-mapper", &absent).is_none());
        assert!(named_in("did not feel like it", &absent).is_none());
    }
}
