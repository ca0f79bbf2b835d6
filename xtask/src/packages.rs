//! The Debian/Ubuntu packages that the tests need: which are missing, what each is for, and putting them in.
//!
//! Nothing is removed and no service is started: the packages go in under a temporary `policy-rc.d` that says no to
//! every start, and apt is told to fail sooner than remove something.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use crate::shell::{self, Context, Error, Result, Rights};

struct Package {
    name: &'static str,
    /// The tiers that have tests which need it.
    tiers: &'static [u8],
    here_if: Here,
    why: &'static str,
    /// Older releases have it in another package of this list: installed where apt knows of it.
    split_off: bool,
    /// It fits only with the others of QEMU in their very version: where one is missing all are asked for.
    of_qemu: bool,
}

/// How one sees that a package's use is here, by whatever way it came.
enum Here {
    Command(&'static str),
    /// A command that runs in an empty container, too. `conflicts` would be removed by installing it.
    StaticCommand {
        command: &'static str,
        conflicts: &'static str,
    },
    File(&'static str),
}

const fn package(name: &'static str, tiers: &'static [u8], here_if: Here, why: &'static str) -> Package {
    Package { name, tiers, here_if, why, split_off: false, of_qemu: false }
}

const fn of_qemu(name: &'static str, here_if: Here, why: &'static str) -> Package {
    Package { of_qemu: true, ..package(name, &[3, 4], here_if, why) }
}

const QEMU_RBD: &str = if cfg!(target_arch = "aarch64") {
    "/usr/lib/aarch64-linux-gnu/qemu/block-rbd.so"
} else {
    "/usr/lib/x86_64-linux-gnu/qemu/block-rbd.so"
};

const PACKAGES: &[Package] = &[
    package("e2fsprogs", &[2, 3, 4], Here::Command("mkfs.ext4"), "makes, checks and grows ext4"),
    package("xfsprogs", &[2, 3, 4], Here::Command("mkfs.xfs"), "makes xfs"),
    package("btrfs-progs", &[2, 3, 4], Here::Command("mkfs.btrfs"), "makes btrfs"),
    package("cryptsetup-bin", &[2], Here::Command("cryptsetup"), "makes LUKS headers, which must not be formatted over"),
    package("lvm2", &[2], Here::Command("pvcreate"), "makes LVM volumes, which must not be formatted over"),
    package("mdadm", &[2], Here::Command("mdadm"), "makes RAID members, which must not be formatted over"),
    package("ntfs-3g", &[2], Here::Command("mkfs.ntfs"), "makes ntfs, which must not be formatted over"),
    package("fdisk", &[2], Here::Command("sfdisk"), "makes partition tables, which must not be formatted over"),
    package("podman", &[3], Here::Command("podman"), "another engine"),
    package("docker-compose", &[3], Here::Command("docker-compose"), "many containers at once"),
    package("util-linux", &[2, 3, 4], Here::Command("unshare"), "namespaces for the tests, blkid"),
    package("mount", &[2, 3, 4], Here::Command("losetup"), "mount, umount and losetup"),
    package("procps", &[2, 3, 4], Here::Command("ps"), "looks at the daemons that the tests start"),
    package("iproute2", &[2, 3, 4], Here::Command("ip"), "networks between nodes"),
    package("iptables", &[3, 4], Here::Command("iptables"), "nodes that hear and are not heard"),
    package("bash", &[2, 3], Here::Command("bash"), "runs the completion script"),
    package(
        "bash-completion",
        &[2, 3],
        Here::File("/usr/share/bash-completion/bash_completion"),
        "loads the completion script as a user's shell does",
    ),
    // Not `man`: minimized Ubuntu images have a stub of that name.
    package("man-db", &[2, 3], Here::Command("mandb"), "renders the manual pages"),
    package("systemd", &[2, 3], Here::Command("systemd-analyze"), "systemd-analyze verifies the unit files; systemd itself is not started"),
    package("docker.io", &[3], Here::Command("dockerd"), "an engine that the tests start by themselves"),
    // A package of its own since Debian 13.
    Package { split_off: true, ..package("docker-cli", &[3], Here::Command("docker"), "what talks to the engine") },
    package("ceph-mon", &[3, 4], Here::Command("ceph-mon"), "a Ceph cluster that the tests start by themselves: its monitor"),
    package("ceph-osd", &[3, 4], Here::Command("ceph-osd"), "its storage daemons"),
    package("ceph-common", &[3, 4], Here::Command("rbd"), "what an operator types, and librados and librbd, which the driver loads"),
    package("rbd-nbd", &[4], Here::Command("rbd-nbd"), "carries Ceph's images where the kernel has nbd and no rbd"),
    package("ceph-mds", &[3], Here::Command("ceph-mds"), "the metadata server of its filesystem"),
    package("ceph-fuse", &[3], Here::Command("ceph-fuse"), "mounts that filesystem"),
    of_qemu("qemu-system-common", Here::Command("qemu-storage-daemon"), "carries Ceph's images where the kernel cannot"),
    // Which of the two has qemu-storage-daemon differs from release to release.
    of_qemu("qemu-utils", Here::Command("qemu-img"), "the same, in newer releases"),
    of_qemu("qemu-block-extra", Here::File(QEMU_RBD), "lets qemu-storage-daemon open Ceph's images"),
    Package {
        of_qemu: true,
        ..package("qemu-system-x86", &[4], Here::Command("qemu-system-x86_64"), "emulates machines with kernels of their own")
    },
    package("kmod", &[4], Here::Command("depmod"), "finds the modules of their kernel"),
    package("cpio", &[4], Here::Command("cpio"), "packs their first filesystem"),
    package(
        "busybox-static",
        &[3, 4],
        Here::StaticCommand { command: "busybox", conflicts: "busybox" },
        "the image that test containers run",
    ),
];

/// Whether the person who started us has agreed beforehand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Ask on the terminal.
    Ask,
    Given,
    /// Install nothing, go on with what is there.
    Refused,
}

/// Sees to it that the packages for these tiers are here, as far as the person and the machine allow.
///
/// # Errors
/// When something is missing and nobody can be asked, or when apt fails.
pub fn provide(tiers: &[u8], consent: Consent) -> Result<()> {
    let (missing, in_the_way): (Vec<_>, Vec<_>) = missing(tiers).into_iter().partition(|package| conflict(package).is_none());
    for package in in_the_way {
        let other = conflict(package).unwrap_or_default();
        println!("{} is missing ({}), and stays so: installing it would remove {other}.", package.name, package.why);
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("The tests need packages that are not here:");
    for package in &missing {
        println!("  {:16} {}", package.name, package.why);
    }
    let go_on = || println!("Going on with what is there; tests that need them will be skipped and say so.\n");
    if consent == Consent::Refused {
        go_on();
        return Ok(());
    }
    if !is_debian(&fs::read_to_string("/etc/os-release").unwrap_or_default()) || shell::find("apt-get").is_none() {
        println!("This is neither Debian nor Ubuntu: please install what these packages hold by your system's own means.");
        go_on();
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    let line = format!("apt-get install -y --no-install-recommends --no-remove {}", names.join(" "));
    let rights = Rights::here();
    if rights == Rights::None {
        return Err(Error::new(format!(
            "installing needs root and there is no sudo that works; as root, run\n    {line}\nor use --no-install"
        )));
    }
    if consent == Consent::Ask {
        if !shell::on_a_terminal() {
            return Err(Error::new(format!("nobody to ask here; run\n    {line}\nor use --yes or --no-install")));
        }
        if !ask("Install them now, starting no service and removing nothing? [y/N] ")? {
            go_on();
            return Ok(());
        }
    }
    install(rights, &missing)
}

fn missing(tiers: &[u8]) -> Vec<&'static Package> {
    let asked = PACKAGES.iter().filter(|package| package.tiers.iter().any(|tier| tiers.contains(tier)));
    let asked: Vec<_> = asked.map(|package| (package, is_here(package))).collect();
    let lacks_qemu = asked.iter().any(|(package, here)| package.of_qemu && !here);
    asked.into_iter().filter(|(package, here)| !here || package.of_qemu && lacks_qemu).map(|(package, _)| package).collect()
}

fn is_here(package: &Package) -> bool {
    match package.here_if {
        Here::Command(command) => shell::find(command).is_some(),
        Here::File(file) => Path::new(file).exists(),
        // ldd fails on what has no dynamic section.
        Here::StaticCommand { command, .. } => shell::find(command).is_some_and(|path| !shell::succeeds(Command::new("ldd").arg(path))),
    }
}

/// The package that would have to go for this one.
fn conflict(package: &Package) -> Option<&'static str> {
    let Here::StaticCommand { conflicts, .. } = package.here_if else { return None };
    let status = shell::output(Command::new("dpkg-query").args(["-W", "-f=${Status}", conflicts])).ok()?;
    (status == "install ok installed").then_some(conflicts)
}

/// Whether an os-release file is that of Debian, Ubuntu or a child of theirs.
fn is_debian(os_release: &str) -> bool {
    let value = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.trim_matches(['"', '\'']).to_owned()));
    os_release
        .lines()
        .filter_map(value)
        .any(|(key, value)| matches!(key.as_str(), "ID" | "ID_LIKE") && value.split(' ').any(|id| matches!(id, "debian" | "ubuntu")))
}

