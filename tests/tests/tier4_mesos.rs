//! The module in a real agent, where there is one.
//!
//! Run by hand: 'MESOS_BIN=… MESOS_INCLUDES=… cargo xtask test --tier 4 --filter mesos'.

use std::path::Path;
use std::time::Duration;

use dunnage_tests::mesos::{Bench, DockerVolume, PATIENCE};
use dunnage_tests::{eventually, sh, skip};

/// mesos-execute, which may wait for what an agent that was killed never told.
fn end(mut execute: std::process::Child) {
    execute.kill().and_then(|()| execute.wait()).expect("ended");
}

#[test]
fn the_environment_of_the_documents_app_gives_a_real_task_its_volumes() {
    let Some(bench) = Bench::new() else { return };
    let at = bench.path("second");
    let said = bench.run(
        "seed",
        &format!("echo one >{}/testing/x && echo two >{at}/x", bench.node.state().join("volumes").display()),
        &[
            ("DVDI_VOLUME_NAME", "testing"),
            ("DVDI_VOLUME_DRIVER", "platform1"),
            ("DVDI_VOLUME_OPTS", "size=1,iops=150,volumetype=io1,newfstype=ext4,overwritefs=false"),
            ("DVDI_VOLUME_NAME1", "testing2"),
            ("DVDI_VOLUME_DRIVER1", "platform2"),
            ("DVDI_VOLUME_OPTS1", "size=1,volumetype=gp2,newfstype=xfs,overwritefs=true"),
            ("DVDI_VOLUME_CONTAINERPATH1", &at),
        ],
    );
    assert!(said.contains("TASK_FINISHED"), "{said}");
    eventually("both are let go of", PATIENCE, || !bench.mounted("testing") && !bench.mounted("testing2"));
    for (volume, text) in [("testing", "one"), ("testing2", "two")] {
        assert_eq!(bench.file_in(volume), text);
    }
    bench.finish();
}

#[test]
fn a_task_s_docker_volumes_come_by_dvdcli_at_paths_of_both_kinds_and_are_its_own_over_a_kill_of_the_agent() {
    let Some(mut bench) = Bench::new() else { return };
    // What is there before is found, and what is to be read is not written.
    bench.node.cli(&["volume", "create", "there"]).ok();
    let path = bench.node.cli(&["volume", "mount", "there"]).ok();
    sh(&format!("echo before >{path}/x; sync {path}/x"));
    bench.node.cli(&["volume", "unmount", "there"]).ok();
    let (gate, at) = (bench.node.folder.join("gate"), bench.path("absolute"));
    std::fs::create_dir(&at).expect("a folder");
    let command = format!(
        "echo after >data/x && grep before {at}/x && ! touch {at}/y && touch data/done && while ! test -e {}; do sleep 0.1; done",
        gate.display()
    );
    let volumes: [DockerVolume; 2] = [("data", "RW", "made", &[("size", "1"), ("fs", "ext4")]), (&at, "RO", "there", &[])];
    let task = bench.task_of_docker_volumes("docker-volumes", &command, &volumes);
    eventually("it has done its part", PATIENCE, || bench.mountpoint("made").join("done").exists());
    bench.kill_agent();
    assert!(bench.mounted("made") && bench.mounted("there"));
    bench.start_agent();
    assert!(bench.mounted("made") && bench.mounted("there"), "the task lives");
    std::fs::write(&gate, "").expect("written");
    eventually("both are let go of", PATIENCE, || !bench.mounted("made") && !bench.mounted("there"));
    end(task);
    assert!(bench.node.cli(&["volume", "inspect", "made"]).ok().contains("1GiB"));
    for (volume, text) in [("made", "after"), ("there", "before")] {
        assert_eq!(bench.file_in(volume), text);
    }
    bench.finish();
}

#[test]
fn ten_slots_are_ten_volumes_and_are_let_go_of_when_the_executor_is_killed() {
    let Some(bench) = Bench::new() else { return };
    let name = |n: usize| format!("v{n}");
    let variables: Vec<(String, String)> = (0..10).map(|n| (format!("DVDI_VOLUME_NAME{n}"), name(n))).collect();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let task = bench.task("ten", "while :; do sleep 1; done", &variables);
    eventually("it runs", PATIENCE, || bench.said("ten").contains("TASK_RUNNING"));
    assert!((0..10).all(|n| bench.mounted(&name(n)) && bench.holders(&name(n)) == 1));
    bench.kill_executors();
    eventually("all are let go of", PATIENCE, || (0..10).all(|n| !bench.mounted(&name(n)) && bench.holders(&name(n)) == 0));
    end(task);
    bench.finish();
}

#[test]
fn a_live_task_keeps_its_volume_over_a_kill_of_the_agent_and_one_that_has_ended_loses_it_with_the_restart() {
    let Some(mut bench) = Bench::new() else { return };
    let gate = bench.node.folder.join("gate");
    let wait = format!("while ! test -e {}; do sleep 0.1; done", gate.display());
    let task = bench.task("live", &wait, &[("DVDI_VOLUME_NAME", "keep")]);
    eventually("it runs", PATIENCE, || bench.said("live").contains("TASK_RUNNING"));
    bench.kill_agent();
    bench.start_agent();
    std::thread::sleep(Duration::from_secs(3));
    assert!(bench.mounted("keep"), "the task lives");
    bench.kill_agent();
    std::fs::write(&gate, "").expect("written");
    std::thread::sleep(Duration::from_secs(3));
    assert!(bench.mounted("keep"), "nobody is there to let go of it");
    bench.start_agent();
    eventually("the next agent lets go of it", PATIENCE, || !bench.mounted("keep"));
    end(task);
    bench.finish();
}

