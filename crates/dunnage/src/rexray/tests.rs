//! The face as a whole: how a command line is read, and what it asks of the daemon.

use std::cell::RefCell;
use std::time::Duration;

use clap::error::ErrorKind;
use dunnage_engine::VolumeView;
use dunnage_host::DeviceNumber;
use dunnage_model::{Bytes, Error, PartialSpec, Result, VolumeId, VolumeInfo, VolumeState};
use serde_json::{Value, json};

use super::args::{AdapterCommand, Cli, Command, ServiceCommand, TokenCommand, VolumeCommand, command, parse};
use super::daemon::Daemon;
use super::volume::{Asked, Done};
use super::{NAME, adapter, volume};

/// A volume as the daemon tells of it.
pub fn view(name: &str, size: Bytes, mountpoint: Option<&str>) -> VolumeView {
    let spec = PartialSpec { size: Some(size), ..PartialSpec::default() }.complete().expect("spec");
    let id = VolumeId { driver: "local".parse().expect("driver"), name: name.parse().expect("name") };
    let endpoint = "dunnage".parse().expect("endpoint");
    let created = jiff::Timestamp::UNIX_EPOCH;
    let info = VolumeInfo {
        id,
        endpoint,
        spec,
        created,
        state: VolumeState::Ready,
        why: None,
        fs_uuid: None,
        growing: false,
        usage: Default::default(),
    }
    .into();
    let device = mountpoint.map(|_| DeviceNumber::new(0, 0));
    VolumeView { info, age: 0, mountpoint: mountpoint.map(str::to_owned), device, holders: vec![], missing: vec![], jobs: vec![] }
}

fn read(line: &str) -> Result<Cli, clap::Error> {
    parse(std::iter::once(NAME).chain(line.split_whitespace()))
}

#[track_caller]
fn good(line: &str) -> Command {
    read(line).unwrap_or_else(|e| panic!("{line}: {e}")).command.expect("a command")
}

#[test]
fn the_command_line_is_sound() {
    command().debug_assert();
}

#[test]
fn every_command_has_its_old_names() {
    for (names, group) in [
        ("ls l list get inspect", "volume"),
        ("types ls list", "adapter"),
        ("ls get list", "device"),
        ("get ls list", "snapshot"),
        ("create new", "snapshot"),
        ("remove rm", "snapshot"),
        ("copy", "snapshot"),
        ("start", "service"),
        ("stop", "service"),
        ("restart reload force-reload", "service"),
        ("status", "service"),
        ("initsys", "service"),
        ("instances", "adapter"),
        ("start stop restart reload force-reload status initsys version env install uninstall", ""),
    ] {
        for name in names.split(' ') {
            good(&format!("{group} {name}"));
        }
    }
    for (names, rest) in [
        ("create c n new", "a b"),
        ("rm r remove delete del", "a /b/"),
        ("attach a", "a"),
        ("detach d", "a"),
        ("mount m", "a"),
        ("unmount u umount", "a"),
    ] {
        for name in names.split(' ') {
            good(&format!("volume {name} {rest}"));
            assert_eq!(read(&format!("volume {name}")).expect_err("no volume").kind(), ErrorKind::MissingRequiredArgument, "{name}");
        }
    }
    for name in ["new", "create", "c", "n", "decode", "dec", "d"] {
        good(&format!("token {name} x"));
    }
    for line in ["scripts", "scripts install a:b:c --x", "flexrex install --force --path /x", "flexrex uninstall"] {
        assert!(matches!(good(line), Command::Scripts(_) | Command::Flexrex(_)), "{line}");
    }
    for group in ["volume", "adapter", "device", "snapshot", "service", "token"] {
        good(group);
    }
}

