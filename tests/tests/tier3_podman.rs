//! The real Podman against the real daemon. Podman has no daemon of its own; it counts the containers of a volume itself,
//! sends one constant ID for all of them, and waits five seconds.

use dunnage_tests::fuse::Store;
use dunnage_tests::podman::{Bench, PODMAN_ID};
use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, eventually, is_mounted, kernel};
use serde_json::Value;

const PG: [&str; 2] = ["-v", "pg:/data"];

fn mount_id(bench: &Bench) -> Option<u64> {
    kernel::mount_id(&bench.node.mountpoint("pg"))
}

/// The volumes that the daemon has.
fn ours(node: &Node) -> Vec<String> {
    let text = node.cli(&["volume", "ls", "-q"]).ok();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn podman_makes_lists_shows_and_removes_a_volume() {
    let Some(bench) = Bench::started() else { return };
    bench.podman.cli(&["volume", "create", "--driver", "dunnage", "-o", "size=2G", "pg"]).ok();
    assert_eq!(bench.podman.cli(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]).ok(), "dunnage pg");
    let text = bench.podman.cli(&["volume", "inspect", "pg"]).ok();
    let shown: Value = serde_json::from_str(&text).expect("json");
    let status = &shown[0]["Status"];
    assert_eq!((&status["size"], &status["state"], &status["node"]), (&"2GiB".into(), &"ready".into(), &"n1".into()), "{text}");
    assert_eq!(shown[0]["Mountpoint"], "", "it is not mounted");
    bench.podman.cli(&["volume", "rm", "pg"]).ok();
    assert_eq!((bench.podman.volumes(), ours(&bench.node)), (vec![], vec![]));
    bench.finish();
}

#[test]
fn a_wrong_option_is_refused_in_our_words_and_nothing_is_made() {
    let Some(bench) = Bench::started() else { return };
    let said = bench.podman.cli(&["volume", "create", "--driver", "dunnage", "-o", "siz=2G", "pg"]).fails(125);
    assert!(said.contains("invalid_argument{siz}: volume \"pg\": option \"siz\" is unknown; did you mean \"size\"?"), "{said}");
    assert_eq!((bench.podman.volumes(), ours(&bench.node)), (vec![], vec![]));
    bench.finish();
}

#[test]
fn what_one_container_writes_the_next_one_reads() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.podman.run(&PG, "echo written >/data/x").ok();
    bench.wait_until_released("pg");
    assert_eq!(bench.podman.run(&PG, "cat /data/x").ok(), "written");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_new_volume_is_filled_from_the_image() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    assert_eq!(bench.podman.run(&["-v", "pg:/kept"], "cat /kept/of-the-image && rm /kept/of-the-image").ok(), "of the image");
    assert_eq!(bench.podman.run(&["-v", "pg:/kept"], "ls /kept").ok(), "", "once, and not again");
    bench.finish();
}

/// containers/podman#8604: Podman gives no volume of a plugin to the container's user.
#[test]
fn a_container_of_another_user_writes_to_a_volume_that_was_made_for_it() {
    let Some(bench) = Bench::started() else { return };
    bench.podman.cli(&["volume", "create", "--driver", "dunnage", "-o", "uid=999", "-o", "gid=999", "-o", "mode=0700", "pg"]).ok();
    let said = bench.podman.run(&["-v", "pg:/data", "--user=999:999"], "touch /data/x && stat -c '%u %g %a' /data /data/x").ok();
    assert!(said.starts_with("999 999 700\n999 999 "), "{said}");
    let said = bench.podman.run(&["-v", "pg:/data", "--user=998:998"], "ls /data").fails(1);
    assert!(said.contains("Permission denied"), "{said}");
    bench.finish();
}

