//! The examples of the documents that Dunnage was asked to implement, word for word: each is read from the document itself, so
//! that it cannot drift, and typed as it stands, under REX-Ray's own paths.
//!
//! `/var/lib` is a folder of the test's own in here; programs are found by the names that the documents use.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use dunnage_tests::ceph::Ceph;
use dunnage_tests::docker::{Bench, Docker};
use dunnage_tests::{BOUND, Node, Ran, binary, eventually, is_mounted, scratch, sh};
use serde_json::{Value, json};

const PORTWORX: &str = include_str!("../fixtures/seeds/000_32242b94819c26b5.txt");
const MESOS: &str = include_str!("../fixtures/seeds/001_f98a397be9afa02e.txt");
const ISOLATOR: &str = include_str!("../fixtures/seeds/002_7f7b072f2def43f1.txt");
const SCHEDULERS: &str = include_str!("../fixtures/seeds/003_daefce576514952a.txt");

const VOLUMES: &str = "/var/lib/rexray/volumes";

/// One at a time: they share REX-Ray's paths.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static LIB: OnceLock<PathBuf> = OnceLock::new();
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    LIB.get_or_init(|| {
        let lib = scratch();
        sh(&format!("mount --bind {} /var/lib", lib.display()));
        lib
    });
    guard
}

/// The text between two marks of a document, each there once after the last.
#[track_caller]
fn between<'t>(text: &'t str, begin: &str, end: &str) -> &'t str {
    let from = text.find(begin).unwrap_or_else(|| panic!("{begin:?} is not in the document"));
    let rest = &text[from..];
    let to = rest[begin.len()..].find(end).unwrap_or_else(|| panic!("{end:?} is not in the document")) + begin.len();
    &rest[..to]
}

/// The lines of a text without the blanks that all of them begin with.
fn flush_left(text: &str) -> String {
    let blanks = |line: &&str| line.len() - line.trim_start().len();
    let margin = text.lines().filter(|line| !line.trim().is_empty()).map(|line| blanks(&line)).min().unwrap_or(0);
    text.lines().map(|line| line.get(margin..).unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The first whole JSON value from a mark on.
#[track_caller]
fn json_after(text: &str, mark: &str) -> Value {
    let from = text.find(mark).unwrap_or_else(|| panic!("{mark:?} is not in the document"));
    let begin = text[from..].find('{').expect("a value") + from;
    serde_json::Deserializer::from_str(&text[begin..]).into_iter().next().expect("a value").expect("json")
}

/// A node, and a shell that finds the programs by their names.
struct Shell<'n> {
    node: &'n Node,
    bin: PathBuf,
}

impl<'n> Shell<'n> {
    fn new(node: &'n Node, docker: Option<&Docker>) -> Shell<'n> {
        let bin = node.folder.join("bin");
        std::fs::create_dir_all(&bin).expect("folder");
        for name in ["dunnage", "dvdcli", "rexray"] {
            let _ = std::fs::remove_file(bin.join(name));
            symlink(binary(), bin.join(name)).expect("symlink");
        }
        let script = |name: &str, text: String| {
            std::fs::write(bin.join(name), text).expect("script");
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).expect("script");
        };
        script("sudo", "#!/bin/sh\nexec \"$@\"\n".to_owned());
        if let Some(docker) = docker {
            let real = dunnage_tests::docker::find("docker").expect("docker");
            script("docker", format!("#!/bin/sh\nDOCKER_HOST={} exec {} \"$@\"\n", docker.host(), real.display()));
        }
        Shell { node, bin }
    }

    fn run(&self, line: &str) -> Ran {
        self.run_as(&[], line)
    }

    fn run_as(&self, before: &[&str], line: &str) -> Ran {
        let mut words: Vec<&str> = before.to_vec();
        words.extend(["sh", "-c", line]);
        let mut command = Command::new(words[0]);
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(&words[1..]).current_dir(&self.bin).env("PATH", format!("{}:{path}", self.bin.display()));
        command.env("DUNNAGE_STATE_DIR", self.node.state()).env("DUNNAGE_RUN_DIR", self.node.run_dir());
        command.env("DUNNAGE_PLUGIN_DIR", &self.node.plugins).env("DUNNAGE_NODE", "n1");
        command.env("DUNNAGE_LOG_FILE", self.node.folder.join("log"));
        let config = self.node.folder.join("config.yml");
        if config.exists() {
            command.env("DUNNAGE_CONFIG", config);
        }
        let output = command.output().expect("sh");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The volume is released.
    #[track_caller]
    fn released(&self, volume: &str) {
        eventually("it is released", BOUND, || !is_mounted(&Path::new(VOLUMES).join(volume)));
    }
}

/// What `rexray install` leaves where there was no configuration.
fn installed_configuration() -> String {
    let root = scratch();
    let rexray = root.join("rexray");
    symlink(binary(), &rexray).expect("symlink");
    // Its folders are beneath the test's own; what it installs goes nowhere else.
    let ran = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(format!(
            "for d in /usr/local /etc/systemd; do mkdir -p $d; mount -t tmpfs tmpfs $d; done; REXRAY_HOME={} {} install",
            root.display(),
            rexray.display()
        ))
        .output()
        .expect("rexray");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    std::fs::read_to_string(root.join("etc/rexray/config.yml")).expect("a configuration")
}

/// A node with an endpoint `rexray` on the driver `local`, as `rexray install` sets it up.
fn local_node() -> Node {
    let mut node = Node::new();
    node.configure(&installed_configuration());
    node.endpoint = "rexray";
    node.start();
    node
}

#[test]
fn the_virtualbox_configurations_start_and_their_endpoint_names_the_driver_that_is_missing() {
    let _alone = alone();
    let examples = [
        flush_left(between(MESOS, "rexray:\n  storageDrivers", "```")),
        flush_left(between(SCHEDULERS, "rexray:\n  storageDrivers", "\n\nExtra Global")),
        flush_left(SCHEDULERS.rsplit_once("\n\nrexray:\n").map(|(_, last)| format!("rexray:\n{last}")).expect("the last one").as_str()),
    ];
    for (n, example) in examples.iter().enumerate() {
        assert!(example.contains("virtualbox:\n  endpoint: http://yourlaptop:18083"), "{example}");
        let mut node = Node::new();
        node.configure(example);
        node.endpoint = "rexray";
        let checked = node.cli(&["config", "check"]).ok();
        assert!(checked.contains("rexray.volume.mount.preempt") && checked.contains("tightened"), "{checked}");
        assert_eq!(checked.contains("defaults size=1GiB"), n == 1, "docker.size: 1 stands in one of them");
        node.start();
        let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "test", "Opts": {} }));
        assert!(said.starts_with("platform_unavailable") && said.contains("virtualbox"), "{said}");
        assert_eq!(node.cli(&["status"]).code, 21, "degraded, and serving");
        node.finish();
    }
}

