//! The Mesos isolator's core behind the C interface of `include/dunnage_mesos.h`.
//!
//! An agent calls from threads that must not wait, and must not die of us: each call hands its work to one thread of our own and comes
//! back; a panic becomes an error.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use dunnage_dvdcli::Places;
use dunnage_frontend_mesos::{Bind, Isolator, Settings};
use dunnage_model::Error;
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

/// What is run in a container's namespace.
const BINARY: &str = "/usr/local/bin/dunnage";

/// See `dunnage_mesos.h`.
pub type Done = extern "C" fn(with: *mut c_void, error: *const c_char, answer: *const c_char);

/// What [`dunnage_isolator_new`] gives.
pub struct Handle {
    isolator: Arc<Isolator>,
    runtime: tokio::runtime::Handle,
    stop: Arc<Notify>,
    line: Line,
}

/// What the agent is to run in a container's namespace of mounts.
#[derive(Clone)]
struct Line {
    binary: String,
    /// The namespace that the agent is in.
    outside: u64,
}

/// Who is told, and with what. The agent says that it may be told on any thread.
#[derive(Clone, Copy)]
struct Told {
    done: Done,
    with: *mut c_void,
}

// SAFETY: the pointer is never looked into; the header says that it comes back on another thread.
unsafe impl Send for Told {}

impl Told {
    fn tell(self, outcome: Result<Value, String>) {
        let text = |text: String| CString::new(text.replace('\0', " ")).unwrap_or_default();
        match outcome {
            Ok(answer) => (self.done)(self.with, std::ptr::null(), text(answer.to_string()).as_ptr()),
            Err(error) => (self.done)(self.with, text(error).as_ptr(), std::ptr::null()),
        }
    }
}

fn new(parameters: &str) -> Result<Handle, String> {
    let given: BTreeMap<String, String> =
        serde_json::from_str(parameters).map_err(|e| format!("the parameters are no JSON of texts: {e}"))?;
    // The agent's log is what it writes to stderr.
    let (mut settings, mut binary) = (Settings { tell: |line| eprintln!("dunnage: {line}"), ..Settings::default() }, BINARY.to_owned());
    for (key, value) in given {
        match key.as_str() {
            "plugins" => settings.plugins = Places { sockets: value.into(), ..Places::default() },
            "state_dir" => settings.folder = value.into(),
            "driver" => settings.driver = value,
            "folders" => settings.folders = value.split(',').map(|folder| PathBuf::from(folder.trim())).collect(),
            "dvdcli" => settings.programs = value.split(',').map(|program| program.trim().to_owned()).collect(),
            "binary" => binary = value,
            "work_dir" if value.starts_with('/') => settings.work_dir = value.into(),
            "work_dir" => return Err(format!("work_dir is {value:?}: say the agent's own, which begins with /")),
            other => {
                let known = ["plugins", "state_dir", "driver", "folders", "work_dir", "dvdcli", "binary"];
                return Err(format!("parameter {other:?} is unknown; there are {}", known.join(", ")));
            }
        }
    }
    let outside = dunnage_host::linux::mount_namespace().map_err(|e| e.to_string())?;
    let isolator = Arc::new(Isolator::new(settings).map_err(|e| e.to_string())?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("cannot start: {e}"))?;
    let (handle, stop) = (runtime.handle().clone(), Arc::new(Notify::new()));
    let (tended, stopped) = (isolator.clone(), stop.clone());
    let work = move || {
        runtime.block_on(async {
            tokio::select! {
                () = stopped.notified() => {}
                () = tended.tend() => {}
            }
        });
    };
    std::thread::Builder::new().name("dunnage".to_owned()).spawn(work).map_err(|e| format!("cannot start a thread: {e}"))?;
    Ok(Handle { isolator, runtime: handle, stop, line: Line { binary, outside } })
}

#[derive(Deserialize)]
struct Request {
    environment: Vec<(String, String)>,
    #[serde(default)]
    image: Option<String>,
}

impl Line {
    fn of(&self, bind: &Bind) -> Vec<String> {
        let Bind { source, root, target, links } = bind;
        let mut line = vec![self.binary.clone(), "mesos".to_owned(), "bind".to_owned(), format!("--outside={}", self.outside)];
        line.extend(links.then(|| "--links".to_owned()));
        line.extend(["--".to_owned(), source.clone(), root.clone(), target.clone()]);
        line
    }
}

fn panicked() -> String {
    Error::internal("the isolator's core panicked; the agent goes on").to_string()
}

/// Begins a call on the agent's thread and leaves the rest to ours. Wherever it panics, that is the answer, and stays here.
fn call<W>(told: Told, begin: impl FnOnce() -> (tokio::runtime::Handle, W))
where
    W: Future<Output = Result<Value, String>> + Send + 'static,
{
    let begun = catch_unwind(AssertUnwindSafe(|| {
        let (runtime, work) = begin();
        runtime.spawn(async move {
            let outcome = AssertUnwindSafe(work).catch_unwind().await;
            told.tell(outcome.unwrap_or_else(|_| Err(panicked())));
        });
    }));
    if begun.is_err() {
        let _ = catch_unwind(AssertUnwindSafe(|| told.tell(Err(panicked()))));
    }
}

