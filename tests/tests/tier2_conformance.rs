//! The suite that every driver passes, on the real kernel.

use std::path::Path;
use std::sync::Arc;

use dunnage_driver::conformance::{Bench, CASES};
use dunnage_driver_local::{Limits, Local};
use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_host::orphans::Brood;
use dunnage_tests::{binary, kernel, scratch};

const LIMITS: Limits = Limits { reserve_permille: 0, warn_permille: 1000, overcommit_permille: None };

async fn passes(pool: &Path) {
    let (brood, _) = Brood::begin(&scratch().join("helpers")).expect("begin");
    let host = dunnage_host::linux::host(Arc::new(Helpers::new(binary(), brood)), Tools::find());
    for case in CASES {
        let driver = Local::new("local".parse().expect("name"), pool.to_owned(), LIMITS, host.clone());
        driver.open().await.expect("open");
        case.run(&Bench { driver: &driver, host: &host }).await.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(std::fs::read_dir(pool).expect("pool").count(), 0, "{} left something", case.name);
        assert!(kernel::loops_beneath(pool).is_empty(), "{} left a loop", case.name);
    }
}

#[test]
fn the_local_driver_passes_the_conformance_suite_on_the_real_kernel() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(passes(&scratch().join("pool")));
}
