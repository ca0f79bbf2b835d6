//! Facts about the configuration, one each.

use std::path::{Path, PathBuf};

use dunnage_model::{Access, Bytes, Error, FsKind, HintPolicy, Kind, PartialSpec};

use super::*;

/// The example of the design page, word for word.
const EXAMPLE: &str = r#"
admin: { group: root }               # who may use the admin socket
volumes:
  path: STATE_DIR/volumes            # mounts appear at PATH/DRIVER/NAME (PATH/NAME under a REX-Ray configuration)
  preempt: if-dead                   # never | if-dead | always
  create: on-mount                   # dvdcli mount and Mesos make what is missing. explicit: only `dunnage volume create` does; Create elsewhere says so
  hints: refuse                      # warn: see law 11
  defaults: { size: 16GiB, fs: ext4 }
drivers:
  local:                             # image files: POOL/NAME/{record.json,image}
    { type: local, pool: STATE_DIR/pool/local, reserve: 5%, warn: 85%, overcommit: none }
  pxd:   { type: ceph, repl: 3 }
endpoints:
  docker: [ { name: dunnage, driver: local }, { name: pxd, driver: pxd } ]   # one socket each
  csi:    [ { socket: /run/dunnage/csi.sock, driver: pxd } ]
"#;

/// Every key that is acted on, with a value that is not its default.
const FULL: &str = r#"
admin:
  group: adm
volumes:
  path: RUN_DIR/mounts
  preempt: always
  create: explicit
  hints: warn
  private_namespace: true
  defaults:
    size: 1500MiB
    fsType: ext4
    uid: 1000
    gid: 1000
    mode: 0750
    thick: true
    ro: yes
    labels: { team: "söme # words", "a: b": '"x\y"', empty: "" }
    iops: 150
    overwriteFs: true
holders: { reconcile: act, grace: 1h 30m, docker: [ /run/d.sock ], podman: [], mesos: [ "/var/run/mesos x" ] }
drivers:
  fast: { type: local, pool: /srv/fast, reserve: 12.5%, warn: 99%, overcommit: 200% }
  slow: { type: local }
  ceph: { type: ceph, conf: /srv/ceph.conf, user: client.volumes, keyring: /srv/key, pool: fast, pools: [ wide ], repl: 2, make_pools: true, named_pools: true, timeout: 20s, silence: 5s, attach: process }
  files: { type: cephfs, conf: /srv/ceph.conf, user: client.files, keyring: /srv/key, fs: wide, path: /volumes, repl: 2, timeout: 7s }
  ebs: { accessKey: SECRET, secretKey: "SECRET" }
endpoints:
  docker:
    - name: fast
      driver: fast
      hints: refuse
      defaults: { size: 2G, labels: "x=y,z=1" }
    - { name: cloud, driver: ebs, defaults: { type: gp3, encrypted: true, encryptionKey: SECRET } }
    - { name: pxd, driver: ceph, shared: files, preempt: always }
  csi: [ { socket: "/x y", ro: "true", deep: [ ~, 0755, true ] } ]
"#;

fn places() -> Places {
    Places { state_dir: "/s".into(), run_dir: "/r".into(), ..Places::default() }
}

fn read(text: &str) -> Result<Config> {
    build::from_bytes(text.as_bytes(), Path::new("cfg.yml"), &places(), &|_| None)
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|error| panic!("{error}"))
}

fn bad(text: &str) -> Error {
    match read(text) {
        Ok(config) => panic!("it was taken: {config:?}"),
        Err(error) => error,
    }
}

/// The message has all of these parts.
fn says(text: &str, parts: &[&str]) {
    let message = bad(text).to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}

fn local<'c>(config: &'c Config, name: &str) -> &'c LocalConfig {
    match config.drivers.get(&name.parse().expect("name")) {
        Some(DriverConfig::Local(local)) => local,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn the_design_s_example_loads_and_says_what_is_not_served() {
    let config = good(EXAMPLE);
    let pxd = config.drivers.get(&"pxd".parse().expect("name"));
    assert_eq!(pxd, Some(&DriverConfig::Ceph(CephConfig { repl: Some(3), ..CephConfig::default() })));
    assert_eq!(local(&config, "local").pool, PathBuf::from("/s/pool/local"));
    let names: Vec<&str> = config.docker.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["dunnage", "pxd"]);
    assert_eq!(config.not_served, ["endpoints.csi: this version does not serve CSI"]);
}