/// # Safety
/// It is a string of C, or null.
unsafe fn text(start: *const c_char) -> String {
    if start.is_null() {
        return String::new();
    }
    // SAFETY: the caller says so.
    let text = unsafe { CStr::from_ptr(start) }.to_string_lossy().into_owned();
    // For the test of what becomes of a panic; a release knows nothing of it.
    debug_assert_ne!(text, "panics-at-once-in-a-debug-build");
    text
}

/// # Safety
/// `parameters` is a string of C, and `error` a place for a pointer, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dunnage_isolator_new(parameters: *const c_char, error: *mut *mut c_char) -> *mut Handle {
    // SAFETY: the caller says so.
    let made = catch_unwind(|| new(&unsafe { text(parameters) })).unwrap_or_else(|_| Err(panicked()));
    let answer = move || match made {
        Ok(handle) => Box::into_raw(Box::new(handle)),
        Err(said) => {
            if !error.is_null() {
                // SAFETY: a place for a pointer, as the caller says.
                unsafe { *error = CString::new(said.replace('\0', " ")).unwrap_or_default().into_raw() };
            }
            std::ptr::null_mut()
        }
    };
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or(std::ptr::null_mut())
}

/// # Safety
/// `isolator` came from [`dunnage_isolator_new`] and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dunnage_isolator_free(isolator: *mut Handle) {
    if !isolator.is_null() {
        // SAFETY: the caller says so.
        let _ = catch_unwind(AssertUnwindSafe(|| unsafe { Box::from_raw(isolator) }.stop.notify_one()));
    }
}

/// # Safety
/// `isolator` came from [`dunnage_isolator_new`]; the texts are strings of C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dunnage_isolator_prepare(
    isolator: *mut Handle,
    container: *const c_char,
    request: *const c_char,
    done: Done,
    with: *mut c_void,
) {
    call(Told { done, with }, || {
        // SAFETY: the caller says so.
        let (handle, container, request) = unsafe { (&*isolator, text(container), text(request)) };
        let (core, line) = (handle.isolator.clone(), handle.line.clone());
        let work = async move {
            debug_assert_ne!(container, "panics-in-a-debug-build");
            let Request { environment, image } =
                serde_json::from_str(&request).map_err(|e| format!("the request is no JSON that is known: {e}"))?;
            let binds = core.prepare(&container, &environment, image.as_deref()).await.map_err(|e| e.to_string())?;
            Ok(json!({ "commands": binds.iter().map(|bind| line.of(bind)).collect::<Vec<_>>() }))
        };
        (handle.runtime.clone(), work)
    });
}

/// # Safety
/// As of [`dunnage_isolator_prepare`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dunnage_isolator_cleanup(isolator: *mut Handle, container: *const c_char, done: Done, with: *mut c_void) {
    call(Told { done, with }, || {
        // SAFETY: the caller says so.
        let (handle, container) = unsafe { (&*isolator, text(container)) };
        let core = handle.isolator.clone();
        let work = async move {
            core.cleanup(&container).await;
            Ok(Value::Null)
        };
        (handle.runtime.clone(), work)
    });
}

/// # Safety
/// As of [`dunnage_isolator_prepare`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dunnage_isolator_recover(isolator: *mut Handle, known: *const c_char, done: Done, with: *mut c_void) {
    call(Told { done, with }, || {
        // SAFETY: the caller says so.
        let (handle, known) = unsafe { (&*isolator, text(known)) };
        let core = handle.isolator.clone();
        let work = async move {
            let known: BTreeSet<String> = serde_json::from_str(&known).map_err(|e| format!("the containers are no JSON list: {e}"))?;
            Ok(json!(core.recover(&known).await))
        };
        (handle.runtime.clone(), work)
    });
}

/// # Safety
/// `text` came from [`dunnage_isolator_new`], or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dunnage_text_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: CString::into_raw made it.
        let _ = catch_unwind(|| drop(unsafe { CString::from_raw(text) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_that_is_shipped_names_a_module_that_is_there_and_parameters_that_it_knows() {
        let shipped: Value = serde_json::from_str(include_str!("../modules.json")).expect("json");
        let module = &shipped["libraries"][0]["modules"][0];
        let name = module["name"].as_str().expect("a name");
        assert!(include_str!("../isolator.cpp").contains(&format!("DUNNAGE_MODULE({name});")));
        let folder = tempfile::tempdir().expect("a folder");
        let mut parameters = BTreeMap::from([("state_dir", folder.path().to_str().expect("text"))]);
        for parameter in module["parameters"].as_array().expect("a list") {
            parameters.insert(parameter["key"].as_str().expect("a key"), parameter["value"].as_str().expect("a value"));
        }
        let handle = new(&json!(parameters).to_string()).expect("it starts");
        handle.stop.notify_one();
        let said = new(r#"{"work_dir": "mesos"}"#).map(drop).expect_err("no absolute path");
        assert!(said.contains("begins with /"), "{said}");
    }
}
