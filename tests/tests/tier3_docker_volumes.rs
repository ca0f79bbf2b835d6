//! `docker volume …` with the real engine: what people ask for, what they see, what is removed and what is refused.

use dunnage_tests::docker::Bench;
use serde_json::Value;

fn inspect(bench: &Bench, volume: &str) -> Value {
    let text = bench.docker.cli(&["volume", "inspect", volume]).ok();
    let mut all: Vec<Value> = serde_json::from_str(&text).expect("json");
    all.pop().expect("a volume")
}

#[test]
fn dockerd_finds_the_driver_by_itself() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "ls"]).ok();
    let plugins = bench.docker.cli(&["info", "--format", "{{.Plugins.Volume}}"]).ok();
    assert!(plugins.contains("dunnage"), "{plugins}");
    bench.finish();
}

#[test]
fn a_volume_shows_people_what_it_is() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=2G", "-o", "labels=tier=gold", "pg"]).ok();
    let shown = inspect(&bench, "pg");
    assert_eq!((&shown["Name"], &shown["Driver"], &shown["Scope"]), (&"pg".into(), &"dunnage".into(), &"local".into()));
    assert_eq!(shown["Mountpoint"], "", "it is not mounted");
    let status = &shown["Status"];
    assert_eq!((&status["size"], &status["fs"]), (&"2GiB".into(), &"ext4".into()), "{status}");
    assert_eq!((&status["driver"], &status["node"]), (&"local".into(), &"n1".into()), "{status}");
    assert_eq!((&status["state"], &status["holders"]), (&"ready".into(), &Value::Array(Vec::new())), "{status}");
    assert_eq!(status["labels"]["tier"], "gold", "{status}");
    bench.finish();
}

#[test]
fn a_volume_shows_when_it_was_made() {
    let Some(bench) = Bench::started() else { return };
    let now = || bench.docker.run(&[], "date -u +%Y-%m-%dT%H:%M:%SZ").ok();
    let before = now();
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    let made = inspect(&bench, "pg")["CreatedAt"].as_str().expect("CreatedAt").to_owned();
    let after = now();
    // Written in the same form, times sort as texts.
    assert!(before <= made && made <= after, "{before} {made} {after}");
    bench.finish();
}

#[test]
fn a_volume_in_use_shows_where_it_is_mounted_and_for_whom() {
    let Some(bench) = Bench::started() else { return };
    bench.writer("c1", "pg");
    let id = bench.docker.cli(&["inspect", "--format", "{{.Id}}", "c1"]).ok();
    let shown = inspect(&bench, "pg");
    assert_eq!(shown["Mountpoint"].as_str(), bench.node.mountpoint("pg").to_str());
    assert_eq!(shown["Status"]["state"], "mounted");
    // dockerd mounts under an ID of its own making, not the container's.
    let holders = bench.node.holders("pg");
    let [(Some(holder), 1, 0, 0)] = holders.as_slice() else { panic!("{id}: {holders:?}") };
    let said = shown["Status"]["holders"][0].as_str().expect("a holder");
    assert!(said.starts_with(&format!("docker {} (endpoint dunnage) since 20", &holder[..12])), "{said}");
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn docker_lists_a_volume_with_its_driver() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    let listed = bench.docker.cli(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]).ok();
    assert_eq!(listed, "dunnage pg");
    bench.finish();
}

#[test]
fn docker_lists_and_uses_a_volume_that_the_command_line_made() {
    let Some(bench) = Bench::started() else { return };
    bench.node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    assert_eq!(bench.docker.volumes(), ["pg"]);
    bench.docker.run(&["--mount", "type=volume,source=pg,target=/data"], "echo x >/data/x").ok();
    assert_eq!(bench.docker.volumes(), ["pg"], "the same one");
    bench.finish();
}

#[test]
fn a_removed_volume_is_gone_from_docker_and_from_the_pool() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    assert!(bench.node.image("pg").exists());
    bench.docker.cli(&["volume", "rm", "pg"]).ok();
    assert!(bench.docker.volumes().is_empty());
    assert!(!bench.node.image("pg").exists());
    bench.finish();
}