#[test]
fn the_design_s_example_without_what_is_not_served_is_the_built_in_configuration() {
    let mut config = good(EXAMPLE);
    config.drivers.remove(&"pxd".parse().expect("name"));
    config.docker.pop();
    config.not_served.clear();
    config.as_written.clear();
    assert_eq!(config, Config::builtin(&places()));
}

#[test]
fn an_empty_file_has_all_the_defaults() {
    for text in
        ["", "\n\n", "# only a comment\n", "---\n", "---\n...\n", "{}", "null", "\u{feff}", "volumes:\ndrivers:\nendpoints:\nadmin:\n"]
    {
        assert_eq!(good(text), Config::builtin(&places()), "{text:?}");
    }
}

#[test]
fn without_a_file_the_built_in_configuration_holds() {
    let dir = tempfile::tempdir().expect("dir");
    let config = Config::load_or(&places(), &dir.path().join("none.yml"), &|_| None).expect("built in");
    assert_eq!(config, Config::builtin(&places()));
    assert_eq!(config.source, None);
}

#[test]
fn the_default_file_is_read_when_it_exists() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("config.yml");
    std::fs::write(&file, "admin: { group: adm }").expect("write");
    let config = Config::load_or(&places(), &file, &|_| None).expect("good");
    assert_eq!(config.admin.group, "adm");
    assert_eq!(config.source, Some(file));
}

#[test]
fn a_default_file_that_is_a_link_to_nowhere_is_an_error() {
    let dir = tempfile::tempdir().expect("dir");
    let link = dir.path().join("config.yml");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).expect("link");
    assert_eq!(Config::load_or(&places(), &link, &|_| None).expect_err("dangling").kind, Kind::NotFound);
}

#[test]
fn an_explicit_file_that_is_missing_is_not_found_and_says_what_to_do() {
    let places = Places { config: Some("/no/such/file.yml".into()), ..places() };
    let error = Config::load(&places).expect_err("missing");
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.to_string().contains("/no/such/file.yml") && error.next.contains("--config"), "{error}");
}

#[test]
fn a_folder_and_a_file_without_end_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    for (file, part) in [(dir.path(), "is a folder"), (Path::new("/dev/zero"), "more than 1048576 bytes")] {
        let places = Places { config: Some(file.to_owned()), ..places() };
        let message = Config::load(&places).expect_err("no file").to_string();
        assert!(message.contains(part) && message.contains(&*file.to_string_lossy()), "{message}");
    }
}

#[test]
fn a_state_directory_that_is_relative_is_refused_by_its_flag() {
    let places = Places { state_dir: "x".into(), ..places() };
    assert_eq!(Config::load(&places).expect_err("relative").kind, Kind::InvalidArgument { key: "state-dir".into() });
}

#[test]
fn an_unknown_key_has_its_place_its_path_and_the_nearest_right_one() {
    let error = bad("volumes:\n  hints: warn\n  defualts: { size: 1 }\n");
    let message = "invalid_argument{volumes.defualts}: cfg.yml:3:3: \"defualts\" is not a key of volumes; did you mean \"defaults\"?";
    assert_eq!(error.to_string(), message);
}

#[test]
fn an_unknown_key_is_found_at_every_level() {
    for (text, parts) in [
        ("volume: {}", ["{volume}", "cfg.yml:1:1", "did you mean \"volumes\"?"]),
        ("Volumes: {}", ["{Volumes}", "cfg.yml:1:1", "did you mean \"volumes\"?"]),
        ("admin: { groop: x }", ["{admin.groop}", "cfg.yml:1:10", "did you mean \"group\"?"]),
        ("volumes: { private-namespace: true }", ["{volumes.private-namespace}", "cfg.yml:1:12", "did you mean \"private_namespace\"?"]),
        ("drivers: { local: { poool: /x } }", ["{drivers.local.poool}", "cfg.yml:1:21", "did you mean \"pool\"?"]),
        ("endpoints: { dokcer: [] }", ["{endpoints.dokcer}", "cfg.yml:1:14", "did you mean \"docker\"?"]),
        ("endpoints:\n  docker:\n    - nmae: x", ["{endpoints.docker[0]", "cfg.yml:3:7", "did you mean \"name\"?"]),
        ("volumes:\n  defaults:\n    siez: 1", ["{volumes.defaults.siez}", "cfg.yml:3:11", "did you mean \"size\"?"]),
    ] {
        says(text, &parts);
    }
}