#[test]
fn a_group_s_tasks_share_a_volume_over_a_kill_of_the_agent_and_the_checks_of_their_health_hold_nothing() {
    let Some(mut bench) = Bench::new() else { return };
    let gate = bench.node.folder.join("gate");
    let wait = format!("while ! test -e {}; do sleep 0.1; done", gate.display());
    let (a, b) = (bench.path("a"), bench.path("b"));
    let group = bench.group(
        "group",
        &[
            ("writes", &format!("echo shared >{a}/x; {wait}"), &[("DVDI_VOLUME_NAME", "both"), ("DVDI_VOLUME_CONTAINERPATH", &a)]),
            (
                "reads",
                &format!("while ! grep shared {b}/x; do sleep 0.1; done; echo read >{b}/y; {wait}"),
                &[("DVDI_VOLUME_NAME", "both"), ("DVDI_VOLUME_CONTAINERPATH", &b)],
            ),
            ("none", &wait, &[]),
        ],
    );
    eventually("its health is known", PATIENCE, || bench.said("group").contains("healthy"));
    eventually("the second has read", PATIENCE, || bench.mountpoint("both").join("y").exists());
    assert_eq!(bench.holders("both"), 2, "a task each, and no check");
    bench.kill_agent();
    bench.start_agent();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(bench.holders("both"), 2, "they live");
    std::fs::write(&gate, "").expect("written");
    eventually("all is let go of", PATIENCE, || !bench.mounted("both") && bench.holders("both") == 0);
    end(group);
    bench.finish();
}

#[test]
fn a_task_with_an_image_has_its_volumes_beneath_its_own_root_and_nowhere_else() {
    if !Path::new("/proc/sysrq-trigger").exists() && std::env::var_os("MESOS_IMAGES").is_none() {
        return skip("needs a Mesos that runs images without /proc/sysrq-trigger (MESOS_IMAGES=1), or a kernel that has it");
    }
    let Some(bench) = Bench::new() else { return };
    let said = bench.run_in_image(
        "image",
        "echo in-data >/data/pg/x && echo in-etc >/etc/inner/x && cat /etc/own",
        &[
            ("DVDI_VOLUME_NAME", "pg"),
            ("DVDI_VOLUME_CONTAINERPATH", "/data/pg"),
            ("DVDI_VOLUME_NAME1", "inner"),
            ("DVDI_VOLUME_CONTAINERPATH1", "/out/inner"),
        ],
    );
    assert!(said.contains("TASK_FINISHED"), "{said}{}", bench.errors());
    assert!(!Path::new("/etc/inner").exists() && !Path::new("/data/pg").exists(), "it was made on the host");
    for (volume, text) in [("pg", "in-data"), ("inner", "in-etc")] {
        eventually("it is let go of", PATIENCE, || !bench.mounted(volume));
        assert_eq!(bench.file_in(volume), text);
    }
    for (name, path, says) in [("dangling", "/dangling/x", "what is not there"), ("kernel", "/proc/self", "the kernel's")] {
        let said = bench.run_in_image(name, "true", &[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_CONTAINERPATH", path)]);
        assert!(said.contains("TASK_FAILED") && bench.errors().contains(says), "{said}{}", bench.errors());
    }
    let said = bench.run_in_image("nowhere", "true", &[("DVDI_VOLUME_NAME", "pg")]);
    assert!(said.contains("TASK_FAILED") && said.contains("DVDI_VOLUME_CONTAINERPATH"), "{said}");
    eventually("all is let go of", PATIENCE, || !bench.mounted("pg"));
    bench.finish();
}

#[test]
fn what_a_task_may_not_ask_for_fails_it_with_the_reason_and_a_daemon_that_is_down_does_too() {
    let Some(mut bench) = Bench::new() else { return };
    for (name, environment, says) in [
        ("etc", vec![("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_CONTAINERPATH", "/etc")], "DVDI_VOLUME_CONTAINERPATH"),
        ("shell", vec![("DVDI_VOLUME_NAME", "a;touch /tmp/of-a-test")], "DVDI_VOLUME_NAME"),
        ("nobody", vec![("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_DRIVER", "nobody")], "no volume plugin"),
    ] {
        let said = bench.run(name, "true", &environment);
        assert!(said.contains("TASK_FAILED") && said.contains(says), "{said}");
    }
    assert!(!Path::new("/tmp/of-a-test").exists());
    bench.node.kill();
    let said = bench.run("down", "true", &[("DVDI_VOLUME_NAME", "pg")]);
    assert!(said.contains("TASK_FAILED") && said.contains("nothing answers"), "{said}");
    bench.node.start();
    let said = bench.run("up", "true", &[("DVDI_VOLUME_NAME", "pg")]);
    assert!(said.contains("TASK_FINISHED"), "{said}");
    eventually("it is let go of", PATIENCE, || !bench.mounted("pg"));
    bench.finish();
}
