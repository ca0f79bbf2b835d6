//! Mounts as the kernel has them: who sees them, who keeps them, and what happens when somebody else lays hands on them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_host::orphans::Brood;
use dunnage_host::{DeviceNumber, Medium, MountEntry, Target};
use dunnage_tests::sh;
use dunnage_tests::{BOUND, Node, binary, eventually, is_mounted, kernel, scratch};
use serde_json::json;

/// A process that a test keeps somewhere, killed at the end.
struct Sleeper(Child);

impl Sleeper {
    /// In a mount namespace of its own, which gets from ours what `propagation` says, and does `first` there.
    fn apart(propagation: &str, first: &str) -> Sleeper {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", propagation, "sh", "-ec", &format!("{first}; exec sleep 600")]);
        let sleeper = Sleeper(command.stdin(Stdio::null()).spawn().expect("unshare"));
        let ours = std::fs::read_link("/proc/self/ns/mnt").expect("namespace");
        eventually("it is in a namespace of its own, asleep", BOUND, || {
            std::fs::read_link(sleeper.proc("ns/mnt")).is_ok_and(|theirs| theirs != ours)
                && std::fs::read_to_string(sleeper.proc("comm")).is_ok_and(|name| name == "sleep\n")
        });
        sleeper
    }

    /// A container without propagation: it has the volume at a place of its own.
    fn container(node: &Node) -> Sleeper {
        let data = node.folder.join("data");
        std::fs::create_dir_all(&data).expect("folder");
        Sleeper::apart("private", &format!("mount --bind {} {}", node.mountpoint("pg").display(), data.display()))
    }

    /// With its working directory there.
    fn inside(folder: &Path) -> Sleeper {
        Sleeper(Command::new("sleep").arg("600").current_dir(folder).stdin(Stdio::null()).spawn().expect("sleep"))
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.0.id()))
    }

    /// What people are told of it.
    fn name(&self) -> String {
        format!("sleep (pid {})", self.0.id())
    }

    fn sees(&self, mount: &Path) -> bool {
        let table = std::fs::read_to_string(self.proc("mountinfo")).expect("mountinfo");
        table.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(mount))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace that a test makes has a copy of the mounts of all tests that run then, and keeps their devices too: those
/// tests run alone, the others beside each other.
static NAMESPACES: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    NAMESPACES.write().unwrap_or_else(PoisonError::into_inner)
}

fn beside_others() -> RwLockReadGuard<'static, ()> {
    NAMESPACES.read().unwrap_or_else(PoisonError::into_inner)
}

/// A node with a volume `pg`.
fn with_a_volume() -> Node {
    let node = Node::started();
    node.cli(&["volume", "create", "pg", "-o", "size=16M"]).ok();
    node
}

fn write(path: &Path) {
    sh(&format!("echo written > {0}/x; sync -f {0}/x", path.display()));
}

fn read(path: &Path) -> String {
    sh(&format!("cat {}/x", path.display()))
}

fn fails(line: &str) -> bool {
    !Command::new("sh").args(["-c", line]).stderr(Stdio::null()).status().expect("sh").success()
}

fn loops(node: &Node) -> usize {
    kernel::loops_beneath(&node.pool()).len()
}

/// Nothing is mounted or attached, sooner than any sweep. (At once is too much to ask: the daemon of another test may have
/// the device open for a moment, as it looks for a loop of its own, and the kernel waits for that.)
#[track_caller]
fn nothing_left(node: &Node) {
    eventually("it is detached", Duration::from_secs(2), || loops(node) == 0);
    node.assert_nothing_left();
}

fn holds(node: &Node, id: &str) {
    eventually("it holds", BOUND, || node.holders("pg").contains(&(Some(id.to_owned()), 1, 0, 0)));
}

#[test]
fn a_mountpoint_with_nothing_mounted_on_it_cannot_be_written() {
    let _turn = beside_others();
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    sh(&format!("umount {}", path.display()));
    assert!(path.is_dir(), "the mountpoint is there still, bare");
    assert!(fails(&format!("touch {}/x", path.display())));
    assert!(fails(&format!("mkdir {}/other", path.parent().expect("driver").display())));
    node.unmount("pg", "c1");
    nothing_left(&node);
}