#[test]
fn a_name_that_is_used_again_begins_empty() {
    let Some(bench) = Bench::started() else { return };
    let mount = ["-v", "pg:/data", "--volume-driver", "dunnage"];
    bench.docker.run(&mount, "echo old >/data/x").ok();
    bench.docker.cli(&["volume", "rm", "pg"]).ok();
    assert_eq!(bench.docker.run(&mount, "ls -A /data").ok(), "");
    bench.finish();
}

#[test]
fn an_unknown_option_is_refused_with_the_nearest_right_one_and_nothing_is_made() {
    let Some(bench) = Bench::started() else { return };
    let said = bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "siez=2G", "pg"]).fails(1);
    assert!(said.contains("siez") && said.contains("did you mean \"size\"?") && said.contains("pg"), "{said}");
    assert!(bench.docker.volumes().is_empty());
    assert_eq!(std::fs::read_dir(bench.node.pool()).expect("pool").filter_map(Result::ok).filter(|e| e.file_name() == "pg").count(), 0);
    bench.finish();
}

#[test]
fn a_bad_size_is_refused_in_words_that_docker_passes_on() {
    let Some(bench) = Bench::started() else { return };
    for size in ["0", "-1", "abc", "1M"] {
        let said = bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", &format!("size={size}"), "pg"]).fails(1);
        assert!(said.contains("invalid_argument{size}") && said.contains("\"pg\""), "{size}: {said}");
    }
    assert!(bench.docker.volumes().is_empty());
    bench.finish();
}

#[test]
fn a_volume_that_is_not_there_is_not_found() {
    let Some(bench) = Bench::started() else { return };
    let said = bench.docker.cli(&["volume", "inspect", "nix"]).fails(1);
    assert!(said.to_lowercase().contains("no such volume"), "{said}");
    let said = bench.docker.cli(&["volume", "rm", "nix"]).fails(1);
    assert!(said.to_lowercase().contains("no such volume"), "{said}");
    bench.finish();
}

#[test]
fn an_anonymous_volume_goes_with_a_container_that_is_run_with_rm() {
    let Some(bench) = Bench::started() else { return };
    let anonymous = ["-v", "/data", "--volume-driver", "dunnage"];
    bench.docker.run(&anonymous, "echo x >/data/x && stat -f -c %T /data").ok();
    assert!(bench.docker.volumes().is_empty(), "docker has removed it");
    assert_eq!(bench.node.cli(&["volume", "ls", "--quiet"]).ok(), "", "and so have we");
    bench.finish();
}

#[test]
fn rm_v_removes_an_anonymous_volume_and_keeps_a_named_one() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.begin("c1", &["-v", "/anonymous", "-v", "pg:/named", "--volume-driver", "dunnage"], "sleep 1000");
    assert_eq!(bench.docker.volumes().len(), 2);
    bench.docker.cli(&["rm", "-f", "-v", "c1"]).ok();
    assert_eq!(bench.docker.volumes(), ["pg"]);
    bench.finish();
}

#[test]
fn rm_without_v_keeps_an_anonymous_volume() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.begin("c1", &["-v", "/data", "--volume-driver", "dunnage"], "sleep 1000");
    bench.docker.end("c1");
    assert_eq!(bench.docker.volumes().len(), 1);
    bench.finish();
}

