//! Names with options in them, as Portworx' users write them, with the real Docker Engine, Compose and dvdcli.

use std::os::unix::fs::symlink;

use dunnage_tests::compose::Project;
use dunnage_tests::docker::{Bench, IMAGE};
use dunnage_tests::{BOUND, Node, binary, eventually, is_mounted};
use serde_json::json;

const CONFIG: &str = "endpoints: { docker: [ { name: pxd, driver: local, defaults: { size: 64M } } ] }\n";
const NAME: &str = "size=128M,io_priority=high,name=mysql_vol";

#[test]
fn docker_runs_with_a_name_that_has_options_in_it_and_the_volume_is_its_name_alone() {
    let Some(bench) = Bench::configured(CONFIG, &[]) else { return };
    let volume = format!("{NAME}:/data");
    bench.docker.run(&["-v", &volume, "--volume-driver", "pxd"], "echo one >/data/x").ok();
    bench.wait_until_released("mysql_vol");
    let inspected = bench.node.cli(&["volume", "inspect", "mysql_vol"]).ok();
    assert!(inspected.contains("128MiB") && inspected.contains("io_priority=high"), "{inspected}");
    // Docker knows it by the words it asked with, and asks with them again.
    bench.docker.run(&["-v", &volume, "--volume-driver", "pxd"], "cat /data/x").ok();
    assert_eq!(bench.docker.run(&["-v", "name=mysql_vol:/data", "--volume-driver", "pxd"], "cat /data/x").ok(), "one");
    assert_eq!(bench.docker.run(&["-v", "mysql_vol:/data", "--volume-driver", "pxd"], "cat /data/x").ok(), "one");
    let size = bench.docker.cli(&["volume", "inspect", "--format", "{{.Status.size}} {{.Name}}", NAME]).ok();
    assert_eq!(size, format!("128MiB {NAME}"));
    bench.wait_until_released("mysql_vol");
    bench.docker.cli(&["volume", "rm", NAME]).ok();
    assert!(!bench.node.image("mysql_vol").exists());
    bench.finish();
}

#[test]
fn two_containers_that_ask_in_different_words_share_one_volume() {
    let Some(bench) = Bench::configured(CONFIG, &[]) else { return };
    bench.docker.begin("c1", &["-v", "size=64M;name=pg:/data", "--volume-driver", "pxd"], "sleep 1000");
    bench.docker.begin("c2", &["-v", "name=pg,size=64M:/data", "--volume-driver", "pxd"], "sleep 1000");
    assert_eq!(bench.node.holders("pg").len(), 2);
    bench.docker.end("c1");
    eventually("one lets go", BOUND, || bench.node.holders("pg").len() == 1);
    assert!(is_mounted(&bench.node.mountpoint("pg")));
    bench.docker.end("c2");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_spec_that_does_not_parse_is_refused_with_the_position_and_is_no_volume() {
    let Some(bench) = Bench::configured(CONFIG, &[]) else { return };
    let said = bench.docker.spawn_run(&["-v", "size=64M,nmae=pg:/data", "--volume-driver", "pxd"], "true").wait().fails(125);
    assert!(said.contains("position 10") && said.contains("did you mean \"name\"?"), "{said}");
    assert!(bench.node.cli(&["volume", "ls", "-q"]).ok().is_empty());
    bench.finish();
}

#[test]
fn what_stands_in_the_name_counts_above_what_stands_beside_it_and_that_above_the_endpoint_s_defaults() {
    let mut node = Node::new();
    node.configure("endpoints: { docker: [ { name: dunnage, driver: local, defaults: { size: 1G, mode: '0700' } } ] }\n");
    node.start();
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "size=64M,name=pg", "Opts": { "size": "2G", "labels": "a=1" } }));
    let got = node.plugin_ok("VolumeDriver.Get", &json!({ "Name": "name=pg" }));
    let volume = &got["Volume"];
    assert_eq!(
        (&volume["Name"], &volume["Status"]["size"], &volume["Status"]["labels"]["a"]),
        (&"name=pg".into(), &"64MiB".into(), &"1".into()),
        "{got}"
    );
    assert_eq!(node.plugin_ok("VolumeDriver.List", &json!({}))["Volumes"][0]["Name"], "pg");
    let path = node.mount("name=pg", "a");
    assert_eq!(path, node.mountpoint("pg"));
    assert_eq!(node.plugin_ok("VolumeDriver.Path", &json!({ "Name": "pg" }))["Mountpoint"], path.display().to_string());
    node.unmount("pg", "a");
    // A secret in a name stands in no log.
    node.plugin_err("VolumeDriver.Create", &json!({ "Name": "passphrase=hunter2,name=x" }));
    node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "passphrase=hunter2,name=x", "ID": "a" }));
    assert!(!node.log().contains("hunter2"));
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "size=64M,name=pg" }));
    node.finish();
}

#[test]
fn dvdcli_takes_a_name_with_options_in_it_and_mounts_what_exists_as_it_is() {
    let node = Node::started();
    let dvdcli = node.folder.join("dvdcli");
    symlink(binary(), &dvdcli).expect("symlink");
    let run = |args: &[&str]| {
        let output = std::process::Command::new(&dvdcli).args(args).env("DUNNAGE_PLUGIN_DIR", &node.plugins).output().expect("it runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let name = "--volumename=size=64M;name=pg";
    assert_eq!(run(&["mount", "--volumedriver=dunnage", name]).1, node.mountpoint("pg").display().to_string());
    let (fine, path, said) = run(&["mount", "--volumedriver=dunnage", "--volumename=size=1G;name=pg", "--volumeopts=size=64M"]);
    assert!(fine && path == node.mountpoint("pg").display().to_string() && said.contains("size=64MiB, and not 1GiB"), "{said}");
    assert_eq!(run(&["get", "--volumedriver=dunnage", name]).1, "size=64M;name=pg");
    assert!(run(&["unmount", "--volumedriver=dunnage", "--volumename=name=pg"]).0);
    assert!(run(&["remove", "--volumedriver=dunnage", name]).0);
    node.assert_nothing_left();
}

#[test]
fn a_compose_file_with_portworx_names_goes_on() {
    let Some(project) = Project::configured(CONFIG) else { return };
    let service = format!(
        "{{ image: '{IMAGE}', network_mode: none, stop_signal: SIGKILL, volumes: ['db:/data'], command: ['sh', '-c', 'echo up >/data/x; sleep 1000'] }}"
    );
    project.write(&format!(
        "version: '3.4'\nservices:\n  db: {service}\nvolumes:\n  db: {{ driver: pxd, name: 'size=64M,repl=1,io_priority=high,name=pg_inline' }}\n"
    ));
    let bench = &project.bench;
    project.compose(&["up", "-d"]).ok();
    eventually("it has started", BOUND, || bench.node.mountpoint("pg_inline").join("x").exists());
    project.compose(&["up", "-d"]).ok();
    assert_eq!(bench.node.cli(&["volume", "ls", "-q"]).ok(), "pg_inline");
    project.compose(&["down"]).ok();
    bench.wait_until_released("pg_inline");
    assert!(bench.node.image("pg_inline").exists());
    project.bench.finish();
}
