//! What `install` puts on a machine works there: pages render, completions complete, units are sound and do what they
//! say. And `uninstall` takes all of it away, but not while volumes are held.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dunnage_tests::sh;
use dunnage_tests::{Node, binary, scratch, small_dvdcli};
use serde_json::json;

/// An installation beneath a folder, as a package makes it.
struct Installed {
    root: PathBuf,
}

impl Installed {
    fn new() -> Installed {
        let root = scratch();
        run(&["install", "--root", &root.display().to_string()]);
        Installed { root }
    }

    fn at(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
}

const SERVICE: &str = "etc/systemd/system/dunnage.service";
const SHUTDOWN: &str = "etc/systemd/system/dunnage-shutdown.service";

/// Runs the binary; it has to work.
#[track_caller]
fn run(args: &[&str]) -> String {
    let output = Command::new(binary()).args(args).stdin(Stdio::null()).output().expect("the binary runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A unit's values of a key.
fn values<'t>(unit: &'t str, key: &str) -> Vec<&'t str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn every_manual_page_renders_without_a_warning() {
    let installed = Installed::new();
    let folder = installed.root.join("usr/local/share/man/man1");
    let pages: Vec<PathBuf> = std::fs::read_dir(&folder).expect("pages").flatten().map(|entry| entry.path()).collect();
    assert!(pages.len() > 10, "{pages:?}");
    for page in pages {
        let mut man = Command::new("man");
        man.args(["--warnings", "-l"]).arg(&page).env("MANPAGER", "cat").env("MANWIDTH", "80").stdin(Stdio::null());
        let output = man.output().expect("man");
        let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.is_empty(), "{}: {said}", page.display());
        assert!(text.contains("NAME") && text.contains("SYNOPSIS"), "{}: {text}", page.display());
    }
}

#[test]
fn the_bash_completion_is_sound_and_completes() {
    let installed = Installed::new();
    let script = installed.at("usr/local/share/bash-completion/completions/dunnage");
    sh(&format!("bash -n {script}"));
    let complete = format!(
        "source {script}; COMP_WORDS=(dunnage volume c); COMP_CWORD=2; \
         $(complete -p dunnage | sed 's/.*-F \\([^ ]*\\).*/\\1/') dunnage c volume; echo \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash").args(["-ec", &complete]).stdin(Stdio::null()).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "create", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completions_are_printed_for_each_shell() {
    for (shell, sign) in [("bash", "complete -F"), ("zsh", "#compdef dunnage"), ("fish", "complete -c dunnage")] {
        assert!(run(&["completion", shell]).contains(sign), "{shell}");
    }
}

#[test]
fn each_command_has_help_and_it_exits_0() {
    fn walk(command: &[&str]) -> usize {
        let help = run(&[command, &["--help"]].concat());
        let commands = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
        let names = commands.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
        let names = names.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split_whitespace().next());
        1 + names.filter(|name| *name != "help").map(|name| walk(&[command, &[name]].concat())).sum::<usize>()
    }
    assert!(walk(&[]) > 18, "all commands were found");
}

#[test]
fn the_service_leaves_mounts_alone_and_hides_none() {
    let unit = Installed::new().read(SERVICE);
    assert_eq!(values(&unit, "KillMode"), ["process"]);
    assert!(values(&unit, "Before").iter().any(|before| before.split(' ').any(|unit| unit == "docker.service")));
    for hides in ["ProtectSystem", "PrivateTmp", "PrivateMounts", "PrivateDevices", "ProtectHome", "MountFlags", "RuntimeDirectory"] {
        assert_eq!(values(&unit, hides), [""; 0], "{hides}");
    }
    assert_eq!(values(&unit, "ExecStart"), ["/usr/local/bin/dunnage start --foreground"]);
}

#[test]
fn the_shutdown_unit_stops_after_the_containers_and_before_the_daemon() {
    let unit = Installed::new().read(SHUTDOWN);
    let has = |key: &str, name: &str| values(&unit, key).iter().any(|value| value.split(' ').any(|word| word == name));
    // Stopping goes the other way round than starting.
    assert!(has("Before", "docker.service") && has("After", "dunnage.service") && has("After", "network.target"), "{unit}");
}

#[test]
fn a_daemon_that_is_stopped_and_started_by_hand_does_not_disarm_the_shutdown_unit() {
    let installed = Installed::new();
    let (service, shutdown) = (installed.read(SERVICE), installed.read(SHUTDOWN));
    let follows = |key: &str| values(&shutdown, key).iter().any(|value| value.contains("dunnage.service"));
    // A stop is passed on by these; a start comes back only if the service asks for it.
    let stops_with_it = ["Requires", "BindsTo", "PartOf"].into_iter().any(follows);
    let starts_with_it = ["Wants", "Requires", "Upholds"]
        .iter()
        .any(|key| values(&service, key).iter().any(|value| value.contains("dunnage-shutdown.service")));
    assert!(!stops_with_it || starts_with_it, "{shutdown}");
}

