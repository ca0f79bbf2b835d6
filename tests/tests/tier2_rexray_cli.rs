//! `rexray` with a daemon behind it: what scripts did with REX-Ray's command line, they do with ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use dunnage_tests::sh;
use dunnage_tests::{Node, Ran, binary, is_mounted, kernel};
use serde_json::{Value, json};

/// The binary by its other name, in the node's folder.
fn link(node: &Node) -> PathBuf {
    let link = node.folder.join("rexray");
    if !link.exists() {
        std::os::unix::fs::symlink(binary(), &link).expect("link");
    }
    link
}

/// A command of `program`, which is the binary, for this node.
fn run(node: &Node, program: &Path, args: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).env("DUNNAGE_STATE_DIR", node.state()).env("DUNNAGE_RUN_DIR", node.run_dir());
    command.env("DUNNAGE_PLUGIN_DIR", &node.plugins).env("DUNNAGE_NODE", "n1").env("DUNNAGE_LOG_FILE", node.folder.join("log"));
    if node.folder.join("config.yml").exists() {
        command.env("DUNNAGE_CONFIG", node.folder.join("config.yml"));
    }
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

/// `rexray …`, its words parted by blanks.
fn rexray(node: &Node, line: &str) -> Ran {
    run(node, &link(node), &line.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn a_volume_is_created_listed_mounted_unmounted_and_removed() {
    let node = Node::started();
    assert_eq!(rexray(&node, "volume ls").ok(), "ID  Name  Status  Size");
    assert_eq!(rexray(&node, "volume create pg --size 32MiB --fsType ext4").ok(), "ID  Name  Status     Size\npg  pg    available  1");
    rexray(&node, "volume new redis --size=1 -q").ok();
    let path = node.mountpoint("pg").display().to_string();
    let row = format!("ID  Name  Status    Size  Path\npg  pg    attached  1     {path}");
    assert_eq!(rexray(&node, "volume mount pg").ok(), row);
    assert!(is_mounted(Path::new(&path)));
    assert_eq!(rexray(&node, "volume ls --path").ok(), row);
    assert_eq!(rexray(&node, "volume ls --available -q").ok(), "redis  redis  available  1");

    let listed: Value = serde_json::from_str(&rexray(&node, "volume ls pg -f json").ok()).expect("json");
    let device = listed[0]["attachments"][0]["deviceName"].as_str().unwrap_or_default().to_owned();
    assert_eq!(kernel::loops_beneath(&node.folder), [PathBuf::from(&device)]);
    let instance = json!({ "id": "n1", "driver": "local", "service": "dunnage" });
    let attachment = json!({ "deviceName": device, "mountPoint": path, "instanceID": instance, "status": "attached", "volumeID": "pg" });
    let expected = json!([{
        "attachments": [attachment], "attachmentState": 2, "name": "pg", "size": 1, "status": "mounted", "id": "pg", "type": "local",
        "fields": { "driver": "local", "fs": "ext4", "state": "ready" },
    }]);
    assert_eq!(listed, expected);
    assert_eq!(run(&node, &link(&node), &["volume", "ls", "--template", r"{{range .D}}{{.Name}} {{.MountPoint}}\n{{end}}"]).ok(), {
        format!("pg {path}\nredis")
    });

    assert_eq!(rexray(&node, "volume unmount pg -q").ok(), "pg  pg  available  1");
    node.wait_until_released("pg");
    assert!(rexray(&node, "volume unmount pg").fails(1).contains("not mounted"));
    rexray(&node, "volume unmount -i pg").ok();
    assert_eq!(rexray(&node, "volume rm /.*/").ok(), "pg\nredis");
    assert_eq!(rexray(&node, "volume ls -f json").ok(), "[]");
}

#[test]
fn what_goes_wrong_is_said_on_stderr_and_ends_with_one() {
    let node = Node::started();
    rexray(&node, "volume create pg --size 32MiB").ok();
    let there = rexray(&node, "volume create pg --size 32MiB");
    assert!(there.out.is_empty() && there.err.contains("already"), "{}", there.err);
    assert_eq!(there.code, 1);
    assert!(rexray(&node, "volume rm p").fails(1).contains("no volumes found"));
    assert!(rexray(&node, "volume mount nobody").fails(1).contains("no volumes found"));
    assert!(rexray(&node, "volume ls -s ebs").fails(1).contains("local"));
    assert!(rexray(&node, "volume ls -h tcp://storage:7979").fails(1).contains("each node"));
    assert!(rexray(&node, "volume create x --encrypted").fails(1).contains("encrypted"));
    assert!(rexray(&node, "volume create x --snapshotID s").fails(1).contains("snapshotID"));
    assert!(rexray(&node, "volume create").fails(1).contains("Usage"));
    assert!(rexray(&node, "volume ls --nonsense").fails(1).contains("--nonsense"));
    assert!(rexray(&node, "snapshot create --volumeid pg").fails(1).contains("snapshots"));
    assert!(rexray(&node, "scripts install x:y").fails(1).contains("downloads"));
    let some = rexray(&node, "volume rm nobody pg --continueOnError");
    assert_eq!((some.code, some.out.as_str()), (1, "pg\n"), "{}", some.err);
    assert_eq!(rexray(&node, "volume ls -q").ok(), "");
}

#[test]
fn a_volume_that_a_container_holds_stays_mounted_whatever_is_said_here() {
    let mut node = Node::started();
    rexray(&node, "volume create pg --size 32MiB").ok();
    let path = node.mount("pg", "alpha");
    let mount = kernel::mount_id(&path);
    assert!(rexray(&node, "volume unmount pg").fails(1).contains("not by this command line"));
    assert!(rexray(&node, "volume rm pg --force").fails(1).contains("in_use"));
    rexray(&node, "volume mount -i pg").ok();
    let kept = rexray(&node, "volume unmount pg");
    assert!(kept.err.contains("held by others"), "{}", kept.err);
    assert_eq!(kept.ok().lines().last(), Some("pg  pg    attached  1"));
    assert_eq!(kernel::mount_id(&path), mount);
    node.unmount("pg", "alpha");
    node.finish();
}

#[test]
fn a_dry_run_leaves_everything_as_it_was() {
    let node = Node::started();
    rexray(&node, "volume create pg --size 32MiB").ok();
    let before = rexray(&node, "volume ls -f json").ok();
    for line in ["create x --amount", "rm pg", "mount pg", "attach pg"] {
        rexray(&node, &format!("volume {line} -n")).ok();
    }
    assert_eq!(rexray(&node, "volume ls -f json").ok(), before);
    assert!(kernel::loops_beneath(&node.folder).is_empty());
}

#[test]
fn the_daemon_is_started_asked_restarted_and_stopped_in_rex_ray_s_words() {
    let mut node = Node::new();
    // A copy, not a link: the daemon that it starts has the daemon's face all the same.
    let copy = node.folder.join("bin/rexray");
    std::fs::create_dir_all(node.folder.join("bin")).expect("folder");
    // By another process: what is open for writing, even in a fork of another test, cannot be started.
    sh(&format!("cp {} {}", binary().display(), copy.display()));
    let say = |line: &str| run(&node, &copy, &line.split_whitespace().collect::<Vec<_>>());
    let pid = || say("status").ok().rsplit(' ').next().and_then(|pid| pid.parse::<u32>().ok()).expect("a pid");

    let installed = Path::new("/etc/systemd/system/dunnage.service").exists();
    let stopped = say("status");
    assert_eq!((stopped.code, stopped.out.as_str()), (i32::from(installed), "REX-Ray is stopped\n"));
    let started = say("start").ok();
    let run_dir = node.run_dir().display().to_string();
    let expected = format!(
        "Starting REX-Ray...SUCESS!\n\n  The REX-Ray daemon is now running at PID {}. To\n  shutdown the daemon execute the following \
         command:\n\n    sudo {} stop --run-dir {run_dir}",
        pid(),
        copy.display()
    );
    assert_eq!(started, expected);
    assert!(say("service start").fails(1).contains(&format!("already running at pid {}", pid())));
    say("start --force").ok();

    say("volume create pg --size 32MiB").ok();
    say("volume mount pg").ok();
    let (mount, before) = (kernel::mount_id(&node.mountpoint("pg")), pid());
    assert!(mount.is_some());
    say("service force-reload").ok();
    assert_ne!(pid(), before);
    assert_eq!(kernel::mount_id(&node.mountpoint("pg")), mount, "a restart touched a mount");
    say("volume unmount pg").ok();
    node.wait_until_released("pg");
    let stop = format!("{} stop --run-dir {run_dir}", copy.display());
    assert_eq!(sh(&stop).trim_end(), "Shutting down REX-Ray...SUCCESS!");
    assert_eq!(say("stop").ok(), "REX-Ray is stopped");
    node.stop();
}

#[test]
fn devices_without_a_volume_are_formatted_when_blank_mounted_listed_and_unmounted() {
    let node = Node::started();
    let (disk, at) = (node.folder.join("disk"), node.folder.join("at"));
    std::fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("disk");
    std::fs::create_dir(&at).expect("folder");
    let (disk, at) = (disk.display().to_string(), at.display().to_string());
    let noted = rexray(&node, &format!("device format --deviceName {disk} --overwriteFS"));
    assert!(noted.code == 0 && noted.err.contains("never overwritten"), "{}", noted.err);
    let uuid = sh(&format!("blkid -s UUID -o value {disk}"));

    let refused = rexray(&node, &format!("device format --deviceName {disk} --overwriteFS --fsType xfs")).fails(1);
    assert!(refused.contains("not_blank{ext4") && refused.contains(uuid.trim()), "{refused}");
    let device = sh(&format!("losetup --find --show {disk}")).trim().to_owned();
    let refused = rexray(&node, &format!("device format --deviceName {device}")).fails(1);
    assert!(refused.contains("not_blank{ext4"), "{refused}");
    assert_eq!(sh(&format!("blkid -s UUID -o value {disk}")), uuid);

    rexray(&node, &format!("device mount --deviceName {device} --mountPoint {at} --mountOptions ro,noatime")).ok();
    let listed: Value = serde_json::from_str(&rexray(&node, &format!("device ls --mountPoint {at} -f json")).ok()).expect("json");
    assert_eq!((listed[0]["source"].as_str(), listed[0]["fsType"].as_str()), (Some(device.as_str()), Some("ext4")), "{listed}");
    assert!(listed[0]["opts"].as_str().is_some_and(|opts| opts.starts_with("ro,noatime")), "{listed}");
    assert!(rexray(&node, "device ls").ok().lines().any(|line| line.contains(&device) && line.ends_with(&at)));
    assert!(rexray(&node, &format!("device format --deviceName {device}")).fails(1).contains("is mounted"));
    rexray(&node, &format!("device unmount --mountPoint {at}")).ok();
    assert!(!is_mounted(Path::new(&at)));
    assert!(rexray(&node, &format!("device unmount --mountPoint {at}")).fails(1).contains("nothing is mounted"));
    sh(&format!("losetup -d {device}"));
}

#[test]
fn what_is_a_volume_s_is_no_device_to_be_mounted_formatted_or_unmounted_by_hand() {
    let node = Node::started();
    rexray(&node, "volume create pg --size 32MiB").ok();
    let image = node.image("pg").display().to_string();
    let at = node.folder.join("at");
    std::fs::create_dir(&at).expect("folder");
    let at = at.display().to_string();
    assert!(rexray(&node, &format!("device format --deviceName {image}")).fails(1).contains("made of"));

    let path = node.mount("pg", "alpha");
    let path = path.display();
    let device = kernel::loops_beneath(&node.folder).remove(0);
    let device = device.display();
    for line in [
        format!("format --deviceName {device}"),
        format!("mount --deviceName {device} --mountPoint {at}"),
        format!("mount --deviceName {device} --mountPoint {path}"),
        format!("unmount --mountPoint {path}"),
    ] {
        let refused = rexray(&node, &format!("device {line}")).fails(1);
        assert!(refused.contains("rexray volume"), "{line}: {refused}");
    }
    assert!(is_mounted(Path::new(&path.to_string())));
    node.unmount("pg", "alpha");
    node.wait_until_released("pg");
}

#[test]
fn a_volume_is_attached_without_being_mounted_and_detached() {
    let node = Node::started();
    rexray(&node, "volume create pg --size 32MiB").ok();
    assert_eq!(rexray(&node, "volume attach pg -q").ok(), "pg  pg  attached  1");
    let device = kernel::loops_beneath(&node.folder);
    let listed: Value = serde_json::from_str(&rexray(&node, "volume ls -f json").ok()).expect("json");
    assert_eq!(listed[0]["attachments"][0]["deviceName"].as_str().map(PathBuf::from).as_ref(), device.first());
    assert!(listed[0]["attachments"][0].get("mountPoint").is_none(), "{listed}");
    assert!(rexray(&node, "volume attach pg").fails(1).contains("attached already"));
    rexray(&node, "volume attach -i pg").ok();
    assert_eq!(rexray(&node, "volume ls --attached -q").ok(), "pg  pg  attached  1");
    assert_eq!(rexray(&node, "volume detach pg -q").ok(), "pg  pg  available  1");
    node.wait_until_released("pg");
    assert!(rexray(&node, "volume detach pg").fails(1).contains("not attached"));
    rexray(&node, "volume detach -i pg").ok();
    rexray(&node, "volume create redis --size 32MiB --attach").ok();
    assert_eq!(rexray(&node, "volume ls --attached -q").ok(), "redis  redis  attached  1");
    rexray(&node, "volume detach redis").ok();
    // An unmount takes both back.
    rexray(&node, "volume attach pg").ok();
    rexray(&node, "volume mount pg").ok();
    rexray(&node, "volume unmount pg").ok();
    assert_eq!(rexray(&node, "volume ls --attached -q").ok(), "");
    node.wait_until_released("pg");
}

#[test]
fn a_new_volume_may_be_mounted_at_once() {
    let node = Node::started();
    let made = rexray(&node, "volume create pg --size 32MiB --amount -f json").ok();
    let made: Value = serde_json::from_str(&made).expect("json");
    assert_eq!(made[0]["Path"].as_str().map(PathBuf::from), Some(node.mountpoint("pg")));
    assert_eq!(made[0]["attachmentState"], 2);
    assert!(is_mounted(&node.mountpoint("pg")));
    rexray(&node, "volume unmount pg").ok();
    node.wait_until_released("pg");
}
