//! The plugin API's words, as moby's `volume/drivers` and Podman send and read them.

use std::collections::BTreeMap;
use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dunnage_model::{Error, Mode, MountOptions, Preempt, RootPath};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;

#[derive(Debug, Deserialize)]
pub struct CreateBody {
    #[serde(rename = "Name", default)]
    pub name: String,
    #[serde(rename = "Opts", default)]
    pub opts: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Debug, Deserialize)]
pub struct NameBody {
    #[serde(rename = "Name", default)]
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub struct MountBody {
    #[serde(rename = "Name", default)]
    pub name: String,
    #[serde(rename = "ID", default)]
    pub id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeAnswer<'a> {
    pub name: &'a str,
    pub mountpoint: &'a str,
    pub created_at: String,
    pub status: Status<'a>,
}

/// What people read in `docker volume inspect`.
#[derive(Serialize)]
pub struct Status<'a> {
    pub driver: &'a str,
    pub size: String,
    pub fs: &'a str,
    pub state: String,
    pub node: &'a str,
    pub holders: Vec<String>,
    pub age: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: &'a BTreeMap<String, String>,
    // What it was asked to be, by the words of the options: dvdcli tells by them what differs.
    pub ro: bool,
    pub shared: bool,
    pub thick: bool,
    pub repl: LeftOpen<u32>,
    pub uid: LeftOpen<u32>,
    pub gid: LeftOpen<u32>,
    pub mode: LeftOpen<Mode>,
    pub preempt: LeftOpen<Preempt>,
    #[serde(rename = "rootPath")]
    pub root_path: LeftOpen<&'a RootPath>,
    #[serde(rename = "mountOptions")]
    pub mount_options: LeftOpen<&'a MountOptions>,
    /// What was asked for and is not followed.
    #[serde(rename = "unheeded hints", skip_serializing_if = "BTreeMap::is_empty")]
    pub hints: &'a BTreeMap<String, String>,
}

/// A value, or `-` where none was asked for.
pub struct LeftOpen<T>(pub Option<T>);

impl<T: Display> Serialize for LeftOpen<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str("-"),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumesAnswer<T: Serialize> {
    pub volumes: T,
    pub err: &'static str,
}

/// What comes one after the other, written as it comes: ten thousand volumes are never all in memory as answers.
pub struct Each<F>(pub F);

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for Each<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// An answer that is JSON already.
pub fn written(answer: &impl Serialize) -> dunnage_model::Result<Answer> {
    serde_json::to_vec(answer).map(Answer::Written).map_err(|e| Error::internal(format!("cannot write an answer: {e}")))
}

/// Every answer that there is. An empty `Err` goes with each success: some clients look for it.
pub enum Answer {
    Activate,
    Scope(&'static str),
    Done,
    /// Created; and what was not heeded, for clients that pass it on (dockerd does not).
    Created(Vec<String>),
    Mountpoint(String),
    Written(Vec<u8>),
    Failed(Error),
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut status = StatusCode::OK;
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json"))];
        let body = match self {
            Answer::Activate => json!({ "Implements": ["VolumeDriver"] }),
            Answer::Scope(scope) => json!({ "Capabilities": { "Scope": scope } }),
            Answer::Done => json!({ "Err": "" }),
            Answer::Created(warnings) if warnings.is_empty() => json!({ "Err": "" }),
            Answer::Created(warnings) => json!({ "Err": "", "Warnings": warnings }),
            Answer::Mountpoint(path) => json!({ "Mountpoint": path, "Err": "" }),
            Answer::Written(json) => return (status, kind, json).into_response(),
            Answer::Failed(error) => {
                tracing::info!("answered: {error}");
                status = StatusCode::from_u16(dunnage_frontend_unix::status(&error)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                json!({ "Err": error.to_string() })
            }
        };
        (status, kind, body.to_string()).into_response()
    }
}
