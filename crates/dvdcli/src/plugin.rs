//! One plugin, and its calls.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use dunnage_frontend_unix::{Answer, exchange};
use dunnage_model::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::find::{Address, Found, Scope};

/// How long a socket that is there and refuses is tried again: its daemon may be starting anew.
const RESTART: Duration = Duration::from_secs(2);

/// A plugin that was found.
pub struct Plugin {
    address: Address,
    scope: Option<Scope>,
    patience: Option<Duration>,
}

/// What is said to who called, on one line.
#[derive(Debug, PartialEq, Eq)]
pub struct Complaint(String);

impl From<Error> for Complaint {
    fn from(error: Error) -> Self {
        Complaint(error.to_string())
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a call came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// Nobody answered, or nothing that can be understood.
    Lost(Error),
    /// The plugin said no, in its own words.
    Refused(String),
}

impl Failure {
    /// As it is told.
    pub fn told(self, call: &str) -> Complaint {
        match self {
            Failure::Lost(error) => error.into(),
            // Dunnage's own errors say all there is to say.
            Failure::Refused(said) if word(&said).is_some() => Complaint(said),
            Failure::Refused(said) => Complaint(format!("{call}: the plugin says: {said}")),
        }
    }

    /// It says that there is no such volume. A plugin that does not use Dunnage's words is read as people read it.
    pub fn says_absent(&self) -> bool {
        let Failure::Refused(said) = self else { return false };
        match word(said) {
            Some(word) => word == "not_found",
            None => {
                let said = said.to_lowercase();
                ["not found", "no such", "not exist", "n't exist", "unknown volume"].iter().any(|phrase| said.contains(phrase))
            }
        }
    }

    /// It may be that there is no such volume: the plugin answered, and not in Dunnage's words.
    pub fn may_be_absent(&self) -> bool {
        self.says_absent() || matches!(self, Failure::Refused(said) if word(said).is_none())
    }

    /// No volume can have that name.
    pub fn says_impossible(&self) -> bool {
        matches!(self, Failure::Refused(said) if word(said) == Some("invalid_argument"))
    }
}

/// The word that an error of Dunnage begins with.
fn word(said: &str) -> Option<&str> {
    let word = said.split([':', '{']).next()?;
    Kind::WORDS.contains(&word).then_some(word)
}

/// A volume as a plugin tells of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Volume {
    pub name: String,
    pub status: Option<Value>,
}

/// Every answer of the plugin API.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Said {
    pub err: Option<String>,
    pub implements: Vec<String>,
    pub mountpoint: Option<String>,
    pub volume: Option<Volume>,
    pub volumes: Option<Vec<Volume>>,
    /// What Dunnage says besides, of a Create.
    pub warnings: Vec<String>,
}

impl Plugin {
    /// One that was found. Nothing is asked of it yet.
    pub fn new(Found { address, scope }: Found) -> Self {
        Plugin { address, scope, patience: None }
    }

    /// What only reads is waited for no longer than this.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Plugin { patience: Some(patience), ..self }
    }

    /// The path on this host of one that it told; an empty one is none.
    pub fn on_host(&self, path: Option<String>) -> Option<String> {
        let path = path.filter(|path| !path.is_empty())?;
        Some(self.scope.as_ref().map_or_else(|| path.clone(), |scope| scope.on_host(&path)))
    }

    /// One call: `Mount`, with its body.
    pub async fn call(&self, call: &str, body: Value) -> Result<Said, Failure> {
        self.ask(&format!("/VolumeDriver.{call}"), body).await
    }

    /// A call that changes nothing.
    pub async fn read(&self, call: &str, body: Value) -> Result<Said, Failure> {
        self.soon(self.call(call, body)).await
    }

    async fn soon<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let Some(patience) = self.patience else { return work.await };
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            let detail = format!("{} does not answer within {} s", self.address, patience.as_secs());
            Err(Failure::Lost(Error::unavailable(detail, "look whether the daemon runs ('dunnage status')")))
        })
    }

    /// That it is a volume plugin at all.
    pub async fn activate(&self) -> Result<(), Failure> {
        let said = self.soon(self.ask("/Plugin.Activate", json!({}))).await?;
        if said.implements.iter().any(|what| what == "VolumeDriver") {
            return Ok(());
        }
        let detail = format!("{} is a plugin of another kind ({})", self.address, said.implements.join(", "));
        Err(Failure::Lost(Error::invalid("volumedriver", detail, "name a volume plugin")))
    }

    async fn ask(&self, uri: &str, body: Value) -> Result<Said, Failure> {
        let Answer { status, body } = self.exchange(uri, &body).await.map_err(Failure::Lost)?;
        let text = String::from_utf8_lossy(&body);
        let said: Option<Said> = if text.trim().is_empty() { Some(Said::default()) } else { serde_json::from_str(&text).ok() };
        match said {
            Some(said) => match said.err.clone().filter(|err| !err.is_empty()) {
                Some(err) => Err(Failure::Refused(err)),
                None if status == 200 => Ok(said),
                None => Err(Failure::Refused(format!("{text} (status {status})"))),
            },
            None if status == 200 => {
                let detail = format!("{} answered {uri} with something that is no answer: {text:.200}", self.address);
                Err(Failure::Lost(Error::unavailable(detail, "look whether a volume plugin listens there")))
            }
            None => Err(Failure::Refused(text.trim().to_owned())),
        }
    }

    async fn exchange(&self, uri: &str, body: &Value) -> Result<Answer> {
        let shown = self.address.to_string();
        let headers = [("accept", "application/vnd.docker.plugins.v1.2+json")];
        let lost =
            |e: std::io::Error| Error::unavailable(format!("nothing answers on {shown}: {e}"), "look whether it runs, and ask again");
        match &self.address {
            Address::Unix(path) => exchange(connect(path).await.map_err(lost)?, &shown, "plugin", "POST", uri, &headers, body).await,
            #[cfg(not(feature = "network"))]
            Address::Tcp(_) | Address::Tls(..) => Err(crate::other::hand_over(&shown)),
            #[cfg(feature = "network")]
            Address::Tcp(host) => {
                let stream = tokio::net::TcpStream::connect(host).await.map_err(lost)?;
                exchange(stream, &shown, host, "POST", uri, &headers, body).await
            }
            #[cfg(feature = "network")]
            Address::Tls(host, files) => exchange(crate::tls::connect(host, files).await?, &shown, host, "POST", uri, &headers, body).await,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Tcp(host) => write!(f, "tcp://{host}"),
            Address::Tls(host, _) => write!(f, "https://{host}"),
        }
    }
}

async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let began = Instant::now();
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused && began.elapsed() < RESTART => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_that_there_is_no_such_volume_is_understood_and_nobody_else() {
        let refused = |said: &str| Failure::Refused(said.to_owned());
        for said in
            ["not_found: volume \"a\": …", "resource not found", "no such volume", "volume x does not exist", "Volume doesn't exist"]
        {
            assert!(refused(said).says_absent(), "{said}");
        }
        for said in ["platform_unavailable: not found", "in_use{n1}: …", "timeout{stage/attach}: …", "boom"] {
            assert!(!refused(said).says_absent(), "{said}");
        }
        assert!(refused("boom").may_be_absent());
        assert!(!refused("platform_unavailable: …").may_be_absent());
        assert!(refused("invalid_argument{name}: …").says_impossible());
    }
}