#[test]
fn the_service_starts_with_the_banner_and_stops_as_it_says() {
    let _alone = alone();
    let node = Node::new();
    node.configure(&installed_configuration());
    let shell = Shell::new(&node, None);
    let line = between(SCHEDULERS, "sudo rexray start", "\n");
    let ran = shell.run(line);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let pid = ran.out.split("running at PID ").nth(1).and_then(|rest| rest.split('.').next()).expect("a PID").to_owned();
    assert!(shell.run("rexray status").ok().contains(&pid));
    // The document's words, but for the number and the path.
    let shown = between(SCHEDULERS, "Starting REX-Ray...SUCESS!", "\n\nFollowing this");
    let words = |text: &str| text.split_whitespace().map(|word| word.replace("18141", &pid).replace(&pid, "PID")).collect::<Vec<_>>();
    let stop = between(SCHEDULERS, "sudo rexray stop", "\n");
    // This daemon's places are not the usual ones, and the line says so.
    let places = format!(" --run-dir {}", node.run_dir().display());
    let printed = ran.out.replace(&format!("{}/rexray", shell.bin.display()), "rexray").replace(&places, "");
    assert_eq!(words(printed.trim()), words(shown), "{}", ran.out);
    let stop_line = ran.out.lines().find(|line| line.contains(" stop")).expect("how to stop it").trim();
    assert!(stop_line.starts_with("sudo ") && stop_line.contains("rexray stop") && stop == "sudo rexray stop", "{stop_line}");
    shell.run(stop_line).ok();
    assert!(!shell.run("rexray status").out.contains(&pid));
    node.assert_nothing_left();
    sh(&format!("umount {VOLUMES}"));
}

