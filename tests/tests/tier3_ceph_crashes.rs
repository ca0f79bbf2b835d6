//! The daemon is killed at every step of every verb on a volume of Ceph, and starts again: the verb is repeated and works, what was
//! written is there, nobody was fenced who only had to be asked, and nothing is left in the cluster or on the node.
//!
//! The steps are those that a peaceful run comes by, so that a new one is not forgotten here. Helpers are killed in the tests by hand:
//! `DUNNAGE_HELPERS_TOO=1`.

use dunnage_tests::ceph::{Ceph, POOL};
use dunnage_tests::{BOUND, Node, eventually, http, kernel, sh};
use serde_json::{Value, json};

/// It is a helper that dies there, or a tool.
fn is_another_s(point: &str) -> bool {
    point.starts_with("helper/") || point.starts_with("tool/")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create,
    Mount,
    Unmount,
    Remove,
    Adopt,
}

struct Bench {
    ceph: Ceph,
    node: Node,
    /// Volumes are folders of CephFS.
    files: bool,
}

impl Bench {
    fn new() -> Option<Bench> {
        let ceph = Ceph::with_devices(1)?;
        let node = ceph.node("a", "");
        Some(Bench::on(ceph, node, false))
    }

    fn of_files() -> Option<Bench> {
        let ceph = Ceph::with_files()?;
        let node = ceph.files_node("a");
        Some(Bench::on(ceph, node, true))
    }

    fn on(ceph: Ceph, mut node: Node, files: bool) -> Bench {
        node.stop();
        node.allow_crashes();
        node.start();
        Bench { ceph, node, files }
    }

    /// What the cluster has of volumes.
    fn left(&self) -> Vec<String> {
        if self.files {
            let found = sh(&format!(
                "cd {}/devices/files/fs.*/dunnage && find . -mindepth 1 ! -name .new ! -name .gone ! -path './.???/a' ! -path './.????/a'",
                self.node.run_dir().display()
            ));
            return found.lines().map(str::to_owned).collect();
        }
        let objects = self.ceph.command("rados", &["-p", POOL, "ls"]).ok();
        let ours = objects.lines().filter(|name| name.starts_with("dunnage.volume.")).map(str::to_owned);
        ours.chain(self.ceph.command("rbd", &["ls", POOL]).ok().lines().map(str::to_owned)).collect()
    }

    fn ask(&self, verb: Verb) -> (u16, Value) {
        let (word, body) = match verb {
            Verb::Adopt => {
                let ran = self.node.cli(&["volume", "adopt", "v"]);
                return if ran.code == 0 { (200, Value::Null) } else { (500, json!({ "Err": ran.err })) };
            }
            Verb::Create => ("Create", json!({ "Name": "v", "Opts": {} })),
            Verb::Mount => ("Mount", json!({ "Name": "v", "ID": "c" })),
            Verb::Unmount => ("Unmount", json!({ "Name": "v", "ID": "c" })),
            Verb::Remove => ("Remove", json!({ "Name": "v" })),
        };
        let answer = http::post(&self.node.socket(), &format!("/VolumeDriver.{word}"), body.to_string().as_bytes());
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }

    #[track_caller]
    fn do_it(&self, verb: Verb) {
        let (status, answer) = self.ask(verb);
        assert_eq!(status, 200, "{answer}");
    }

    /// The volume as it has to be before the verb.
    fn prepare(&self, verb: Verb) {
        if verb == Verb::Create {
            return;
        }
        if verb == Verb::Adopt {
            let disk = self.ceph.folder.join("disk").display().to_string();
            sh(&format!(
                "mkdir -p {disk}.tree; echo written >{disk}.tree/x; rm -f {disk}; truncate -s 64M {disk}; mkfs.ext4 -q -d {disk}.tree {disk}"
            ));
            self.ceph.command("rbd", &["import", "--no-progress", &disk, "rbd/v"]).ok();
            return;
        }
        self.do_it(Verb::Create);
        let path = self.node.mount("v", "w");
        sh(&format!("echo written >{0}/x; sync {0}/x", path.display()));
        self.node.unmount("v", "w");
        if verb == Verb::Unmount {
            self.do_it(Verb::Mount);
        }
    }