fn ask(question: &str) -> Result<bool> {
    print!("{question}");
    io::stdout().flush().context("cannot ask")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}

/// Installs `"$@"` as root. A script and not Rust because its traps put policy-rc.d back on Ctrl-C, too, and because
/// one sudo then does all. What a killed run left is found by its name or its mark and put right first. A failed
/// `apt-get update` is not the end: the lists may be good enough.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
kept=/usr/sbin/policy-rc.d.kept-by-dunnage-tests
mark='# by the Dunnage tests, for the time of one installation'
restore() {
    if [ -e "$kept" ] || [ -L "$kept" ]; then mv -f "$kept" "$policy"
    elif grep -qsxF "$mark" "$policy"; then rm -f "$policy"
    fi
}
restore
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$kept"; fi
printf '#!/bin/sh\n%s\nexit 101\n' "$mark" > "$policy"
chmod 755 "$policy"
export DEBIAN_FRONTEND=noninteractive
apt-get update || echo 'apt-get update failed; trying with the lists that are here' >&2
# What begins with a question mark is left out where there is no such package. What begins with an equals sign goes back to what
# the sources offer if it is here in a version that they do not have: apt would remove it, for the rest does not fit with it.
for name in "$@"; do
    shift
    case $name in
    '?'*) if apt-cache show "${name#?}" > /dev/null 2>&1; then set -- "$@" "${name#?}"; fi ;;
    '='*)
        name=${name#=}
        here=$(dpkg-query -W -f='${Version}' "$name" 2> /dev/null || :)
        offered=$(apt-cache madison "$name" | awk -F '|' '{ gsub(/ /, "", $2); print $2 }')
        if [ -n "$here" ] && [ -n "$offered" ] && ! printf '%s\n' "$offered" | grep -qxF "$here"; then
            back=$(printf '%s\n' "$offered" | head -n 1)
            echo "$name goes from $here to $back: no source of this machine has the former, and the rest of QEMU would not fit."
            name="--allow-downgrades $name=$back"
        fi
        set -- "$@" $name ;;
    *) set -- "$@" "$name" ;;
    esac