#[test]
fn dvdcli_mounts_as_the_pages_type_it_and_says_which_options_are_hints() {
    let _alone = alone();
    let mut node = local_node();
    let shell = Shell::new(&node, None);
    let of_mesos = between(MESOS, "    dvdcli mount --volumedriver=rexray", "\n\n");
    let of_isolator = between(ISOLATOR, "/go/src/github.com/clintonskitson/dvdcli/dvdcli mount", "\n")
        .replace("/go/src/github.com/clintonskitson/dvdcli/", "");
    for line in [of_mesos, &of_isolator] {
        let ran = shell.run(line.trim());
        assert_eq!((ran.code, ran.out.as_str()), (0, format!("{VOLUMES}/test123456789/data\n").as_str()), "{}", ran.err);
        assert!(is_mounted(Path::new(VOLUMES).join("test123456789").as_path()));
        let inspected: Value = serde_json::from_str(&shell.run("dunnage volume inspect -o json test123456789").ok()).expect("json");
        assert_eq!((&inspected["spec"]["size"], &inspected["spec"]["fs"]), (&json!(5_u64 << 30), &json!("ext4")));
        assert_eq!(inspected["spec"]["hints"], json!({ "iops": "150", "type": "io1" }));
    }
    let ran = shell.run("dvdcli create --volumedriver=rexray --volumename=hinted --volumeopts=iops=150 --volumeopts=size=1");
    assert!(ran.err.contains("iops=150 is not followed"), "{}", ran.err);
    // overwritefs=true was sent each time, and what was written is there.
    std::fs::write(format!("{VOLUMES}/test123456789/data/x"), "kept").expect("write");
    shell.run("dvdcli unmount --volumedriver=rexray --volumename=test123456789").ok();
    shell.released("test123456789");
    shell.run(of_mesos.trim()).ok();
    assert_eq!(std::fs::read_to_string(format!("{VOLUMES}/test123456789/data/x")).expect("read"), "kept");
    shell.run("dvdcli unmount --volumedriver=rexray --volumename=test123456789").ok();
    shell.released("test123456789");
    node.finish();
}

/// What the isolator makes of an `env` block, slot by slot: the arguments of `dvdcli mount`.
fn slots(env: &Value) -> Vec<(String, String)> {
    let word = |name: &str, slot: &str| env[format!("DVDI_VOLUME_{name}{slot}")].as_str().map(str::to_owned);
    let slots = std::iter::once(String::new()).chain((1..10).map(|n| n.to_string()));
    let mounts = slots.filter_map(|slot| {
        let name = word("NAME", &slot)?;
        let driver = word("DRIVER", &slot).unwrap_or_else(|| "rexray".to_owned());
        let options = word("OPTS", &slot).unwrap_or_default();
        let flags: Vec<String> = options.split(',').map(|option| format!("--volumeopts={option}")).collect();
        Some((name.clone(), format!("mount --volumedriver={driver} --volumename={name} {}", flags.join(" "))))
    });
    mounts.collect()
}

#[test]
fn a_task_that_is_not_root_s_writes_where_the_app_says() {
    let _alone = alone();
    let mut node = local_node();
    let shell = Shell::new(&node, None);
    let app = json_after(SCHEDULERS, "{\n  \"id\": \"hello-play\"");
    let [(name, mount)] = slots(&app["env"]).try_into().expect("one volume");
    assert_eq!(name, "test12345");
    shell.run(&format!("dvdcli {mount}")).ok();
    // One turn of its loop, as a user that is not root.
    let cmd = app["cmd"].as_str().expect("cmd").replace("while [ true ]", "for turn in 1").replace("sleep 5", "sleep 0");
    let ran = shell.run_as(&["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"], &cmd);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(Path::new(VOLUMES).join("test12345/hello").exists());
    let ran = shell.run_as(&["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"], &format!("ls {VOLUMES}"));
    assert_ne!(ran.code, 0, "it passes through the folder, and does not look around in it");
    shell.run("dvdcli unmount --volumedriver=rexray --volumename=test12345").ok();
    shell.released("test12345");
    node.finish();
}

#[test]
fn the_app_that_mounts_one_volume_and_touches_another_is_told_so() {
    let _alone = alone();
    let mut node = local_node();
    let shell = Shell::new(&node, None);
    let app = json_after(ISOLATOR, "{\n  \"id\": \"hello-play\"");
    let [(name, mount)] = slots(&app["env"]).try_into().expect("one volume");
    assert_eq!(name, "test1234567890");
    shell.run(&format!("dvdcli {mount}")).ok();
    let cmd = app["cmd"].as_str().expect("cmd").replace("while [ true ]", "for turn in 1").replace("sleep 5", "sleep 0");
    let ran = shell.run(&cmd);
    assert!(ran.err.contains("/var/lib/rexray/volumes/test12345/hello"), "{}", ran.err);
    assert!(!Path::new(VOLUMES).join("test12345").exists(), "and the host's disk gets nothing");
    shell.run("dvdcli unmount --volumedriver=rexray --volumename=test1234567890").ok();
    shell.released("test1234567890");
    node.finish();
}

