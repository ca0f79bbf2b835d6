//! A machine of a real agent that has started anew. That is not a thing of one namespace, so the kernel's boot id is mounted over, for all
//! tests in here, of which there is one.
//!
//! Run by hand, as tier4_mesos.

use dunnage_tests::mesos::{Bench, PATIENCE};
use dunnage_tests::{eventually, sh};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[test]
fn law_4_after_a_boot_nobody_holds_what_tasks_held_before_and_the_next_one_finds_the_data() {
    let Some(mut bench) = Bench::new() else { return };
    let at = bench.path("pg");
    let wanted = [("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_CONTAINERPATH", &*at)];
    let mut before = bench.task("before", &format!("echo before >{at}/x; sync {at}/x; sleep 600"), &wanted);
    eventually("it has written", PATIENCE, || bench.mountpoint("pg").join("x").exists());
    assert_eq!(bench.holders("pg"), 1);
    bench.cut_power();
    let boot = bench.node.folder.join("boot_id");
    std::fs::write(&boot, "11111111-2222-3333-4444-555555555555\n").expect("written");
    sh(&format!("mount --bind {} {BOOT_ID}", boot.display()));
    // The module's folder is emptied by a boot; here it is not, and what is in it is of containers that nobody knows.
    bench.node.start();
    bench.start_agent();
    assert_eq!(bench.holders("pg"), 0);
    let said = bench.run("after", &format!("grep before {at}/x"), &wanted);
    assert!(said.contains("TASK_FINISHED"), "{said}");
    eventually("it is let go of", PATIENCE, || !bench.mounted("pg") && bench.holders("pg") == 0);
    let left = std::fs::read_dir(bench.node.folder.join("mesos")).expect("a folder").count();
    assert_eq!(left, 0, "what was written down before the boot is still there");
    before.kill().and_then(|()| before.wait()).expect("ended");
    bench.finish();
    sh(&format!("umount {BOOT_ID}"));
}