#[test]
fn two_containers_are_one_holder_and_the_last_one_lets_it_go() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    let id = mount_id(&bench);
    bench.podman.begin("c2", &PG, "sleep 1000");
    assert_eq!(bench.podman.field("pg", "MountCount"), "2", "Podman counts both");
    assert_eq!(bench.node.holders("pg"), [(Some(PODMAN_ID.to_owned()), 1, 0, 0)], "and tells of the first one alone");
    let named = bench.podman.cli(&["ps", "-a", "--filter", "volume=pg", "--format", "{{.Names}}"]).ok();
    assert!(named.contains("c1") && named.contains("c2"), "Podman names them: {named}");
    bench.podman.end("c2");
    assert_eq!((bench.held("pg"), mount_id(&bench)), (1, id), "nobody touched the mount");
    bench.assert_written_to("pg");
    bench.podman.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn people_see_that_podman_holds_a_volume() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    let shown = bench.node.cli(&["volume", "inspect", "pg"]).ok();
    assert!(shown.contains("podman (endpoint dunnage) since 20"), "{shown}");
    bench.podman.end("c1");
    bench.finish();
}

#[test]
fn a_volume_in_use_is_removed_neither_by_podman_nor_by_us() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    let said = bench.podman.cli(&["volume", "rm", "pg"]).fails(2);
    assert!(said.contains("is being used by the following container"), "{said}");
    let said = bench.node.cli(&["volume", "rm", "pg"]).fails(5);
    assert!(said.contains("in_use{n1}") && said.contains("podman"), "{said}");
    bench.assert_written_to("pg");
    bench.podman.end("c1");
    bench.podman.cli(&["volume", "rm", "pg"]).ok();
    bench.finish();
}

/// `podman volume prune`, in versions that spare named volumes with the word that does not.
fn prune(bench: &Bench) -> dunnage_tests::Ran {
    let help = bench.podman.cli(&["volume", "prune", "--help"]).ok();
    let args = ["volume", "prune", "--force", "--all"];
    bench.podman.cli(if help.contains("--all") { &args } else { &args[..3] })
}

#[test]
fn a_prune_deletes_what_no_container_has_and_leaves_what_somebody_uses() {
    let Some(bench) = Bench::started() else { return };
    for volume in ["pg", "stopped", "free", "elsewhere"] {
        bench.create(volume);
    }
    bench.writer("c1", "pg");
    bench.podman.begin("c2", &["-v", "stopped:/data"], "echo written >/data/x");
    bench.wait_until_released("stopped");
    // Podman knows nothing of this one's use, which might be Docker's.
    let path = bench.node.cli(&["volume", "mount", "elsewhere"]).ok();
    let pruned = prune(&bench);
    assert!(pruned.err.contains("in_use{n1}") && pruned.err.contains("elsewhere"), "{}{}", pruned.out, pruned.err);
    let mut left = ours(&bench.node);
    left.sort_unstable();
    assert_eq!(left, ["elsewhere", "pg", "stopped"], "with all its data, the free one has gone");
    assert!(is_mounted(path.as_ref()));
    bench.assert_written_to("pg");
    bench.podman.end("c1");
    bench.podman.end("c2");
    assert_eq!(bench.podman.run(&["-v", "stopped:/data"], "cat /data/x").ok(), "written");
    bench.node.cli(&["volume", "unmount", "elsewhere"]).ok();
    bench.finish();
}

#[test]
fn a_volume_that_podman_was_not_told_of_is_found_by_a_reload() {
    let Some(bench) = Bench::started() else { return };
    bench.node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    assert!(bench.podman.volumes().is_empty());
    bench.podman.cli(&["volume", "reload"]).ok();
    assert_eq!(bench.podman.volumes(), ["pg"]);
    bench.writer("c1", "pg");
    assert_eq!(bench.held("pg"), 1);
    bench.podman.end("c1");
    bench.finish();
}

/// Podman asks whether there is one before it asks for one to be made, and does not compare.
#[test]
fn a_volume_that_is_there_is_taken_as_it_is_whatever_is_asked() {
    let Some(bench) = Bench::started() else { return };
    bench.node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    let path = bench.node.cli(&["volume", "mount", "pg"]).ok();
    sh(&format!("echo written > {path}/x"));
    bench.node.cli(&["volume", "unmount", "pg"]).ok();
    bench.podman.cli(&["volume", "create", "--driver", "dunnage", "-o", "size=32M", "pg"]).ok();
    assert_eq!(bench.podman.field("pg", "Status.size"), "64MiB");
    assert_eq!(bench.podman.run(&PG, "cat /data/x").ok(), "written");
    bench.finish();
}