#[test]
fn a_word_like_no_key_gets_the_keys_that_are_known() {
    says("zzzzzzzz: 1", &["known here: admin, volumes, drivers, holders, endpoints"]);
}

#[test]
fn sections_of_rex_ray_s_and_of_ours_in_one_file_are_refused() {
    says("rexray:\n  logLevel: warn\nvolumes: {}\n", &["do not go together"]);
}

#[test]
fn a_key_given_twice_names_both_places() {
    says("admin: {}\nvolumes: {}\nadmin: {}\n", &["{admin}", "cfg.yml:3:1", "first on line 1"]);
    says("drivers: { a: { type: ceph } }\nendpoints: { docker: [ { name: x, driver: a, shared: a } ] }\n", &["shared", "type cephfs"]);
    says("drivers:\n  a: { type: ceph }\n  a: { type: ceph }\nendpoints: {}\n", &["{drivers.a}", "cfg.yml:3:3", "first on line 2"]);
}

#[test]
fn a_value_of_the_wrong_kind_says_what_it_is_and_what_it_must_be() {
    for (text, parts) in [
        ("admin: root", ["cfg.yml:1:8", "admin is a single value and must be a map"]),
        ("- a\n", ["cfg.yml:1:1", "the configuration is a list and must be a map"]),
        ("hello", ["cfg.yml:1:1", "the configuration is a single value and must be a map"]),
        ("admin: { group: [a] }", ["cfg.yml:1:17", "admin.group is a list and must be a single value"]),
        ("endpoints: { docker: { name: x } }", ["cfg.yml:1:22", "endpoints.docker is a map and must be a list"]),
        ("endpoints: { docker: [ dunnage ] }", ["cfg.yml:1:24", "endpoints.docker[0] is a single value and must be a map"]),
        ("endpoints: { csi: yes }", ["cfg.yml:1:19", "endpoints.csi is a single value and must be a list"]),
        ("volumes: { defaults: [ size ] }", ["cfg.yml:1:22", "volumes.defaults is a list and must be a map"]),
        ("volumes: { defaults: { size: [ 1 ] } }", ["cfg.yml:1:30", "volumes.defaults.size is a list"]),
        ("holders: { reconcile: always }", ["cfg.yml:1:23", "must be off or report or act"]),
        ("holders: { grace: 10 }", ["cfg.yml:1:19", "such as 90s, 10m or 1h"]),
        ("holders: { grace: -1m }", ["cfg.yml:1:19", "at least 1 s"]),
        ("holders: { docker: /run/docker.sock }", ["{holders.docker}", "a list"]),
        ("holders: { mesos: [ mesos ] }", ["cfg.yml:1:21", "is relative"]),
        ("volumes: { private_namespace: 1 }", ["cfg.yml:1:31", "must be true or false"]),
        ("volumes: { private_namespace: \"true\" }", ["cfg.yml:1:31", "without quotes"]),
    ] {
        says(text, &parts);
    }
}

#[test]
fn a_single_value_left_empty_is_an_error_where_its_key_is() {
    says("volumes:\n  path:\n  hints: warn\n", &["cfg.yml:2:3", "volumes.path has no value"]);
    says("volumes: { defaults: { ro: } }", &["volumes.defaults.ro has no value"]);
}

