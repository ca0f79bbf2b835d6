//! Volumes that are copies of images, and images that are copies of volumes.

use std::path::PathBuf;

use dunnage_tests::{Node, kernel, sh};
use serde_json::json;

/// An image made by hand, with a file in it.
fn image(node: &Node, name: &str, size: &str, mkfs: &str) -> PathBuf {
    let (path, mnt) = (node.folder.join(name), node.folder.join("mnt"));
    std::fs::create_dir_all(&mnt).expect("a folder");
    let (shown, mnt) = (path.display(), mnt.display());
    sh(&format!("truncate -s {size} {shown} && {mkfs} {shown}"));
    sh(&format!(
        "mount -o loop {shown} {mnt} && echo mine >{mnt}/x && dd if=/dev/urandom of={mnt}/y bs=1M count=3 status=none; umount {mnt}"
    ));
    path
}

fn sum(node: &Node, volume: &str) -> String {
    let path = node.mount(volume, "sum");
    let sum = sh(&format!("cd {} && sha256sum x y", path.display()));
    node.unmount(volume, "sum");
    sum
}

#[test]
fn an_image_becomes_a_volume_with_its_data_and_is_not_written_to_and_goes_out_again() {
    let mut node = Node::started();
    for (fs, size, mkfs) in [("ext4", "64M", "mke2fs -q -t ext4"), ("xfs", "320M", "mkfs.xfs -q"), ("btrfs", "160M", "mkfs.btrfs -q")] {
        let from = image(&node, fs, size, mkfs);
        let before = sh(&format!("sha256sum {}", from.display()));
        let from = from.display().to_string();
        assert_eq!(node.cli(&["volume", "import", "one", &from, "-o", "labels=team=db"]).ok(), "one");
        // A second copy has a UUID of its own: both are mounted at once.
        node.cli(&["volume", "import", "two", &from]).ok();
        let (one, two) = (node.mount("one", "a"), node.mount("two", "a"));
        assert_eq!(sh(&format!("cat {0}/x && cmp {0}/y {1}/y", one.display(), two.display())), "mine");
        let inspected = node.cli(&["volume", "inspect", "one"]).ok();
        assert!(inspected.contains(fs) && inspected.contains("team"), "{inspected}");
        assert_eq!(sh(&format!("sha256sum {from}")), before, "{fs}: the image was written to");
        // What is mounted is not exported: it would have half of what is written meanwhile.
        let out = format!("{from}.out");
        let said = node.cli(&["volume", "export", "one", &out]).fails(5);
        assert!(said.contains("it is mounted") && !PathBuf::from(&out).exists(), "{said}");
        assert_eq!(node.holders("one").len(), 1, "{fs}: the refused export left no hold");
        node.unmount("one", "a");
        node.unmount("two", "a");
        let said = node.cli(&["volume", "export", "one", &out]);
        assert_eq!((said.code, said.out.as_str()), (0, ""), "{}", said.err);
        assert!(kernel::loops_beneath(&node.folder).is_empty(), "it is detached again");
        let taken: u64 = sh(&format!("stat -c '%b' {out}")).parse().expect("a number");
        let long: u64 = sh(&format!("stat -c '%s' {out}")).parse().expect("a number");
        assert!(taken * 512 < long / 2, "{fs}: its holes were filled");
        let said = node.cli(&["volume", "export", "one", &out]).fails(4);
        assert!(said.contains("already"), "{said}");
        // The same through a pipe, and what came out goes in again.
        let piped = node.command().args(["volume", "export", "one", "-"]).output().expect("it runs");
        assert!(piped.stdout == std::fs::read(&out).expect("an image"), "{fs}: what came through a pipe differs");
        // A hold that was there before is not the export's to give back.
        node.cli(&["volume", "attach", "one"]).ok();
        std::fs::remove_file(&out).expect("it was there");
        node.cli(&["volume", "export", "one", &out]).ok();
        assert_eq!(node.holders("one").len(), 1, "{fs}: it is attached still");
        node.cli(&["volume", "detach", "one"]).ok();
        node.cli(&["volume", "import", "three", &out]).ok();
        assert_eq!(sum(&node, "three"), sum(&node, "one"));
        for volume in ["one", "two", "three"] {
            node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": volume }));
        }
    }
    node.finish();
}

