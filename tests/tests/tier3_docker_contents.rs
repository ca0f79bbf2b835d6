//! What a container of the real engine finds in a volume: nothing at first, then what its image brings; owner, mode and
//! size; and the volumes of several endpoints of one daemon.

use std::fs::{Permissions, create_dir_all, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::path::Path;

use dunnage_tests::docker::{Bench, PLUGINS};
use dunnage_tests::{BOUND, eventually, http};

const PG: [&str; 4] = ["-v", "pg:/data", "--volume-driver", "dunnage"];

#[test]
fn a_new_volume_is_an_empty_folder_as_a_database_demands() {
    let Some(bench) = Bench::started() else { return };
    // postgres' initdb refuses a folder with any entry, and mysqld one with lost+found.
    assert_eq!(bench.docker.run(&PG, "find /data -mindepth 1").ok(), "");
    bench.finish();
}

#[test]
fn a_new_volume_belongs_to_root_and_others_may_look() {
    let Some(bench) = Bench::started() else { return };
    assert_eq!(bench.docker.run(&PG, "stat -c '%u %g %a' /data").ok(), "0 0 755");
    bench.finish();
}

/// An image that has files at `/data`, of user 70 and group 71.
fn with_data(bench: &Bench) -> &'static str {
    const IMAGE: &str = "localhost:1/data:1";
    bench.docker.import(IMAGE, |root: &Path| {
        let data = root.join("data");
        create_dir_all(data.join("sub")).expect("image");
        write(data.join("sub/file"), "of the image").expect("image");
        for (path, mode) in [("", 0o700), ("sub", 0o750), ("sub/file", 0o640)] {
            let path = data.join(path);
            chown(&path, Some(70), Some(71)).expect("image");
            set_permissions(&path, Permissions::from_mode(mode)).expect("image");
        }
    });
    IMAGE
}

/// Runs a script in a container of an image.
fn run(bench: &Bench, image: &str, args: &[&str], script: &str) -> String {
    bench.docker.cli(&[&["run", "--rm", "--network=none"], args, &[image, "sh", "-c", script]].concat()).ok()
}

const SHOW: &str = "cd /data && stat -c '%n %u %g %a' . sub sub/file && cat sub/file";
const SHOWN: &str = ". 70 71 700\nsub 70 71 750\nsub/file 70 71 640\nof the image";

#[test]
fn what_an_image_has_at_the_path_is_copied_into_a_new_volume_with_owner_and_mode() {
    let Some(bench) = Bench::started() else { return };
    let image = with_data(&bench);
    assert_eq!(run(&bench, image, &PG, SHOW), SHOWN);
    assert_eq!(bench.docker.run(&PG, SHOW).ok(), SHOWN, "and it stays");
    bench.finish();
}

#[test]
fn what_an_image_has_at_the_path_is_not_copied_into_a_volume_that_has_something() {
    let Some(bench) = Bench::started() else { return };
    let image = with_data(&bench);
    bench.docker.run(&PG, "echo mine >/data/x").ok();
    assert_eq!(run(&bench, image, &PG, "ls -A /data"), "x");
    bench.finish();
}

#[test]
fn a_copy_of_an_images_files_leaves_one_holder_for_its_one_container() {
    let Some(bench) = Bench::started() else { return };
    let image = with_data(&bench);
    // dockerd mounts, copies, unmounts and mounts again.
    bench.docker.cli(&[&["run", "-d", "--name=c1", "--network=none"], PG.as_slice(), &[image, "sleep", "1000"]].concat()).ok();
    assert_eq!(bench.node.holders("pg").iter().map(|holder| holder.1).collect::<Vec<_>>(), [1]);
    bench.docker.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

const OF_1000: [&str; 8] = ["-d", "dunnage", "-o", "uid=1000", "-o", "gid=1001", "-o", "mode=0750"];

#[test]
fn a_user_that_is_not_root_writes_to_a_volume_that_was_made_its_own() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&[&["volume", "create"], OF_1000.as_slice(), &["pg"]].concat()).ok();
    let script = "echo x >/data/x && stat -c '%u %g %a' /data && stat -c '%u %g' /data/x";
    assert_eq!(bench.docker.run(&["-u", "1000:1001", "-v", "pg:/data"], script).ok(), "1000 1001 750\n1000 1001");
    let said = bench.docker.run(&["-u", "2000:2000", "-v", "pg:/data"], "ls /data").fails(1);
    assert!(said.contains("Permission denied"), "{said}");
    bench.finish();
}

