//! A Mesos agent, by the checkpoints of its `docker/volume` isolator: `FOLDER/CONTAINER/volumes`, written before each mount
//! and removed after the unmount (Mesos' `docker_volume_checkpoint_dir`).

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use dunnage_engine::{Use, Witness};
use dunnage_host::helpers::{Runner, Task, run};
use dunnage_model::{Caller, CallerKind, Error, Result};
use serde::{Deserialize, Serialize};

/// The agent of this machine.
pub struct MesosAgent {
    folder: PathBuf,
    runner: Arc<dyn Runner>,
}

impl MesosAgent {
    /// The agent whose checkpoints are in this folder.
    pub fn new(folder: PathBuf, runner: Arc<dyn Runner>) -> Self {
        MesosAgent { folder, runner }
    }
}

#[async_trait]
impl Witness for MesosAgent {
    fn name(&self) -> String {
        format!("the Mesos agent of {}", self.folder.display())
    }

    fn is_there(&self) -> bool {
        true // it was configured by hand
    }

    fn speaks_of(&self, caller: &Caller) -> bool {
        caller.kind == CallerKind::Plain
    }

    async fn uses(&self) -> Result<Vec<Use>> {
        let mounted = run(&*self.runner, &Checkpoints { folder: self.folder.clone() }).await?;
        // What is not one of our names is not one of our volumes.
        let ours = |(container, volume): (String, Volume)| {
            Some(Use {
                endpoint: volume.driver.parse().ok()?,
                volume: volume.name.parse().ok()?,
                ids: None,
                who: format!("task {container}"),
            })
        };
        Ok(mounted.into_iter().filter_map(ours).collect())
    }
}

/// Reads all checkpoints. One that cannot be read, or a folder that is not there, is an error: it may have named anything.
#[derive(Serialize, Deserialize)]
pub struct Checkpoints {
    folder: PathBuf,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    driver: String,
    name: String,
}

#[derive(Deserialize)]
struct Checkpoint {
    #[serde(default)]
    volumes: Vec<Volume>,
}

impl Task for Checkpoints {
    const NAME: &'static str = "witness.mesos-checkpoints";
    type Output = Vec<(String, Volume)>;

    fn run(self) -> Result<Self::Output> {
        let unreadable = |path: &std::path::Path, e: &dyn std::fmt::Display| {
            Error::unavailable(format!("cannot read the checkpoints of Mesos: {}: {e}", path.display()), "look at holders.mesos")
        };
        let mut volumes = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(|e| unreadable(&self.folder, &e))? {
            let entry = entry.map_err(|e| unreadable(&self.folder, &e))?;
            let file = entry.path().join("volumes");
            let text = match std::fs::read(&file) {
                // Between the folder and its file, a mount has not begun; after the file, it has ended.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
                text => text.map_err(|e| unreadable(&file, &e))?,
            };
            let checkpoint: Checkpoint = serde_json::from_slice(&text).map_err(|e| unreadable(&file, &e))?;
            let container = entry.file_name().to_string_lossy().into_owned();
            volumes.extend(checkpoint.volumes.into_iter().map(|volume| (container.clone(), volume)));
        }
        Ok(volumes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_read_as_the_agent_writes_them_and_a_bad_one_is_silence() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = || Checkpoints { folder: folder.path().to_owned() }.run();
        let put = |container: &str, text: &str| {
            std::fs::create_dir_all(folder.path().join(container)).expect("a folder");
            std::fs::write(folder.path().join(container).join("volumes"), text).expect("written");
        };
        assert_eq!(read().expect("read"), []);
        put("c1", r#"{"volumes":[{"driver":"rexray","name":"v"}]}"#);
        std::fs::create_dir(folder.path().join("c2")).expect("a folder");
        assert_eq!(read().expect("read"), [("c1".to_owned(), Volume { driver: "rexray".to_owned(), name: "v".to_owned() })]);
        put("c3", "{\"volumes\":");
        assert!(read().expect_err("torn").detail.contains("c3/volumes"));
        folder.close().expect("removed");
    }

    #[test]
    fn a_folder_that_is_not_there_is_silence() {
        assert!(Checkpoints { folder: "/nonexistent/mesos".into() }.run().is_err());
    }
}