#[test]
fn every_flag_is_read_as_go_s_flags_were() {
    let line = "volume create --volumeType io1 --snapshotID=s --iops=5 --size 10 --availabilityZone z --attach --amount=false --force=T \
                --overwriteFS --fsType xfs --encrypted=0 --encryptionKey=k --continueOnError pg";
    let Command::Volume(group) = good(line) else { panic!("no volume") };
    let Some(VolumeCommand::Create(args)) = group.command else { panic!("no create") };
    assert_eq!((args.volume_type.as_str(), args.snapshot_id.as_str(), args.iops, args.size.as_str()), ("io1", "s", 5, "10"));
    assert_eq!((args.attach, args.amount, args.force, args.overwrite_fs, args.encrypted), (true, false, true, true, false));
    assert_eq!((args.availability_zone.as_str(), args.fs_type.as_str(), args.encryption_key.as_str()), ("z", "xfs", "k"));
    assert!(args.continue_on_error && args.names == ["pg"]);

    for line in ["volume -q -n ls -f json", "volume ls -qn --format=json", "volume ls --quiet=true --dryRun -f json"] {
        let Command::Volume(group) = good(line) else { panic!("no volume") };
        let format = group.format.format(group.quiet).expect("format");
        assert!(group.quiet && group.dry_run && format.shape == super::print::Shape::Json && format.tabs, "{line}");
    }
    let Command::Volume(group) = good("volume ls --templateTabs=false --template {{.D}}") else { panic!("no volume") };
    let format = group.format.format(false).expect("format");
    assert!(!format.tabs && format.shape == super::print::Shape::Template("{{.D}}".into()));

    for (line, expected) in [("volume attach -i a", true), ("volume attach --idempotent=false a", false), ("volume attach a", false)] {
        let Command::Volume(group) = good(line) else { panic!("no volume") };
        assert!(matches!(group.command, Some(VolumeCommand::Attach { idempotent, .. }) if idempotent == expected), "{line}");
    }
    for line in ["start -f", "service start --foreground --nopid --force", "restart -f=true", "service reload --foreground"] {
        let command = match good(line) {
            Command::Service(command) | Command::ServiceGroup { command: Some(command) } => command,
            other => panic!("{other:?}"),
        };
        assert!(matches!(command, ServiceCommand::Start(args) | ServiceCommand::Restart(args) if args.foreground), "{line}");
    }
    assert!(matches!(good("uninstall --package"), Command::Uninstall { package: true }));
    assert!(matches!(good("token decode --key=k --verify t"), Command::Token { command: Some(TokenCommand::Decode { verify: true, .. }) }));
    for line in [
        "volume ls --attached --available --path",
        "volume rm --force --continueOnError a",
        "volume detach --force -i --continueOnError a",
        "volume mount --overwriteFS --fsType ext4 -i --continueOnError a",
        "volume unmount -i --continueOnError a",
        "adapter types -f json",
        "adapter instances --format jsonp",
        "device ls --deviceName /dev/x",
        "device mount --deviceName /dev/x --mountPoint /mnt --mountOptions ro --mountLabel l",
        "device unmount --mountPoint /mnt",
        "device format --deviceName /dev/x --fsType xfs --overwriteFS",
        "snapshot get --snapshotname a --volumeid b --snapshotid c",
        "snapshot create --runasync --snapshotname a --volumeid b --description c",
        "snapshot remove --snapshotid a",
        "snapshot copy --runasync --volumeid a --snapshotid b --snapshotname c --destinationsnapshotname d --destinationregion e",
        "token new --key k --alg HS512 --exp 1h a b",
        "token decode --key k --verify=false t",
    ] {
        good(line);
    }
}

#[test]
fn h_is_the_host_and_the_question_mark_is_help() {
    let cli = read("volume ls -h tcp://storage:7979 -s local -l debug -c /dev/null").expect("good");
    assert!(cli.global.refuse_remote().expect_err("remote").to_string().contains("tcp://storage:7979"));
    assert_eq!((cli.global.service().as_deref(), cli.global.start(true).log_level.as_str()), (Some("local"), "debug"));
    for local in ["unix:///run/x.sock", "tcp://127.0.0.1:7979", "localhost:7979", "LOCALHOST"] {
        assert!(read(&format!("--host {local} volume ls")).expect("good").global.refuse_remote().is_ok(), "{local}");
    }
    for line in ["-?", "volume -?", "volume ls --help", "-v", "volume create --verbose"] {
        assert_eq!(read(line).expect_err("help").kind(), ErrorKind::DisplayHelp, "{line}");
    }
    let missing = read("volume ls -c /nowhere/at/all").expect("good").global.places().expect_err("missing");
    assert!(missing.to_string().contains("/nowhere/at/all"), "{missing}");
}

