//! The suite that every driver passes, on the real kernel.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dunnage_driver::conformance::{Bench, CASES};
use dunnage_driver_local::{Limits, Local};
use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_host::orphans::Brood;
use dunnage_host::{Detached, Host, LoopRequest};
use dunnage_tests::fuse::Store;
use dunnage_tests::sh;
use dunnage_tests::{BOUND, binary, kernel, scratch};

const LIMITS: Limits = Limits { reserve_permille: 0, warn_permille: 1000, overcommit_permille: None };

fn real_host() -> Host {
    let (brood, _) = Brood::begin(&scratch().join("helpers")).expect("begin");
    dunnage_host::linux::host(Arc::new(Helpers::new(binary(), brood)), Tools::find())
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work);
}

async fn eventually_async(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn passes(pool: &Path) {
    let host = real_host();
    for case in CASES {
        let driver = Local::new("local".parse().expect("name"), pool.to_owned(), LIMITS, host.clone());
        driver.open().await.expect("open");
        case.run(&Bench { driver: &driver, host: &host, maker: None }).await.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(std::fs::read_dir(pool).expect("pool").count(), 0, "{} left something", case.name);
        assert!(kernel::loops_beneath(pool).is_empty(), "{} left a loop", case.name);
    }
}

#[test]
fn the_local_driver_passes_the_conformance_suite_on_the_real_kernel() {
    run(passes(&scratch().join("pool")));
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("/proc").flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect::<Vec<_>>()).collect()
}

/// It is in fdatasync(2) or in flock(2).
fn waits(pid: u32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number: i64| [libc::SYS_fdatasync, libc::SYS_flock].contains(&number))
}

/// One of them may be of a daemon that died while it hung. Two devices would be two caches over one file.
#[test]
fn a_file_that_two_helpers_are_to_attach_at_once_has_one_device() {
    let folder = scratch();
    let store = Store::new(env!("CARGO_BIN_EXE_fuse-store"), &folder, 256 << 20);
    let at = store.path().join("v");
    sh(&format!(
        "mkdir {0}; truncate -s 16M {0}/image; sync; dd if=/dev/zero of={0}/image bs=4k count=1 conv=notrunc status=none",
        at.display()
    ));
    run(async {
        let helpers = || children(std::process::id());
        let (host, request) = (real_host(), LoopRequest { folder: store.path().to_owned(), relative: "v/image".into() });
        let attach = async || host.loops.attach(&request).await.expect("attached").number;
        // What was written is not on the disk yet: both wait for that, between their look and their device.
        store.halt();
        let both_wait = async {
            eventually_async("both wait, for the disk or for each other", || helpers().iter().filter(|pid| waits(**pid)).count() == 2)
                .await;
            store.go_on();
        };
        let (a, b, ()) = tokio::join!(attach(), attach(), both_wait);
        assert_eq!(a, b);
        assert_eq!(kernel::loops_beneath(store.path()).len(), 1);
        assert_eq!(host.loops.detach(&request, Some(a)).await, Ok(Detached::Done));
    });
}
