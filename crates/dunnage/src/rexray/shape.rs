//! The words of REX-Ray's JSON, and which of them are left out when they say nothing (Go's `omitempty`).

use std::collections::BTreeMap;

use dunnage_engine::VolumeView;
use dunnage_model::{Bytes, VolumeState};
use serde::{Serialize, Serializer};

use super::matching::Named;

/// Go leaves out what is nothing.
fn none<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a volume is attached, and to whom: a number in JSON, a word in listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Nobody asked.
    #[default]
    Unsaid = 0,
    /// It cannot be said.
    Unknown = 1,
    /// To this node.
    Attached = 2,
    /// To nobody.
    Available = 3,
    /// To another node. (No driver tells yet.)
    #[allow(dead_code)]
    Unavailable = 4,
}

impl State {
    /// The word that listings have.
    pub fn word(self) -> &'static str {
        match self {
            State::Attached => "attached",
            State::Available => "available",
            State::Unavailable => "unavailable",
            State::Unsaid | State::Unknown => "unknown",
        }
    }

    /// The word of a number.
    pub fn word_of(number: i64) -> &'static str {
        [State::Attached, State::Available, State::Unavailable].into_iter().find(|s| *s as i64 == number).unwrap_or_default().word()
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    #[serde(skip_serializing_if = "none")]
    pub attachments: Vec<Attachment>,
    #[serde(skip_serializing_if = "none")]
    pub attachment_state: State,
    #[serde(skip_serializing_if = "none")]
    pub availability_zone: String,
    #[serde(skip_serializing_if = "none")]
    pub encrypted: bool,
    #[serde(skip_serializing_if = "none")]
    pub iops: u64,
    pub name: String,
    #[serde(skip_serializing_if = "none")]
    pub network_name: String,
    /// In GiB.
    #[serde(skip_serializing_if = "none")]
    pub size: u64,
    #[serde(skip_serializing_if = "none")]
    pub status: String,
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "none")]
    pub fields: BTreeMap<&'static str, String>,
    /// Only in answers that are about paths, and then always.
    #[serde(rename = "Path", skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A volume on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub device_name: String,
    #[serde(skip_serializing_if = "none")]
    pub mount_point: String,
    #[serde(rename = "instanceID")]
    pub instance: InstanceId,
    pub status: String,
    #[serde(rename = "volumeID")]
    pub volume: String,
}

/// What a driver calls a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct InstanceId {
    pub id: String,
    pub driver: String,
    pub service: String,
}

impl Named for Volume {
    fn name(&self) -> &str {
        &self.name
    }
    fn driver(&self) -> &str {
        &self.kind
    }
}

impl Volume {
    /// A volume as the daemon tells of it; `node` is the daemon's. The ID is the name, the type the driver's name.
    pub fn of(view: &VolumeView, node: &str) -> Volume {
        let info = &view.info;
        let (name, driver) = (info.id.name.to_string(), info.id.driver.to_string());
        let attached = view.device.is_some() || view.mountpoint.is_some();
        let attachment_state = match info.state {
            _ if attached => State::Attached,
            VolumeState::Ready => State::Available,
            _ => State::Unknown,
        };
        let attachment = || Attachment {
            device_name: view.device.map(|device| device.node().display().to_string()).unwrap_or_default(),
            mount_point: view.mountpoint.clone().unwrap_or_default(),
            instance: InstanceId { id: node.to_owned(), driver: driver.clone(), service: info.endpoint.to_string() },
            status: State::Attached.word().to_owned(),
            volume: name.clone(),
        };
        Volume {
            attachments: attached.then(attachment).into_iter().collect(),
            attachment_state,
            name: name.clone(),
            size: gibibytes(info.spec.size),
            status: view.state(),
            id: name.clone(),
            kind: driver.clone(),
            fields: [("driver", driver.clone()), ("fs", info.spec.fs.to_string()), ("state", info.state.to_string())].into(),
            ..Volume::default()
        }
    }

    /// Where it is mounted on this node.
    pub fn mount_point(&self) -> &str {
        self.attachments.first().map_or("", |attachment| &attachment.mount_point)
    }