done
apt-get install -y --no-install-recommends --no-remove "$@"
"#;

fn install(rights: Rights, packages: &[&Package]) -> Result<()> {
    println!("Installing {} ...", packages.iter().map(|package| package.name).collect::<Vec<_>>().join(", "));
    let marked = packages.iter().map(|package| {
        let mark = [(package.split_off, "?"), (package.of_qemu, "=")].into_iter().find_map(|(so, mark)| so.then_some(mark));
        format!("{}{}", mark.unwrap_or_default(), package.name)
    });
    let status = rights.command("sh").args(["-c", INSTALL, "sh"]).args(marked).status().context("cannot run apt-get")?;
    if !status.success() {
        return Err(Error::new(format!("the packages could not be installed ({status}); --no-install goes on without them")));
    }
    println!();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_ubuntu_and_their_children_are_known_and_others_are_not() {
        assert!(is_debian("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"));
        assert!(is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nPRETTY_NAME=\"not debian\"\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn the_tiers_without_special_rights_need_no_package() {
        assert!(PACKAGES.iter().all(|package| !package.tiers.contains(&0) && !package.tiers.contains(&1)));
    }

    #[test]
    fn a_package_is_listed_once_and_says_what_it_is_for() {
        let mut names: Vec<_> = PACKAGES.iter().map(|package| package.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
        assert!(PACKAGES.iter().all(|package| !package.why.is_empty()));
    }
}
