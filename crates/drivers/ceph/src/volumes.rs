//! What stands in the pool of a volume: an object of its name, with what it is, where its image is, and who owns it. One object,
//! so that one comparison guards all of it; and a set with all names, for lists.

use std::collections::BTreeMap;

use dunnage_driver::{NewVolume, Phase, VolumeRecord};
use dunnage_host::helpers::Task;
use dunnage_model::{Error, OwnerRecord, OwnerState, Result, VolumeName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::tasks::Place;

/// The object with the names of all volumes. A name is added after its record was made and taken out before that goes, so that who
/// makes a volume anew cannot lose its name to who removes the old one.
pub const NAMES: &str = "dunnage.volumes";

/// What the names of images begin with that are being made.
pub const UNFINISHED: &str = "dunnage.new.";

/// The object of a volume. Who makes it has the name: in all pools of a driver, for they keep their records in one.
pub fn oid(name: &VolumeName) -> String {
    format!("dunnage.volume.{name}")
}

/// The object's contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// What the volume is.
    pub volume: VolumeRecord,
    /// Where its image is.
    pub pool: String,
    /// Its image's id, once there is one. Another image of the same name is somebody else's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What its image is called, if that is not the volume's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called: Option<String>,
    /// It is being adopted: its image is somebody else's yet, and stays when this record goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopting: bool,
    /// Who owns it.
    pub owner: OwnerRecord,
    /// What a newer version wrote and we do not know: kept.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Stored {
    /// What is written first: whose it is.
    pub fn new(new: NewVolume, pool: String) -> Stored {
        let mut owner = OwnerRecord::new();
        if let Some(maker) = new.maker.clone() {
            owner.epoch = 1;
            owner.state = OwnerState::Held { owner: maker, clients: None, taken: false };
        }
        let volume = VolumeRecord::new(new);
        Stored { volume, pool, image: None, called: None, adopting: false, owner, unknown: Map::new() }
    }

    /// Reads it. `what` names it in errors.
    pub fn parse(text: &[u8], what: &str) -> Result<Stored> {
        let damaged = |e: serde_json::Error| {
            Error::unavailable(format!("{what} is damaged: {e}"), "nothing was changed; look at it with 'rados get'")
        };
        let all: Map<String, Value> = serde_json::from_slice(text).map_err(damaged)?;
        // Each part has a version of its own.
        let part = |key: &str| all.get(key).unwrap_or(&Value::Null).to_string();
        VolumeRecord::parse(part("volume").as_bytes(), what)?;
        OwnerRecord::read(part("owner").as_bytes(), what)?;
        serde_json::from_value(Value::Object(all)).map_err(damaged)
    }

    /// The name of its image while it is being made: nobody else's has it.
    pub fn unfinished(&self) -> String {
        format!("{UNFINISHED}{}", self.volume.id)
    }

    /// The name of its image.
    pub fn image_name(&self) -> String {
        match self.volume.storage {
            Phase::Never | Phase::Formatting { .. } if !self.adopting => self.unfinished(),
            _ => self.finished(),
        }
    }

    /// What its image says to people who look at it with Ceph's own tools. Nothing is decided by it: `rbd cp` copies it.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let VolumeRecord { name, endpoint, spec, .. } = &self.volume;
        let own = [("volume", name.to_string()), ("endpoint", endpoint.to_string())].map(|(key, value)| (format!("dunnage.{key}"), value));
        own.into_iter().chain(spec.labels.iter().map(|(key, value)| (format!("dunnage.label.{key}"), value.clone()))).collect()
    }

    /// The name of its image when it is whole.
    pub fn finished(&self) -> String {
        self.called.clone().unwrap_or_else(|| self.volume.name.to_string())
    }
}

/// The records of all volumes; and those that cannot be read.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadAll {
    /// Where.
    pub place: Place,
}

impl Task for ReadAll {
    const NAME: &'static str = "ceph.read-all";
    type Output = (Vec<Stored>, Vec<Error>);

    fn run(self) -> Result<Self::Output> {
        self.place.with(|pool| {
            let (mut volumes, mut unreadable) = (Vec::new(), Vec::new());
            for name in pool.names(NAMES)? {
                let name: VolumeName = name.parse()?;
                let oid = oid(&name);
                match pool.read(&oid)?.map(|found| Stored::parse(&found.data, &format!("object {oid} of pool {}", pool.name()))) {
                    Some(Ok(stored)) => volumes.push(stored),
                    Some(Err(e)) => unreadable.push(e.of(&name)),
                    // It was removed meanwhile.
                    None => {}
                }
            }
            Ok((volumes, unreadable))
        })
    }
}