#[test]
fn two_slots_with_a_driver_each_are_two_endpoints() {
    let _alone = alone();
    let mut node = Node::new();
    node.configure(
        "rexray:\n  modules:\n    platform1: { type: docker, libstorage: { service: local } }\n    platform2: { type: docker, libstorage: { service: local } }\n",
    );
    node.endpoint = "platform1";
    node.start();
    let shell = Shell::new(&node, None);
    let env: Value = serde_json::from_str(&format!("{{ {} }}", between(MESOS, "\"env\": {", "    }\n").trim_end().to_owned() + " }"))
        .map(|v: Value| v["env"].clone())
        .expect("json");
    let mounts = slots(&env);
    let names: Vec<&str> = mounts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["testing", "testing2"]);
    for (name, mount) in &mounts {
        let ran = shell.run(&format!("dvdcli {mount}"));
        assert_eq!(ran.out.trim(), format!("{VOLUMES}/{name}/data"), "{}", ran.err);
    }
    let listed = shell.run("dunnage volume ls").ok();
    assert!(listed.contains("5GiB  ext4") || listed.contains("5GiB"), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with("testing2") && line.contains("6GiB") && line.contains("xfs")), "{listed}");
    for (name, driver) in [("testing", "platform1"), ("testing2", "platform2")] {
        shell.run(&format!("dvdcli unmount --volumedriver={driver} --volumename={name}")).ok();
        shell.released(name);
    }
    node.finish();
}

#[test]
fn docker_runs_and_creates_as_the_page_types_it() {
    let _alone = alone();
    let Some(bench) = Bench::configured(&installed_configuration(), &[]) else { return };
    let shell = Shell::new(&bench.node, Some(&bench.docker));
    bench.docker.import("busybox", |_| {});
    bench.docker.import("million12/nginx", |_| {});
    let create = between(SCHEDULERS, "docker volume create --driver=rexray", "\n").trim();
    shell.run(create).ok();
    let size = shell.run("docker volume inspect --format '{{.Status.size}}' test").ok();
    assert_eq!(size, "5GiB");
    let run = between(SCHEDULERS, "docker run -ti --volume-driver=rexray", "\n").trim();
    assert_eq!(run, "docker run -ti --volume-driver=rexray -v test:/test busybox");
    // It wants a terminal, and a command, which this busybox does not have of its own.
    let ran = shell.run(&format!("script -qec '{run} touch /test/here' /dev/null"));
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    shell.released("test");
    assert_eq!(bench.docker.volumes(), ["test"]);
    // Marathon's Docker containerizer hands `parameters` to docker run as they are.
    let app = json_after(SCHEDULERS, "{\n    \"id\": \"nginx\"");
    let parameters = app["container"]["docker"]["parameters"].as_array().expect("parameters");
    let flags: Vec<String> =
        parameters.iter().map(|p| format!("--{}={}", p["key"].as_str().expect("key"), p["value"].as_str().expect("value"))).collect();
    let image = app["container"]["docker"]["image"].as_str().expect("image");
    shell.run(&format!("docker run --network=none {} {image} sh -c 'echo up >/data/www/x'", flags.join(" "))).ok();
    shell.released("nginx-data");
    assert!(bench.docker.volumes().contains(&"nginx-data".to_owned()));
    shell.run("docker rm $(docker ps -aq)").ok();
    bench.finish();
}

#[test]
fn the_options_of_the_page_are_known_one_by_one() {
    let _alone = alone();
    let mut node = local_node();
    let table = between(SCHEDULERS, "option description\nsize", "\n\nCaveats");
    let keys: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(keys, ["size", "IOPS", "volumeType", "volumeName", "volumeID", "snapshotName", "snapshotID"]);
    for key in keys {
        let (status, answer) = node.plugin("VolumeDriver.Create", &json!({ "Name": format!("v-{key}"), "Opts": { key: "1" } }));
        match key {
            // A hint, and a guarantee that this driver keeps.
            "size" | "IOPS" | "volumeType" => assert_eq!(status, 200, "{key}: {answer}"),
            // What it cannot give is refused by its name and the driver's.
            _ => {
                let said = answer["Err"].as_str().expect("an error");
                assert!(said.starts_with(&format!("invalid_argument{{{key}}}")) && said.contains("driver local cannot give"), "{said}");
            }
        }
    }
    node.finish();
}

