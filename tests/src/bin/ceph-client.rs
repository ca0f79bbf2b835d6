//! Another client of a Ceph cluster, as [`dunnage_tests::ceph::Client`] starts it; under the name of a helper it is one, with
//! the tasks of the host and of the Ceph driver.
//!
//! `ceph-client ACCESS write PREFIX [POOL]` writes numbered objects as quickly as it can, eight at once, and prints for each that
//! was accepted in which nanosecond it began and in which it was done; when one is refused it tries to write once more and prints both errors.
//! `ceph-client ACCESS open IMAGE` opens an image and writes to it for ever, a line for each write.
//! `ceph-client ACCESS watch OBJECT` watches an object for ever.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunnage_driver_ceph::{Access, Cluster, Pool, is_fenced};
use dunnage_host::helpers::{HELPER_NAME, Registry, helper_main};
use dunnage_model::{Bytes, Error};
use dunnage_tests::ceph::{POOL, since_1970};

/// How many writes are under way at any time.
const WRITERS: usize = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    if args.first().is_some_and(|name| name.ends_with(HELPER_NAME)) {
        return Ok(helper_main(&dunnage_driver_ceph::tasks(dunnage_host::linux::tasks(Registry::default())))?);
    }
    let [_, access, what, name, rest @ ..] = args.as_slice() else {
        return Err("usage: ceph-client ACCESS write|open|watch NAME [POOL]".into());
    };
    let cluster = Cluster::connect(&serde_json::from_str::<Access>(access)?)?;
    let pool = cluster.pool(rest.first().map_or(POOL, String::as_str))?;
    let address = cluster.instance()?.first().ok_or("a client without an address")?.to_string();
    say(&address)?;
    match what.as_str() {
        "write" => write(&pool, name),
        "open" => open(&pool, name),
        "watch" => watch(&pool, name),
        _ => Err("it is write, open or watch".into()),
    }
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

fn write(pool: &Pool, prefix: &str) -> Result<(), Box<dyn std::error::Error>> {
    let next = AtomicU64::new(0);
    let one = || -> Error {
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            let begun = since_1970().as_nanos();
            // A new object each: they are in every placement group.
            let written = pool.create(&format!("{prefix}.{number}"), number, b"written");
            match written {
                Ok(_) if say(&format!("{begun} {}", since_1970().as_nanos())).is_err() => std::process::exit(0),
                Ok(_) => {}
                Err(e) => return e,
            }
        }
    };
    let first = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(one)).collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer")).next_back()
    });
    if let Some(error) = first {
        say(&format!("refused fenced={} {error}", is_fenced(&error)))?;
    }
    std::thread::sleep(Duration::from_millis(20));
    if let Err(error) = pool.create(&format!("{prefix}.late"), 0, b"late") {
        say(&format!("refused again fenced={} {error}", is_fenced(&error)))?;
    }
    Ok(())
}

fn open(pool: &Pool, image: &str) -> Result<(), Box<dyn std::error::Error>> {
    let image = pool.open_image(image)?;
    for number in 0_u64.. {
        let written = image.write(Bytes(0), &number.to_le_bytes()).and_then(|()| image.flush());
        match written {
            Ok(()) => say(&number.to_string())?,
            Err(error) => {
                say(&format!("refused fenced={} {error}", is_fenced(&error)))?;
                // What librbd does when such an image is closed is not what is asked about.
                std::process::exit(0);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn watch(pool: &Pool, oid: &str) -> Result<(), Box<dyn std::error::Error>> {
    let watch = pool.watch(oid, Duration::from_secs(5))?;
    say("it watches")?;
    while watch.is_alive() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("the watch was lost".into())
}
