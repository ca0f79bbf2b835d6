//! The other end of the admin socket: what the command line calls.

use std::path::Path;
use std::time::Duration;

use dunnage_frontend_unix::Client;
use dunnage_model::{Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{PATIENCE, SOCKET};

/// A client of one daemon.
pub struct AdminClient {
    client: Client,
    patience: Duration,
}

impl AdminClient {
    /// The daemon that has this run directory; each call waits for `patience`.
    pub fn new(run_dir: &Path, patience: Duration) -> Self {
        AdminClient { client: Client::new(run_dir.join(SOCKET)), patience }
    }

    /// Asks, and gives the answer or the daemon's own error.
    pub async fn ask<T: DeserializeOwned>(&self, method: &str, uri: &str, body: &impl Serialize) -> Result<T> {
        let seconds = self.patience.as_secs_f64().to_string();
        let headers = [(PATIENCE, seconds.as_str())];
        let asking = self.client.send(method, uri, &headers, body);
        // The daemon answers in time by itself; one that does not is stuck or stopped.
        let answer = tokio::time::timeout(self.patience + Duration::from_secs(5), asking)
            .await
            .map_err(|_| Error::timeout(format!("{method} {uri}"), "the daemon does not answer"))?
            .map_err(|e| self.explain(e))?;
        let unreadable = |e: serde_json::Error| {
            Error::internal(format!("cannot read the daemon's answer: {e} (is it of another version than this command?)"))
        };
        if (200..300).contains(&answer.status) {
            serde_json::from_slice(&answer.body).map_err(unreadable)
        } else {
            Err(serde_json::from_slice::<Error>(&answer.body).map_err(unreadable)?)
        }
    }

    fn explain(&self, e: Error) -> Error {
        if e.detail.contains("Permission denied") {
            let detail = format!("the daemon's socket {} is not yours to use", self.client.path().display());
            return Error::new(Kind::Permission, detail, "use sudo, or have your group set as admin.group in the configuration");
        }
        Error::unavailable(format!("the daemon does not answer ({})", e.detail), "start it with 'dunnage start'")
    }
}
