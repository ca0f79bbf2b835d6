//! A client: one request, one connection.

use std::path::{Path, PathBuf};

use axum::body::Body;
use dunnage_model::{Error, Result};
use http_body_util::BodyExt;
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// An answer, whole.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Something that answers on a unix socket.
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of whoever listens at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Client { path: path.into() }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: &impl Serialize) -> Result<Answer> {
        let shown = self.path.display().to_string();
        let stream = UnixStream::connect(&self.path).await.map_err(|e| lost("nothing answers on", &shown, &e))?;
        exchange(stream, &shown, "dunnage", method, uri, headers, body).await
    }
}

fn lost(what: &str, shown: &str, e: &dyn std::fmt::Display) -> Error {
    Error::unavailable(format!("{what} {shown}: {e}"), "look whether it runs, and ask again")
}

/// One request and its whole answer over a stream that is connected to `shown`.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shown: &str,
    host: &str,
    method: &str,
    uri: &str,
    headers: &[(&str, &str)],
    body: &impl Serialize,
) -> Result<Answer> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost("cannot talk to", shown, &e))?;
    let connection = tokio::spawn(connection);
    let json = serde_json::to_vec(body).map_err(|e| Error::internal(format!("cannot write a request: {e}")))?;
    let mut request = Request::builder().method(method).uri(uri).header("host", host).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(json)).map_err(|e| Error::internal(format!("cannot write a request: {e}")))?;
    let response = sender.send_request(request).await.map_err(|e| lost("no answer from", shown, &e))?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(|e| lost("the answer broke off from", shown, &e))?.to_bytes().to_vec();
    connection.abort();
    Ok(Answer { status, body })
}
