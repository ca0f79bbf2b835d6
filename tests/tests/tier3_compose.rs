//! docker-compose on the real engine, and the command that Mesos' Docker containerizer makes of a Marathon app: what of a
//! volume is in a file, and what becomes of it when the file changes.

use dunnage_tests::compose::Project;
use dunnage_tests::docker::{Bench, IMAGE};
use dunnage_tests::{BOUND, eventually, is_mounted, kernel};

/// A service that runs a script with the volume `pg` at `/data`. There is no network here.
fn service(name: &str, script: &str) -> String {
    format!(
        "  {name}: {{ image: '{IMAGE}', network_mode: none, stop_signal: SIGKILL, volumes: ['pg:/data'], command: ['sh', '-c', '{script}'] }}\n"
    )
}

/// A file with these services and what it says of the volume `pg`.
fn file(services: &[String], volume: &str) -> String {
    format!("services:\n{}volumes:\n  pg: {volume}\n", services.concat())
}

/// A file with one service that counts its starts in the volume.
fn counting(volume: &str) -> String {
    file(&[service("app", "echo start >>/data/starts; sleep 1000")], volume)
}

/// How often the service has been started with the volume `name`.
fn starts(project: &Project, name: &str) -> usize {
    let file = project.bench.node.mountpoint(name).join("starts");
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[test]
fn a_volume_is_made_as_the_file_says_survives_down_and_goes_with_down_v() {
    let Some(project) = Project::of(&counting("{ driver: dunnage, driver_opts: { size: 64M, fs: ext4 } }")) else { return };
    let bench = &project.bench;
    project.compose(&["up", "-d"]).ok();
    eventually("it has started", BOUND, || starts(&project, "shop_pg") == 1);
    let status = bench.docker.cli(&["volume", "inspect", "--format", "{{.Driver}} {{.Status.size}} {{.Status.fs}}", "shop_pg"]).ok();
    assert_eq!(status, "dunnage 64MiB ext4");
    project.compose(&["down"]).ok();
    bench.wait_until_released("shop_pg");
    assert_eq!(bench.docker.volumes(), ["shop_pg"]);
    project.compose(&["up", "-d"]).ok();
    eventually("it has started again, with its data", BOUND, || starts(&project, "shop_pg") == 2);
    project.compose(&["down", "-v"]).ok();
    assert_eq!(bench.docker.volumes(), Vec::<String>::new());
    assert!(!bench.node.image("shop_pg").exists());
    project.bench.finish();
}

#[test]
fn an_external_volume_has_to_be_there_and_is_nobodys_to_remove() {
    let Some(project) = Project::of(&counting("{ external: true }")) else { return };
    let bench = &project.bench;
    let refused = project.compose(&["up", "-d"]);
    let said = format!("{}{}", refused.out, refused.err);
    assert!(refused.code != 0 && said.contains("external") && said.contains("pg"), "{said}");
    assert_eq!(bench.docker.volumes(), Vec::<String>::new(), "nothing was made");
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    project.compose(&["up", "-d"]).ok();
    eventually("it has started", BOUND, || starts(&project, "pg") == 1);
    project.compose(&["down", "-v"]).ok();
    bench.wait_until_released("pg");
    assert_eq!(bench.docker.volumes(), ["pg"]);
    assert_eq!(bench.docker.run(&["-v", "pg:/data"], "cat /data/starts").ok(), "start");
    project.bench.finish();
}

#[test]
fn two_services_share_a_volume_and_the_last_one_lets_it_go() {
    let services = [service("one", "while echo x >>/data/log; do sleep 0.01; done"), service("two", "cp /data/log /data/copy; sleep 1000")];
    let Some(project) = Project::of(&file(&services, "{ name: pg, driver: dunnage, driver_opts: { size: 64M } }")) else { return };
    let bench = &project.bench;
    project.compose(&["up", "-d"]).ok();
    let path = bench.node.mountpoint("pg");
    let written = || path.join("log").metadata().map_or(0, |file| file.len());
    eventually("one writes", BOUND, || written() > 0);
    let id = kernel::mount_id(&path);
    assert_eq!(bench.node.holders("pg").len(), 2);
    project.compose(&["restart", "two"]).ok();
    eventually("the other one sees it", BOUND, || path.join("copy").metadata().is_ok_and(|file| file.len() > 0));
    project.compose(&["stop", "two"]).ok();
    eventually("one of them has let go", BOUND, || bench.node.holders("pg").len() == 1);
    assert_eq!(kernel::mount_id(&path), id, "nobody touched the mount");
    let before = written();
    eventually("one writes on", BOUND, || written() > before);
    project.compose(&["stop", "one"]).ok();
    bench.wait_until_released("pg");
    project.compose(&["down", "-v"]).ok();
    project.bench.finish();
}

#[test]
fn a_wrong_option_in_the_file_is_refused_in_our_words_and_nothing_is_made() {
    let Some(project) = Project::of(&counting("{ driver: dunnage, driver_opts: { siz: 64M } }")) else { return };
    let refused = project.compose(&["up", "-d"]);
    let said = format!("{}{}", refused.out, refused.err);
    assert_ne!(refused.code, 0, "{said}");
    assert!(said.contains("invalid_argument{siz}: volume \"shop_pg\": option \"siz\" is unknown; did you mean \"size\"?"), "{said}");
    assert!(project.bench.docker.volumes().is_empty());
    project.compose(&["down"]).ok();
    project.bench.finish();
}

/// Whether an old volume is taken for a new description is Compose's to decide (1.29 refuses); that its size and its data
/// stay is ours.
#[test]
fn a_changed_option_changes_nothing_of_a_volume_that_exists() {
    let Some(project) = Project::of(&counting("{ driver: dunnage, driver_opts: { size: 64M } }")) else { return };
    let bench = &project.bench;
    project.compose(&["up", "-d"]).ok();
    eventually("it has started", BOUND, || starts(&project, "shop_pg") == 1);
    project.compose(&["down"]).ok();
    bench.wait_until_released("shop_pg");
    project.write(&counting("{ driver: dunnage, driver_opts: { size: 128M } }"));
    let again = project.compose(&["up", "-d"]);
    let said = format!("{}{}", again.out, again.err);
    assert!(again.code == 0 || (said.contains("shop_pg") && said.contains("size")), "{said}");
    let size = bench.docker.cli(&["volume", "inspect", "--format", "{{.Status.size}}", "shop_pg"]).ok();
    assert_eq!(size, "64MiB", "{said}");
    let lines = bench.docker.run(&["-v", "shop_pg:/data"], "cat /data/starts").ok();
    assert!(lines.starts_with("start"), "{lines}");
    project.compose(&["down", "-v"]).ok();
    assert!(bench.docker.volumes().is_empty());
    project.bench.finish();
}

/// An endpoint under REX-Ray's name, for apps that ask for it.
const REXRAY: &str = "endpoints: { docker: [ { name: rexray, driver: local, defaults: { size: 64M } } ] }\n";

/// What Mesos' Docker containerizer makes of the Marathon app of REX-Ray's documentation: its `parameters` become
/// `--KEY=VALUE` in their order, after Mesos' own arguments. (The network is none here; the app asks for a bridge.)
fn as_mesos_runs_it(bench: &Bench, container: &str, script: &str) -> dunnage_tests::docker::Running {
    let sandbox = bench.node.folder.join("sandbox");
    std::fs::create_dir_all(&sandbox).expect("sandbox");
    let sandbox = format!("{}:/mnt/mesos/sandbox", sandbox.display());
    let own =
        ["run", "--cpu-shares", "204", "--memory", "33554432", "-e", "MARATHON_APP_ID=/nginx", "-e", "MESOS_SANDBOX=/mnt/mesos/sandbox"];
    let parameters = ["--volume-driver=rexray", "--volume=nginx-data:/data/www"];
    let rest = ["-v", &sandbox, "--net", "none"];
    bench.docker.spawn(&[&own, rest.as_slice(), &parameters, &["--name", container, IMAGE, "sh", "-c", script]].concat())
}

#[test]
fn a_marathon_app_of_the_rex_ray_days_finds_its_data_when_it_is_launched_again() {
    let Some(bench) = Bench::configured(REXRAY, &[]) else { return };
    let first = as_mesos_runs_it(&bench, "mesos-1", "echo page >/data/www/index; echo sandbox >/mnt/mesos/sandbox/x; sleep 1000");
    let path = bench.node.mountpoint("nginx-data");
    eventually("it has written", BOUND, || bench.node.folder.join("sandbox/x").exists());
    assert!(is_mounted(&path));
    let listed = bench.docker.cli(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]).ok();
    assert_eq!(listed, "rexray nginx-data", "the sandbox is a folder of the agent's, and no volume");
    // How Mesos ends a task and, after `docker_remove_delay`, forgets it.
    bench.docker.cli(&["stop", "-t", "0", "mesos-1"]).ok();
    assert_eq!(first.wait().code, 137);
    bench.wait_until_released("nginx-data");
    bench.docker.cli(&["rm", "-v", "mesos-1"]).ok();
    let second = as_mesos_runs_it(&bench, "mesos-2", "cat /data/www/index");
    assert_eq!(second.wait().ok(), "page");
    bench.wait_until_released("nginx-data");
    bench.docker.cli(&["rm", "-v", "mesos-2"]).ok();
    bench.finish();
}