#[test]
fn the_folder_of_mounts_is_a_shared_mount_of_its_own() {
    let _turn = beside_others();
    let node = Node::started();
    let volumes = node.state().join("volumes");
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().find(|line| line.split(' ').nth(4).map(Path::new) == Some(&volumes)).expect("mounted");
    assert!(line.contains(" shared:") && line.contains(" - tmpfs dunnage ") && line.contains(" ro,"), "{line}");
}

#[test]
fn a_namespace_that_listens_sees_mounts_come_and_go() {
    let _turn = alone();
    let node = with_a_volume();
    let listener = Sleeper::apart("slave", "true");
    let path = node.mount("pg", "c1");
    assert!(listener.sees(&path), "the mount reaches it");
    node.unmount("pg", "c1");
    assert!(!listener.sees(&path), "the unmount reaches it");
    // Its copies go with ours, and keep nobody from letting go of a volume whose container is gone.
    node.mount("pg", "c2");
    assert!(listener.sees(&path));
    node.cli(&["holder", "release", "pg"]).ok();
    assert!(!listener.sees(&path));
    node.mount("pg", "c3");
    let copy = Sleeper::container(&node);
    let refused = node.cli(&["holder", "release", "pg"]).fails(5);
    assert!(refused.contains(&copy.name()) && !refused.contains(&listener.name()), "{refused}");
    drop(copy);
    node.unmount("pg", "c3");
    nothing_left(&node);
}

#[test]
fn a_copy_of_the_mount_that_a_private_namespace_has_and_does_not_use_goes_with_it() {
    let _turn = alone();
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    let other = Sleeper::apart("private", "true");
    assert!(other.sees(&path));
    node.unmount("pg", "c1");
    assert!(!other.sees(&path), "the mountpoint's removal takes it away everywhere");
    nothing_left(&node);
}

#[test]
fn a_private_copy_of_a_mount_keeps_the_device_and_whoever_has_it_is_named() {
    let _turn = alone();
    let node = with_a_volume();
    let path = PathBuf::from(node.cli(&["volume", "mount", "pg"]).ok());
    let copy = Sleeper::container(&node);
    let said = node.cli(&["volume", "unmount", "pg"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("its device stays attached") && said.err.contains(&copy.name()), "{}", said.err);
    assert!(!is_mounted(&path) && loops(&node) == 1);
    drop(copy);
    eventually("the device goes with the last copy, unasked", BOUND, || loops(&node) == 0);
    nothing_left(&node);
}

#[test]
fn a_volume_that_lingers_is_mounted_again_on_the_same_device() {
    let _turn = alone();
    let node = with_a_volume();
    write(&node.mount("pg", "c1"));
    let device = kernel::loops_beneath(&node.pool());
    let copy = Sleeper::container(&node);
    node.unmount("pg", "c1");
    assert_eq!(read(&node.mount("pg", "c2")), "written");
    assert_eq!(kernel::loops_beneath(&node.pool()), device, "two devices over one image would ruin it");
    drop(copy);
    node.unmount("pg", "c2");
    nothing_left(&node);
}

#[test]
fn a_volume_that_lingers_is_not_removed() {
    let _turn = alone();
    let node = with_a_volume();
    node.mount("pg", "c1");
    let copy = Sleeper::container(&node);
    node.unmount("pg", "c1");
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("in_use{") && said.contains(&copy.name()), "{said}");
    assert!(node.image("pg").exists());
    drop(copy);
    eventually("it can be removed", BOUND, || node.cli(&["volume", "rm", "pg"]).code == 0);
    nothing_left(&node);
}