#[test]
fn of_a_flag_that_comes_twice_the_last_counts_and_an_unknown_one_is_an_error() {
    assert_eq!(read("-s a volume -s b ls -s c").expect("good").global.service().as_deref(), Some("c"));
    assert_eq!(read("volume ls --siez=1").expect_err("unknown").kind(), ErrorKind::UnknownArgument);
    assert!(read("volume ls --attached=maybe").is_err());
}

/// A daemon that remembers what it was asked.
struct Fake {
    volumes: Vec<VolumeView>,
    orders: RefCell<Vec<String>>,
    fails: Option<&'static str>,
}

impl Fake {
    fn with(volumes: impl IntoIterator<Item = VolumeView>) -> Fake {
        Fake { volumes: volumes.into_iter().collect(), orders: RefCell::default(), fails: None }
    }

    fn usual() -> Fake {
        Fake::with([view("pg", Bytes::gib(16), Some("/v/pg")), view("pg-old", Bytes::gib(1), None), view("redis", Bytes::gib(2), None)])
    }

    fn orders(&self) -> Vec<String> {
        self.orders.borrow().clone()
    }

    fn run(&self, line: &str) -> Result<Done> {
        let cli = read(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let asked = Asked { daemon: self, service: cli.global.service() };
        match cli.command {
            Some(Command::Volume(group)) => {
                volume::volume(&asked, &group.format.format(group.quiet)?, group.dry_run, group.command.expect("a command"))
            }
            Some(Command::Adapter(group)) => Ok(Done { said: adapter::adapter(&asked, group)?, failed: vec![] }),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn says(&self, line: &str) -> String {
        let done = self.run(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(done.failed.is_empty(), "{line}: {:?}", done.failed);
        done.said
    }

    #[track_caller]
    fn refuses(&self, line: &str) -> String {
        self.run(line).expect_err(line).to_string()
    }
}

impl Daemon for Fake {
    fn call(&self, _: Duration, method: &str, uri: &str, body: &Value) -> Result<Value> {
        if method != "GET" {
            let body = if body.is_null() { String::new() } else { format!(" {body}") };
            self.orders.borrow_mut().push(format!("{method} {uri}{body}"));
        }
        if self.fails.is_some_and(|part| uri.contains(part)) {
            return Err(Error::unavailable("it does not want to", "ask later"));
        }
        let path = uri.split_once('?').map_or(uri, |(path, _)| path);
        Ok(match (method, path) {
            ("GET", "/v1/status") => json!({
                "pid": 1, "version": "0", "node": "n1", "config": "",
                "endpoints": [{ "name": "dunnage", "driver": "local", "socket": "/x" }], "degraded": [],
            }),
            ("GET", "/v1/drivers") => json!([{ "name": "local", "kind": "local", "reach": null, "capacity": null, "error": null }]),
            ("GET", "/v1/volumes") => json!({ "volumes": self.volumes, "notes": [] }),
            ("POST", "/v1/volumes") => {
                let name = body["name"].as_str().unwrap_or_default();
                let there = self.volumes.iter().any(|volume| volume.info.id.name.as_str() == name);
                let made = view(name, Bytes::gib(16), None).info;
                json!({ "action": if there { "already_there" } else { "created" }, "volume": made, "unheeded": [] })
            }
            ("DELETE", _) => json!({ "action": "removed" }),
            (_, path) if path.ends_with("/mount") => json!({ "action": "mounted", "path": path.replace("/v1/volumes", "/at") }),
            (_, path) if path.ends_with("/attach") => json!({ "action": "attached", "device": "/dev/loop9" }),
            _ => json!({ "action": "unmounted", "lingering": [] }),
        })
    }
}

const HEAD: &str = "ID      Name    Status     Size\n";

#[test]
fn a_listing_shows_all_volumes_or_those_that_are_meant() {
    let fake = Fake::usual();
    let rows = ["pg      pg      attached   16\n", "pg-old  pg-old  available  1\n", "redis   redis   available  2\n"];
    assert_eq!(fake.says("volume ls"), format!("{HEAD}{}", rows.concat()));
    assert_eq!(fake.says("volume ls -q /old$/"), "pg-old  pg-old  available  1\n");
    assert_eq!(fake.says("volume ls pg --available -q"), "pg-old  pg-old  available  1\n");
    assert_eq!(fake.says("volume get --attached -q"), "pg  pg  attached  16\n");
    assert_eq!(fake.says("volume ls --path"), "ID  Name  Status    Size  Path\npg  pg    attached  16    /v/pg\n");
    assert_eq!(fake.says("volume ls nobody -f json"), "[]\n");
    assert_eq!(fake.says("volume ls -f {{.Name}} -s DUNNAGE"), "pg\npg-old\nredis\n");
}

#[test]
fn an_unknown_service_is_an_error_that_names_the_known() {
    let error = Fake::usual().refuses("-s ebs volume ls");
    assert!(error.contains("invalid_argument{service}") && error.contains("\"ebs\"") && error.contains("local, dunnage"), "{error}");
}

#[test]
fn a_create_asks_in_the_daemon_s_words_and_only_for_what_is_given() {
    let fake = Fake::usual();
    assert_eq!(fake.says("volume create a -q"), "a  a  available  16\n");
    fake.says("volume create b --size 5 --volumeType io1 --iops 150 --availabilityZone z --fsType xfs --encrypted --encryptionKey k");
    fake.says("volume create c --snapshotID s --overwriteFS -s local");
    let body = |name: &str, driver: Value, endpoint: Value, options: Value| {
        format!("POST /v1/volumes {}", json!({ "name": name, "driver": driver, "endpoint": endpoint, "options": options }))
    };
    let all = json!({ "size": "5", "type": "io1", "iops": "150", "availabilityZone": "z", "fs": "xfs", "encrypted": "true", "encryptionKey": "k" });
    let expected = [
        body("a", Value::Null, Value::Null, json!({})),
        body("b", Value::Null, Value::Null, all),
        body("c", json!("local"), Value::Null, json!({ "snapshotID": "s", "overwriteFs": "true" })),
    ];
    assert_eq!(fake.orders(), expected);
}

#[test]
fn a_create_may_attach_or_mount_and_one_of_a_name_that_is_there_is_an_error() {
    let fake = Fake::usual();
    fake.says("volume create a --attach");
    assert_eq!(fake.says("volume create b --amount -q"), "b  b  available  16  /at/b/mount\n");
    let orders = fake.orders();
    assert_eq!(orders[1], "POST /v1/volumes/a/attach?driver=local");
    assert_eq!(orders[3], "POST /v1/volumes/b/mount?driver=local");
    let done = fake.run("volume create pg x").expect("said");
    assert!(done.said.is_empty() && done.failed.len() == 1 && done.failed[0].to_string().contains("already"), "{done:?}");
    assert!(fake.refuses("volume create ok ../no").contains("position 1"));
}

#[test]
fn a_removal_wants_whole_names_or_expressions_and_prints_what_is_gone() {
    let fake = Fake::usual();
    assert!(fake.refuses("volume rm re").contains("no volumes found"));
    assert!(fake.refuses("volume rm redis nobody").contains("nobody"));
    assert!(fake.orders().is_empty(), "what is meant is settled first");
    assert_eq!(fake.says("volume rm /^pg/ REDIS"), "pg\npg-old\nredis\n");
    let gone = |name| format!("DELETE /v1/volumes/{name}?driver=local");
    assert_eq!(fake.orders(), ["pg", "pg-old", "redis"].map(gone));
    assert_eq!(fake.says("volume rm redis -f json"), "[\"redis\"]\n");
}

#[test]
fn what_is_there_already_is_an_error_unless_that_is_said_to_be_fine() {
    let fake = Fake::usual();
    assert!(fake.refuses("volume attach pg").contains("attached already"));
    assert!(fake.refuses("volume detach redis").contains("not attached"));
    assert!(fake.refuses("volume unmount redis").contains("not mounted"));
    assert!(fake.orders().is_empty());
    fake.says("volume attach -i pg");
    fake.says("volume attach --force pg");
    fake.says("volume detach -i redis");
    fake.says("volume unmount -i redis");
    assert_eq!(fake.says("volume attach /.*/ -q").lines().count(), 2, "an expression means those that can be attached");
    let attach = |name: &str| format!("POST /v1/volumes/{name}/attach?driver=local");
    assert_eq!(fake.orders(), ["pg", "pg", "pg-old", "redis"].map(attach));
}

#[test]
fn a_mount_prints_the_path() {
    let fake = Fake::usual();
    assert_eq!(fake.says("volume mount re -q"), "redis  redis  available  2  /at/redis/mount\n");
    let json: Value = serde_json::from_str(&fake.says("volume m redis -f json")).expect("json");
    assert_eq!(json[0]["Path"], "/at/redis/mount");
    fake.says("volume umount pg");
    let verbs = ["redis/mount", "redis/mount", "pg/unmount", "pg/detach"].map(|verb| format!("POST /v1/volumes/{verb}?driver=local"));
    assert_eq!(fake.orders(), verbs);
}

#[test]
fn a_dry_run_touches_nothing_and_says_what_would_be() {
    let fake = Fake::usual();
    let created = fake.says("volume create a --size 5 --volumeType io1 --amount -n -f json");
    let expected = json!([{
        "attachments": [{ "deviceName": "", "instanceID": { "id": "n1", "driver": "", "service": "" }, "status": "", "volumeID": "" }],
        "attachmentState": 2, "name": "a", "size": 5, "id": "", "type": "io1", "Path": "",
    }]);
    assert_eq!(serde_json::from_str::<Value>(&created).expect("json"), expected);
    assert_eq!(fake.says("volume create b -n -f json"), "[{\"name\":\"b\",\"id\":\"\",\"type\":\"\"}]\n");
    assert_eq!(fake.says("volume rm -n redis"), "redis\n");
    assert_eq!(fake.says("volume attach -nq redis"), "redis  redis  available  2\n");
    assert_eq!(fake.says("volume detach -nq pg"), "pg  pg  available  16\n");
    assert_eq!(fake.says("volume unmount -nq pg"), "pg  pg  available  16\n");
    assert_eq!(fake.says("volume mount -nq redis"), "redis  redis  available  2  \n");
    assert_eq!(fake.says("volume mount -niq pg"), "pg  pg  attached  16  /v/pg\n");
    assert!(fake.orders().is_empty());
}

#[test]
fn one_that_fails_ends_the_command_and_with_continue_on_error_the_others_are_done() {
    let fake = Fake { fails: Some("/pg-old"), ..Fake::usual() };
    let done = fake.run("volume rm pg pg-old redis").expect("said");
    assert_eq!((done.said.as_str(), done.failed.len()), ("pg\n", 1));
    let done = fake.run("volume rm pg pg-old nobody redis --continueOnError").expect("said");
    assert_eq!((done.said.as_str(), done.failed.len()), ("pg\nredis\n", 2));
}

#[test]
fn adapters_are_our_drivers() {
    let fake = Fake::usual();
    assert_eq!(fake.says("adapter"), "Name   Driver\nlocal  local\n");
    let types: Value = serde_json::from_str(&fake.says("adapter types -f json")).expect("json");
    let driver = json!({ "name": "local", "type": "block", "nextDevice": { "ignore": true, "prefix": "", "pattern": "" } });
    assert_eq!(types, json!({ "local": { "name": "local", "driver": driver } }));
    assert_eq!(fake.says("adapter instances"), "ID  Name  Provider  Region\nn1  n1    local     \n");
    let instances: Value = serde_json::from_str(&fake.says("adapter instances -f json")).expect("json");
    let id = json!({ "id": "n1", "driver": "local", "service": "local" });
    assert_eq!(instances, json!({ "local": { "instanceID": id, "name": "n1", "providerName": "local" } }));
}

#[test]
fn snapshots_are_refused_and_what_is_missing_is_said_first() {
    for (line, expected) in [
        ("snapshot", "no driver"),
        ("snapshot get", "no driver"),
        ("snapshot create", "missing --volumeid"),
        ("snapshot create --volumeid pg", "no driver"),
        ("snapshot remove", "missing --snapshotid"),
        ("snapshot copy", "missing --snapshotid"),
    ] {
        let Command::Snapshot(group) = good(line) else { panic!("no snapshot") };
        let error = adapter::snapshot(group.command).to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    assert!(matches!(good("adapter list"), Command::Adapter(group) if group.command == Some(AdapterCommand::Types)));
}
