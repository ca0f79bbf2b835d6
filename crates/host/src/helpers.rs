//! Processes that make the calls which can hang.
//!
//! A thread in mount(2) on a dead store survives `kill -9` of its process, and keeps what the process held. So such
//! calls are made by helpers: our own binary, started under another name, with one socket and nothing else. A helper
//! that does not come back is left behind with its one call; another takes its place. What a helper can do is a
//! [`Task`]; the drivers bring their own.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dunnage_model::{Error, Result};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::crash;
use crate::orphans::Brood;

/// The name that our binary is called by when it is to be a helper.
pub const HELPER_NAME: &str = "dunnage-helper";

/// How many idle helpers are usually kept for good. More are started when more calls run at once; see [`Helpers::trim`].
const KEPT_IDLE: usize = 4;
/// How many are kept for a while.
const MOST_IDLE: usize = 64;
/// A helper that has said more than this has grown, and is not kept.
const LONG: usize = 1 << 20;

/// The longest answer: a list of some hundred thousand volumes.
const MAX_FRAME: usize = 256 << 20;

/// How long a helper that has answered, or was told that a call will come, stays awake for it. To wake a processor that
/// sleeps takes longer than most calls.
const AWAKE: Duration = Duration::from_micros(100);

/// A message that says nothing: a call will come.
const NUDGE: [u8; 4] = [0; 4];

/// A call that can hang, with what it needs to know.
pub trait Task: Serialize + DeserializeOwned + Send + Sync {
    /// What it is called in the registry: one word, and who has it.
    const NAME: &'static str;
    /// What comes of it.
    type Output: Serialize + DeserializeOwned + Send;
    /// Does it. Runs in a process of one thread.
    fn run(self) -> Result<Self::Output>;
}

/// What helpers can do.
#[derive(Clone, Default)]
pub struct Registry {
    tasks: BTreeMap<&'static str, fn(&[u8]) -> Reply>,
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Done(Box<serde_json::value::RawValue>),
    Failed(Error),
}

impl Registry {
    /// The same, and one task more.
    #[must_use]
    pub fn with<T: Task>(mut self) -> Self {
        self.tasks.insert(T::NAME, |payload| {
            let outcome = serde_json::from_slice::<T>(payload)
                .map_err(|e| Error::internal(format!("helper cannot read task {}: {e}", T::NAME)))
                .and_then(T::run)
                .and_then(|output| {
                    serde_json::value::to_raw_value(&output)
                        .map_err(|e| Error::internal(format!("helper cannot write the answer of {}: {e}", T::NAME)))
                });
            match outcome {
                Ok(value) => Reply::Done(value),
                Err(error) => Reply::Failed(error),
            }
        });
        self
    }

    fn call(&self, frame: &[u8]) -> Reply {
        let name_end = frame.iter().position(|b| *b == 0).unwrap_or(frame.len());
        let name = frame.get(..name_end).and_then(|n| std::str::from_utf8(n).ok()).unwrap_or_default();
        match self.tasks.get(name) {
            Some(run) => {
                crash::pass(format_args!("helper/{name}/before"));
                let reply = run(frame.get(name_end + 1..).unwrap_or_default());
                crash::pass(format_args!("helper/{name}/after"));
                reply
            }
            None => Reply::Failed(Error::internal(format!("helper has no task {name:?}"))),
        }
    }
}

/// Something that runs tasks.
#[async_trait]
pub trait Runner: Send + Sync {
    /// Runs the task in this frame (its name, a zero byte, its JSON) and gives the reply's JSON.
    async fn run_frame(&self, frame: Vec<u8>) -> Result<Vec<u8>>;

    /// A task will come in a moment: whoever is to run it may wake up.
    fn expect_one(&self) {}
}

/// Runs one task.
pub async fn run<T: Task>(runner: &dyn Runner, task: &T) -> Result<T::Output> {
    let mut frame = T::NAME.as_bytes().to_vec();
    frame.push(0);
    serde_json::to_writer(&mut frame, task).map_err(|e| Error::internal(format!("cannot write task {}: {e}", T::NAME)))?;
    let reply = runner.run_frame(frame).await?;
    let unreadable = |e: serde_json::Error| Error::internal(format!("cannot read the answer of task {}: {e}", T::NAME));
    match serde_json::from_slice::<Reply>(&reply).map_err(unreadable)? {
        Reply::Done(value) => serde_json::from_str(value.get()).map_err(unreadable),
        Reply::Failed(error) => Err(error),
    }
}

/// Runs tasks in threads of this process: for tests, which have nothing that hangs.
pub struct InProcess(pub Registry);

#[async_trait]
impl Runner for InProcess {
    async fn run_frame(&self, frame: Vec<u8>) -> Result<Vec<u8>> {
        let registry = self.0.clone();
        let reply = tokio::task::spawn_blocking(move || registry.call(&frame)).await;
        let reply = reply.map_err(|e| Error::internal(format!("a task panicked: {e}")))?;
        serde_json::to_vec(&reply).map_err(|e| Error::internal(format!("cannot write an answer: {e}")))
    }
}

