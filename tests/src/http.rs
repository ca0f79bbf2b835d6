//! HTTP over a unix socket, byte by byte, so that tests can say what no library would.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// An answer.
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
}

/// Sends bytes as they are and reads to the end.
pub fn raw(socket: &Path, request: &[u8]) -> Answer {
    try_raw(socket, request).unwrap_or_else(|e| panic!("{}: {e}", socket.display()))
}

/// The same, of a server that may not be there.
fn try_raw(socket: &Path, request: &[u8]) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    // A server that refuses a long body answers before it has read all of it.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    Ok(parse(&bytes))
}

/// A POST with a body, as dockerd sends it.
pub fn post(socket: &Path, path: &str, body: &[u8]) -> Answer {
    try_post(socket, path, body).unwrap_or_else(|e| panic!("{}: {e}", socket.display()))
}

/// The same, of a server that may not be there.
pub fn try_post(socket: &Path, path: &str, body: &[u8]) -> std::io::Result<Answer> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    try_raw(socket, &request)
}

fn parse(bytes: &[u8]) -> Answer {
    let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(bytes.len());
    let headers = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let status = headers.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Answer { status, headers, body: bytes.get(split + 4..).unwrap_or_default().to_vec() }
}