#[test]
fn the_owner_that_an_image_has_at_the_path_wins_over_the_options_of_a_new_volume() {
    let Some(bench) = Bench::started() else { return };
    let image = with_data(&bench);
    bench.docker.cli(&[&["volume", "create"], OF_1000.as_slice(), &["pg"]].concat()).ok();
    assert_eq!(run(&bench, image, &["-v", "pg:/data"], SHOW), SHOWN);
    bench.finish();
}

#[test]
fn nocopy_keeps_a_volume_empty_and_its_owner_as_it_was_asked() {
    let Some(bench) = Bench::started() else { return };
    let image = with_data(&bench);
    bench.docker.cli(&[&["volume", "create"], OF_1000.as_slice(), &["pg"]].concat()).ok();
    assert_eq!(run(&bench, image, &["-v", "pg:/data:nocopy"], "ls -A /data && stat -c '%u %g %a' /data"), "1000 1001 750");
    bench.finish();
}

#[test]
fn a_volume_that_was_made_read_only_is_refused_to_an_image_that_wants_to_copy_into_it() {
    let Some(bench) = Bench::started() else { return };
    let image = with_data(&bench);
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "ro=true", "pg"]).ok();
    let said = bench.docker.cli(&["run", "--rm", "--network=none", "-v", "pg:/data", image, "true"]).fails(125);
    assert!(said.contains("read-only file system"), "{said}");
    assert_eq!(run(&bench, image, &["-v", "pg:/data:nocopy"], "ls -A /data"), "");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_full_volume_says_so_to_its_container_and_nobody_else_notices() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "small"]).ok();
    let neighbour = bench.writer("c1", "pg");
    let script = "dd if=/dev/zero of=/data/big bs=1M count=100; ls -s /data/big; rm /data/big && echo x >/data/x && cat /data/x";
    let ran = bench.docker.run(&["-v", "small:/data"], script);
    assert!(ran.err.contains("No space left on device"), "{}", ran.err);
    assert!(ran.ok().ends_with("\nx"), "with room again it can be written to");
    neighbour.assert_goes_on();
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn a_container_sees_the_size_that_was_asked_for() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=2G", "pg"]).ok();
    let blocks: u64 = bench.docker.run(&["-v", "pg:/data"], "stat -f -c %b /data").ok().parse().expect("a number");
    // What ext4 keeps for itself is not there to be used.
    let mebibytes = (blocks * 4096) >> 20;
    assert!((1900..=2048).contains(&mebibytes), "{mebibytes} MiB");
    bench.finish();
}

const TWO: &str = "\
endpoints:
  docker:
    - { name: fast, driver: local, defaults: { size: 64MiB, uid: 1000 } }
    - { name: slow, driver: local, defaults: { size: 128MiB } }
";

fn sizes(bench: &Bench, volume: &str) -> String {
    bench.docker.cli(&["volume", "inspect", "--format", "{{.Driver}} {{.Status.size}}", volume]).ok()
}

#[test]
fn two_endpoints_are_two_drivers_to_docker_each_with_its_own_defaults() {
    let Some(bench) = Bench::configured(TWO, &[]) else { return };
    assert_eq!(bench.docker.run(&["-v", "one:/data", "--volume-driver", "fast"], "stat -c %u /data").ok(), "1000");
    assert_eq!(bench.docker.run(&["-v", "two:/data", "--volume-driver", "slow"], "stat -c %u /data").ok(), "0");
    assert_eq!((sizes(&bench, "one"), sizes(&bench, "two")), ("fast 64MiB".to_owned(), "slow 128MiB".to_owned()));
    bench.finish();
}

#[test]
fn an_endpoint_lists_its_own_volumes_only() {
    let Some(bench) = Bench::configured(TWO, &[]) else { return };
    bench.docker.cli(&["volume", "create", "-d", "fast", "one"]).ok();
    bench.docker.cli(&["volume", "create", "-d", "slow", "two"]).ok();
    let listed = bench.docker.cli(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]).ok();
    assert_eq!(listed, "fast one\nslow two");
    bench.finish();
}

#[test]
fn a_name_that_another_endpoint_has_is_refused_and_the_endpoint_is_named() {
    let Some(bench) = Bench::configured(TWO, &[]) else { return };
    // Without dockerd's knowledge: of what it knows it refuses the second one by itself.
    let answer = http::post(&Path::new(PLUGINS).join("fast.sock"), "/VolumeDriver.Create", br#"{"Name":"pg"}"#);
    assert_eq!(answer.status, 200);
    let said = bench.docker.cli(&["volume", "create", "-d", "slow", "pg"]).fails(1);
    assert!(said.contains("exists_incompatible") && said.contains("endpoint fast"), "{said}");
    eventually("it is still fast's", BOUND, || sizes(&bench, "pg") == "fast 64MiB");
    bench.finish();
}
