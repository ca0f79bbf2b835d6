//! What the module does for an agent, with a real daemon and the real kernel: an agent is played by the test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dunnage_dvdcli::Places;
use dunnage_frontend_mesos::{Bind, Isolator, Settings};
use dunnage_tests::{BOUND, Node, eventually, is_mounted, sh};
use rustix::fs::{CWD, RenameFlags};

type Environment = Vec<(String, String)>;

fn environment(given: &[(&str, &str)]) -> Environment {
    let driver = [("DVDI_VOLUME_DRIVER", "dunnage"), ("DVDI_VOLUME_DRIVER1", "dunnage"), ("DVDI_VOLUME_DRIVER2", "dunnage")];
    let usual = driver.iter().filter(|(key, _)| given.iter().all(|(other, _)| other != key));
    usual.chain(given).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// An agent's isolator. Another one on the same folder is what comes after the agent was killed.
fn isolator(node: &Node) -> Isolator {
    let plugins = Places { sockets: node.plugins.clone(), specs: Vec::new(), managed: "/nowhere".into() };
    let folders = vec![node.folder.join("tasks")];
    std::fs::create_dir_all(&folders[0]).expect("a folder");
    Isolator::new(Settings { plugins, folder: folder(node), folders, ..Settings::default() }).expect("a folder")
}

fn folder(node: &Node) -> PathBuf {
    node.folder.join("mesos")
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

fn written(node: &Node) -> usize {
    std::fs::read_dir(folder(node)).map_or(0, Iterator::count)
}

fn holders(node: &Node, volume: &str) -> Vec<String> {
    node.holders(volume).into_iter().filter_map(|(id, count, ..)| id.filter(|_| count > 0)).collect()
}

/// What the agent has run in a container's namespace before it starts, and then this line.
fn in_container(node: &Node, binds: &[Bind], line: &str) -> std::process::Output {
    in_container_after(node, "true", binds, line)
}

/// The same, when this was done there.
fn in_container_after(node: &Node, first: &str, binds: &[Bind], line: &str) -> std::process::Output {
    let outside = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/mnt").expect("a namespace"));
    let binary = dunnage_tests::binary().display().to_string();
    let bind = |bind: &Bind| {
        let links = if bind.links { "--links" } else { "" };
        format!("{binary} mesos bind --outside {outside} {links} {} {} {}", bind.source, bind.root, bind.target)
    };
    let lines: Vec<String> = [first.to_owned()].into_iter().chain(binds.iter().map(bind)).chain([line.to_owned()]).collect();
    let script = lines.join(" && ");
    std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", &script])
        .current_dir(&node.folder)
        .output()
        .expect("unshare")
}

#[test]
fn a_container_has_its_volumes_before_it_starts_and_lets_go_of_them_after_it_has_ended() {
    let mut node = Node::started();
    let agent = isolator(&node);
    let at = node.folder.join("tasks/one").display().to_string();
    let wanted = environment(&[
        ("DVDI_VOLUME_NAME", "pg"),
        ("DVDI_VOLUME_OPTS", "size=64M"),
        ("DVDI_VOLUME_CONTAINERPATH", &at),
        ("DVDI_VOLUME_NAME1", "log"),
        ("DVDI_VOLUME_OPTS1", "size=64M,fs=ext4"),
    ]);
    run(async {
        let binds = agent.prepare("c1", &wanted, None).await.expect("prepared");
        assert_eq!(binds.len(), 1, "the one that has a path");
        assert_eq!((holders(&node, "pg"), holders(&node, "log")), (vec!["mesos-c1".to_owned()], vec!["mesos-c1".to_owned()]));
        let ran = in_container(&node, &binds, &format!("echo of-a-task >{at}/x && ls {at}"));
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(sh(&format!("cat {}/x", node.mountpoint("pg").display())), "of-a-task");
        assert!(!is_mounted(Path::new(&at)), "only the container sees it there");
        // A second one shares it, with a path of its own, and nested ones are containers, too.
        let other = node.folder.join("tasks/two").display().to_string();
        let shared = environment(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_CONTAINERPATH", &other)]);
        let binds = agent.prepare("c1.nested", &shared, None).await.expect("prepared");
        let ran = in_container(&node, &binds, &format!("cat {other}/x"));
        assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "of-a-task");
        let said = agent.prepare("c1", &wanted, None).await.expect_err("twice").to_string();
        assert!(said.contains("prepared before"), "{said}");
        agent.cleanup("c1").await;
        assert_eq!(holders(&node, "pg"), ["mesos-c1.nested"]);
        assert!(!is_mounted(&node.mountpoint("log")) && is_mounted(&node.mountpoint("pg")));
        assert!(node.cli(&["holder", "ls"]).ok().contains("mesos"), "people see whose it is");
        agent.cleanup("c1.nested").await;
        agent.cleanup("c1.nested").await;
        agent.cleanup("never-prepared").await;
    });
    node.wait_until_released("pg");
    assert_eq!(written(&node), 0);
    node.finish();
}

#[test]
fn law_4_an_agent_that_was_killed_lets_go_of_what_no_container_has_any_more_and_of_nothing_else() {
    let mut node = Node::started();
    let opts = ("DVDI_VOLUME_OPTS", "size=64M");
    run(async {
        let first = isolator(&node);
        first.prepare("lives", &environment(&[("DVDI_VOLUME_NAME", "a"), opts]), None).await.expect("prepared");
        first.prepare("orphan", &environment(&[("DVDI_VOLUME_NAME", "b"), opts]), None).await.expect("prepared");
        first.prepare("gone", &environment(&[("DVDI_VOLUME_NAME", "a"), opts]), None).await.expect("prepared");
        drop(first);
        // Killed between what it has written down and the mount: there is a checkpoint, and no holder.
        std::fs::write(folder(&node).join("half.json"), r#"{"container":"half","volumes":[{"driver":"dunnage","name":"never-made"}]}"#)
            .expect("written");
        let second = isolator(&node);
        let known: BTreeSet<String> = ["lives", "orphan"].map(str::to_owned).into();
        let mut gone = second.recover(&known).await;
        gone.sort();
        assert_eq!(gone, ["gone", "half"]);
        assert_eq!((holders(&node, "a"), holders(&node, "b")), (vec!["mesos-lives".to_owned()], vec!["mesos-orphan".to_owned()]));
        for container in ["lives", "orphan"] {
            second.cleanup(container).await;
        }
    });
    ["a", "b"].iter().for_each(|volume| node.wait_until_released(volume));
    assert_eq!(written(&node), 0);
    node.finish();
}

#[test]
fn all_or_nothing_and_what_was_refused_holds_nothing() {
    let mut node = Node::started();
    let agent = isolator(&node);
    let refused = |wanted: &[(&str, &str)], says: &str| {
        let said = run(agent.prepare("c", &environment(wanted), None)).expect_err("refused").to_string();
        assert!(said.contains(says), "{said}");
        assert_eq!((run(agent.retry()), written(&node)), (0, 0));
    };
    refused(
        &[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_OPTS", "size=64M"), ("DVDI_VOLUME_NAME1", "x"), ("DVDI_VOLUME_OPTS1", "repl=3")],
        "repl=3",
    );
    node.wait_until_released("pg");
    refused(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_CONTAINERPATH", "/etc")], "DVDI_VOLUME_CONTAINERPATH");
    refused(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_DVDCLI", "/tmp/x")], "no task chooses what is run as root");
    refused(&[("DVDI_VOLUME_NAME", "not-there"), ("DVDI_VOLUME_EXPLICITCREATE", "true")], "not-there");
    refused(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_DRIVER", "nobody")], "no volume plugin \"nobody\"");
    let image = run(agent.prepare("c", &environment(&[("DVDI_VOLUME_NAME", "pg")]), Some("/an/image"))).expect_err("refused").to_string();
    assert!(image.contains("DVDI_VOLUME_CONTAINERPATH"), "an image does not show what the node mounts: {image}");
    let said = run(agent.prepare("../../etc/x", &environment(&[("DVDI_VOLUME_NAME", "pg")]), None)).expect_err("no id").to_string();
    assert!(said.contains("no container's id"), "{said}");
    assert_eq!(run(agent.prepare("plain", &Environment::new(), None)).expect("nothing is wanted"), []);
    node.finish();
}

/// Whatever the slots' order: a volume beneath another's place is not hidden by it.
#[test]
fn a_volume_that_lies_within_another_s_place_is_bound_after_it() {
    let mut node = Node::started();
    let agent = isolator(&node);
    let (outer, inner) = (node.folder.join("tasks/data"), node.folder.join("tasks/data/inner"));
    let wanted = environment(&[
        ("DVDI_VOLUME_NAME", "inner"),
        ("DVDI_VOLUME_OPTS", "size=64M"),
        ("DVDI_VOLUME_CONTAINERPATH", &inner.display().to_string()),
        ("DVDI_VOLUME_NAME1", "outer"),
        ("DVDI_VOLUME_OPTS1", "size=64M"),
        ("DVDI_VOLUME_CONTAINERPATH1", &outer.display().to_string()),
    ]);
    let binds = run(agent.prepare("c", &wanted, None)).expect("prepared");
    let ran = in_container(&node, &binds, &format!("echo of-inner >{}/x && echo of-outer >{}/x", inner.display(), outer.display()));
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    for volume in ["inner", "outer"] {
        assert_eq!(sh(&format!("cat {}/x", node.mountpoint(volume).display())), format!("of-{volume}"));
    }
    run(agent.cleanup("c"));
    ["inner", "outer"].iter().for_each(|volume| node.wait_until_released(volume));
    node.finish();
}

/// An operator has moved it to another endpoint while a container held it: that one is still the holder, and lets go of it.
#[test]
fn a_volume_that_became_another_endpoint_s_is_let_go_of_all_the_same() {
    let mut node = Node::new();
    node.configure(
        "drivers: { local: { type: local } }\nendpoints: { docker: [ { name: dunnage, driver: local }, { name: other, driver: local } ] }\n",
    );
    node.start();
    let agent = isolator(&node);
    run(agent.prepare("c", &environment(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_OPTS", "size=64M")]), None)).expect("prepared");
    node.cli(&["volume", "adopt", "pg", "--endpoint", "other"]).ok();
    assert_eq!(holders(&node, "pg"), ["mesos-c"]);
    run(agent.cleanup("c"));
    node.wait_until_released("pg");
    assert_eq!((holders(&node, "pg"), written(&node)), (Vec::<String>::new(), 0));
    node.finish();
}

#[test]
fn law_8_a_daemon_that_is_down_is_said_to_be_soon_and_what_could_not_be_let_go_of_is_when_it_is_back() {
    let mut node = Node::started();
    let agent = isolator(&node);
    let wanted = environment(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_OPTS", "size=64M")]);
    run(agent.prepare("c1", &wanted, None)).expect("prepared");
    eventually("the answer is known to be read", BOUND, || holders(&node, "pg") == ["mesos-c1"]);
    node.kill();
    let begun = Instant::now();
    let said = run(agent.prepare("c2", &wanted, None)).expect_err("nobody answers").to_string();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}: {said}", begun.elapsed());
    run(agent.cleanup("c1"));
    assert_eq!((run(agent.retry()), written(&node)), (1, 1), "the one that holds something is remembered");
    node.start();
    assert_eq!(holders(&node, "pg"), ["mesos-c1"], "the mount outlived the daemon");
    // Nobody has to ask for it.
    let let_go = async {
        let begun = Instant::now();
        while written(&node) > 0 {
            assert!(begun.elapsed() < BOUND, "it is not tried again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    run(async {
        tokio::select! {
            () = agent.tend() => {}
            () = let_go => {}
        }
    });
    node.wait_until_released("pg");
    node.finish();
}

/// The place is beneath the root, whatever somebody has put in the way.
#[test]
fn law_12_no_link_leads_a_volume_out_of_its_root() {
    let mut node = Node::started();
    node.fill("pg");
    let path = node.mount("pg", "a");
    let (root, victim) = (node.folder.join("root"), node.folder.join("victim"));
    sh(&format!(
        "mkdir -p {0}/etc {1} && ln -s {1} {0}/out && ln -s /etc {0}/in && ln -s ../victim {0}/up && echo x >{0}/file",
        root.display(),
        victim.display()
    ));
    let bind = |target: &str, links: bool| Bind {
        source: path.display().to_string(),
        root: root.display().to_string(),
        target: target.to_owned(),
        links,
    };
    let there = |at: &Path| format!("test -e {}/data-of-a-test", at.display());
    for target in ["out", "in", "up", "file", "out/x", "../victim"] {
        let ran = in_container(&node, &[bind(target, false)], "true");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && said.contains("link or a file"), "{target}: {said}");
    }
    // The kernel's own files are another's in a moment, and a link to nothing is said to be one.
    sh(&format!("mkdir {0}/proc && ln -s nowhere/at/all {0}/dangling", root.display()));
    for (target, says) in [("proc/self", "the kernel's"), ("dangling", "what is not there")] {
        let script = format!("mount -t proc proc {}/proc", root.display());
        let ran = in_container_after(&node, &script, &[bind(target, true)], "true");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && said.contains(says) && said.contains("invalid_argument"), "{target}: {said}");
    }
    // An image's own links are its own; they lead nowhere outside of it.
    assert!(in_container(&node, &[bind("in/x", true)], &there(&root.join("etc/x"))).status.success());
    let ran = in_container(&node, &[bind("up", true)], &there(&victim));
    assert!(!ran.status.success(), "it was shown outside of the root");
    assert!(in_container(&node, &[bind("new/deep/place", false)], &there(&root.join("new/deep/place"))).status.success());
    assert_eq!(std::fs::read_dir(&victim).expect("a folder").count(), 0);
    // Never where the host sees it.
    let outside = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/mnt").expect("a namespace"));
    let said = node
        .cli(&["mesos", "bind", "--outside", &outside.to_string(), &path.display().to_string(), &root.display().to_string(), "etc"])
        .fails(2);
    assert!(said.contains("host's own namespace"), "{said}");
    node.unmount("pg", "a");
    eventually("it is let go of", BOUND, || !is_mounted(&path));
    node.finish();
}

/// A task chooses its path, and root makes it: as it is written, by nobody who reads more into it.
#[test]
fn law_12_what_a_shell_would_read_is_a_path_s_name_and_nothing_else() {
    let mut node = Node::started();
    let agent = isolator(&node);
    let name = "a b;touch $(id)`id`'\"*|&> x";
    let at = node.folder.join("tasks").join(name).display().to_string();
    let wanted = environment(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_OPTS", "size=64M"), ("DVDI_VOLUME_CONTAINERPATH", &at)]);
    let binds = run(agent.prepare("c", &wanted, None)).expect("prepared");
    let outside = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/mnt").expect("a namespace"));
    let empty = node.folder.join("empty");
    std::fs::create_dir(&empty).expect("a folder");
    let ran = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", "at=$1; shift; \"$@\" && echo of-a-task >\"$at/x\"", "sh", &at])
        .arg(dunnage_tests::binary())
        .args(["mesos", "bind", &format!("--outside={outside}"), "--", &binds[0].source, &binds[0].root, &binds[0].target])
        .current_dir(&empty)
        .output()
        .expect("unshare");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(sh(&format!("cat {}/x", node.mountpoint("pg").display())), "of-a-task");
    let within = |folder: &Path| -> Vec<_> {
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect()
    };
    assert_eq!(within(&node.folder.join("tasks")), [name]);
    assert!(within(&empty).is_empty() && within(Path::new(&at)).is_empty(), "something was run");
    run(agent.cleanup("c"));
    node.wait_until_released("pg");
    node.finish();
}

/// A task swaps the way for a link out of its root, and for nothing, all the while: some binds are refused, and none lands elsewhere.
#[test]
fn law_12_what_is_swapped_while_a_volume_is_bound_leads_it_nowhere_else() {
    let mut node = Node::started();
    node.fill("pg");
    let path = node.mount("pg", "a");
    let (root, victim, away) = (node.folder.join("root"), node.folder.join("victim"), node.folder.join("away"));
    sh(&format!("mkdir -p {0}/way/x {1}/x/y {0}/x; ln -s {1} {0}/link", root.display(), victim.display()));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let swaps = || {
        let (way, link) = (root.join("way"), root.join("link"));
        let mut count = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            for _ in 0..2 {
                rustix::fs::renameat_with(CWD, &way, CWD, &link, RenameFlags::EXCHANGE).expect("swapped");
            }
            std::fs::rename(&way, &away).expect("gone");
            // What was missing is made meanwhile, now and then.
            while std::fs::rename(&away, &way).is_err() {
                let _ = std::fs::remove_dir_all(&way);
            }
            count += 1;
        }
        count
    };
    let outside = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/mnt").expect("a namespace"));
    // Each says where the volume is to be seen now, if anywhere.
    let bind = |links: &str| {
        let line = format!("mesos bind --outside {outside} {links} {} {} way/x/y", path.display(), root.display());
        let script = format!("{} {line} || echo refused; cut -d ' ' -f 5 /proc/self/mountinfo", dunnage_tests::binary().display());
        let ran = std::process::Command::new("unshare").args(["--mount", "--propagation", "unchanged", "sh", "-c", &script]).output();
        String::from_utf8_lossy(&ran.expect("unshare").stdout).into_owned()
    };
    let (seen, swapped) = std::thread::scope(|scope| {
        let swapper = scope.spawn(swaps);
        let seen: Vec<String> = (0..200).map(|n| bind(["", "--links"][n % 2])).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (seen, swapper.join().expect("it swaps"))
    });
    let refused = seen.iter().filter(|said| said.starts_with("refused")).count();
    println!("{refused} of {} refused, {swapped} times swapped", seen.len());
    assert!(refused > 0 && refused < seen.len(), "{refused}: nothing was in the way, or everything");
    let victim = victim.display().to_string();
    assert!(seen.iter().all(|said| said.lines().all(|mounted| !mounted.starts_with(&victim))), "it was shown outside of the root");
    node.unmount("pg", "a");
    eventually("it is let go of", BOUND, || !is_mounted(&path));
    node.finish();
}

/// The C interface, by a program in C that plays the agent.
#[test]
fn law_8_an_agent_s_thread_never_waits_and_no_panic_reaches_it() {
    let mut node = Node::started();
    let (program, root) = (node.folder.join("agent"), env!("CARGO_MANIFEST_DIR"));
    let library = dunnage_tests::mesos_module();
    sh(&format!(
        "cc -std=gnu11 -O1 -Wall -Werror -I {root}/../mesos-module/include {root}/c/agent.c {} -lpthread -ldl -lm -o {}",
        library.display(),
        program.display()
    ));
    let ran =
        std::process::Command::new(&program).args([&node.plugins, &folder(&node), &dunnage_tests::binary()]).output().expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    println!("{said}");
    assert!(ran.status.success() && said.ends_with("ok\n"), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    // "after" was prepared when its volume's others had gone, and its agent has ended: the next one lets go of it.
    run(isolator(&node).recover(&BTreeSet::new()));
    (0..4).for_each(|n| node.wait_until_released(&format!("v{n}")));
    std::fs::remove_file(node.plugins.join("hangs.sock")).expect("it was there");
    node.finish();
}