#[test]
fn the_global_parameters_of_the_page_are_read() {
    let _alone = alone();
    let table = between(SCHEDULERS, "docker.size Size in GB", "\n\nStarting");
    let mut keys: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    keys.sort_unstable();
    let node = Node::new();
    let value = |key: &str| match key {
        "docker.size" | "docker.iops" => "7",
        "docker.fsType" => "xfs",
        "linux.volume.rootPath" => "/sub",
        "rexray.volume.mount.preempt" => "true",
        _ => "x",
    };
    let yaml: String = keys.iter().map(|key| format!("{key}: {}\n", value(key))).collect();
    node.configure(&format!("libstorage: {{ service: local }}\n{yaml}"));
    let checked = node.cli(&["config", "check"]).ok();
    for key in &keys {
        let line =
            checked.lines().find(|line| line.to_lowercase().starts_with(&key.to_lowercase())).unwrap_or_else(|| panic!("{key}: {checked}"));
        assert!(line.contains(" mapped ") || line.contains(" tightened "), "{line}");
    }
    assert!(checked.contains("size=7GiB fs=xfs") && checked.contains("rootPath=/sub"), "{checked}");
}

#[test]
fn portworx_volumes_are_asked_for_as_mesos_does_it() {
    let _alone = alone();
    let mut node = Node::new();
    node.configure("endpoints: { docker: [ { name: pxd, driver: local } ] }\n");
    node.endpoint = "pxd";
    node.start();
    let shell = Shell::new(&node, None);
    let word = |text: &str, key: &str| between(text, &format!("\"{key}\" : \""), "\",").rsplit('"').next().expect("a value").to_owned();
    // The first TaskInfo: made with defaults where it is missing.
    let first = between(PORTWORX, "TaskInfo {", "\n```");
    let driver = word(first, "driver");
    let name = between(first, "\"name\" : \"", "\"\n").rsplit('"').next().expect("a name").to_owned();
    assert_eq!((driver.as_str(), name.as_str()), ("pxd", "px_vol"));
    let ran = shell.run(&format!("dvdcli mount --volumedriver={driver} --volumename={name}"));
    assert_eq!(ran.out.trim(), node.mountpoint("px_vol").display().to_string(), "{}", ran.err);
    shell.run("dvdcli unmount --volumedriver=pxd --volumename=px_vol").ok();
    // The second one wants three copies, which one node does not have: refused by name, and nothing is made.
    let second = PORTWORX.rsplit("TaskInfo {").next().expect("the second");
    let parameter = (word(second, "key"), between(second, "\"value\" : \"", "\"\n").rsplit('"').next().expect("a value").to_owned());
    let line = format!("dvdcli mount --volumedriver=pxd --volumename=px_vol3 --volumeopts={}={}", parameter.0, parameter.1);
    let said = shell.run(&line).fails(1);
    assert!(said.contains("invalid_argument{repl}") && said.contains("driver local cannot give repl=3"), "{said}");
    // The options of the page for other frameworks, as they stand.
    let options = between(PORTWORX, "(eg \"", "\")").trim_start_matches("(eg \"");
    let said = shell.run(&format!("dvdcli mount --volumedriver=pxd --volumename=px_vol4 --volumeopts={options}")).fails(1);
    assert!(said.contains("cannot give"), "{said}");
    assert_eq!(shell.run("dunnage volume ls -q").ok(), "px_vol");
    node.finish();
}

/// With three copies, on a cluster that keeps three, and on the next node after the first has died.
#[test]
fn law_6_the_replicated_volume_of_the_page_follows_its_task_to_another_node() {
    let _alone = alone();
    let Some(ceph) = Ceph::with_devices(3) else { return };
    let (mut a, mut b) = (ceph.node("a", ""), ceph.node("b", ""));
    let second = PORTWORX.rsplit("TaskInfo {").next().expect("the second");
    let word = |key: &str, end: &str| {
        between(second, &format!("\"{key}\" : \""), end).trim_end_matches(end).rsplit('"').next().expect("a value").to_owned()
    };
    let (driver, key, value) = (word("driver", "\","), word("key", "\","), word("value", "\"\n"));
    let name = second.lines().find_map(|line| line.trim().strip_prefix("\"name\" : \"")?.strip_suffix("\",")).expect("a name");
    assert_eq!((&*driver, name, &*key, &*value), ("pxd", "px_vol", "repl", "3"));
    // As Mesos' docker/volume isolator says it.
    let line = format!("dvdcli mount --volumedriver={driver} --volumename={name} --volumeopts={key}={value}");
    let on = |node: &Node| Shell::new(node, None).run(&line).ok();
    let path = on(&a);
    sh(&format!("echo acknowledged >{path}/file; sync {path}/file"));
    a.cut_power();
    let path = on(&b);
    assert_eq!(sh(&format!("cat {path}/file")), "acknowledged");
    Shell::new(&b, None).run("dvdcli unmount --volumedriver=pxd --volumename=px_vol").ok();
    b.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "px_vol" }));
    b.finish();
}
