//! What deletes data and what does not (docs/deletes.md), as the real Docker Engine, Compose and Podman do it. Each test
//! writes data, runs the command, and reads the data or sees it gone.

use dunnage_tests::compose::Project;
use dunnage_tests::docker::{Bench, IMAGE};
use dunnage_tests::{BOUND, Ran, eventually, podman};

/// An endpoint that small volumes are made by, and one that removes none.
const SMALL: &str = "endpoints: { docker: [ { name: dunnage, driver: local, defaults: { size: 64M } } ] }\n";
const REFUSES: &str = "endpoints: { docker: [ { name: dunnage, driver: local, defaults: { size: 64M }, remove: refuse } ] }\n";

const PG: [&str; 4] = ["-v", "pg:/data", "--volume-driver", "dunnage"];
const ANONYMOUS: [&str; 4] = ["-v", "/data", "--volume-driver", "dunnage"];

/// An engine with a volume `pg` that has data, and that nobody uses.
fn with_data(yaml: &str) -> Option<Bench> {
    let bench = Bench::configured(yaml, &[])?;
    bench.node.fill("pg");
    Some(bench)
}

/// What a command said, on stdout and stderr.
fn said(ran: &Ran) -> String {
    format!("{}{}", ran.out, ran.err)
}

/// `docker ARGS`, its words parted by blanks.
fn docker(bench: &Bench, line: &str) -> Ran {
    bench.docker.cli(&line.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn a_named_volume_outlives_its_container_however_that_is_removed() {
    let Some(bench) = with_data(SMALL) else { return };
    for (running, line) in [(true, "rm -f c1"), (true, "rm -f -v c1"), (false, "rm c1"), (false, "rm -v c1"), (false, "container prune -f")]
    {
        bench.docker.begin("c1", &PG, "sleep 1000");
        if !running {
            docker(&bench, "stop c1").ok();
        }
        docker(&bench, line).ok();
        bench.node.assert_data("pg");
    }
    bench.docker.run(&PG, "cat /data/data-of-a-test").ok();
    bench.node.assert_data("pg");
    bench.finish();
}

/// The one volume that is there, with data in it.
fn anonymous(bench: &Bench) -> String {
    let names = bench.docker.volumes();
    let [name] = names.as_slice() else { panic!("{names:?}") };
    bench.node.fill(name);
    name.clone()
}

#[test]
fn an_anonymous_volume_goes_with_rm_v_and_with_run_rm_and_stays_with_rm() {
    let Some(bench) = Bench::configured(SMALL, &[]) else { return };
    bench.docker.begin("c1", &ANONYMOUS, "sleep 1000");
    let kept = anonymous(&bench);
    docker(&bench, "rm -f c1").ok();
    bench.node.assert_data(&kept);
    docker(&bench, &format!("volume rm {kept}")).ok();
    bench.node.assert_gone(&kept);
    bench.docker.begin("c2", &ANONYMOUS, "sleep 1000");
    let lost = anonymous(&bench);
    docker(&bench, "rm -f -v c2").ok();
    bench.node.assert_gone(&lost);
    let args = [&["run", "-d", "--rm", "--network=none", "--stop-signal=KILL", "--name", "c3"], &ANONYMOUS[..], &[IMAGE, "sleep", "1000"]];
    bench.docker.cli(&args.concat()).ok();
    let lost = anonymous(&bench);
    docker(&bench, "stop c3").ok();
    eventually("docker removes it", BOUND, || bench.docker.volumes().is_empty());
    bench.node.assert_gone(&lost);
    bench.finish();
}

#[test]
fn docker_volume_rm_deletes_what_nobody_has_and_refuses_the_rest_with_force_too() {
    let Some(bench) = with_data(SMALL) else { return };
    bench.docker.begin("c1", &PG, "sleep 1000");
    for state in ["running", "stopped"] {
        for line in ["volume rm pg", "volume rm -f pg"] {
            let said = docker(&bench, line).fails(1);
            assert!(said.contains("volume is in use"), "{line}, {state}: {said}");
        }
        bench.node.assert_data("pg");
        docker(&bench, "stop c1").ok();
    }
    docker(&bench, "rm c1").ok();
    // Of another engine's use docker knows nothing, and we do.
    bench.node.mount("pg", "another-engine");
    for line in ["volume rm pg", "volume rm -f pg"] {
        let said = docker(&bench, line).fails(1);
        assert!(said.contains("in_use{n1}") && said.contains("another-engi"), "{line}: {said}");
    }
    assert_eq!(bench.docker.volumes(), ["pg"], "docker still knows it");
    bench.node.unmount("pg", "another-engine");
    bench.node.assert_data("pg");
    docker(&bench, "volume rm pg").ok();
    bench.node.assert_gone("pg");
    bench.node.fill("pg");
    docker(&bench, "volume rm -f pg").ok();
    bench.node.assert_gone("pg");
    bench.finish();
}

#[test]
fn no_prune_of_docker_deletes_a_volume_of_ours() {
    let Some(bench) = with_data(SMALL) else { return };
    bench.docker.begin("c0", &ANONYMOUS, "sleep 1000");
    let names = bench.docker.volumes();
    let anonymous = names.iter().find(|name| *name != "pg").expect("an anonymous one").clone();
    bench.node.fill(&anonymous);
    docker(&bench, "rm -f c0").ok();
    docker(&bench, "volume create dockers-own").ok();
    let all = docker(&bench, "volume prune --help").ok().contains("--all");
    docker(&bench, if all { "volume prune -f --all" } else { "volume prune -f" }).ok();
    assert!(!bench.docker.volumes().contains(&"dockers-own".to_owned()), "it did prune");
    docker(&bench, "volume prune -f").ok();
    docker(&bench, "system prune -f -a --volumes").ok();
    bench.node.assert_data("pg");
    bench.node.assert_data(&anonymous);
    bench.finish();
}

#[test]
fn what_a_container_deletes_in_its_volume_is_gone() {
    let Some(bench) = with_data(SMALL) else { return };
    // The folder itself is a mount, and cannot go.
    let ran = bench.docker.run(&PG, "rm -rf /data; ls -A /data | grep -v lost+found || true");
    assert!(ran.out.is_empty(), "{}{}", ran.out, ran.err);
    let path = bench.node.cli(&["volume", "mount", "pg"]).ok();
    assert!(!std::path::Path::new(&path).join("data-of-a-test").exists());
    bench.node.cli(&["volume", "unmount", "pg"]).ok();
    assert_eq!(bench.docker.volumes(), ["pg"], "the volume is there, and empty");
    bench.finish();
}

#[test]
fn docker_uses_a_volume_that_is_there_with_its_data_whatever_image_or_options_come() {
    let Some(bench) = with_data(SMALL) else { return };
    let with = |text: &'static str| {
        bench.docker.import("localhost:1/app:1", move |root| {
            std::fs::create_dir(root.join("data")).and_then(|()| std::fs::write(root.join("data/data-of-a-test"), text)).expect("image");
        });
    };
    let run = || {
        let args = [&["run", "--rm", "--network=none"], &PG[..], &["localhost:1/app:1", "cat", "/data/data-of-a-test"]];
        bench.docker.cli(&args.concat()).ok()
    };
    for text in ["of the first image", "of the second image"] {
        with(text);
        assert_eq!(run(), "the data of pg");
        docker(&bench, "rmi -f localhost:1/app:1").ok();
    }
    docker(&bench, "volume create -d dunnage -o size=128M -o fs=xfs -o overwritefs=true pg").ok();
    bench.node.assert_data("pg");
    bench.finish();
}

#[test]
fn a_stopped_container_holds_nothing_and_only_its_own_engine_spares_its_volume() {
    let Some(bench) = with_data(SMALL) else { return };
    bench.docker.begin("c1", &PG, "sleep 1000");
    let refused = bench.node.cli(&["volume", "rm", "pg"]).fails(5);
    assert!(refused.contains("stop the container"), "{refused}");
    docker(&bench, "stop c1").ok();
    bench.wait_until_released("pg");
    assert!(docker(&bench, "volume rm pg").fails(1).contains("volume is in use"));
    bench.node.assert_data("pg");
    bench.node.cli(&["volume", "rm", "pg"]).ok();
    bench.node.assert_gone("pg");
    docker(&bench, "rm -f c1").ok();
    bench.finish();
}

/// Docker knows a volume by the words that it was asked for with, and by no others.
#[test]
fn a_stopped_container_spares_its_volume_by_the_name_it_has_it_by_and_by_no_other() {
    let Some(bench) = with_data(SMALL) else { return };
    bench.docker.begin("c1", &["-v", "size=64M,name=pg:/data", "--volume-driver", "dunnage"], "sleep 1000");
    let said = docker(&bench, "volume rm pg").fails(1);
    assert!(said.contains("in_use{n1}"), "it runs, and so it is held: {said}");
    docker(&bench, "stop c1").ok();
    bench.wait_until_released("pg");
    assert!(docker(&bench, "volume rm size=64M,name=pg").fails(1).contains("volume is in use"));
    bench.node.assert_data("pg");
    docker(&bench, "volume rm pg").ok();
    bench.node.assert_gone("pg");
    docker(&bench, "rm -f c1").ok();
    bench.finish();
}

#[test]
fn an_endpoint_with_remove_refuse_keeps_its_volumes_from_docker_and_compose() {
    let Some(project) = Project::configured(REFUSES) else { return };
    let bench = &project.bench;
    bench.node.fill("pg");
    for line in ["volume rm pg", "volume rm -f pg"] {
        let said = docker(bench, line).fails(1);
        assert!(said.contains("remove: refuse") && said.contains("dunnage volume rm pg"), "{line}: {said}");
    }
    bench.node.assert_data("pg");
    assert_eq!(bench.docker.volumes(), ["pg"], "docker still knows it");
    project.write(&file("app", "{ name: pg, driver: dunnage }"));
    project.compose(&["up", "-d"]).ok();
    let down = project.compose(&["down", "-v"]);
    assert!(said(&down).contains("remove: refuse"), "{}", said(&down));
    bench.node.assert_data("pg");
    // Nor are anonymous ones removed: they stay until somebody does it by hand.
    bench.docker.run(&ANONYMOUS, "true");
    let left = bench.docker.volumes();
    assert_eq!(left.len(), 2, "{left:?}");
    for name in left {
        bench.node.cli(&["volume", "rm", &name]).ok();
        bench.node.assert_gone(&name);
    }
    project.bench.finish();
}

/// A file with one service that sleeps with `pg` at `/data`, and what it says of that volume.
fn file(service: &str, volume: &str) -> String {
    let of = format!("{{ image: '{IMAGE}', network_mode: none, stop_signal: SIGKILL, volumes: ['pg:/data'], command: ['sleep', '1000'] }}");
    format!("services:\n  {service}: {of}\nvolumes:\n  pg: {volume}\n")
}

const SHOP: &str = "{ driver: dunnage, driver_opts: { size: 64M } }";

#[test]
fn compose_keeps_the_data_of_a_named_volume_in_all_but_down_v() {
    let Some(project) = Project::of(&file("app", SHOP)) else { return };
    let bench = &project.bench;
    project.compose(&["up", "-d"]).ok();
    bench.node.fill("shop_pg");
    let then: [&[&str]; 4] = [
        &["up", "-d", "--force-recreate", "--renew-anon-volumes"],
        &["rm", "-s", "-f", "-v"],
        &["up", "-d"],
        &["down", "--remove-orphans"],
    ];
    for line in then {
        project.compose(line).ok();
        bench.node.assert_data("shop_pg");
    }
    // Neither a service nor a volume of that name is in the file any more.
    project.write(&format!(
        "services:\n  other: {{ image: '{IMAGE}', network_mode: none, stop_signal: SIGKILL, command: ['sleep', '1000'] }}\n"
    ));
    project.compose(&["up", "-d", "--remove-orphans"]).ok();
    bench.wait_until_released("shop_pg");
    project.compose(&["down", "-v", "--remove-orphans"]).ok();
    bench.node.assert_data("shop_pg");
    project.write(&file("app", SHOP));
    project.compose(&["down", "-v"]).ok();
    bench.node.assert_gone("shop_pg");
    project.bench.finish();
}

#[test]
fn compose_down_v_leaves_a_volume_that_a_container_outside_the_project_has() {
    let Some(project) = Project::of(&file("app", SHOP)) else { return };
    let bench = &project.bench;
    project.compose(&["up", "-d"]).ok();
    bench.node.fill("shop_pg");
    bench.docker.begin("c1", &["-v", "shop_pg:/data"], "sleep 1000");
    docker(bench, "stop c1").ok();
    let down = project.compose(&["down", "-v"]);
    assert!(said(&down).to_lowercase().contains("in use"), "{}", said(&down));
    bench.node.assert_data("shop_pg");
    docker(bench, "rm c1").ok();
    project.compose(&["down", "-v"]).ok();
    bench.node.assert_gone("shop_pg");
    project.bench.finish();
}

/// The image is there; no registry is asked for it.
const STACK: &str = "version: '3.8'
services:
  app: { image: IMAGE, command: [sleep, '1000'], volumes: ['pg:/data'], networks: [h], stop_signal: SIGKILL }
networks: { h: { external: true, name: host } }
volumes: { pg: { name: pg, driver: dunnage } }
";

#[test]
fn on_one_node_swarm_deletes_no_volume_with_a_stack_nor_when_the_node_leaves() {
    let Some(bench) = Bench::alone_in_its_network(SMALL) else { return };
    bench.node.fill("pg");
    let file = bench.node.folder.join("stack.yml");
    std::fs::write(&file, STACK.replace("IMAGE", IMAGE)).expect("stack");
    // Swarm gives work to nodes whose engine has met the plugin.
    docker(&bench, "volume ls").ok();
    docker(&bench, "swarm init --advertise-addr 127.0.0.1 --listen-addr 127.0.0.1:2377").ok();
    docker(&bench, &format!("stack deploy --resolve-image never -c {} s", file.display())).ok();
    let runs = |wanted: usize| {
        eventually("as many tasks as wanted run", BOUND, || {
            docker(&bench, "ps -q").ok().lines().count() == wanted && bench.node.holders("pg").len() == wanted
        });
    };
    runs(1);
    docker(&bench, "stack rm s").ok();
    runs(0);
    docker(&bench, "swarm leave --force").ok();
    eventually("its containers are removed", BOUND, || docker(&bench, "ps -aq").ok().is_empty());
    bench.node.assert_data("pg");
    assert_eq!(bench.docker.volumes(), ["pg"]);
    bench.finish();
}

/// `podman ARGS`, its words parted by blanks.
fn podman(bench: &podman::Bench, line: &str) -> Ran {
    bench.podman.cli(&line.split_whitespace().collect::<Vec<_>>())
}

/// A Podman with a volume of ours that has data, and that no container has.
fn podman_with_data(volumes: &[&str]) -> Option<podman::Bench> {
    let bench = podman::Bench::started()?;
    for volume in volumes {
        bench.create(volume);
        bench.node.fill(volume);
    }
    Some(bench)
}

fn podman_begin(bench: &podman::Bench, container: &str, volume: &str) {
    bench.podman.begin(container, &["-v", &format!("{volume}:/data")], "sleep 1000");
}

#[test]
fn a_named_volume_outlives_its_podman_container_however_that_is_removed() {
    let Some(bench) = podman_with_data(&["pg"]) else { return };
    for line in ["rm -f c1", "rm -f -v c1", "container prune -f"] {
        podman_begin(&bench, "c1", "pg");
        if line.contains("prune") {
            podman(&bench, "stop c1").ok();
        }
        podman(&bench, line).ok();
        bench.node.assert_data("pg");
    }
    bench.podman.run(&["-v", "pg:/data", "-v", "/anonymous"], "cat /data/data-of-a-test").ok();
    bench.node.assert_data("pg");
    assert_eq!(bench.node.cli(&["volume", "ls", "-q"]).ok(), "pg", "Podman makes its anonymous volumes itself");
    bench.finish();
}

#[test]
fn podman_volume_rm_deletes_what_no_container_has_and_refuses_what_one_has() {
    let Some(bench) = podman_with_data(&["pg"]) else { return };
    podman_begin(&bench, "c1", "pg");
    for state in ["running", "stopped"] {
        let said = podman(&bench, "volume rm pg").fails(2);
        assert!(said.contains("is being used by the following container"), "{state}: {said}");
        bench.node.assert_data("pg");
        podman(&bench, "stop c1").ok();
    }
    podman(&bench, "rm c1").ok();
    bench.node.assert_data("pg");
    podman(&bench, "volume rm pg").ok();
    bench.node.assert_gone("pg");
    bench.finish();
}

#[test]
fn podman_volume_rm_f_removes_the_container_that_has_a_volume_and_the_data_with_it() {
    let Some(bench) = podman_with_data(&["pg", "elsewhere"]) else { return };
    podman_begin(&bench, "c1", "pg");
    podman(&bench, "stop c1").ok();
    podman(&bench, "volume rm -f pg").ok();
    bench.node.assert_gone("pg");
    assert_eq!(podman(&bench, "container exists c1").code, 1, "the container as well");
    // What somebody else holds is refused with force, too.
    bench.node.mount("elsewhere", "another-engine");
    let ran = podman(&bench, "volume rm -f elsewhere");
    assert!(ran.code != 0 && ran.err.contains("in_use{n1}"), "{}", said(&ran));
    bench.node.unmount("elsewhere", "another-engine");
    bench.node.assert_data("elsewhere");
    bench.finish();
}

#[test]
fn podman_volume_prune_deletes_what_no_container_has_and_leaves_what_one_has_even_a_stopped_one() {
    let Some(bench) = podman_with_data(&["free", "stopped", "elsewhere"]) else { return };
    podman_begin(&bench, "c1", "stopped");
    podman(&bench, "stop c1").ok();
    bench.node.mount("elsewhere", "another-engine");
    bench.node.fill("never-told-of");
    let all = podman(&bench, "volume prune --help").ok().contains("--all");
    let ran = podman(&bench, if all { "volume prune -f --all" } else { "volume prune -f" });
    assert!(ran.err.contains("in_use{n1}") && ran.err.contains("elsewhere"), "{}", said(&ran));
    bench.node.assert_gone("free");
    bench.node.unmount("elsewhere", "another-engine");
    for volume in ["stopped", "elsewhere", "never-told-of"] {
        bench.node.assert_data(volume);
    }
    bench.podman.end("c1");
    bench.finish();
}

#[test]
fn podman_system_prune_with_volumes_removes_stopped_containers_first_and_then_deletes_their_volumes() {
    let Some(bench) = podman_with_data(&["free", "stopped", "running"]) else { return };
    podman_begin(&bench, "c1", "stopped");
    podman(&bench, "stop c1").ok();
    podman_begin(&bench, "c2", "running");
    podman(&bench, "system prune -f").ok();
    for volume in ["free", "running"] {
        bench.node.assert_data(volume);
    }
    podman_begin(&bench, "c3", "stopped");
    podman(&bench, "stop c3").ok();
    podman(&bench, "system prune -f --volumes");
    bench.node.assert_gone("free");
    bench.node.assert_gone("stopped");
    bench.node.assert_data("running");
    bench.podman.end("c2");
    bench.finish();
}

/// Podman 4.3.1 (and 5, as its source has it) prunes until nothing is left to prune, and counts what was refused as pruned: it goes
/// on until it is stopped.
#[test]
fn podman_system_prune_with_volumes_leaves_what_somebody_else_holds() {
    let Some(bench) = podman_with_data(&["pg"]) else { return };
    bench.node.mount("pg", "another-engine");
    let prune = bench.podman.spawn(&["system", "prune", "-f", "--volumes"]);
    eventually("it asks", BOUND, || bench.node.log().contains("call=\"Remove\" volume=\"pg\""));
    bench.podman.kill_commands();
    prune.wait();
    bench.node.unmount("pg", "another-engine");
    bench.node.assert_data("pg");
    bench.finish();
}

#[test]
fn podman_system_reset_deletes_all_that_podman_knows_with_its_containers_and_nothing_else() {
    let Some(bench) = podman_with_data(&["free", "running"]) else { return };
    bench.node.fill("never-told-of");
    podman_begin(&bench, "c1", "running");
    bench.podman.reset().ok();
    bench.node.assert_gone("free");
    bench.node.assert_gone("running");
    bench.node.assert_data("never-told-of");
    bench.finish();
}

#[test]
fn an_endpoint_with_remove_refuse_keeps_its_volumes_from_podman() {
    let Some(node) = podman::Bench::node() else { return };
    node.configure(REFUSES);
    let bench = podman::Bench::of(node, &["dunnage"]);
    bench.create("pg");
    bench.node.fill("pg");
    for line in ["volume rm pg", "volume rm -f pg"] {
        let ran = podman(&bench, line);
        assert!(ran.code != 0 && ran.err.contains("dunnage volume rm pg"), "{line}: {}", said(&ran));
        bench.node.assert_data("pg");
    }
    bench.node.cli(&["volume", "rm", "pg"]).ok();
    bench.node.assert_gone("pg");
    bench.finish();
}