#[test]
fn a_wrong_word_gets_the_right_ones() {
    says("volumes: { preempt: if_dead }", &["cfg.yml:1:21", "did you mean \"if-dead\"?"]);
    says("volumes: { create: maybe }", &["on-mount or explicit"]);
    says("volumes: { hints: warm }", &["did you mean \"warn\"?"]);
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_file_s_order() {
    let error = bad("endpoints: { docker: [ { name: a/b, driver: local } ] }\nvolumes: { hints: x }\nadmin: 1\n");
    let lines: Vec<&str> = error.detail.lines().filter(|line| line.starts_with("cfg.yml:")).collect();
    let places: Vec<&str> = lines.iter().filter_map(|line| line.split(':').nth(1)).collect();
    assert_eq!(places, ["1", "2", "3"], "{error}");
    assert_eq!(error.kind, Kind::InvalidArgument { key: "endpoints.docker[0].name".into() });
}

#[test]
fn a_file_of_nonsense_does_not_make_an_endless_message() {
    let text: String = (0..5000).map(|n| format!("key{n}: 1\n")).collect();
    let message = bad(&text).to_string();
    assert!(message.contains("5000 things are wrong") && message.contains("and 4960 more") && message.len() < 10_000, "{message}");
}

#[test]
fn a_message_is_free_of_control_characters() {
    let message = bad("\"a\\e[31m\\nb\": 1\nvolumes: { defaults: { size: \"1\\e[0m\\nroot\" } }").to_string();
    assert!(message.chars().all(|c| c == '\n' || !c.is_control()), "{message:?}");
    assert_eq!(message.lines().count(), 4, "{message}");
}

#[test]
fn shares_are_percentages() {
    let config = good("drivers: { local: { reserve: 0%, warn: 100%, overcommit: 250.5% } }");
    let local = local(&config, "local");
    assert_eq!((local.reserve, local.warn), (Share::percent(0), Share::percent(100)));
    assert_eq!(local.overcommit.map(Share::per_mille), Some(2505));
    for text in ["5", "0.05", "5.55%", "-5%", "%", "5%%", "99999999999%", ".5%", "5.%", "five%"] {
        says(&format!("drivers: {{ local: {{ reserve: \"{text}\" }} }}"), &["cfg.yml:1:30", "percent"]);
    }
}

#[test]
fn shares_have_bounds() {
    for (key, value) in [("reserve", "100%"), ("warn", "0%"), ("warn", "100.1%"), ("overcommit", "0%"), ("overcommit", "nnone")] {
        let text = format!("drivers: {{ local: {{ {key}: {value} }} }}");
        assert_eq!(bad(&text).kind, Kind::InvalidArgument { key: format!("drivers.local.{key}") }, "{value}");
    }
}

#[test]
fn a_share_is_shown_as_it_is_written() {
    for text in ["0%", "5%", "12.5%", "999999.9%"] {
        assert_eq!(text.parse::<Share>().expect("share").to_string(), text);
    }
}

#[test]
fn state_dir_and_run_dir_stand_for_the_directories_and_only_at_the_start() {
    let config = good("volumes: { path: RUN_DIR//a/./b/ }\ndrivers: { local: { pool: STATE_DIR/p } }");
    assert_eq!(config.volumes.path.as_os_str(), "/r/a/b");
    assert_eq!(local(&config, "local").pool, PathBuf::from("/s/p"));
    says("volumes: { path: STATE_DIRECTORY/x }", &["is relative"]);
}

#[test]
fn paths_that_are_relative_or_go_up_or_take_everything_are_refused() {
    for (path, part) in
        [("x/y", "is relative"), ("STATE_DIR/../x", "goes up by '..'"), ("/", "the root of all files"), ("\"/a\\0b\"", "control character")]
    {
        says(&format!("volumes: {{ path: {path} }}"), &["{volumes.path}", "cfg.yml:1:18", part]);
    }
}

#[test]
fn two_drivers_with_one_pool_are_refused_and_both_are_named() {
    let text = "drivers:\n  a: { type: local, pool: /p }\n  b: { type: local, pool: /p/ }\nendpoints: {}\n";
    says(text, &["cfg.yml:3:27", "drivers.b.pool (/p) is the same folder as drivers.a.pool (/p, line 2)"]);
}

#[test]
fn a_pool_inside_another_is_refused_and_both_are_named() {
    let text = "drivers:\n  a: { type: local, pool: /p/b }\n  b: { type: local, pool: /p }\nendpoints: {}\n";
    says(text, &["cfg.yml:3:27", "drivers.b.pool (/p) is around drivers.a.pool (/p/b, line 2)"]);
}

#[test]
fn a_pool_inside_the_folder_of_mounts_is_refused_and_both_are_named() {
    says("drivers: { local: { pool: STATE_DIR/volumes/p } }", &["drivers.local.pool", "is inside volumes.path (/s/volumes, by default)"]);
    says("volumes: { path: STATE_DIR/pool/local/x }", &["cfg.yml:1:18", "volumes.path", "drivers.local.pool (/s/pool/local, by default)"]);
}

#[test]
fn folders_side_by_side_are_no_clash_though_one_name_begins_with_the_other() {
    good("volumes: { path: /p/a }\ndrivers: { local: { pool: /p/ab } }");
}

#[test]
fn two_endpoints_of_one_name_are_refused_and_both_are_named() {
    let text = "endpoints:\n  docker:\n    - { name: a, driver: local }\n    - { name: a, driver: local }\n";
    says(text, &["cfg.yml:4:15", "endpoints.docker[1].name is a", "the endpoint on line 3"]);
}

#[test]
fn an_endpoint_on_a_driver_that_is_not_configured_is_refused_with_the_nearest_one() {
    let text = "drivers:\n  fast: { type: local }\nendpoints: { docker: [ { name: a, driver: fats } ] }";
    says(text, &["{endpoints.docker[0].driver}", "cfg.yml:3:43", "'drivers' (line 1)", "did you mean \"fast\"?"]);
    says("endpoints: { docker: [ { name: a, driver: pxd } ] }", &["only the built-in local"]);
    says("drivers: { local: { pool: /x } }\nendpoints: { docker: [ { name: a, driver: local.pool } ] }", &["has none of that name"]);
}

#[test]
fn an_endpoint_on_a_driver_with_flaws_is_not_another_flaw() {
    let error = bad("drivers: { a: { type: locla } }\nendpoints: { docker: [ { name: a, driver: a } ] }");
    assert_eq!(error.kind, Kind::InvalidArgument { key: "drivers.a.type".into() });
    assert!(!error.detail.contains("things are wrong"), "{error}");
}

#[test]
fn an_endpoint_needs_a_name_and_where_there_is_choice_a_driver() {
    says("endpoints: { docker: [ { driver: local } ] }", &["cfg.yml:1:24", "endpoints.docker[0] has no name"]);
    let two = "drivers: { a: { type: local }, b: { type: local } }\nendpoints: { docker: [ { name: x } ] }";
    says(two, &["cfg.yml:2:24", "has no driver", "configured: a, b"]);
    assert_eq!(good("endpoints: { docker: [ { name: x } ] }").docker[0].driver.as_str(), "local");
}

#[test]
fn an_endpoint_whose_socket_would_have_too_long_a_path_is_refused() {
    let name = "n".repeat(100);
    says(&format!("endpoints: {{ docker: [ {{ name: {name}, driver: local }} ] }}"), &["cfg.yml:1:32", "107 bytes", "--plugin-dir"]);
}

#[test]
fn without_endpoints_the_built_in_one_needs_the_driver_local() {
    says("drivers:\n  fast: { type: local }\n", &["{endpoints}", "cfg.yml:1:1", "wants a driver local"]);
    assert_eq!(good("volumes: { hints: warn }").docker[0].hints, HintPolicy::Warn);
}

#[test]
fn endpoints_that_are_there_and_empty_are_none() {
    assert!(good("drivers: {}\nendpoints: {}").docker.is_empty());
    assert!(good("endpoints: { docker: [], csi: [] }").not_served.is_empty());
}

#[test]
fn a_driver_s_name_is_its_type_where_it_is_one() {
    let config = good("drivers: { local: { reserve: 10% }, ceph: , ebs: }");
    assert_eq!(local(&config, "local").reserve, Share::percent(10));
    assert_eq!(config.drivers.get(&"ceph".parse().expect("name")), Some(&DriverConfig::Ceph(CephConfig::default())));
    assert_eq!(config.drivers.get(&"ebs".parse().expect("name")), Some(&DriverConfig::Unavailable { kind: "ebs".into() }));
    says("drivers: { fast: { pool: /x } }\nendpoints: {}", &["{drivers.fast}", "cfg.yml:1:12", "add 'type: local'"]);
}

#[test]
fn a_type_that_nobody_knows_is_refused_with_the_nearest_one() {
    says("drivers: { a: { type: virtualbx } }\nendpoints: {}", &["{drivers.a.type}", "cfg.yml:1:23", "did you mean \"virtualbox\"?"]);
}

#[test]
fn a_portworx_endpoint_warns_of_hints_unless_it_says_otherwise() {
    let config =
        good("volumes: { hints: refuse }\nendpoints: { docker: [ { name: pxd, driver: local, defaults: { io_priority: high } } ] }");
    assert_eq!(config.docker[0].hints, HintPolicy::Warn);
    let config = good("endpoints: { docker: [ { name: pxd, driver: local, hints: refuse } ] }");
    assert_eq!(config.docker[0].hints, HintPolicy::Refuse);
}

#[test]
fn options_keep_their_source_text_so_that_a_mode_is_octal_and_a_bare_size_is_in_gib() {
    for mode in ["0755", "\"0755\"", "755", "0o755", "'0755'"] {
        let config = good(&format!("volumes: {{ defaults: {{ mode: {mode} }} }}"));
        assert_eq!(config.volumes.defaults.mode.map(|m| m.bits()), Some(0o755), "{mode}");
    }
    for size in ["16", "16GiB", "\"16\"", "16.0"] {
        let config = good(&format!("volumes: {{ defaults: {{ SIZE: {size} }} }}"));
        assert_eq!(config.volumes.defaults.size, Some(Bytes::gib(16)), "{size}");
    }
}

#[test]
fn options_of_every_kind_are_read() {
    let spec = good(FULL).volumes.defaults;
    assert_eq!((spec.size, spec.fs), (Some(Bytes::mib(1500)), Some(FsKind::Ext4)));
    assert_eq!((spec.uid, spec.thick, spec.access), (Some(1000), Some(true), Some(Access::ManyReaders)));
    assert_eq!(spec.labels.get("team").map(String::as_str), Some("söme # words"));
    assert_eq!(spec.labels.get("a: b").map(String::as_str), Some("\"x\\y\""));
}

#[test]
fn defaults_that_leave_something_out_keep_the_built_in_rest() {
    let spec = good("volumes: { defaults: { uid: 7 } }").volumes.defaults;
    let built_in = Config::builtin(&places()).volumes.defaults;
    assert_eq!(spec, PartialSpec { uid: Some(7), ..built_in });
}

#[test]
fn an_option_that_no_driver_can_give_is_refused_where_it_stands() {
    says("volumes: { defaults: { repl: 3 } }", &["{volumes.defaults.repl}", "cfg.yml:1:30", "driver local cannot give repl=3"]);
    says("volumes: { defaults: { iops: 3 } }", &["{volumes.defaults.iops}", "hints: warn"]);
    good("volumes: { defaults: { repl: 1 } }");
}

#[test]
fn one_option_in_two_spellings_and_two_ways_is_refused_at_the_second() {
    says("volumes:\n  defaults:\n    size: 1\n    SIZE: 2\n", &["{volumes.defaults.SIZE}", "cfg.yml:4:11", "given twice"]);
}

#[test]
fn defaults_that_make_no_volume_are_refused_where_the_size_stands() {
    says("volumes:\n  defaults:\n    size: 1MiB\n", &["{volumes.defaults.size}", "cfg.yml:3:11", "minimum of 16MiB"]);
    says("endpoints: { docker: [ { name: x, defaults: { size: 4KiB } } ] }", &["{endpoints.docker[0].defaults.size}", "cfg.yml:1:53"]);
}

#[test]
fn what_is_accepted_and_not_acted_on_is_said() {
    let said = good(FULL).not_served;
    for key in [
        "drivers.ebs:",
        "endpoints.csi:",
        "volumes.defaults.iops:",
        "volumes.defaults.overwriteFs:",
        "endpoints.docker[1].defaults.type:",
        "endpoints.docker[1].defaults.encrypted:",
        "endpoints.docker[1].defaults.encryptionKey:",
    ] {
        assert!(said.iter().any(|what| what.starts_with(key)), "{key} is missing in {said:#?}");
    }
}

#[test]
fn a_secret_is_in_no_message_no_report_and_no_yaml() {
    let config = good(FULL);
    assert!(!config.to_yaml().contains("SECRET") && !check_report(&config).contains("SECRET") && !format!("{config:?}").contains("SECRET"));
    let message = bad("volumes: { defaults: { passphrase: SECRET } }").to_string();
    assert!(!message.contains("SECRET") && message.contains("{volumes.defaults.passphrase}"), "{message}");
}

#[test]
fn what_yaml_has_beyond_maps_lists_and_values_is_refused_with_its_place() {
    says("admin: &a { group: x }", &["{admin}", "cfg.yml:1:11", "anchors"]);
    says("admin: { group: *x }", &["{admin.group}", "cfg.yml:1:17", "aliases"]);
    says("admin: { group: !!str x }", &["{admin.group}", "cfg.yml:1:23", "tag"]);
    says("admin: {}\n---\nadmin: {}\n", &["cfg.yml:2:1", "second YAML document"]);
    says("? { a: b }\n: c\n", &["cfg.yml:1:3", "a key must be a word"]);
}

#[test]
fn a_bomb_of_aliases_is_refused_at_once() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..60 {
        text += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", "));
    }
    says(&text, &["cfg.yml:1:9", "anchors"]);
}

