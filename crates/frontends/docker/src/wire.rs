//! The plugin API's words, as moby's `volume/drivers` and Podman send and read them.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dunnage_model::Error;
use serde::{Deserialize, Serialize};
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

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeAnswer {
    pub name: String,
    pub mountpoint: String,
    pub created_at: String,
    pub status: BTreeMap<String, serde_json::Value>,
}

/// Every answer that there is. An empty `Err` goes with each success: some clients look for it.
pub enum Answer {
    Activate,
    Scope(&'static str),
    Done,
    /// Created; and what was not heeded, for clients that pass it on (dockerd does not).
    Created(Vec<String>),
    Mountpoint(String),
    Volume(Box<VolumeAnswer>),
    Volumes(Vec<VolumeAnswer>),
    Failed(Error),
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut status = StatusCode::OK;
        let body = match self {
            Answer::Activate => json!({ "Implements": ["VolumeDriver"] }),
            Answer::Scope(scope) => json!({ "Capabilities": { "Scope": scope } }),
            Answer::Done => json!({ "Err": "" }),
            Answer::Created(warnings) if warnings.is_empty() => json!({ "Err": "" }),
            Answer::Created(warnings) => json!({ "Err": "", "Warnings": warnings }),
            Answer::Mountpoint(path) => json!({ "Mountpoint": path, "Err": "" }),
            Answer::Volume(volume) => json!({ "Volume": volume, "Err": "" }),
            Answer::Volumes(volumes) => json!({ "Volumes": volumes, "Err": "" }),
            Answer::Failed(error) => {
                tracing::info!("answered: {error}");
                status = StatusCode::from_u16(dunnage_frontend_unix::status(&error)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                json!({ "Err": error.to_string() })
            }
        };
        let kind = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");
        (status, [(header::CONTENT_TYPE, kind)], body.to_string()).into_response()
    }
}