#[test]
fn a_busy_volume_says_who_uses_it_and_is_unmounted_when_that_one_has_gone() {
    let _turn = beside_others();
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    let user = Sleeper::inside(&path);
    let said = node.plugin_err("VolumeDriver.Unmount", &json!({ "Name": "pg", "ID": "c1" }));
    assert!(said.starts_with("in_use{n1}: volume \"pg\"") && said.contains(&user.name()), "{said}");
    assert!(is_mounted(&path));
    drop(user);
    eventually("it is unmounted, unasked", BOUND, || !is_mounted(&path));
    eventually("and detached", BOUND, || loops(&node) == 0);
    nothing_left(&node);
}

#[test]
fn a_busy_volume_that_is_wanted_again_stays_mounted() {
    let _turn = beside_others();
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    let before = kernel::mount_id(&path);
    let user = Sleeper::inside(&path);
    node.plugin_err("VolumeDriver.Unmount", &json!({ "Name": "pg", "ID": "c1" }));
    node.mount("pg", "c2");
    drop(user);
    assert_eq!(kernel::mount_id(&path), before);
    holds(&node, "c2");
    node.unmount("pg", "c2");
    nothing_left(&node);
}

#[test]
fn mounts_whose_ledger_was_wiped_are_kept_for_one_unknown_holder_and_not_mounted_twice() {
    let _turn = beside_others();
    let mut node = with_a_volume();
    let path = node.mount("pg", "c1");
    let before = kernel::mount_id(&path);
    node.kill();
    sh(&format!("rm -r {}", node.run_dir().display()));
    node.start();
    assert_eq!(node.holders("pg"), [(None, 1, 0, 0)]);
    assert_eq!(node.mount("pg", "c2"), path);
    assert_eq!((kernel::mount_id(&path), loops(&node)), (before, 1));
    holds(&node, "c2");
    node.unmount("pg", "c2");
    assert!(is_mounted(&path), "the unknown holder has it");
    // The one who had it then: nobody else matches, and nothing lives on it.
    node.unmount("pg", "c1");
    nothing_left(&node);
}

#[test]
fn a_volume_that_was_unmounted_behind_our_back_is_mounted_again_for_the_next() {
    let _turn = beside_others();
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    write(&path);
    sh(&format!("umount {}", path.display()));
    assert_eq!(read(&node.mount("pg", "c2")), "written");
    assert_eq!(loops(&node), 1);
    holds(&node, "c2");
    node.unmount("pg", "c1");
    assert!(is_mounted(&path), "c2 has it");
    node.unmount("pg", "c2");
    nothing_left(&node);
}

#[test]
fn the_path_of_what_was_unmounted_behind_our_back_is_none_and_nothing_can_be_written_there() {
    let _others = beside_others();
    let mut node = with_a_volume();
    let path = node.mount("pg", "a");
    let told = |node: &Node| node.plugin_ok("VolumeDriver.Path", &json!({ "Name": "pg" }))["Mountpoint"].as_str().map(PathBuf::from);
    assert_eq!(told(&node), Some(path.clone()));
    sh(&format!("umount {}", path.display()));
    assert_eq!(told(&node), Some(PathBuf::new()));
    assert!(std::fs::write(path.join("x"), "x").is_err());
    node.unmount("pg", "a");
    node.finish();
}

#[test]
fn what_was_unmounted_behind_our_back_is_detached_when_its_holder_goes() {
    let _turn = beside_others();
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    sh(&format!("umount {}", path.display()));
    node.unmount("pg", "c1");
    assert_eq!(node.holders("pg"), []);
    nothing_left(&node);
}

#[test]
fn something_else_that_is_mounted_in_a_volumes_place_is_not_touched() {
    let _turn = beside_others();
    let node = with_a_volume();
    let path = node.mount("pg", "c1");
    sh(&format!("umount {0}; mount -t tmpfs stranger {0}; echo theirs > {0}/x", path.display()));
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c2" }));
    assert!(said.starts_with("in_use{n1}: volume \"pg\""), "{said}");
    node.plugin_err("VolumeDriver.Unmount", &json!({ "Name": "pg", "ID": "c1" }));
    assert_eq!(read(&path), "theirs");
    sh(&format!("umount {}", path.display()));
    eventually("it is let go", BOUND, || loops(&node) == 0);
    nothing_left(&node);
}