struct Helper {
    socket: UnixStream,
    /// Killed when dropped: a helper in a call that hangs dies as soon as the call ends.
    _child: Child,
}

impl Helper {
    async fn exchange(&mut self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        self.socket.write_all(message).await?;
        // Most answers come whole in one read.
        let mut reply = Vec::with_capacity(2048);
        loop {
            if let Some(whole) = complete(&reply)? {
                return Ok(whole.to_vec());
            }
            if self.socket.read_buf(&mut reply).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The pool.
pub struct Helpers {
    binary: PathBuf,
    brood: Brood,
    /// How many idle ones are kept for good.
    kept: usize,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// Those used last at the end.
    helpers: Vec<Helper>,
    /// The fewest that were idle at once since the last [`Helpers::trim`].
    fewest: usize,
}

impl Helpers {
    /// A pool of helpers that run `binary` (in the daemon: `/proc/self/exe`, which stays ours through an upgrade).
    /// They are known by `brood` when they outlive us.
    pub fn new(binary: PathBuf, brood: Brood) -> Self {
        Helpers { binary, brood, kept: KEPT_IDLE, idle: Mutex::default() }
    }

    /// The same, of which one is kept when there is nothing to do: for helpers that grow large by what they do.
    #[must_use]
    pub fn keeping_one(self) -> Self {
        Helpers { kept: 1, ..self }
    }

    /// Starts `count` helpers ahead of need.
    pub fn prefork(&self, count: usize) -> Result<()> {
        for _ in 0..count {
            let helper = self.start()?;
            self.lock().helpers.push(helper);
        }
        Ok(())
    }

    /// Lets those go that have had nothing to do since the last call of this, but a few.
    pub fn trim(&self) {
        let mut idle = self.lock();
        let surplus = idle.fewest.min(idle.helpers.len().saturating_sub(self.kept));
        idle.helpers.drain(..surplus);
        idle.fewest = idle.helpers.len();
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper that waits, or a new one (and which of the two): nobody queues behind a call that hangs.
    fn take(&self) -> Result<(Helper, bool)> {
        let waiting = {
            let mut idle = self.lock();
            let waiting = idle.helpers.pop();
            idle.fewest = idle.fewest.min(idle.helpers.len());
            waiting
        };
        match waiting {
            Some(helper) => Ok((helper, false)),
            None => Ok((self.start()?, true)),
        }
    }

    fn start(&self) -> Result<Helper> {
        let failed = |what: &str, e: &std::io::Error| Error::os(format_args!("cannot start a helper process: {what}"), e);
        let (ours, theirs) = StdUnixStream::pair().map_err(|e| failed("socketpair", &e))?;
        ours.set_nonblocking(true).map_err(|e| failed("socket", &e))?;
        let crash = crash::folder().map(|folder| (crash::VARIABLE, folder));
        let child = Command::new(&self.binary)
            .arg0(HELPER_NAME)
            .env_clear()
            .envs(crash)
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // Nothing is written there: it is held.
            .stdout(Stdio::from(self.brood.mark().map_err(|e| failed("dup", &e))?))
            .stderr(Stdio::inherit())
            // A group of its own: a Ctrl-C at the daemon's terminal is the daemon's to answer.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&self.binary.display().to_string(), &e))?;
        let socket = UnixStream::from_std(ours).map_err(|e| failed("socket", &e))?;
        Ok(Helper { socket, _child: child })
    }
}

#[async_trait]
impl Runner for Helpers {
    fn expect_one(&self) {
        if let Some(next) = self.lock().helpers.last() {
            // A helper that does not hear it is only slower.
            let _ = next.socket.try_write(&NUDGE);
        }
    }

    async fn run_frame(&self, frame: Vec<u8>) -> Result<Vec<u8>> {
        let message = framed(&frame).map_err(|e| Error::internal(format!("a task is too large: {e}")))?;
        loop {
            let (mut helper, new) = self.take()?;
            match helper.exchange(&message).await {
                Ok(reply) => {
                    let mut idle = self.lock();
                    if idle.helpers.len() < MOST_IDLE && reply.len() <= LONG {
                        idle.helpers.push(helper);
                    }
                    return Ok(reply);
                }
                // It died while it waited, and never read the message: a socket that is closed cannot be written to, and one
                // that is closed with something unread is reset.
                Err(e) if !new && matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
                Err(e) => {
                    let name = String::from_utf8_lossy(frame.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
                    return Err(Error::unavailable(format!("the helper process died in {name}: {e}"), "ask again"));
                }
            }
        }
    }
}

/// A message with its length before it.
fn framed(message: &[u8]) -> std::io::Result<Vec<u8>> {
    let length = u32::try_from(message.len()).map_err(std::io::Error::other)?;
    let mut framed = Vec::with_capacity(4 + message.len());
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(message);
    Ok(framed)
}

/// The message in what was read so far, if it is there whole. One at a time: each waits for its answer.
fn complete(read: &[u8]) -> std::io::Result<Option<&[u8]>> {
    let Some(length) = read.get(..4).and_then(|l| l.try_into().ok()).map(u32::from_le_bytes) else { return Ok(None) };
    if length as usize > MAX_FRAME {
        return Err(std::io::Error::other("a message of a helper is too long"));
    }
    Ok(read.get(4..4 + length as usize))
}

/// The life of a helper: one call after the other until the daemon hangs up.
pub fn helper_main(registry: &Registry) -> std::io::Result<()> {
    // For nobody that is started here: some outlive the helper, and its death is seen by this socket's.
    let mut socket = StdUnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let mut read = Vec::new();
    let mut chunk = [0; 4096];
    let mut awake_until = Instant::now();
    loop {
        while Instant::now() < awake_until && !readable(&socket) {
            // Whoever wants the processor gets it.
            std::thread::yield_now();
        }
        match socket.read(&mut chunk)? {
            0 => return Ok(()), // the daemon is gone
            n => read.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
        while let Some(frame) = complete(&read)? {
            let length = 4 + frame.len();
            if !frame.is_empty() {
                let reply = serde_json::to_vec(&registry.call(frame)).map_err(std::io::Error::other)?;
                if socket.write_all(&framed(&reply)?).is_err() {
                    return Ok(()); // the daemon is gone
                }
            }
            read.drain(..length);
            awake_until = Instant::now() + AWAKE;
        }
    }
}

fn readable(socket: &StdUnixStream) -> bool {
    let mut one = [0];
    rustix::net::recv(socket, &mut one[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) != Err(Errno::WOULDBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Half(u32);
    impl Task for Half {
        const NAME: &'static str = "test.half";
        type Output = u32;
        fn run(self) -> Result<u32> {
            if self.0.is_multiple_of(2) { Ok(self.0 / 2) } else { Err(Error::invalid("n", "odd", "give an even one")) }
        }
    }

    #[derive(Serialize, Deserialize)]
    struct Strange;
    impl Task for Strange {
        const NAME: &'static str = "test.strange";
        type Output = ();
        fn run(self) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_task_comes_back_with_its_answer_or_its_own_error() {
        let runner = InProcess(Registry::default().with::<Half>());
        assert_eq!(run(&runner, &Half(4)).await, Ok(2));
        assert_eq!(run(&runner, &Half(3)).await.map_err(|e| e.word()), Err("invalid_argument"));
        assert_eq!(run(&runner, &Strange).await.map_err(|e| e.word()), Err("internal"));
    }

    /// Helpers that are a script; each notes that it was started.
    struct Scripts {
        folder: tempfile::TempDir,
        helpers: Helpers,
    }

    impl Scripts {
        fn new(script: &str) -> Scripts {
            let folder = tempfile::tempdir().expect("tempdir");
            let (brood, _) = Brood::begin(&folder.path().join("marks")).expect("begin");
            let (path, starts) = (folder.path().join("script"), folder.path().join("starts"));
            // Written by another process: what is open for writing, even in a fork of another test, cannot be started.
            let text = format!("#!/bin/sh\necho x >> {}\n{script}\n", starts.display());
            let write = r#"printf '%s' "$1" > "$2" && chmod 755 "$2""#;
            let written = std::process::Command::new("sh").args(["-c", write, "sh", &text]).arg(&path).status();
            assert!(written.is_ok_and(|status| status.success()), "the script is there");
            Scripts { helpers: Helpers::new(path, brood), folder }
        }

        fn starts(&self) -> usize {
            std::fs::read_to_string(self.folder.path().join("starts")).unwrap_or_default().lines().count()
        }

        async fn fails(&self) {
            let error = run(&self.helpers, &Half(4)).await.expect_err("a script is no helper");
            assert_eq!(error.word(), "platform_unavailable");
        }
    }

    #[tokio::test]
    async fn a_helper_that_dies_is_an_error_and_not_a_hang() {
        Scripts::new("exit").fails().await;
    }

    #[tokio::test]
    async fn a_call_that_a_helper_has_read_is_not_made_again_when_it_dies() {
        let scripts = Scripts::new("/bin/dd bs=4096 count=1 of=/dev/null status=none");
        scripts.helpers.prefork(1).expect("started");
        scripts.fails().await;
        assert_eq!(scripts.starts(), 1);
    }

    #[tokio::test]
    async fn a_call_that_a_dead_helper_never_read_goes_to_another() {
        let scripts = Scripts::new("/bin/dd bs=1 count=1 of=/dev/null status=none");
        scripts.helpers.prefork(1).expect("started");
        scripts.fails().await;
        assert_eq!(scripts.starts(), 2);
    }
}
