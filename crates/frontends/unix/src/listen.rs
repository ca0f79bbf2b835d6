//! Listening, and knowing what became of an answer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use dunnage_model::{Error, HERE, Kind, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketMode {
    /// Root.
    Owner,
    /// Root, and this group.
    Group(u32),
}

/// A socket that we have the place of.
pub struct Listening {
    listener: StdListener,
    path: Option<PathBuf>,
}

impl Listening {
    /// One that was handed to us already listening, by systemd.
    pub fn inherited(listener: StdListener) -> Self {
        Listening { listener, path: None }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Takes a socket's place. One that answers is somebody's, and is never unlinked; one that nobody listens on any more is
/// replaced. The folder is made if need be.
pub fn bind(path: &Path, mode: SocketMode) -> Result<Listening> {
    let failed = |what: &str, e: &io::Error| Error::os(format_args!("cannot {what} the socket {}", path.display()), e);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| failed("make the folder of", &e))?;
    }
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_socket()) {
        let detail = format!("{} is there and is no socket", path.display());
        return Err(Error::new(Kind::ExistsIncompatible, detail, "move it away"));
    }
    free(path)?;
    // Made beside it and moved into place: there is no moment without a socket, and none with the wrong mode.
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let listener = StdListener::bind(&fresh).map_err(|e| failed("listen on", &e))?;
    let place = || -> io::Result<()> {
        let bits = match mode {
            SocketMode::Owner => 0o600,
            SocketMode::Group(group) => {
                std::os::unix::fs::chown(&fresh, None, Some(group))?;
                0o660
            }
        };
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(bits))?;
        std::fs::rename(&fresh, path)
    };
    place().map_err(|e| failed("place", &e))?;
    Ok(Listening { listener, path: Some(path.to_owned()) })
}

/// Refuses a socket on which somebody answers.
pub fn free(path: &Path) -> Result<()> {
    if StdStream::connect(path).is_err() {
        return Ok(());
    }
    let who = vec![path.display().to_string()];
    Err(Error::in_use(who, HERE, "something answers on this socket", "stop it, or give this endpoint another name"))
}

