//! What this face asks of the daemon: one call at a time, by its admin socket. A test gives answers of its own.

use std::time::Duration;

use dunnage_model::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client;
use crate::config::Places;

/// How long a question may take.
const USUAL: Duration = Duration::from_secs(30);
/// How long work may take, until this command gives up; the work goes on.
const WORK: Duration = Duration::from_secs(110);

/// A daemon.
pub trait Daemon {
    /// One call.
    fn call(&self, patience: Duration, method: &str, uri: &str, body: &Value) -> Result<Value>;
}

/// The daemon of these places.
pub struct Live {
    pub places: Places,
}

impl Daemon for Live {
    fn call(&self, patience: Duration, method: &str, uri: &str, body: &Value) -> Result<Value> {
        client::ask(&self.places, patience, method, uri, body)
    }
}

/// Asks what the daemon knows.
pub fn get<T: DeserializeOwned>(daemon: &dyn Daemon, uri: &str) -> Result<T> {
    read(daemon.call(USUAL, "GET", uri, &Value::Null)?)
}

/// Has the daemon do something.
pub fn order<T: DeserializeOwned>(daemon: &dyn Daemon, method: &str, uri: &str, body: &impl Serialize) -> Result<T> {
    let body = serde_json::to_value(body).map_err(|e| Error::internal(format!("cannot write a call: {e}")))?;
    read(daemon.call(WORK, method, uri, &body)?)
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer)
        .map_err(|e| Error::internal(format!("cannot read the daemon's answer: {e} (is it of another version than this command?)")))
}