#[test]
fn text_that_is_no_yaml_has_its_place() {
    says("volumes: { path: /x\nadmin: {}\n", &["cfg.yml:2:", "this is not YAML"]);
    says("volumes:\n    path: /x\n  hints: warn\n", &["cfg.yml:3:3", "this is not YAML"]);
    says("volumes:\n  hints: \"warn\n", &["cfg.yml:", "this is not YAML"]);
}

#[test]
fn a_tab_is_called_a_tab() {
    says("volumes:\n\thints: warn\n", &["cfg.yml:2:", "line 2 is indented with a tab"]);
}

#[test]
fn a_colon_without_a_space_is_recognized() {
    says("volumes:\n  hints:warn\n", &["cfg.yml:2:3", "put a space behind the colon"]);
    says("volumes: {hints:warn}", &["cfg.yml:1:11", "put a space behind the colon"]);
}

#[test]
fn text_that_is_not_utf_8_has_its_place() {
    let error = build::from_bytes(b"admin:\n  group: \xe9\n", Path::new("cfg.yml"), &places(), &|_| None).expect_err("latin 1");
    assert!(error.to_string().contains("cfg.yml:2:10: this is not UTF-8"), "{error}");
}

#[test]
fn files_made_to_hurt_are_refused_or_read_in_reasonable_time() {
    let many = |n: usize, f: &dyn Fn(usize) -> String| (0..n).map(f).collect::<String>();
    for text in [
        "[".repeat(1 << 20),
        "{a: ".repeat(1 << 18),
        "- ".repeat(1 << 19),
        "? ".repeat(1 << 19),
        "? &a !b ".repeat(1 << 17),
        many(700, &|n| format!("{}a:\n", " ".repeat(n))),
        format!("? {}\n: 1\n", "k".repeat(1 << 20)),
        format!("volumes: {{ defaults: {{ size: {} }} }}", "9".repeat(1 << 19)),
        format!("endpoints: {{ docker: [{}] }}", "x,".repeat(1 << 16)),
        format!("drivers: {{ {} }}\nx: 1", many(5_000, &|n| format!("d{n}: {{ type: local, pool: /p }}, "))),
        many(20_000, &|n| format!("k{n}:\n")),
    ] {
        let error = bad(&text);
        assert!(error.to_string().len() < 20_000 && error.to_string().contains("cfg.yml:"), "{error}");
    }
    good(&"#\n".repeat(1 << 19));
}

