//! dvdcli beside the real Docker Engine: on its managed plugins, and on a volume that a container has.
#![allow(clippy::expect_used)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use dunnage_tests::docker::Bench;
use dunnage_tests::sh;
use dunnage_tests::{Ran, binary, is_mounted};
use serde_json::json;

/// The binary under its other name.
fn dvdcli_of(bench: &Bench) -> PathBuf {
    let path = bench.node.folder.join("dvdcli");
    if !path.exists() {
        symlink(binary(), &path).expect("symlink");
    }
    path
}

/// The same, which looks where every plugin is looked for.
fn dvdcli(bench: &Bench, args: &[&str]) -> Ran {
    let output = Command::new(dvdcli_of(bench)).args(args).output().expect("it runs");
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
        "propagatedMount": "/volumes",
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
    // With the engine's data where engines have it: by the name it was installed under, and its paths are such of the host.
    let data = bench.docker.data_root();
    for name in ["localhost:1/stub:1", "stub"] {
        for verb in ["mount", "path"] {
            let ask =
                format!("p=$({} {verb} --volumedriver={name} --volumename=of-the-stub); echo $p; cat $p/file", dvdcli_of(&bench).display());
            let place = "mount -t tmpfs none /var/lib; mkdir /var/lib/docker; mount --rbind";
            let said = sh(&format!("unshare -m sh -ec '{place} {} /var/lib/docker; {ask}'", data.display()));
            let (path, file) = said.split_once('\n').expect("a path and what is there");
            assert!(path.starts_with("/var/lib/docker/plugins/") && path.ends_with("/propagated-mount/of-the-stub"), "{name}: {path}");
            assert_eq!(file, "of the stub");
        }
    }
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