/// What is installed beneath a root, seen where it says that it is: at a prefix of the test's own.
fn installed_for_real() -> (PathBuf, PathBuf) {
    let root = scratch();
    let prefix = PathBuf::from(format!("/run/{}-prefix", root.file_name().expect("name").display()));
    let (to, from) = (prefix.display(), root.join(prefix.strip_prefix("/").expect("absolute")));
    run(&["install", "--root", &root.display().to_string(), "--prefix", &to.to_string()]);
    sh(&format!("mkdir {to}; mount --bind {} {to}", from.display()));
    (root, prefix)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let (root, prefix) = installed_for_real();
    for unit in std::fs::read_dir(root.join("etc/systemd/system")).expect("units").flatten() {
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=yes"]).arg(unit.path()).env("MANPATH", prefix.join("share/man")).stdin(Stdio::null());
        let output = verify.output().expect("systemd-analyze");
        let said = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("dunnage")).collect();
        assert!(output.status.success() && ours.is_empty(), "{}: {said}", unit.path().display());
    }
    sh(&format!("umount {}", prefix.display()));
}

#[test]
fn the_shutdown_units_own_line_lets_go_of_everything() {
    let (root, prefix) = installed_for_real();
    let mut node = Node::started();
    for volume in ["a", "b"] {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": volume, "Opts": { "size": "16M" } }));
        node.mount(volume, "c1");
    }
    let unit = std::fs::read_to_string(root.join(SHUTDOWN)).expect("unit");
    let lines = values(&unit, "ExecStop");
    assert_eq!(lines.len(), 1, "{unit}");
    let mut stop = Command::new("/bin/sh");
    stop.args(["-c", lines[0]]).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null()).stdout(Stdio::null());
    stop.env("DUNNAGE_STATE_DIR", node.state()).env("DUNNAGE_RUN_DIR", node.run_dir()).env("DUNNAGE_PLUGIN_DIR", &node.plugins);
    let status = stop.status().expect("sh");
    assert!(status.success(), "{}: {status}", lines[0]);
    node.wait_until_dead();
    node.assert_nothing_left();
    sh(&format!("umount {}", prefix.display()));
}

#[test]
fn nobody_but_a_shutdown_stops_the_shutdown_unit() {
    let unit = Installed::new().read(SHUTDOWN);
    assert_eq!(values(&unit, "RefuseManualStop"), ["yes"]);
}

#[test]
fn an_installation_over_a_binary_that_runs_works_and_the_daemon_goes_on() {
    let installed = Installed::new();
    let node = Node::new();
    let binary = installed.at("usr/local/bin/dunnage");
    let mut command = Command::new(&binary);
    command.args(node.command().get_args()).args(["start", "-f"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = command.spawn().expect("daemon");
    let runs = || node.cli(&["status"]).code == 0;
    dunnage_tests::eventually("it serves", dunnage_tests::BOUND, runs);
    run(&["install", "--root", &installed.root.display().to_string()]);
    // Its helpers are the old binary, which has no name any more.
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }));
    node.mount("pg", "c1");
    node.unmount("pg", "c1");
    node.assert_nothing_left();
    node.cli(&["stop"]).ok();
    assert!(daemon.wait().expect("wait").success());
    assert!(sh(&format!("{binary} version")).starts_with("dunnage "));
}

fn files_beneath(folder: &Path) -> String {
    sh(&format!("find {} -type f -o -type l", folder.display()))
}

#[test]
fn an_uninstallation_removes_every_file_and_nothing_else() {
    let installed = Installed::new();
    std::fs::write(installed.root.join("usr/local/bin/other"), "other").expect("write");
    run(&["uninstall", "--root", &installed.root.display().to_string()]);
    assert_eq!(files_beneath(&installed.root), installed.at("usr/local/bin/other"));
}

#[test]
fn dvdcli_is_installed_beside_the_binary_and_runs() {
    let installed = Installed::new();
    let said = sh(&installed.at("usr/local/bin/dvdcli version"));
    assert!(said.contains("SemVer: "), "{said}");
    assert!(installed.read("usr/local/share/man/man1/dvdcli-mount.1").contains("explicitcreate"));
}