fn same_but_for_the_source(a: &Config, b: &Config) {
    assert_eq!(Config { source: None, ..a.clone() }, Config { source: None, ..b.clone() });
}

#[test]
fn what_is_shown_as_yaml_loads_back_to_the_same() {
    for text in [
        "",
        EXAMPLE,
        "drivers: {}\nendpoints: {}",
        "admin: { group: \"0\" }\nendpoints: { docker: [ { name: \"1\" }, { name: \"null\" } ] }",
    ] {
        let config = good(text);
        same_but_for_the_source(&config, &good(&config.to_yaml()));
    }
}

#[test]
fn every_key_comes_back_but_a_secret_that_nothing_uses() {
    let mut config = good(FULL);
    let yaml = config.to_yaml();
    config.not_served.retain(|what| !what.contains("encryptionKey"));
    same_but_for_the_source(&config, &good(&yaml));
}

#[test]
fn a_size_comes_back_to_the_byte() {
    for size in ["1500MiB", "16777217b", "20481KiB", "1.5T"] {
        let config = good(&format!("volumes: {{ defaults: {{ size: {size} }} }}"));
        assert_eq!(good(&config.to_yaml()).volumes.defaults.size, config.volumes.defaults.size, "{size}");
    }
}

#[test]
fn the_yaml_says_where_it_came_from_and_a_file_s_name_cannot_break_out_of_the_comment() {
    let config = Config { source: Some("/etc/a\nvolumes: {}".into()), ..good("") };
    assert!(config.to_yaml().contains("# From /etc/a\\nvolumes: {};"), "{}", config.to_yaml());
    assert!(Config::builtin(&places()).to_yaml().contains("# Built in"));
}

