//! dvdcli beside the real Docker Engine: on its managed plugins, and on a volume that a container has.
#![allow(clippy::expect_used)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use dunnage_tests::docker::Bench;
use dunnage_tests::sh;
use dunnage_tests::{Ran, binary, is_mounted};
use serde_json::json;

/// The binary under its other name, which looks where every plugin is looked for.
fn dvdcli(bench: &Bench, args: &[&str]) -> Ran {
    let path = bench.node.folder.join("dvdcli");
    if !path.exists() {
        symlink(binary(), &path).expect("symlink");
    }
    let output = Command::new(path).args(args).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// What `docker plugin create` takes: a root with the stub and its libraries, and a configuration.
fn plugin_folder(bench: &Bench) -> PathBuf {
    let stub = Path::new(env!("CARGO_BIN_EXE_stub-plugin"));
    let folder = bench.node.folder.join("plugin");
    let root = folder.join("rootfs");
    std::fs::create_dir_all(root.join("run/docker/plugins")).expect("mkdir");
    sh(&format!("cp {} {}/stub", stub.display(), root.display()));
    for library in sh(&format!("ldd {} | grep -o '/[^ ]*'", stub.display())).lines() {
        sh(&format!("mkdir -p {0}$(dirname {library}); cp -L {library} {0}{library}", root.display()));
    }
    let config = json!({
        "description": "a stub", "documentation": "", "entrypoint": ["/stub", "/run/docker/plugins/stub.sock"], "workdir": "/",
        "interface": { "types": ["docker.volumedriver/1.0"], "socket": "stub.sock" }, "network": { "type": "none" },
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("config");
    folder
}

#[test]
fn a_managed_plugin_is_found_and_called() {
    let Some(bench) = Bench::started() else { return };
    let folder = plugin_folder(&bench);
    bench.docker.cli(&["plugin", "create", "localhost:1/stub:1", &folder.display().to_string()]).ok();
    bench.docker.cli(&["plugin", "enable", "localhost:1/stub:1"]).ok();
    let listed = dvdcli(&bench, &["list", "--volumedriver=stub"]);
    assert_eq!((listed.code, listed.out.as_str()), (0, "of-the-stub\n"), "{}", listed.err);
    // The engine's own list, from which dvdcli takes a plugin's name.
    let list = sh(&format!("cat $(find {} -path '*/plugins/*/config.json')", std::env::var("DUNNAGE_TEST_TMP").expect("set")));
    let installed: serde_json::Value = serde_json::from_str(&list).expect("one plugin");
    assert_eq!(installed["plugin"]["Name"], "localhost:1/stub:1");
    assert_eq!(installed["plugin"]["Config"]["Interface"]["Socket"], "stub.sock");
    bench.docker.cli(&["plugin", "disable", "-f", "localhost:1/stub:1"]).ok();
    dvdcli(&bench, &["list", "--volumedriver=stub"]).fails(1);
    bench.docker.cli(&["plugin", "rm", "localhost:1/stub:1"]).ok();
    bench.finish();
}

#[test]
fn a_container_and_dvdcli_hold_one_volume_and_the_last_of_them_lets_it_go() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let (driver, name) = ("--volumedriver=dunnage", "--volumename=pg");
    let path = dvdcli(&bench, &["mount", driver, name]).ok();
    assert_eq!(path, bench.node.mountpoint("pg").display().to_string());
    dvdcli(&bench, &["unmount", driver, name]).ok();
    writer.assert_goes_on();
    dvdcli(&bench, &["mount", driver, name]).ok();
    bench.docker.end("c1");
    assert!(is_mounted(&bench.node.mountpoint("pg")), "dvdcli holds it");
    dvdcli(&bench, &["unmount", driver, name]).ok();
    bench.wait_until_released("pg");
    bench.finish();
}
