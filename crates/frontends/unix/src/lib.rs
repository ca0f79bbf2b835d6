//! HTTP over unix sockets, as all frontends need it: taking a socket's place without pushing anybody off it, knowing
//! whether an answer was read, reading bodies with a bound, and a client (over any stream).

mod client;
mod listen;

pub use client::{Answer, Client, exchange};
pub use listen::{Connection, Listening, SocketMode, bind, free, serve};

use axum::body::{Body, Bytes};
use axum::extract::FromRequest;
use axum::http::Request;
use dunnage_model::{Error, Result};
use serde::de::DeserializeOwned;

/// The largest body that is read: a request of ours is a few hundred bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Reads a request's JSON, whatever its content type says (Docker's clients send their own); an empty body and `null`
/// are an empty object.
pub async fn read_json<T: DeserializeOwned>(request: Request<Body>) -> Result<T> {
    let bad = |detail: String| Error::invalid("body", detail, "send a JSON object as the plugin API has it");
    let too_long = || bad(format!("the body is longer than {MAX_BODY} bytes"));
    // Said before it is read, where the caller says it.
    let announced = request.headers().get("content-length").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Err(too_long());
    }
    let (parts, body) = request.into_parts();
    let limited = Request::from_parts(parts, Body::new(http_body_util::Limited::new(body, MAX_BODY)));
    let bytes = Bytes::from_request(limited, &())
        .await
        .map_err(|e| if e.status().as_u16() == 413 { too_long() } else { bad(format!("the body cannot be read: {e}")) })?;
    let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) || bytes.trim_ascii() == b"null" { b"{}" } else { &bytes };
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(bad("the body is no JSON object".to_owned()));
    }
    serde_json::from_slice(text).map_err(|e| bad(format!("the body is not what this call takes: {e}")))
}

/// The status that goes with an error.
pub fn status(error: &Error) -> u16 {
    match error.word() {
        "invalid_argument" => 400,
        "permission" => 403,
        "not_found" => 404,
        "exists_incompatible" | "in_use" | "not_blank" | "wrong_topology" => 409,
        "throttled" => 429,
        "limit_reached" => 507,
        "platform_unavailable" => 503,
        "timeout" => 504,
        _ => 500,
    }
}