#[test]
fn the_report_names_drivers_endpoints_their_defaults_and_what_is_not_served() {
    let report = check_report(&Config { source: Some("/etc/x.yml".into()), ..good(EXAMPLE) });
    for part in [
        "/etc/x.yml is good",
        "local: local, images in the pool /s/pool/local, reserve 5%, warn 85%, overcommit none",
        "pxd: ceph, as client.dunnage by /etc/ceph/ceph.conf, pools rbd",
        "dunnage: driver local, hints refuse, defaults size=16GiB fs=ext4",
        "endpoints.csi: this version does not serve CSI",
    ] {
        assert!(report.contains(part), "{part:?} is missing in:\n{report}");
    }
}

/// Knuth's MMIX generator: enough for mutations, and the same on every machine.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

fn mutate(bytes: &mut Vec<u8>, lcg: &mut Lcg) {
    const BITS: &[&str] =
        &["\t", "\n", ": ", "- ", "[", "]", "{", "}", "\"", "'", "#", "&a ", "*a", "!", "|", ">", "%", "~", "\u{0}", "é", "0", "-1", "? "];
    let at = lcg.below(bytes.len());
    let end = (at + 1 + lcg.below(12)).min(bytes.len());
    match lcg.below(6) {
        0 => drop(bytes.drain(at..end)),
        1 => bytes[at] = lcg.below(256) as u8,
        2 => bytes[at] = b' ' + lcg.below(95) as u8,
        3 => drop(bytes.splice(at..at, BITS[lcg.below(BITS.len())].bytes())),
        4 => {
            let piece = bytes[at..end].to_vec();
            let to = lcg.below(bytes.len());
            drop(bytes.splice(to..to, piece));
        }
        _ => {
            let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            let (a, b) = (lcg.below(lines.len()), lcg.below(lines.len()));
            if lcg.below(2) == 0 {
                lines.swap(a, b)
            } else {
                lines.insert(b, lines[a].clone())
            }
            *bytes = lines.join(&b'\n');
        }
    }
}

