//! Facts about REX-Ray configurations, one each. The examples of the seeds are read from the very files.

use std::path::Path;

use dunnage_model::Bytes;

use super::super::{build, check_report};
use super::*;

const EVERY_KEY: &str = include_str!("every-key.yml");

fn places() -> Places {
    Places { state_dir: "/s".into(), run_dir: "/r".into(), ..Places::default() }
}

fn read_in(text: &str, environment: &[(&str, &str)]) -> dunnage_model::Result<Config> {
    let variable = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    build::from_bytes(text.as_bytes(), Path::new("cfg.yml"), &places(), &variable)
}

fn good(text: &str) -> Config {
    read_in(text, &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn says(text: &str, parts: &[&str]) {
    let message = read_in(text, &[]).expect_err(text).to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}

/// The fate of a key, and what is said of it.
fn fate(config: &Config, key: &str) -> (Fate, String) {
    let told = config.told.iter().find(|told| told.key.eq_ignore_ascii_case(key)).unwrap_or_else(|| panic!("{key} is not told of"));
    (told.fate, told.what.clone())
}

fn endpoint<'c>(config: &'c Config, name: &str) -> &'c DockerEndpoint {
    config.docker.iter().find(|endpoint| endpoint.name.as_str() == name).unwrap_or_else(|| panic!("there is no endpoint {name}"))
}

#[test]
fn its_defaults_are_rex_ray_s() {
    let config = good("rexray:\n  logLevel: info\n");
    let rexray = endpoint(&config, "rexray");
    assert_eq!(rexray.driver.as_str(), "local", "nothing names a driver: the one that needs nothing");
    assert_eq!(config.volumes.path, Path::new("/var/lib/rexray/volumes"));
    assert_eq!((config.volumes.layout, config.volumes.adopt, rexray.hints), (Layout::Flat, Adopt::WhenNamed, HintPolicy::Warn));
    assert_eq!(config.volumes.defaults.size, Some(Bytes::gib(16)));
    assert_eq!(rexray.defaults.root_path.as_ref().map(ToString::to_string).as_deref(), Some("/data"));
    assert_eq!(rexray.preempt, Preempt::IfDead);
}

#[test]
fn the_first_generation_s_keys_are_read_in_any_letter_case() {
    for text in [
        "rexray:\n  storageDrivers:\n  - virtualbox\n  volume:\n    mount:\n      preempt: false\ndocker:\n  size: 1\n",
        "REXRAY:\n  STORAGEDRIVERS: [ VirtualBox ]\n  Volume: { Mount: { Preempt: FALSE } }\nDocker: { Size: 1 }\n",
        "rexray: { storagedrivers: virtualbox }\nvolume: { mount: { preempt: 'false' } }\ndocker: { size: 1 }\n",
    ] {
        let config = good(text);
        let rexray = endpoint(&config, "rexray");
        assert_eq!((rexray.driver.as_str().to_lowercase().as_str(), rexray.preempt), ("virtualbox", Preempt::Never), "{text}");
        assert_eq!(rexray.defaults.size, Some(Bytes::gib(1)), "{text}");
        assert!(matches!(config.drivers.values().next(), Some(DriverConfig::Unavailable { kind }) if kind == "virtualbox"));
    }
}

#[test]
fn each_module_is_an_endpoint_with_what_it_says_for_itself() {
    let config = good(
        "rexray:\n  modules:\n    ebs-fast:\n      type: docker\n      host: unix:///run/docker/plugins/fast.sock\n      libstorage: { service: b }\n      \
         integration: { volume: { operations: { create: { default: { size: 5, type: io1 } }, remove: { disable: true } } } }\n    Plain_One: { type: docker }\n\
         libstorage:\n  service: a\n  server:\n    services:\n      a: { driver: ebs }\n      b: { driver: ec2, integration: { volume: { operations: { create: { disable: true } } } } }\n\
         integration: { volume: { operations: { create: { default: { size: 7 } } } } }\n",
    );
    let names: Vec<_> = config.docker.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["fast", "plain-one", "rexray"]);
    let fast = endpoint(&config, "fast");
    assert_eq!((fast.driver.as_str(), fast.create, fast.remove), ("b", CreatePolicy::Explicit, RemovePolicy::Refuse));
    assert_eq!((fast.defaults.size, fast.defaults.hints.get("type").map(String::as_str)), (Some(Bytes::gib(5)), Some("io1")));
    let plain = endpoint(&config, "plain-one");
    assert_eq!((plain.driver.as_str(), plain.create, plain.remove), ("a", CreatePolicy::OnMount, RemovePolicy::Allow));
    assert_eq!(plain.defaults.size, Some(Bytes::gib(7)));
    assert_eq!(config.drivers.len(), 2);
}