#[test]
fn a_volume_has_the_patience_that_podman_was_told_for_it() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.podman.cli(&["volume", "create", "--driver", "dunnage", "-o", "size=64M", "-o", "o=timeout=20", "slow"]).ok();
    let patience = || (bench.podman.field("pg", "Timeout"), bench.podman.field("slow", "Timeout"));
    assert_eq!(patience(), ("5".to_owned(), "20".to_owned()));
    bench.podman.configure("volume_plugin_timeout = 100");
    assert_eq!(patience(), ("100".to_owned(), "20".to_owned()), "also of a volume that is there");
    bench.finish();
}

/// Podman makes a folder of its own for a name that it does not know: it has no `--volume-driver`.
#[test]
fn a_name_that_podman_does_not_know_is_none_of_our_volumes() {
    let Some(bench) = Bench::started() else { return };
    bench.node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    bench.podman.run(&PG, "echo astray >/data/x").ok();
    assert_eq!(bench.podman.cli(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]).ok(), "local pg");
    assert!(!bench.node.log().contains("call=\"Mount\""), "nobody asked us");
    bench.podman.cli(&["volume", "rm", "pg"]).ok();
    assert_eq!(ours(&bench.node), ["pg"], "Podman's went, ours is there");
    bench.finish();
}

#[test]
fn a_copy_into_a_container_and_a_restart_of_it_change_nothing_of_what_it_holds() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    let id = mount_id(&bench);
    let file = bench.node.folder.join("file");
    std::fs::write(&file, "copied").expect("file");
    bench.podman.cli(&["cp", &file.display().to_string(), "c1:/data/file"]).ok();
    assert_eq!(bench.podman.cli(&["exec", "c1", "cat", "/data/file"]).ok(), "copied");
    assert_eq!((bench.held("pg"), mount_id(&bench)), (1, id), "nobody touched the mount");
    bench.podman.cli(&["restart", "c1"]).ok();
    bench.assert_written_to("pg");
    assert_eq!(bench.held("pg"), 1);
    bench.podman.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_container_that_lost_its_conmon_lets_its_volume_go_when_it_is_removed() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    bench.podman.kill_conmon();
    bench.assert_written_to("pg");
    assert_eq!(bench.held("pg"), 1);
    bench.podman.end_at_last("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_container_that_was_killed_with_its_conmon_lets_its_volume_go_when_it_is_removed() {
    let Some(bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    bench.podman.kill_everything();
    assert_eq!(bench.held("pg"), 1, "nobody was left to give it back");
    assert!(is_mounted(&bench.node.mountpoint("pg")));
    bench.podman.end_at_last("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_daemon_that_is_killed_and_started_again_touches_nothing_under_a_running_container() {
    let Some(mut bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    let id = mount_id(&bench);
    bench.node.kill();
    bench.assert_written_to("pg");
    assert!(bench.podman.run(&PG, "cat /data/log").ok().starts_with('x'), "what is mounted serves another container, too");
    bench.node.start();
    bench.assert_written_to("pg");
    assert_eq!((mount_id(&bench), bench.held("pg")), (id, 1));
    bench.podman.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

/// Unlike dockerd, Podman does not try again.
#[test]
fn a_container_that_starts_without_the_daemon_fails_at_once_and_names_the_plugin() {
    let Some(mut bench) = Bench::started() else { return };
    bench.create("pg");
    bench.podman.run(&PG, "echo x >/data/x").ok();
    bench.wait_until_released("pg");
    bench.node.kill();
    let ran = bench.podman.run(&PG, "cat /data/x");
    assert!(ran.code != 0 && ran.out.is_empty(), "{}", ran.out);
    assert!(ran.err.contains("volume plugin dunnage") && ran.err.contains("connection refused"), "{}", ran.err);
    assert_eq!(bench.podman.run(&[], "echo others run").ok(), "others run");
    bench.node.start();
    assert_eq!(bench.podman.run(&PG, "cat /data/x").ok(), "x", "and it works again");
    bench.wait_until_released("pg");
    bench.finish();
}

/// Podman 4.3 tells nobody of an end that it could not tell of at once. Its count stays, and with it our hold, until it is
/// told to unmount (or the volume is removed).
#[test]
fn what_podman_could_not_give_back_does_no_harm_and_is_given_back_by_hand() {
    let Some(mut bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    bench.node.kill();
    // It may fail, and removes the container all the same: that is between Podman and the container's conmon.
    bench.podman.cli(&["rm", "-f", "c1"]);
    bench.podman.cli(&["rm", "-f", "--ignore", "c1"]).ok();
    bench.node.start();
    if bench.held("pg") == 0 {
        bench.wait_until_released("pg");
        return bench.finish();
    }
    assert_eq!(bench.held("pg"), 1);
    assert!(is_mounted(&bench.node.mountpoint("pg")));
    assert!(bench.podman.run(&PG, "cat /data/log").ok().starts_with('x'));
    assert_eq!(bench.held("pg"), 1, "a container came and went");
    let said = bench.node.cli(&["volume", "rm", "pg"]).fails(5);
    assert!(said.contains("in_use{n1}") && said.contains("podman"), "{said}");
    bench.podman.cli(&["volume", "unmount", "pg"]).ok();
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn after_a_boot_a_container_is_started_anew_with_its_data() {
    let Some(mut bench) = Bench::started() else { return };
    bench.create("pg");
    bench.writer("c1", "pg");
    sh(&format!("sync -f {}/log", bench.node.mountpoint("pg").display()));
    let written = sh(&format!("stat -c %s {}/log", bench.node.mountpoint("pg").display())).parse::<u64>().expect("a size");
    bench.node.kill();
    bench.podman.kill_everything();
    // Mounts, devices and what is under /run do not outlive a machine's restart.
    for mount in kernel::mounts_beneath(&bench.node.state()).into_iter().rev() {
        sh(&format!("umount {}", mount.display()));
    }
    for device in kernel::loops_beneath(&bench.node.folder) {
        sh(&format!("losetup -d {}", device.display()));
    }
    std::fs::remove_dir_all(bench.node.run_dir()).expect("the daemon's state");
    bench.podman.lose_run();
    bench.node.start();
    assert_eq!(bench.held("pg"), 0);
    assert!(!is_mounted(&bench.node.mountpoint("pg")));
    bench.podman.cli(&["start", "c1"]).ok();
    bench.assert_written_to("pg");
    assert_eq!(bench.held("pg"), 1);
    let log = std::fs::metadata(bench.node.mountpoint("pg").join("log")).expect("the log");
    assert!(log.len() > written, "{} after {written}", log.len());
    bench.podman.end("c1");
    bench.wait_until_released("pg");
    bench.finish();
}

/// The volumes of endpoint `bad` lie on a store that can be brought to a halt.
struct Slow {
    // Dropped first: its volumes lie on the store.
    bench: Bench,
    store: Store,
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.store.go_on();
    }
}

impl Slow {
    fn new(volumes: &[&str]) -> Option<Slow> {
        let node = Bench::node()?;
        let folder = node.folder.join("store");
        std::fs::create_dir_all(&folder).expect("folder");
        let store = Store::new(env!("CARGO_BIN_EXE_fuse-store"), &folder, 512 << 20);
        let pool = store.path().join("pool");
        node.configure(&format!(
            "drivers: {{ bad: {{ type: local, pool: {} }} }}\nendpoints: {{ docker: [ {{ name: bad, driver: bad }} ] }}\n",
            pool.display()
        ));
        let slow = Slow { bench: Bench::of(node, &["bad"]), store };
        for volume in volumes {
            slow.bench.podman.cli(&["volume", "create", "--driver", "bad", "-o", "size=16M", volume]).ok();
            slow.bench.podman.run(&["-v", &format!("{volume}:/data")], "echo written >/data/x").ok();
            slow.nothing_of_it_is_left(volume);
        }
        Some(slow)
    }

    fn jobs(&self, volume: &str) -> usize {
        let inspected: Value = serde_json::from_str(&self.bench.node.cli(&["volume", "inspect", volume, "-o", "json"]).ok()).expect("json");
        inspected["jobs"].as_array().expect("jobs").len()
    }

    #[track_caller]
    fn nothing_of_it_is_left(&self, volume: &str) {
        let mountpoint = self.bench.node.state().join("volumes/bad").join(volume);
        let attached = || kernel::loops_beneath(&self.store.path().join("pool").join(volume));
        eventually("no job runs and nothing is left", BOUND, || {
            self.jobs(volume) == 0 && self.bench.node.holders(volume).is_empty() && !is_mounted(&mountpoint) && attached().is_empty()
        });
    }

    #[track_caller]
    fn finish(mut self) {
        self.bench.podman.finish();
        self.bench.node.stop();
        let pool = self.store.path().join("pool");
        eventually("nothing is attached", BOUND, || kernel::loops_beneath(&pool).is_empty());
        let mounts = kernel::mounts_beneath(&self.bench.node.state().join("volumes/bad"));
        assert!(mounts.is_empty(), "still mounted: {mounts:?}");
    }
}

#[test]
fn a_mount_that_takes_longer_than_podman_waits_leaves_nothing_and_a_longer_patience_gets_it() {
    let Some(slow) = Slow::new(&["a", "b"]) else { return };
    let podman = &slow.bench.podman;
    slow.store.halt();
    podman.configure("volume_plugin_timeout = 100");
    let patient = podman.spawn_run(&["-v", "a:/data"], "cat /data/x");
    eventually("its mount is under way", BOUND, || slow.jobs("a") == 1);
    podman.configure("");
    let said = podman.run(&["-v", "b:/data"], "cat /data/x");
    assert!(said.code != 0 && said.out.is_empty(), "{}", said.out);
    assert!(said.err.contains("Client.Timeout exceeded") || said.err.contains("deadline exceeded"), "{}", said.err);
    slow.store.go_on();
    assert_eq!(patient.wait().ok(), "written", "the other one has waited longer");
    slow.nothing_of_it_is_left("a");
    slow.nothing_of_it_is_left("b");
    assert_eq!(podman.run(&["-v", "b:/data"], "cat /data/x").ok(), "written", "and it works again");
    slow.nothing_of_it_is_left("b");
    slow.finish();
}

#[test]
fn a_podman_that_is_killed_while_it_waits_for_a_mount_leaves_nothing() {
    let Some(slow) = Slow::new(&["a"]) else { return };
    let podman = &slow.bench.podman;
    slow.store.halt();
    let running = podman.spawn_run(&["--name", "c1", "-v", "a:/data"], "cat /data/x");
    eventually("its mount is under way", BOUND, || slow.jobs("a") == 1);
    podman.kill_commands();
    assert_ne!(running.wait().code, 0);
    slow.store.go_on();
    slow.nothing_of_it_is_left("a");
    podman.end("c1");
    assert_eq!(podman.run(&["-v", "a:/data"], "cat /data/x").ok(), "written");
    slow.nothing_of_it_is_left("a");
    slow.finish();
}

/// What Podman could not tell us while the daemon was away, its own service tells when it is asked.
#[test]
fn what_podman_could_not_tell_is_found_by_asking_its_service_and_let_go_of() {
    let Some(node) = Bench::node() else { return };
    let socket = node.folder.join("podman.sock");
    node.configure(&format!("holders: {{ reconcile: act, grace: 2s, docker: [], podman: [ {} ] }}\n", socket.display()));
    let mut bench = Bench::of(node, &["dunnage"]);
    bench.create("pg");
    bench.create("other");
    bench.podman.begin("lives", &["-v", "other:/data"], "while echo x >>/data/log; do sleep 0.01; done");
    bench.podman.begin("goes", &["-v", "pg:/data"], "sleep 600");
    let service = bench.podman.serve(&socket);
    bench.node.wait_for_witnesses();
    assert_eq!([bench.node.holders("pg").len(), bench.node.holders("other").len()], [1, 1], "one that lives was let go of");
    bench.node.kill();
    // It may say that it could not unmount; the container goes all the same.
    bench.podman.end_at_last("goes");
    bench.node.start();
    bench.wait_until_released("pg");
    bench.node.wait_for_witnesses();
    assert_eq!(bench.node.holders("other").len(), 1, "one that lives was let go of");
    drop(service);
    bench.podman.end("lives");
    for volume in ["pg", "other"] {
        bench.podman.cli(&["volume", "rm", volume]).ok();
    }
    bench.finish();
}