    /// The points that a verb comes by in peace, each once, in order.
    fn points(&self, verb: Verb) -> Vec<String> {
        self.prepare(verb);
        self.node.passed();
        self.do_it(verb);
        let helpers_too = self.files || std::env::var_os("DUNNAGE_HELPERS_TOO").is_some();
        let mut points: Vec<String> = Vec::new();
        for point in self.node.passed() {
            // The daemon's signs of life and its start have nothing to do with it, and that an answer was read is known later.
            let others = ["sign", ".list/", ".attachments/"].iter().any(|word| point.contains(word)) || point.starts_with("mount/confirm");
            let wanted = (helpers_too || !is_another_s(&point)) && !others;
            if wanted && !points.contains(&point) {
                points.push(point);
            }
        }
        self.clean(verb);
        points
    }

    /// After the verb: what has to be there is, and then nothing is any more.
    #[track_caller]
    fn clean(&self, verb: Verb) {
        match verb {
            Verb::Create => {
                let path = self.node.mount("v", "w");
                assert_eq!(sh(&format!("ls -A {}", path.display())), "", "a new volume is empty");
                self.node.unmount("v", "w");
                self.do_it(Verb::Remove);
            }
            Verb::Mount | Verb::Unmount | Verb::Adopt => {
                let path = self.node.mount("v", "c");
                assert_eq!(sh(&format!("cat {}/x", path.display())), "written");
                let holds = || self.node.holders("v").iter().map(|holder| holder.1 + holder.2 + holder.3).sum::<u64>();
                eventually("the volume is let go of", BOUND, || {
                    self.do_it(Verb::Unmount);
                    holds() == 0
                });
                self.do_it(Verb::Remove);
            }
            Verb::Remove => {}
        }
        assert_eq!(self.left(), [""; 0], "something is left in the cluster");
        // One process carries the whole of CephFS, and stays.
        eventually("nothing is carried any more", BOUND, || self.node.carriers().len() == usize::from(self.files));
        assert!(kernel::loops_beneath(&self.node.folder).is_empty(), "something is left on the node");
    }

    fn crash_everywhere(&mut self, verb: Verb) {
        let points = self.points(verb);
        assert!(points.len() > 6, "{points:?}");
        let fenced = |bench: &Bench| bench.ceph.pool().cluster().blocklisted().expect("a list").len();
        for point in &points {
            self.prepare(verb);
            let (before, helper_dies) = (fenced(self), is_another_s(point));
            self.node.die_at(point);
            self.ask(verb);
            if helper_dies {
                self.node.somebody_died(point);
            } else {
                self.node.wait_until_dead();
                self.node.start();
            }
            // A removal that was finished at start was not there to be removed: dockerd is told that all is well.
            let (status, answer) = self.ask(verb);
            assert!(
                status == 200 || (verb == Verb::Remove && answer["Err"].as_str().is_some_and(|e| e.contains("not_found"))),
                "{point}: {answer}"
            );
            self.clean(verb);
            // That a client has ended in order is known to whom has seen it. A daemon that dies before it has given the volume up takes
            // that with it, and the next one cuts the client off to be sure.
            let seen = points.iter().take_while(|passed| *passed != point).any(|passed| passed.ends_with("/detach/before"));
            assert!(seen || helper_dies || fenced(self) == before, "{point}: somebody was fenced who only had to be asked");
        }
        println!("{} points", points.len());
        if !self.files {
            self.node.finish();
        }
    }
}

#[test]
fn law_4_a_create_of_a_shared_volume_that_dies_anywhere_is_done_by_a_retry() {
    let Some(mut bench) = Bench::new() else { return };
    bench.crash_everywhere(Verb::Create);
}

#[test]
fn law_4_a_mount_of_a_shared_volume_that_dies_anywhere_is_done_by_a_retry() {
    let Some(mut bench) = Bench::new() else { return };
    bench.crash_everywhere(Verb::Mount);
}

#[test]
fn law_4_an_unmount_of_a_shared_volume_that_dies_anywhere_is_done_by_a_retry() {
    let Some(mut bench) = Bench::new() else { return };
    bench.crash_everywhere(Verb::Unmount);
}

#[test]
fn law_4_a_removal_of_a_shared_volume_that_dies_anywhere_is_done_by_a_retry() {
    let Some(mut bench) = Bench::new() else { return };
    bench.crash_everywhere(Verb::Remove);
}

#[test]
fn law_4_an_adoption_that_dies_anywhere_is_done_by_a_retry() {
    let Some(mut bench) = Bench::new() else { return };
    bench.crash_everywhere(Verb::Adopt);
}

#[test]
fn law_4_every_verb_on_a_volume_of_files_that_dies_anywhere_is_done_by_a_retry() {
    let Some(mut bench) = Bench::of_files() else { return };
    for verb in [Verb::Create, Verb::Mount, Verb::Unmount, Verb::Remove] {
        bench.crash_everywhere(verb);
    }
}