    /// The same, attached to nobody.
    pub fn let_go(mut self) -> Volume {
        self.attachments.clear();
        self.attachment_state = State::Available;
        self
    }

    /// The same, with its path.
    pub fn at(mut self, path: impl Into<String>) -> Volume {
        self.path = Some(path.into());
        self
    }
}

/// Whole GiB, as many as it needs.
pub fn gibibytes(size: Bytes) -> u64 {
    size.0.div_ceil(Bytes::GIB)
}

/// A service: one of our drivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    pub name: String,
    pub driver: DriverInfo,
}

/// What a service is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DriverInfo {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub next_device: NextDevice,
}

/// How a device is to be called: the kernel's concern alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NextDevice {
    pub ignore: bool,
    pub prefix: &'static str,
    pub pattern: &'static str,
}

/// A node, as a service knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    #[serde(rename = "instanceID")]
    pub id: InstanceId,
    #[serde(skip_serializing_if = "none")]
    pub name: String,
    pub provider_name: String,
}

/// One line of the kernel's table of mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MountInfo {
    #[serde(skip_serializing_if = "none")]
    pub id: u64,
    #[serde(skip_serializing_if = "none")]
    pub parent: u64,
    #[serde(skip_serializing_if = "none")]
    pub major: u32,
    #[serde(skip_serializing_if = "none")]
    pub minor: u32,
    #[serde(skip_serializing_if = "none")]
    pub root: String,
    #[serde(skip_serializing_if = "none")]
    pub mount_point: String,
    #[serde(skip_serializing_if = "none")]
    pub opts: String,
    #[serde(skip_serializing_if = "none")]
    pub optional: String,
    #[serde(skip_serializing_if = "none")]
    pub fs_type: String,
    #[serde(skip_serializing_if = "none")]
    pub source: String,
    #[serde(skip_serializing_if = "none")]
    pub vfs_opts: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rexray::tests::view;

    fn json(volume: &Volume) -> serde_json::Value {
        serde_json::to_value(volume).expect("json")
    }

    #[test]
    fn a_volume_that_nobody_uses_has_these_fields_and_no_others() {
        let expected = serde_json::json!({
            "attachmentState": 3,
            "name": "pg",
            "size": 2,
            "status": "ready",
            "id": "pg",
            "type": "local",
            "fields": { "driver": "local", "fs": "ext4", "state": "ready" },
        });
        assert_eq!(json(&Volume::of(&view("pg", Bytes(Bytes::GIB + 1), None), "n1")), expected);
    }

    #[test]
    fn a_mounted_volume_says_where_and_on_which_device_of_which_node() {
        // Device 0:0 has no node: it is named by its number.
        let expected = serde_json::json!({
            "attachments": [{
                "deviceName": "/dev/block/0:0",
                "mountPoint": "/v/pg",
                "instanceID": { "id": "n1", "driver": "local", "service": "dunnage" },
                "status": "attached",
                "volumeID": "pg",
            }],
            "attachmentState": 2,
            "name": "pg",
            "size": 16,
            "status": "mounted, to be let go",
            "id": "pg",
            "type": "local",
            "fields": { "driver": "local", "fs": "ext4", "state": "ready" },
            "Path": "/v/pg",
        });
        assert_eq!(json(&Volume::of(&view("pg", Bytes::gib(16), Some("/v/pg")), "n1").at("/v/pg")), expected);
    }

    #[test]
    fn the_fields_come_in_the_order_that_they_had() {
        let volume = Volume { iops: 5, encrypted: true, availability_zone: "a".into(), network_name: "n".into(), ..Volume::default() };
        let text = serde_json::to_string(&volume).expect("json");
        assert_eq!(text, r#"{"availabilityZone":"a","encrypted":true,"iops":5,"name":"","networkName":"n","id":"","type":""}"#);
    }

    #[test]
    fn the_words_of_the_states_are_those_of_listings() {
        let words: Vec<_> = (0..6).map(State::word_of).collect();
        assert_eq!(words, ["unknown", "unknown", "attached", "available", "unavailable", "unknown"]);
    }
}