#[test]
fn a_module_may_be_turned_off_and_the_usual_one_too() {
    let config = good(
        "rexray: { modules: { default-docker: { disabled: true }, a: { type: docker }, b: { type: docker, disabled: true } } }\nlibstorage: { service: local }\n",
    );
    let names: Vec<_> = config.docker.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn the_environment_counts_above_the_file() {
    let text = "libstorage: { service: ebs }\nlinux: { volume: { filemode: '0700' } }\n";
    let config = read_in(text, &[("LIBSTORAGE_SERVICE", "local"), ("LINUX_VOLUME_FILEMODE", "0777"), ("DOCKER_SIZE", "3")]).expect("good");
    let rexray = endpoint(&config, "rexray");
    assert_eq!(rexray.driver.as_str(), "local");
    assert_eq!((rexray.defaults.mode.map(|mode| mode.to_string()).as_deref(), rexray.defaults.size), (Some("0777"), Some(Bytes::gib(3))));
    let told = config.told.iter().find(|told| told.key == "docker.size").expect("told");
    assert_eq!((told.place.as_str(), told.fate), ("environment", Fate::Mapped));
}

#[test]
fn rexray_home_puts_everything_elsewhere() {
    let config = read_in("libstorage: { service: local }\n", &[("REXRAY_HOME", "/opt/r")]).expect("good");
    assert_eq!(config.volumes.path, Path::new("/opt/r/var/lib/rexray/volumes"));
    let home = Home::of(&|name| (name == "REXRAY_HOME").then(|| "/opt/r".to_owned()));
    assert_eq!(home.files()[1], Path::new("/opt/r/etc/rexray/config.yml"));
}

#[test]
fn the_file_and_the_variables_of_rex_ray_are_found_when_there_is_none_of_ours() {
    let folder = tempfile::tempdir().expect("dir");
    let etc = folder.path().join("etc/rexray");
    std::fs::create_dir_all(&etc).expect("dir");
    std::fs::write(etc.join("config.yml"), "libstorage: { service: local }\n").expect("write");
    std::fs::write(etc.join("rexray.env"), "# of the unit\nDOCKER_SIZE=\"9\"\nREXRAY_LOGLEVEL=debug\n").expect("write");
    let home = folder.path().display().to_string();
    let environment = |name: &str| (name == "REXRAY_HOME").then(|| home.clone());
    let config = Config::load_or(&places(), Path::new("/no/such/file"), &environment).expect("good");
    assert_eq!(config.source, Some(etc.join("config.yml")));
    assert_eq!(endpoint(&config, "rexray").defaults.size, Some(Bytes::gib(9)));
    let ours = folder.path().join("ours.yml");
    std::fs::write(&ours, "volumes: { create: explicit }\n").expect("write");
    assert_eq!(Config::load_or(&places(), &ours, &environment).expect("good").docker[0].name.as_str(), "dunnage");
}

#[test]
fn a_server_elsewhere_is_refused_with_what_to_write_instead() {
    says(
        "libstorage:\n  host: tcp://10.0.0.5:7979\n  service: ebs\n",
        &["cfg.yml:2:3", "{libstorage.host}", "libstorage: { service: DRIVER }"],
    );
    for here in ["unix:///var/run/rexray/1.sock", "tcp://127.0.0.1:7979", "tcp://localhost:7979", "tcp://:7979"] {
        good(&format!("libstorage:\n  host: {here}\n  service: local\n"));
    }
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    for (text, parts) in [
        ("libstorage:\n  service: ebss\n", ["cfg.yml:2:3", "did you mean \"ebs\"?"]),
        ("docker:\n  size: big\n", ["cfg.yml:2:3", "is not a size"]),
        ("rexray:\n  volume:\n    mount:\n      preempt: perhaps\n", ["cfg.yml:4:7", "true or false"]),
        ("linux:\n  volume:\n    filemode: rwx\n", ["cfg.yml:3:5", "octal"]),
        ("integration:\n  volume:\n    operations:\n      mount:\n        path: a/b\n", ["cfg.yml:5:9", "absolute"]),
        ("docker:\n  size: 1\nDocker:\n  size: 2\n", ["cfg.yml:4:3", "first on line 2"]),
        ("libstorage:\n  service: c\n  server:\n    services:\n      a: { driver: local }\n", ["cfg.yml:2:3", "no such service"]),
        ("libstorage:\n  server:\n    services: { a: { driver: local }, b: { driver: ebs } }\n", ["none is chosen", "service: a"]),
        ("rexray:\n  modules:\n    x:\n      type: nfs\n", ["cfg.yml:4:7", "docker or csi"]),
    ] {
        says(text, &parts);
    }
}

#[test]
fn a_key_that_rex_ray_did_not_know_is_passed_over_and_told() {
    let config = good("libstorage: { service: local }\ndocker: { sizee: 3 }\nmine: { a: 1 }\n");
    let (fate_of, what) = fate(&config, "docker.sizee");
    assert_eq!(fate_of, Fate::Unknown);
    assert!(what.contains("did you mean \"docker.size\"?"), "{what}");
    assert_eq!(fate(&config, "mine.a").0, Fate::Unknown);
}

#[test]
fn an_empty_root_path_is_the_volume_s_own_root() {
    for text in ["linux: { volume: { rootPath: '' } }\n", "integration: { volume: { operations: { mount: { rootPath: / } } } }\n"] {
        let config = good(text);
        assert!(endpoint(&config, "rexray").defaults.root_path.as_ref().is_some_and(dunnage_model::RootPath::is_root), "{text}");
    }
}

#[test]
fn every_key_of_the_inventory_is_read_and_told_of() {
    assert!(EVERY_KEY.lines().count() >= 300);
    let config = good(EVERY_KEY);
    let unknown: Vec<_> = config.told.iter().filter(|told| told.fate == Fate::Unknown).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(config.told.iter().all(|told| told.place.starts_with("line ") && !told.what.is_empty()));
    // One line for each key with a value.
    let values = EVERY_KEY.lines().filter(|line| !line.trim_start().starts_with(['#', '-']) && !line.trim_end().ends_with(':')).count();
    assert_eq!(config.told.len(), values + 1, "storageDrivers has its values below it");
    let names: Vec<_> = config.docker.iter().map(|e| (e.name.as_str(), e.driver.as_str())).collect();
    assert_eq!(names, [("ebs-fast", "ebs-00"), ("isilon-nas", "isilon-01"), ("rexray", "ebs-00")]);
    assert_eq!(endpoint(&config, "ebs-fast").defaults.size, Some(Bytes::gib(32)));
    assert_eq!(endpoint(&config, "isilon-nas").defaults.size, Some(Bytes::gib(50)));
    for (key, expected) in [
        ("rexray.modules.ebs-fast.integration.volume.operations.mount.path", Fate::Ignored),
        ("integration.volume.operations.mount.preempt", Fate::Tightened),
        ("libstorage.server.auth.key", Fate::Ignored),
        ("integration.volume.operations.create.default.size", Fate::Mapped),
        ("docker.size", Fate::Ignored),
    ] {
        assert_eq!(fate(&config, key).0, expected, "{key}");
    }
    let report = check_report(&config);
    for secret in ["hunter2", "wJalrXUtnFEMI", "c2VjcmV0"] {
        assert!(!report.contains(secret), "a secret stands in the report");
    }
    assert!(report.contains("linux.volume.filemode"), "{report}");
    let values: Vec<&str> = config.told.iter().map(|told| told.value.as_str()).collect();
    assert!(!values.contains(&"hunter2") && values.contains(&"***"), "secrets are hidden");
}

#[test]
fn rbd_s_pool_and_arguments_become_a_driver_of_ours() {
    let rbd = |more: &str| {
        let config = good(&format!("libstorage: {{ service: rbd }}\nrbd: {{ {more} }}\n"));
        match config.drivers.into_values().next() {
            Some(DriverConfig::Ceph(ceph)) => ceph,
            other => panic!("it is {other:?}"),
        }
    };
    let plain = CephConfig { user: "admin".to_owned(), named_pools: true, ..CephConfig::default() };
    assert_eq!(rbd("testModule: false"), plain);
    let args = CephConfig { pool: "fast".to_owned(), user: "volumes".to_owned(), keyring: Some("/k".into()), ..plain.clone() };
    assert_eq!(rbd("defaultPool: fast, cephArgs: --id volumes --keyring=/k --debug"), args);
    let cluster = CephConfig { user: "volumes".to_owned(), conf: "/etc/ceph/east.conf".into(), ..plain };
    assert_eq!(rbd("cephArgs: --cluster east -n client.volumes"), cluster);
    let config = good("libstorage: { service: rbd }\nrbd: { cephArgs: --debug -m east --id volumes }\n");
    assert!(check_report(&config).contains("--debug -m east"), "{}", check_report(&config));
}

#[test]
fn what_was_read_can_be_written_as_one_of_ours() {
    for text in
        [EVERY_KEY, "libstorage: { service: local }\n", "rexray: { storageDrivers: virtualbox }\ndocker: { size: 1, volumeType: gp2 }\n"]
    {
        let config = good(text);
        let own = read_in(&config.to_yaml(), &[]).unwrap_or_else(|e| panic!("{e}\n{}", config.to_yaml()));
        assert_eq!((&own.docker, &own.drivers), (&config.docker, &config.drivers));
        let (mut ours, theirs) = (own.volumes.clone(), config.volumes.clone());
        ours.defaults = theirs.defaults.clone();
        assert_eq!(ours, theirs);
    }
}

/// A small generator of numbers that can be had again from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % n.max(1)
    }
}