#[test]
fn a_mutated_file_is_read_or_refused_with_places_and_never_panics() {
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..4000 {
        let mut lcg = Lcg(seed);
        let mut bytes = if seed % 2 == 0 { EXAMPLE } else { FULL }.as_bytes().to_vec();
        for _ in 0..=lcg.below(3) {
            mutate(&mut bytes, &mut lcg);
        }
        match build::from_bytes(&bytes, Path::new("cfg.yml"), &places(), &|_| None) {
            Ok(config) => {
                taken += 1;
                let mut again = good(&config.to_yaml());
                again.not_served.clone_from(&config.not_served); // a secret's note does not come back
                same_but_for_the_source(&config, &again);
                assert!(!check_report(&config).is_empty());
            }
            Err(error) => {
                refused += 1;
                let placed = |line: &&str| {
                    let mut parts = line.strip_prefix("cfg.yml:").unwrap_or_default().split(':');
                    let number = |part: Option<&str>| part.is_some_and(|p| p.parse::<usize>().is_ok_and(|n| n > 0));
                    number(parts.next()) && number(parts.next())
                };
                let told = error.detail.lines().filter(placed).count();
                let frame = if error.detail.contains("things are wrong") { 2 } else { 0 };
                assert!(told > 0 && told + frame == error.detail.lines().count(), "seed {seed}: {error}");
                assert!(matches!(error.kind, Kind::InvalidArgument { .. }) && !error.next.is_empty(), "seed {seed}: {error}");
            }
        }
    }
    assert!(taken > 200 && refused > 1000, "the mutations prove little: {taken} taken, {refused} refused");
}
