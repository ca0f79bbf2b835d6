//! Docker Engine, and Podman's service, by the container list of Docker's API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use dunnage_engine::{Use, Witness};
use dunnage_frontend_unix::Client;
use dunnage_host::helpers::{Runner, Task, run};
use dunnage_model::{Caller, CallerKind, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// States of a container that is not running, in Docker's words and Podman's. In these it holds nothing. (While one is
/// being started it is `created`, and holds something: the time of grace is for that.)
const NOT_RUNNING: [&str; 6] = ["created", "configured", "initialized", "exited", "stopped", "dead"];

/// A container engine that answers on a socket.
pub struct ContainerEngine {
    kind: CallerKind,
    client: Client,
    runner: Arc<dyn Runner>,
}

impl ContainerEngine {
    /// A Docker Engine.
    pub fn docker(socket: PathBuf, runner: Arc<dyn Runner>) -> Self {
        ContainerEngine { kind: CallerKind::Docker, client: Client::new(socket), runner }
    }

    /// A Podman that serves Docker's API (`podman system service`, `podman.socket`).
    pub fn podman(socket: PathBuf, runner: Arc<dyn Runner>) -> Self {
        ContainerEngine { kind: CallerKind::Podman, client: Client::new(socket), runner }
    }

    async fn get<T: DeserializeOwned>(&self, uri: &str) -> Result<T> {
        let answer = self.client.send("GET", uri, &[], &serde_json::json!({})).await?;
        let odd = |detail: String| Error::unavailable(format!("{} {detail}", self.name()), "look at the engine's log");
        if answer.status != 200 {
            return Err(odd(format!("answered {uri} with status {}: {:.200}", answer.status, String::from_utf8_lossy(&answer.body))));
        }
        serde_json::from_slice(&answer.body).map_err(|e| odd(format!("answered {uri} with something else than containers: {e}")))
    }
}

/// A container, as much of it as matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    state: String,
    #[serde(default)]
    mounts: Vec<MountOfContainer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MountOfContainer {
    #[serde(default)]
    name: String,
    #[serde(default)]
    driver: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    docker_root_dir: PathBuf,
}

#[async_trait]
impl Witness for ContainerEngine {
    fn name(&self) -> String {
        format!("{} at {}", self.kind, self.client.path().display())
    }

    fn is_there(&self) -> bool {
        self.client.path().exists()
    }

    fn speaks_of(&self, caller: &Caller) -> bool {
        // Another client of the plugin API is not its to speak of.
        caller.kind == self.kind
    }

    async fn uses(&self) -> Result<Vec<Use>> {
        let containers: Vec<Container> = self.get("/containers/json?all=true").await?;
        let running: Vec<Container> =
            containers.into_iter().filter(|c| !NOT_RUNNING.contains(&c.state.to_ascii_lowercase().as_str())).collect();
        let ids = if self.kind == CallerKind::Docker && !running.is_empty() {
            let root = self.get::<Info>("/info").await?.docker_root_dir;
            let containers = running.iter().map(|container| container.id.clone()).collect();
            // Without them it is only known that somebody uses the volume, and not under which ID.
            run(&*self.runner, &HolderIds { root, containers }).await.unwrap_or_else(|e| {
                tracing::warn!("{}: the IDs of its containers cannot be read: {e}", self.name());
                BTreeMap::new()
            })
        } else {
            BTreeMap::new()
        };
        Ok(running.iter().flat_map(|container| uses_of(container, &ids)).collect())
    }
}

fn uses_of(container: &Container, ids: &Ids) -> Vec<Use> {
    let who = container.names.first().map_or(container.id.as_str(), |name| name.trim_start_matches('/'));
    // What is not one of our names is not one of our volumes.
    let ours = container.mounts.iter().filter_map(|mount| Some((mount, mount.driver.parse().ok()?, mount.name.parse().ok()?)));
    ours.map(|(mount, endpoint, volume)| {
        let known = ids.get(&container.id).and_then(|of| of.get(&(mount.driver.clone() + "/" + &mount.name)));
        Use { endpoint, volume, ids: known.cloned(), who: format!("container {who}") }
    })
    .collect()
}

/// By container and by `DRIVER/VOLUME`: the IDs that were sent with Mount.
type Ids = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Reads the IDs that a dockerd on this machine has sent for its containers, from where it keeps them. Its API does not show
/// them. A container or a mount that they are not found for is left out.
#[derive(Serialize, Deserialize)]
pub struct HolderIds {
    root: PathBuf,
    containers: Vec<String>,
}

impl Task for HolderIds {
    const NAME: &'static str = "witness.docker-ids";
    type Output = Ids;

    fn run(self) -> Result<Ids> {
        let read = |id: &String| Some((id.clone(), ids_in(&self.root.join("containers").join(id).join("config.v2.json"))?));
        Ok(self.containers.iter().filter_map(read).collect())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerFile {
    #[serde(default)]
    mount_points: BTreeMap<String, MountPoint>,
}

#[derive(Deserialize)]
struct MountPoint {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "Driver", default)]
    driver: String,
    #[serde(rename = "ID", default)]
    id: String,
}

fn ids_in(file: &Path) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let written: ContainerFile = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for mount in written.mount_points.into_values() {
        ids.entry(mount.driver + "/" + &mount.name).or_default().insert(mount.id);
    }
    // Where one is not known, none is.
    ids.retain(|_, ids| !ids.contains(""));
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(text: &str) -> Container {
        serde_json::from_str(text).expect("a container")
    }

    #[test]
    fn a_use_is_known_by_driver_and_name_and_by_the_ids_that_were_sent_if_they_are_known() {
        let c = container(
            r#"{"Id":"c1","Names":["/db"],"State":"running","Mounts":[
                {"Type":"volume","Name":"pg","Driver":"dunnage"},{"Type":"bind","Source":"/x","Driver":"","Name":""}]}"#,
        );
        let [found] = uses_of(&c, &Ids::new()).try_into().expect("one");
        assert_eq!(
            (found.endpoint.as_str(), found.volume.as_str(), found.ids, found.who.as_str()),
            ("dunnage", "pg", None, "container db")
        );
        let ids: BTreeSet<String> = ["7f".to_owned()].into();
        let known = Ids::from([("c1".to_owned(), BTreeMap::from([("dunnage/pg".to_owned(), ids.clone())]))]);
        assert_eq!(uses_of(&c, &known).first().and_then(|found| found.ids.clone()), Some(ids));
    }

    #[test]
    fn the_ids_of_a_container_are_read_from_dockers_own_file() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("containers/c1");
        std::fs::create_dir_all(&folder).expect("a folder");
        let text = r#"{"MountPoints":{"/a":{"Name":"pg","Driver":"dunnage","ID":"7f"},"/b":{"Name":"pg","Driver":"dunnage","ID":"8f"},
            "/c":{"Name":"half","Driver":"dunnage","ID":"9f"},"/d":{"Name":"half","Driver":"dunnage"},
            "/e":{"Type":"bind","Source":"/x"}}}"#;
        std::fs::write(folder.join("config.v2.json"), text).expect("written");
        let ids = HolderIds { root: root.path().to_owned(), containers: vec!["c1".to_owned(), "c2".to_owned()] }.run().expect("read");
        let both = BTreeSet::from(["7f".to_owned(), "8f".to_owned()]);
        assert_eq!(ids, Ids::from([("c1".to_owned(), BTreeMap::from([("dunnage/pg".to_owned(), both)]))]));
    }
}