#[test]
fn from_an_archive_dvdcli_is_the_small_program_and_leaves_the_network_to_the_other() {
    let (archive, root) = (scratch(), scratch());
    sh(&format!(
        "cd {}; mkdir -p libexec/dunnage; cp {} .; cp {} libexec/dunnage/; ./dunnage install --root {}; ./dunnage install --root {}",
        archive.display(),
        binary().display(),
        small_dvdcli().display(),
        root.display(),
        root.display()
    ));
    let installed = Installed { root };
    assert!(sh(&installed.at("usr/local/bin/dvdcli version")).contains("libexec/dunnage/dvdcli\n"));
    // What is installed installs the same: as a person does after an upgrade.
    sh(&format!("{} --root {}", installed.at("usr/local/bin/dunnage install"), installed.root.display()));
    assert!(sh(&installed.at("usr/local/bin/dvdcli version")).contains("libexec/dunnage/dvdcli\n"));
    let node = Node::started();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }));
    let ask = format!("{} --volumedriver=dunnage --volumename=pg", installed.at("usr/local/bin/dvdcli get"));
    assert_eq!(sh(&format!("DUNNAGE_PLUGIN_DIR={} {ask}", node.plugins.display())), "pg");
    // Nobody listens there: it is `dunnage` that says so, and without it the small one says what it lacks.
    let etc = scratch();
    sh(&format!("mkdir -p {0}/up/docker/plugins {0}/work; echo tcp://localhost:1 > {0}/up/docker/plugins/far.spec", etc.display()));
    let ask = || {
        let overlay = format!("mount -t overlay etc -o lowerdir=/etc,upperdir={0}/up,workdir={0}/work /etc", etc.display());
        let ask = installed.at("usr/local/bin/dvdcli list --volumedriver=far");
        sh(&format!("unshare --mount sh -c '{overlay} && ! {ask} 2>&1'"))
    };
    let said = ask();
    assert!(said.contains("nothing answers on tcp://localhost:1: Connection refused"), "{said}");
    std::fs::remove_file(installed.at("usr/local/bin/dunnage")).expect("remove");
    let said = ask();
    assert!(said.contains("install it again"), "{said}");
    run(&["uninstall", "--root", &installed.root.display().to_string()]);
    assert_eq!(files_beneath(&installed.root), "");
}

#[test]
fn rexray_is_installed_beside_the_binary_and_runs() {
    let installed = Installed::new();
    let said = sh(&installed.at("usr/local/bin/rexray version"));
    assert!(said.starts_with("REX-Ray\n") && said.contains("SemVer: "), "{said}");
    assert!(installed.read("usr/local/share/man/man1/rexray-volume-create.1").contains("availabilityZone"));
    // A bare question mark would be a pattern.
    let fish = installed.read("usr/local/share/fish/vendor_completions.d/rexray.fish");
    assert!(fish.contains(r"-s \? ") && !fish.contains("-s ? "), "{fish}");
}

#[test]
fn another_program_that_is_called_dvdcli_is_neither_overwritten_nor_removed() {
    let root = scratch();
    let theirs = root.join("usr/local/bin/dvdcli");
    std::fs::create_dir_all(theirs.parent().expect("parent")).expect("mkdir");
    std::fs::write(&theirs, "theirs").expect("write");
    let tried = Command::new(binary()).args(["install", "--root"]).arg(&root).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&tried.stderr);
    assert!(tried.status.code() == Some(4) && said.contains("usr/local/bin/dvdcli"), "{said}");
    run(&["uninstall", "--root", &root.display().to_string()]);
    assert_eq!(files_beneath(&root), theirs.display().to_string());
}

#[test]
fn an_uninstallation_is_refused_while_volumes_are_held_and_while_the_daemon_runs() {
    let mut node = Node::started();
    let units = node.folder.join("units");
    sh(&format!("mkdir {0}; mount --bind {0} /etc/systemd/system", units.display()));
    let prefix = node.folder.join("prefix").display().to_string();
    node.cli(&["install", "--prefix", &prefix]).ok();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": { "size": "16M" } }));
    node.mount("pg", "c1");
    node.stop();
    let said = node.cli(&["uninstall", "--prefix", &prefix]).fails(5);
    assert!(said.contains("local/pg") && said.contains("stop --release"), "{said}");
    node.start();
    node.unmount("pg", "c1");
    let said = node.cli(&["uninstall", "--prefix", &prefix]).fails(5);
    assert!(said.contains(&format!("pid {}", node.pid())), "{said}");
    assert!(Path::new(&prefix).join("bin/dunnage").exists() && units.join("dunnage.service").exists());
    node.stop();
    node.cli(&["uninstall", "--prefix", &prefix]).ok();
    assert_eq!((files_beneath(Path::new(&prefix)), files_beneath(&units)), (String::new(), String::new()));
    assert!(node.image("pg").exists(), "volumes and their data stay");
    sh("umount /etc/systemd/system");
}