/// A loop device that a stranger attaches to the image.
fn strangers_loop(node: &Node, flags: &str) -> PathBuf {
    PathBuf::from(sh(&format!("losetup {flags} --find --show {}", node.image("pg").display())))
}

#[test]
fn an_image_that_a_stranger_has_attached_is_not_attached_twice() {
    let _turn = beside_others();
    let node = with_a_volume();
    let device = strangers_loop(&node, "");
    write(&node.mount("pg", "c1"));
    assert_eq!(kernel::loops_beneath(&node.pool()), [device]);
    node.unmount("pg", "c1");
    nothing_left(&node);
}

#[test]
fn an_image_that_a_stranger_has_attached_is_not_removed() {
    let _turn = beside_others();
    let node = with_a_volume();
    let device = strangers_loop(&node, "");
    let said = node.plugin_err("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(said.starts_with("in_use{") && said.contains(&device.display().to_string()), "{said}");
    assert!(node.image("pg").exists());
    sh(&format!("losetup -d {}", device.display()));
    nothing_left(&node);
    node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "pg" }));
}

#[test]
fn an_image_that_a_stranger_has_attached_read_only_is_mounted_when_that_device_has_gone() {
    let _turn = beside_others();
    let node = with_a_volume();
    let device = strangers_loop(&node, "--read-only").display().to_string();
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "c1" }));
    assert!(said.contains("volume \"pg\"") && said.contains(&device), "{said}");
    assert!(!is_mounted(&node.mountpoint("pg")));
    // It may have gone with the attempt; another's may have its number by now.
    for ours in kernel::loops_beneath(&node.pool()) {
        sh(&format!("losetup -d {}", ours.display()));
    }
    write(&node.mount("pg", "c1"));
    node.unmount("pg", "c1");
    nothing_left(&node);
}

/// What the daemon's own helpers say is mounted beneath a folder, and at one place in it.
fn told(root: &Path, at: &Target) -> (Vec<MountEntry>, Option<DeviceNumber>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (brood, _) = Brood::begin(&scratch().join("helpers")).expect("begin");
        let mounts = dunnage_host::linux::host(std::sync::Arc::new(Helpers::new(binary(), brood)), Tools::find()).mounts;
        (mounts.table(root).await.expect("table"), mounts.at(at).await.expect("at").map(|at| at.device))
    })
}

#[test]
fn a_kernel_that_can_be_asked_about_single_mounts_and_one_that_shows_its_table_alone_tell_the_same() {
    let _turn = alone();
    let folder = scratch();
    let (root, at) = (folder.join("root"), folder.display());
    // Each kind: with a device's number, with one of its own, and one beneath another, over another, and with a space.
    sh(&format!(
        "cd {at}; mkdir root; mount -t tmpfs dunnage root; truncate -s 320M b; mkfs.btrfs -q b; truncate -s 16M e; mke2fs -q -F -t ext4 e
         mkdir root/btrfs 'root/a b'; mount -o loop b root/btrfs; mount -o loop e 'root/a b'; mkdir 'root/a b/inside'
         mount -t tmpfs none 'root/a b/inside'; mount -t tmpfs upper 'root/a b/inside'
         for n in $(seq 600); do mkdir root/$n; mount --bind 'root/a b' root/$n; done"
    ));
    let target = Target { root: root.clone(), relative: "btrfs".into(), medium: Medium::default() };
    let asked = told(&root, &target);
    let read = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            kernel::refuse(&[kernel::LISTMOUNT, kernel::STATMOUNT]);
            told(&root, &target)
        });
        other.join().expect("the table")
    });
    let source = PathBuf::from(sh(&format!("findmnt -no SOURCE {at}/root/btrfs")));
    sh(&format!("umount -R {at}/root"));
    assert_eq!(asked.0.len(), 604);
    assert_eq!(asked, read);
    assert_eq!(asked.1, asked.0.iter().find(|entry| entry.fs == "btrfs").map(|entry| entry.device));
    assert_eq!(asked.1.map(|device| format!("/dev/loop{}", device.minor)), Some(source.display().to_string()));
}