/// Serves until `stop` becomes true; requests that are under way are then finished.
pub async fn serve(listening: Listening, router: Router, mut stop: watch::Receiver<bool>) -> Result<()> {
    let failed = |e: &io::Error| Error::os("cannot serve a socket", e);
    listening.listener.set_nonblocking(true).map_err(|e| failed(&e))?;
    let listener = listening.listener.try_clone().map_err(|e| failed(&e))?;
    let tracked = Tracking(UnixListener::from_std(listener).map_err(|e| failed(&e))?);
    let stopped = async move {
        // The sender gone is a stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let service = router.into_make_service_with_connect_info::<Connection>();
    axum::serve(tracked, service).with_graceful_shutdown(stopped).await.map_err(|e| failed(&e))
}

struct Tracking(UnixListener);

impl Listener for Tracking {
    type Io = Tracked;
    type Addr = ();

    async fn accept(&mut self) -> (Tracked, ()) {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => match Tracked::new(stream) {
                    Ok(tracked) => return (tracked, ()),
                    Err(e) => tracing::warn!("a connection could not be taken: {e}"),
                },
                Err(e) => {
                    // Out of descriptors, most likely: those that are busy give theirs back.
                    tracing::warn!("a connection could not be accepted: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Seen {
    written: AtomicU64,
    closed: AtomicBool,
    reset: AtomicBool,
}

/// A stream that notes what became of what was written to it.
pub struct Tracked {
    stream: UnixStream,
    connection: Connection,
}

impl Tracked {
    fn new(stream: UnixStream) -> io::Result<Self> {
        // A descriptor of its own, so that the question can be asked after the stream has gone.
        let socket = rustix::io::fcntl_dupfd_cloexec(stream.as_fd(), 0)?;
        let connection = Connection { socket: Arc::new(socket), seen: Arc::default() };
        Ok(Tracked { stream, connection })
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(n)) => {
                self.connection.seen.written.fetch_add(*n as u64, Ordering::Release);
            }
            Poll::Ready(Err(_)) => self.connection.seen.reset.store(true, Ordering::Release),
            Poll::Pending => {}
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.connection.seen.closed.store(true, Ordering::Release);
    }
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(_)) = result {
            self.connection.seen.reset.store(true, Ordering::Release);
        }
        result
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request's connection, as handlers get it (`ConnectInfo<Connection>`).
#[derive(Clone)]
pub struct Connection {
    socket: Arc<OwnedFd>,
    seen: Arc<Seen>,
}

impl Connected<IncomingStream<'_, Tracking>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Tracking>) -> Self {
        stream.io().connection.clone()
    }
}

impl Connection {
    /// As whom the caller runs, as the kernel noted when it connected.
    pub fn caller_uid(&self) -> Result<u32> {
        let peer = rustix::net::sockopt::socket_peercred(&*self.socket).map_err(|e| Error::os("cannot see who calls", &e.into()))?;
        Ok(peer.uid.as_raw())
    }

    /// Does something when the answer that is about to be given has been read by its caller; drops it undone if the
    /// caller goes without reading it.
    pub fn when_read(&self, confirm: impl FnOnce() + Send + 'static) {
        let delivery = self.delivery();
        tokio::spawn(async move {
            if delivery.await {
                confirm();
            }
        });
    }

    /// Call before a small answer is given to the server; the future says whether the peer has read it.
    ///
    /// Delivered means: written, nothing of it unread (SIOCOUTQ), and no reset. A peer that closes with bytes unread
    /// gives a reset before the bytes are thrown away, so the order of the two questions matters.
    fn delivery(&self) -> impl Future<Output = bool> + Send + 'static {
        let before = self.seen.written.load(Ordering::Acquire);
        let connection = self.clone();
        async move {
            let mut pause = Duration::from_micros(50);
            loop {
                let written = connection.seen.written.load(Ordering::Acquire) > before;
                let closed = connection.seen.closed.load(Ordering::Acquire);
                if written && dunnage_host::linux::unread_by_peer(&connection.socket).is_ok_and(|unread| unread == 0) {
                    let reset = connection.seen.reset.load(Ordering::Acquire)
                        || !matches!(rustix::net::sockopt::socket_error(&connection.socket), Ok(Ok(())));
                    return !reset;
                }
                if closed && (!written || connection.seen.reset.load(Ordering::Acquire)) {
                    return false;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::ConnectInfo;
    use axum::routing::get;
    use std::io::{Read, Write};
    use tokio::sync::mpsc;

    fn served() -> (tempfile::TempDir, PathBuf, mpsc::UnboundedReceiver<bool>, watch::Sender<bool>) {
        let folder = tempfile::tempdir().expect("dir");
        let path = folder.path().join("deep/er/t.sock");
        let (tell, told) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let handler = move |ConnectInfo(connection): ConnectInfo<Connection>| async move {
            let delivery = connection.delivery();
            tokio::spawn(async move { tell.send(delivery.await) });
            "answer"
        };
        let listening = bind(&path, SocketMode::Owner).expect("bind");
        tokio::spawn(serve(listening, Router::new().route("/", get(handler)), stopped));
        (folder, path, told, stop)
    }

    fn ask(path: &Path) -> StdStream {
        let mut stream = StdStream::connect(path).expect("connect");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("ask");
        stream
    }

    #[tokio::test]
    async fn an_answer_that_was_read_is_delivered() {
        let (_folder, path, mut told, _stop) = served();
        let stream = tokio::task::spawn_blocking(move || {
            let mut stream = ask(&path);
            let mut some = [0; 4096];
            assert!(stream.read(&mut some).expect("read") > 0);
            stream
        });
        let _open = stream.await.expect("peer");
        assert_eq!(told.recv().await, Some(true));
    }

    #[tokio::test]
    async fn an_answer_that_its_caller_never_reads_is_not_delivered() {
        let (_folder, path, mut told, _stop) = served();
        let stream = tokio::task::spawn_blocking(move || {
            let stream = ask(&path);
            // It waits until the answer is there, and goes without reading it.
            let mut ready = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut ready, None).expect("poll");
        });
        stream.await.expect("peer");
        assert_eq!(told.recv().await, Some(false));
    }

    #[tokio::test]
    async fn a_socket_that_answers_is_not_taken_and_a_stale_one_is() {
        let (_folder, path, _told, stop) = served();
        let error = bind(&path, SocketMode::Owner).err().expect("taken");
        assert_eq!(error.word(), "in_use");
        assert!(path.exists());
        drop(stop);
        let stale = path.with_file_name("stale.sock");
        drop(StdListener::bind(&stale).expect("bind"));
        assert!(stale.exists(), "a dead daemon leaves its socket");
        let _ours = bind(&stale, SocketMode::Owner).expect("replaced");
    }
}