#[test]
fn a_thousand_spoilt_ones_are_read_or_refused_with_a_line_and_never_a_panic() {
    let mut refused = 0;
    for seed in 0..1000 {
        let mut dice = Dice(seed);
        let mut lines: Vec<String> = EVERY_KEY.lines().map(str::to_owned).collect();
        for _ in 0..=dice.below(3) {
            let at = dice.below(lines.len());
            let other = dice.below(lines.len());
            match dice.below(8) {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[other].clone()),
                2 => lines.swap(at, other),
                3 => lines[at] = lines[at].replacen(": ", ":", 1),
                4 => lines[at].push_str([" {", " ]", "'", "\u{0}", ": x", " &a", " *a", "\t"][dice.below(8)]),
                5 => lines[at] = lines[at].split_once(':').map_or(String::new(), |(key, _)| format!("{key}: [ {{ a: b }} ]")),
                6 => {
                    lines[at] =
                        lines[at].split_once(':').map_or(String::new(), |(key, _)| format!("{key}: ../{}", "x".repeat(dice.below(300))))
                }
                _ => lines[at] = lines[at].to_uppercase().replace(' ', "  "),
            }
        }
        let text = lines.join("\n");
        match read_in(&text, &[]) {
            Ok(config) => assert!(!config.told.is_empty(), "seed {seed}"),
            Err(error) => {
                refused += 1;
                let message = error.to_string();
                let numbered =
                    message.split("cfg.yml:").skip(1).any(|rest| rest.split(':').next().is_some_and(|line| line.parse::<usize>().is_ok()));
                assert!(numbered, "seed {seed}: {message}");
            }
        }
    }
    assert!((100..1000).contains(&refused), "{refused} were refused");
}
