//! The driver against the suite that every driver passes, on the host in memory, and what is its own.

#![allow(clippy::expect_used, clippy::panic)] // a test fails by them

use dunnage_driver::conformance::{Bench, CASES};
use dunnage_driver::{Driver, NewVolume, Provision};
use dunnage_driver_local::{Limits, Local, tasks};
use dunnage_host::fake::FakeHost;
use dunnage_host::helpers::Registry;
use dunnage_model::{PartialSpec, VolumeState};

const LIMITS: Limits = Limits { reserve_permille: 0, warn_permille: 1000, overcommit_permille: None };

async fn local(pool: &std::path::Path, limits: Limits) -> (Local, dunnage_host::Host) {
    let host = FakeHost::default().host(tasks(Registry::default()));
    let driver = Local::new("local".parse().expect("name"), pool.to_owned(), limits, host.clone());
    driver.open().await.expect("open");
    (driver, host)
}

fn new_volume(name: &str, spec: PartialSpec) -> NewVolume {
    NewVolume {
        name: name.parse().expect("name"),
        endpoint: "e".parse().expect("name"),
        spec: spec.complete().expect("spec"),
        created: jiff::Timestamp::UNIX_EPOCH,
        maker: None,
    }
}

#[tokio::test]
async fn the_local_driver_passes_the_conformance_suite() {
    for case in CASES {
        let folder = tempfile::tempdir().expect("dir");
        let (driver, host) = local(&folder.path().join("pool"), LIMITS).await;
        case.run(&Bench { driver: &driver, host: &host, maker: None }).await.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(std::fs::read_dir(folder.path().join("pool")).expect("pool").count(), 0, "{} left something", case.name);
    }
}

#[tokio::test]
async fn a_pool_below_its_reserve_refuses_a_new_volume_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("dir");
    let (driver, _) = local(folder.path(), Limits { reserve_permille: 1000, ..LIMITS }).await;
    let error = driver.record(&new_volume("pg", PartialSpec::default())).await.expect_err("full");
    assert_eq!(error.word(), "limit_reached");
    assert!(error.to_string().contains("\"pg\"") && error.to_string().contains("reserve"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("pool").count(), 0);
}

#[tokio::test]
async fn an_overcommit_limit_counts_what_was_promised_before() {
    let folder = tempfile::tempdir().expect("dir");
    let total = {
        let (driver, _) = local(folder.path(), LIMITS).await;
        driver.capacity().await.expect("capacity").space.total
    };
    let (driver, _) = local(folder.path(), Limits { overcommit_permille: Some(1000), ..LIMITS }).await;
    let most = PartialSpec { size: Some(dunnage_model::Bytes(total.0 / 4 * 3)), ..Default::default() };
    driver.record(&new_volume("a", most.clone())).await.expect("the first fits");
    let error = driver.record(&new_volume("b", most)).await.expect_err("the second does not");
    assert_eq!(error.word(), "limit_reached");
}

#[tokio::test]
async fn a_copied_folder_is_a_damaged_volume_and_not_a_second_one() {
    let folder = tempfile::tempdir().expect("dir");
    let (driver, _) = local(folder.path(), LIMITS).await;
    driver.record(&new_volume("pg", PartialSpec::default())).await.expect("record");
    std::fs::rename(folder.path().join("pg"), folder.path().join("other")).expect("rename");
    let info = driver.inspect(&"other".parse().expect("name")).await.expect("inspect").expect("there");
    assert_eq!(info.state, VolumeState::Damaged);
    assert!(info.why.expect("why").contains("\"pg\""));
    assert!(driver.remove(&"other".parse().expect("name")).await.is_err(), "nothing of it is removed");
}

#[tokio::test]
async fn a_folder_with_something_in_it_is_not_taken_over() {
    let folder = tempfile::tempdir().expect("dir");
    std::fs::create_dir(folder.path().join("pg")).expect("mkdir");
    std::fs::write(folder.path().join("pg/image"), "somebody's").expect("write");
    let (driver, _) = local(folder.path(), LIMITS).await;
    let error = driver.record(&new_volume("pg", PartialSpec::default())).await.expect_err("not ours");
    assert_eq!(error.word(), "exists_incompatible");
    assert!(error.to_string().contains("dunnage volume adopt pg"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.path().join("pg/image")).expect("read"), "somebody's");
}

#[tokio::test]
async fn a_pool_that_is_not_there_is_no_proof_that_a_volume_is_not() {
    let folder = tempfile::tempdir().expect("dir");
    let (driver, _) = local(&folder.path().join("pool"), LIMITS).await;
    std::fs::remove_dir(folder.path().join("pool")).expect("rmdir");
    let error = driver.inspect(&"pg".parse().expect("name")).await.expect_err("doubt");
    assert_eq!(error.word(), "platform_unavailable");
}
