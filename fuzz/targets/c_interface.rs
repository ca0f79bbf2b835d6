//! The C interface, as an agent might call it at its worst: any containers, any requests, in any order, and several at once. Each line is
//! a call: `p` prepares (the container, a tab, the request), `c` cleans up, `r` recovers, and `w` waits for what was asked so far.
//!
//! Every call is told of once, nothing panics behind it, and when no container is left nobody holds anything and nothing is written down.

#![no_main]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use dunnage_mesos_module::{Handle, dunnage_isolator_cleanup, dunnage_isolator_new, dunnage_isolator_prepare, dunnage_isolator_recover};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Who holds what: the volume, and as whom.
type Holds = Arc<Mutex<BTreeSet<(String, String)>>>;

struct Agent {
    isolator: *mut Handle,
    holds: Holds,
    state: PathBuf,
    _folder: tempfile::TempDir,
}

// SAFETY: the interface may be called from any thread.
unsafe impl Send for Agent {}
// SAFETY: as above.
unsafe impl Sync for Agent {}

static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let (plugins, state) = (folder.path().join("plugins"), folder.path().join("state"));
    std::fs::create_dir(&plugins).expect("a folder");
    let holds = Holds::default();
    for name in ["rexray", "pxd"] {
        let (listener, holds) = (UnixListener::bind(plugins.join(format!("{name}.sock"))).expect("bound"), holds.clone());
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(serve(stream, &holds))));
    }
    let parameters = json!({ "plugins": plugins, "state_dir": state, "folders": "/mnt,/data" }).to_string();
    let parameters = CString::new(parameters).expect("a string of C");
    // SAFETY: a string of C, and nobody wants the error.
    let isolator = unsafe { dunnage_isolator_new(parameters.as_ptr(), std::ptr::null_mut()) };
    assert!(!isolator.is_null());
    Agent { isolator, holds, state, _folder: folder }
});

/// A plugin of a few words. A volume whose name begins with `e` cannot be mounted.
fn serve(stream: UnixStream, holds: &Holds) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut path, mut length) = (String::new(), 0);
        if reader.read_line(&mut path)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let hold = (text("Name"), text("ID"));
        let answer = match path.split(' ').nth(1).unwrap_or_default() {
            "/Plugin.Activate" => json!({ "Implements": ["VolumeDriver"] }),
            "/VolumeDriver.Get" => json!({ "Volume": { "Name": hold.0 }, "Err": "" }),
            "/VolumeDriver.Mount" if hold.0.starts_with('e') => json!({ "Err": "it is not there" }),
            "/VolumeDriver.Mount" => {
                assert!(hold.1.starts_with("mesos-"), "{hold:?}");
                holds.lock().expect("held").insert(hold.clone());
                json!({ "Mountpoint": format!("/volumes/{}", hold.0), "Err": "" })
            }
            "/VolumeDriver.Unmount" => {
                holds.lock().expect("held").remove(&hold);
                json!({ "Err": "" })
            }
            _ => json!({ "Err": "" }),
        };
        let answer = answer.to_string();
        write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())?;
    }
}

extern "C" fn done(with: *mut c_void, error: *const c_char, answer: *const c_char) {
    assert!(error.is_null() != answer.is_null(), "one of the two");
    let text = if error.is_null() { answer } else { error };
    // SAFETY: a string of C, as long as this runs.
    let text = unsafe { CStr::from_ptr(text) }.to_str().expect("UTF-8");
    assert!(!text.contains("panicked"), "{text}");
    if error.is_null() {
        let _: Value = serde_json::from_str(text).expect("an answer is JSON");
    }
    // SAFETY: it is one of the counters below, which outlive every call.
    unsafe { &*with.cast::<AtomicUsize>() }.fetch_add(1, Ordering::SeqCst);
}

fn wait_for(told: &AtomicUsize, calls: usize) {
    let begun = Instant::now();
    while told.load(Ordering::SeqCst) < calls {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} of {calls} calls were told of", told.load(Ordering::SeqCst));
        std::thread::yield_now();
    }
}

fuzz_target!(|bytes: &[u8]| {
    let agent = &*AGENT;
    // Kept for good: a call that is told of late must not write into what is something else by then.
    let told: &'static AtomicUsize = Box::leak(Box::default());
    let with = std::ptr::from_ref(told).cast_mut().cast::<c_void>();
    let c = |bytes: &[u8]| CString::new(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).unwrap_or_default();
    let mut calls = 0;
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).take(8) {
        let (first, second) = line[1..].split_at(line[1..].iter().position(|byte| *byte == b'\t').unwrap_or(line.len() - 1));
        let (container, request) = (c(first), c(second.get(1..).unwrap_or_default()));
        // The names that are there to make it panic.
        if [&container, &request].iter().any(|text| text.as_bytes().starts_with(b"panics-")) {
            continue;
        }
        calls += 1;
        // SAFETY: an isolator that lives, and strings of C.
        unsafe {
            match line[0] {
                b'p' => dunnage_isolator_prepare(agent.isolator, container.as_ptr(), request.as_ptr(), done, with),
                b'c' => dunnage_isolator_cleanup(agent.isolator, container.as_ptr(), done, with),
                b'r' => dunnage_isolator_recover(agent.isolator, container.as_ptr(), done, with),
                _ => {
                    calls -= 1;
                    wait_for(told, calls);
                }
            }
        }
    }
    wait_for(told, calls);
    // SAFETY: as above.
    unsafe { dunnage_isolator_recover(agent.isolator, c"[]".as_ptr(), done, with) };
    wait_for(told, calls + 1);
    assert_eq!(*agent.holds.lock().expect("held"), BTreeSet::new(), "somebody holds something");
    assert_eq!(std::fs::read_dir(&agent.state).expect("a folder").flatten().map(|entry| entry.file_name()).collect::<Vec<_>>(), [""; 0]);
});