#[test]
fn a_device_is_imported_too_if_nothing_uses_it() {
    let mut node = Node::started();
    let from = image(&node, "disk", "64M", "mke2fs -q -t ext4");
    let device = sh(&format!("losetup -f --show {}", from.display()));
    let mnt = node.folder.join("mnt").display().to_string();
    sh(&format!("mount {device} {mnt}"));
    for used in [&device, &from.display().to_string()] {
        let said = node.cli(&["volume", "import", "pg", used]).fails(5);
        assert!(said.contains("something uses it"), "{said}");
    }
    sh(&format!("umount {mnt}"));
    node.cli(&["volume", "import", "pg", &device]).ok();
    sh(&format!("losetup -d {device}"));
    assert!(sum(&node, "pg").contains("x"));
    node.finish();
}

#[test]
fn what_cannot_be_imported_is_refused_by_name_and_leaves_nothing() {
    let mut node = Node::started();
    let good = image(&node, "good", "64M", "mke2fs -q -t ext4").display().to_string();
    let path = |name: &str| node.folder.join(name).display().to_string();
    sh(&format!("echo 'a letter' >{0}; truncate -s 64M {1}; mkfifo {2}", path("letter"), path("blank"), path("pipe")));
    sh(&format!("truncate -s 64M {0} && printf 'label: gpt\\n,,\\n' | sfdisk -q {0}", path("gpt")));
    for (file, code, says) in [
        (path("letter"), 10, "too little for any filesystem"),
        (path("blank"), 10, "nothing"),
        (path("gpt"), 10, "gpt"),
        (path("pipe"), 2, "neither a file nor a block device"),
        (path("absent"), 2, "nothing of that name"),
        (node.folder.display().to_string(), 2, "neither a file nor a block device"),
    ] {
        let said = node.cli(&["volume", "import", "pg", &file]).fails(code);
        assert!(said.contains(says) && said.contains("pg"), "{file}: {said}");
    }
    let said = node.cli(&["volume", "import", "pg", &good, "-o", "size=1G"]).fails(2);
    assert!(said.contains("invalid_argument{size}") && said.contains("volume resize"), "{said}");
    assert_eq!(node.cli(&["volume", "ls", "-q"]).ok(), "");
    assert_eq!(std::fs::read_dir(node.pool()).expect("a pool").count(), 0);
    // One that is there is kept.
    node.fill("pg");
    let said = node.cli(&["volume", "import", "pg", &good]).fails(4);
    assert!(said.contains("there is a volume of that name"), "{said}");
    node.assert_data("pg");
    node.finish();
}

#[test]
fn law_4_an_import_that_is_killed_at_any_point_is_undone_and_can_be_repeated() {
    let mut node = Node::new();
    node.allow_crashes();
    node.start();
    let from = image(&node, "disk", "64M", "mke2fs -q -t ext4").display().to_string();
    node.passed();
    node.cli(&["volume", "import", "pg", &from]).ok();
    let mut points: Vec<String> = Vec::new();
    for point in node.passed() {
        if !points.contains(&point) {
            points.push(point);
        }
    }
    assert!(points.iter().any(|point| point.contains("image.copy/part")), "{points:?}");
    let whole = sum(&node, "pg");
    for point in points {
        eprintln!("{point}");
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": "pg" }));
        node.die_at(&point);
        node.cli(&["volume", "import", "pg", &from]);
        if point.starts_with("helper/") || point.starts_with("tool/") {
            node.somebody_died(&point);
        } else {
            node.wait_until_dead();
            node.start();
        }
        // It is whole, or it is not there.
        let said = node.cli(&["volume", "import", "pg", &from]);
        assert!(said.code == 0 || said.code == 4, "{point}: {}", said.err);
        assert_eq!(sum(&node, "pg"), whole, "{point}");
    }
    node.finish();
}