#[test]
fn volume_prune_deletes_no_volume_of_ours_named_or_anonymous_used_or_unused() {
    let Some(bench) = Bench::started() else { return };
    // moby prunes volumes of its own `local` driver only (volume/service/service.go, VolumesService.Prune).
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "unused"]).ok();
    bench.docker.begin("c0", &["-v", "/data", "--volume-driver", "dunnage"], "sleep 1000");
    bench.docker.end("c0");
    bench.writer("c1", "used");
    bench.docker.cli(&["volume", "create", "dockers-own"]).ok();
    let before = bench.docker.volumes();
    assert_eq!(before.len(), 4, "{before:?}");
    bench.docker.cli(&["volume", "prune", "-f"]).ok();
    bench.docker.cli(&["system", "prune", "-f", "--volumes"]).ok();
    let after = bench.docker.volumes();
    let ours: Vec<_> = before.into_iter().filter(|name| name != "dockers-own").collect();
    assert!(ours.iter().all(|name| after.contains(name)), "of {ours:?} are left {after:?}");
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn docker_refuses_to_remove_a_volume_that_a_container_has_even_a_stopped_one() {
    let Some(bench) = Bench::started() else { return };
    let id = bench.docker.begin("c1", &["-v", "pg:/data", "--volume-driver", "dunnage"], "sleep 1000");
    for state in ["running", "stopped"] {
        let said = bench.docker.cli(&["volume", "rm", "pg"]).fails(1);
        assert!(said.contains("in use") && said.contains(&id), "{state}: {said}");
        bench.docker.cli(&["stop", "c1"]).ok();
    }
    assert!(bench.node.image("pg").exists());
    bench.docker.end("c1");
    bench.docker.cli(&["volume", "rm", "pg"]).ok();
    bench.finish();
}

#[test]
fn our_command_line_refuses_to_remove_what_a_container_holds_and_says_who() {
    let Some(bench) = Bench::started() else { return };
    let writer = bench.writer("c1", "pg");
    let said = bench.node.cli(&["volume", "rm", "pg"]).fails(5);
    let holder = bench.node.holders("pg")[0].0.clone().expect("an ID");
    assert!(said.contains("pg") && said.contains(&holder[..12]) && said.contains("stop the container"), "{said}");
    writer.assert_goes_on();
    bench.docker.end("c1");
    bench.finish();
}

#[test]
fn docker_passes_on_who_else_holds_a_volume_that_it_is_to_remove() {
    let Some(bench) = Bench::started() else { return };
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    bench.node.mount("pg", "another-engine");
    let said = bench.docker.cli(&["volume", "rm", "pg"]).fails(1);
    assert!(said.contains("in_use{n1}") && said.contains("another-engi"), "{said}");
    assert_eq!(bench.docker.volumes(), ["pg"], "docker still knows it");
    bench.node.unmount("pg", "another-engine");
    bench.docker.cli(&["volume", "rm", "pg"]).ok();
    bench.finish();
}

#[test]
fn docker_answers_a_create_of_a_volume_that_is_there_by_itself_and_the_volume_stays_as_it_is() {
    let Some(bench) = Bench::started() else { return };
    // dockerd asks for the volume first (Get), and creates it only where there is none: the options never reach us.
    bench.node.cli(&["volume", "create", "pg", "-o", "size=64M"]).ok();
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=128M", "pg"]).ok();
    assert_eq!(inspect(&bench, "pg")["Status"]["size"], "64MiB");
    bench.finish();
}

#[test]
fn the_data_of_a_plain_volume_is_copied_in_with_one_command() {
    let Some(bench) = Bench::started() else { return };
    let fill = "echo x >/d/f; chown 1234:99 /d/f; chmod 4750 /d/f; mkdir /d/sub; touch -d '2020-01-02 03:04:05' /d/sub/g; cp -s f /d/link";
    bench.docker.run(&["-v", "old:/d"], fill).ok();
    // The command of docs/migrate-docker.md.
    let page = include_str!("../../docs/migrate-docker.md");
    let command =
        page.lines().skip_while(|line| !line.starts_with("    docker run")).take(2).collect::<Vec<_>>().join(" ").replace('\\', " ");
    let words: Vec<&str> =
        command.split_whitespace().skip(1).map(|word| if word == "busybox" { dunnage_tests::docker::IMAGE } else { word }).collect();
    bench.docker.cli(&words).ok();
    // busybox' cp gives a link a time of its own.
    let look = "cd /d; stat -c '%n %u:%g %a %Y %F' f sub sub/g; stat -c '%n %u:%g %F' link; readlink link; cat f";
    let (old, new) = (bench.docker.run(&["-v", "old:/d"], look).ok(), bench.docker.run(&["-v", "new:/d"], look).ok());
    assert_eq!(old, new);
    assert_eq!(bench.docker.cli(&["volume", "inspect", "--format", "{{.Driver}}", "new"]).ok(), "dunnage");
    bench.docker.cli(&["volume", "rm", "old", "new"]).ok();
    bench.finish();
}
