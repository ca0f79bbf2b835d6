//! What the module does for an agent: the volumes of a container are mounted before it starts and let go of after it has ended.
//!
//! The agent's container is the holder, under an ID that says so; who else holds a volume, and whether it may be unmounted, is the
//! daemon's to know. What is written down here, before anything is asked, is which container may hold what: so that an
//! agent that was killed at any moment lets go of what nobody else would. It lies in a folder that a reboot empties, as
//! the daemon's ledger does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunnage_dvdcli::{Address, Asked, Complaint, Places, Plugin};
use dunnage_model::{Caller, Error, Kind, Result};
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::slots::{Slot, slots};

/// An agent throws away a container that takes more than a minute, with all of its volumes.
const MOUNT: Duration = Duration::from_secs(55);
/// How soon a daemon must say that it is one, and what it knows of a volume.
const READ: Duration = Duration::from_secs(5);
/// What an unmount may take before it is tried again.
const UNMOUNT: Duration = Duration::from_secs(30);
/// How long an agent, which has nothing to learn from it, waits for that.
const SOON: Duration = Duration::from_secs(2);
/// How often what could not be let go of is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Beneath these a task that has no image of its own may have a volume: whatever lies there, no program of the host trusts it.
pub const FOLDERS: [&str; 6] = ["/tmp", "/var/tmp", "/mnt", "/media", "/srv", "/data"];

/// Where an agent has its state, if nobody says where: the old module's word.
pub const WORK_DIR: &str = "/tmp/mesos";

/// What the operator says.
pub struct Settings {
    /// Where plugins are looked for.
    pub plugins: Places,
    /// Where it is written down who may hold what.
    pub folder: PathBuf,
    /// The driver of slots that name none.
    pub driver: String,
    /// Beneath which folders a container without an image may have volumes.
    pub folders: Vec<PathBuf>,
    /// Where the agent has its state, and the sandboxes: no such container has a volume there.
    pub work_dir: PathBuf,
    /// Programs that a task may name for its volumes: they are not run.
    pub programs: Vec<String>,
    /// Hears what the operator should know and no call can say.
    pub tell: fn(&str),
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            plugins: Places::default(),
            folder: "/run/dunnage/mesos".into(),
            driver: crate::slots::DRIVER.to_owned(),
            folders: FOLDERS.map(PathBuf::from).to_vec(),
            work_dir: WORK_DIR.into(),
            programs: Vec::new(),
            tell: |_| {},
        }
    }
}

/// A volume that is mounted, to be shown in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where it is on the host.
    pub source: String,
    /// Beneath which folder the container is to have it.
    pub root: String,
    /// Where, beneath that.
    pub target: String,
    /// Links on the way are the image's own, and are followed beneath the root.
    pub links: bool,
}

/// What a call comes to: its errors are for people.
type Answer<T> = std::result::Result<T, Complaint>;

/// A volume, as far as letting go of it needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Held {
    driver: String,
    name: String,
}

/// What one container may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    container: String,
    volumes: BTreeSet<Held>,
    /// It has ended, and something could not be let go of.
    #[serde(default)]
    ended: bool,
}

/// The isolator.
pub struct Isolator {
    settings: Settings,
    /// What is done for one container is done one after the other.
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Why what could not be let go of, of which container.
    told: Mutex<BTreeMap<(String, Held), String>>,
    /// Something was left to be let go of.
    bell: Notify,
}

impl Isolator {
    /// An isolator whose folder need not be there yet.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(settings: Settings) -> Result<Isolator> {
        let what = format!("cannot make {}", settings.folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&settings.folder).map_err(|e| Error::os(what, &e))?;
        Ok(Isolator { settings, turns: Mutex::default(), told: Mutex::default(), bell: Notify::new() })
    }

    /// Mounts what a container's environment names, all of it or nothing; says what is to be bound into it. `image` is the root of a
    /// container that has one of its own.
    ///
    /// # Errors
    /// `invalid_argument` for an environment that cannot be meant, `exists_incompatible` for a container that was prepared before, and
    /// whatever the daemon says.
    pub async fn prepare(&self, container: &str, environment: &[(String, String)], image: Option<&str>) -> Answer<Vec<Bind>> {
        let wanted = slots(environment.iter().map(|(key, value)| (key.as_str(), value.as_str())), &self.settings.driver)?;
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let id = id_of(container)?;
        wanted.iter().try_for_each(|slot| slot.refuse_program(&self.settings.programs))?;
        let places =
            wanted.iter().map(|slot| place(slot, image, &self.settings.folders, &self.settings.work_dir)).collect::<Result<Vec<_>>>()?;
        let turn = self.turn(container);
        let _turn = turn.lock().await;
        if self.read(container)?.is_some() {
            let detail = format!("container {container} was prepared before");
            return Err(Error::new(Kind::ExistsIncompatible, detail, "look into the agent's log").into());
        }
        let volumes: BTreeSet<Held> = wanted.iter().map(|slot| held(slot, &wanted)).collect();
        self.write(&Checkpoint { container: container.to_owned(), volumes, ended: false })?;
        let mut tried = BTreeSet::new();
        let late = || Error::timeout("mount", format!("its volumes were not mounted within {} s", MOUNT.as_secs())).into();
        let mounting = tokio::time::timeout(MOUNT, self.mount_all(&id, &wanted, &mut tried)).await;
        match mounting.unwrap_or_else(|_| Err(late())) {
            Ok(mounted) => {
                let bind = |(slot, place): (&Slot, Option<(String, String)>)| {
                    let (root, target) = place?;
                    Some(Bind { source: mounted.get(&held(slot, &wanted))?.clone(), root, target, links: image.is_some() })
                };
                let mut binds: Vec<Bind> = wanted.iter().zip(places).filter_map(bind).collect();
                // What is beneath another comes after it, or would be hidden by it.
                binds.sort_by_key(|bind| Path::new(&bind.root).join(bind.target.trim_start_matches('/')).components().count());
                Ok(binds)
            }
            Err(error) => {
                // The agent waits no longer than this: [`Isolator::tend`] lets go. What nobody was asked for nobody has to let go of.
                // If that cannot be written, what was written before names more.
                match tried.is_empty() {
                    true => drop(std::fs::remove_file(self.file(container))),
                    false => drop(self.write(&Checkpoint { container: container.to_owned(), volumes: tried, ended: true })),
                }
                self.bell.notify_one();
                Err(error)
            }
        }
    }

    /// One after the other: who is refused early has disturbed nobody.
    async fn mount_all(&self, id: &str, wanted: &[Slot], tried: &mut BTreeSet<Held>) -> Answer<BTreeMap<Held, String>> {
        let mut mounted = BTreeMap::new();
        for slot in wanted {
            let volume = held(slot, wanted);
            if mounted.contains_key(&volume) {
                continue;
            }
            let asked = self.asked(&slot.name, slot.options.clone(), id);
            let plugin = self.plugin(slot.driver.as_str()).await?;
            tried.insert(volume.clone());
            let forbids = slot.explicit_create.then(|| slot.variable("EXPLICITCREATE"));
            mounted.insert(volume, dunnage_dvdcli::mount(&plugin, &asked, forbids.as_deref()).await?);
        }
        Ok(mounted)
    }

    /// Lets go of what a container held, which has ended. An agent waits for that only so long: what cannot be let go of by then is
    /// [`Isolator::tend`]'s.
    pub async fn cleanup(&self, container: &str) {
        self.end(container);
        let turn = self.turn(container);
        let work = async {
            let _turn = turn.lock().await;
            self.let_go(container).await;
        };
        if tokio::time::timeout(SOON, work).await.is_err() {
            self.bell.notify_one();
        }
        self.leave(container, &turn);
    }

    /// Writes down that a container has ended, whoever has its turn: a mount that is still under way is let go of after it.
    fn end(&self, container: &str) {
        if let Ok(Some(checkpoint)) = self.read(container)
            && let Err(e) = self.write(&Checkpoint { ended: true, ..checkpoint })
        {
            (self.settings.tell)(&format!("container {container}: {e}"));
        }
    }

    /// An agent has started, and waits for this: of the containers that are written down these live, or will be cleaned up by the agent
    /// itself. The others' volumes are let go of, as by [`Isolator::cleanup`]; says whose they were.
    pub async fn recover(&self, known: &BTreeSet<String>) -> Vec<String> {
        // What an agent that was killed had not written to its end counts for nothing.
        self.files(".new").for_each(|half| drop(std::fs::remove_file(self.settings.folder.join(format!("{half}.new")))));
        let gone: Vec<String> = self.all().into_iter().filter(|container| !known.contains(container)).collect();
        // All at once: with a daemon that is down each would wait for it, and the agent for all.
        join_all(gone.iter().map(|container| self.cleanup(container))).await;
        gone
    }

    /// Lets go of what was left, at once and every few seconds, for as long as it is polled.
    pub async fn tend(&self) {
        // A plugin that hangs holds up its own container, and nobody else's.
        let mut rounds = FuturesUnordered::new();
        loop {
            // A panic there is this round's alone.
            rounds.push(AssertUnwindSafe(self.retry()).catch_unwind());
            let pause = async {
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = self.bell.notified() => {}
                }
            };
            let mut pause = std::pin::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(_) = rounds.next() => {}
                }
            }
        }
    }

    /// Tries once more what could not be let go of, but for what somebody is at; says how much is left.
    pub async fn retry(&self) -> usize {
        let ended = |container: &String| self.read(container).ok().flatten().is_some_and(|checkpoint| checkpoint.ended);
        let again: Vec<String> = self.all().into_iter().filter(&ended).collect();
        join_all(again.iter().map(|container| async move {
            let turn = self.turn(container);
            if let Ok(locked) = turn.try_lock() {
                self.let_go(container).await;
                drop(locked);
            }
            self.leave(container, &turn);
        }))
        .await;
        self.all().iter().filter(|container| ended(container)).count()
    }

    async fn let_go(&self, container: &str) {
        let (mut checkpoint, id) = match (self.read(container), id_of(container)) {
            (Ok(Some(checkpoint)), Ok(id)) => (checkpoint, id),
            (Ok(None), _) => return,
            (Err(e), _) | (_, Err(e)) => return (self.settings.tell)(&format!("container {container}: {e}")),
        };
        // At once: one that hangs holds up no other.
        let volumes = std::mem::take(&mut checkpoint.volumes);
        let letting_go = volumes.into_iter().map(|volume| async {
            let why = self.unmount(&volume, &id).await.err()?;
            let said = format!("container {container} has ended, and volume {} cannot be let go of yet: {why}", volume.name);
            // It is tried every few seconds: once is enough.
            if self.told().insert((container.to_owned(), volume.clone()), said.clone()).as_ref() != Some(&said) {
                (self.settings.tell)(&said);
            }
            Some(volume)
        });
        let left: BTreeSet<Held> = join_all(letting_go).await.into_iter().flatten().collect();
        self.told().retain(|(whose, volume), _| whose != container || left.contains(volume));
        if left.is_empty() {
            // Nothing is left to be remembered.
            let _ = std::fs::remove_file(self.file(container));
            return;
        }
        // If this cannot be written, what was written before names more, and to let go of it twice is nothing.
        let _ = self.write(&Checkpoint { volumes: left, ended: true, ..checkpoint });
    }

    async fn unmount(&self, volume: &Held, id: &str) -> Answer<()> {
        let work = async {
            let plugin = self.plugin(&volume.driver).await?;
            dunnage_dvdcli::unmount(&plugin, &self.asked(&volume.name, Vec::new(), id)).await
        };
        let late = || Error::timeout("unmount", format!("no answer within {} s", UNMOUNT.as_secs())).into();
        tokio::time::timeout(UNMOUNT, work).await.unwrap_or_else(|_| Err(late()))
    }

    fn asked(&self, name: &str, options: Vec<(String, String)>, id: &str) -> Asked {
        Asked { name: name.to_owned(), options, id: Some(id.to_owned()), tell: self.settings.tell }
    }

    async fn plugin(&self, driver: &str) -> Answer<Plugin> {
        let found = self.settings.plugins.find(driver)?;
        if !matches!(found.address, Address::Unix(_)) {
            let detail = format!("plugin {driver} listens at {}, and the module asks plugins of this machine alone", found.address);
            return Err(Error::invalid("driver", detail, "name an endpoint of the daemon on this node").into());
        }
        let plugin = Plugin::new(found).patient_for(READ);
        plugin.activate().await.map_err(|e| e.told("Plugin.Activate"))?;
        Ok(plugin)
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<(String, Held), String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, container: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(container.to_owned()).or_default().clone()
    }

    /// Whoever waits for this turn keeps it for who comes after.
    fn leave(&self, container: &str, turn: &Arc<tokio::sync::Mutex<()>>) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(turn) == 2 {
            turns.remove(container);
        }
    }

    fn file(&self, container: &str) -> PathBuf {
        self.settings.folder.join(format!("{container}.json"))
    }

    /// Every container that something is written down of.
    fn all(&self) -> Vec<String> {
        self.files(".json").collect()
    }

    fn files(&self, end: &str) -> impl Iterator<Item = String> {
        let entries = std::fs::read_dir(&self.settings.folder).into_iter().flatten().flatten();
        entries.filter_map(move |entry| Some(entry.file_name().to_str()?.strip_suffix(end)?.to_owned()))
    }

    fn read(&self, container: &str) -> Result<Option<Checkpoint>> {
        let path = self.file(container);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|e| Error::os(path.display(), &e))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| {
            let detail = format!("{} is damaged: {e}", path.display());
            Error::unavailable(detail, "see what the container holds ('dunnage holder ls'), let go of it, and delete the file")
        })
    }

    fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        let (path, new) = (self.file(&checkpoint.container), self.settings.folder.join(format!("{}.new", checkpoint.container)));
        let text = serde_json::to_vec(checkpoint).map_err(|e| Error::internal(e.to_string()))?;
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path)).map_err(|e| Error::os(path.display(), &e))
    }
}

/// Where a container has a volume: the root, and the place beneath it; nowhere but where the plugin mounts it, if it says no place. A task
/// without an image sees the host's own files, and a volume over some of them would be a way to the host's root: `/etc` with a
/// `passwd` of the task's own, and a setuid program that believes it. `folders` are those beneath which it may have one, but
/// not where the agent keeps its own state: root makes the folders that are missing, and other tasks' sandboxes are there.
///
/// # Errors
/// `invalid_argument` for a place that it may not have, or that it does not say and needs.
pub fn place(slot: &Slot, image: Option<&str>, folders: &[PathBuf], work_dir: &Path) -> Result<Option<(String, String)>> {
    let variable = slot.variable("CONTAINERPATH");
    let Some(path) = &slot.container_path else {
        if image.is_some() {
            let detail = "a task with an image does not see where the node mounts its volumes";
            return Err(Error::invalid(&variable, detail, "say where the task is to find it"));
        }
        return Ok(None);
    };
    if let Some(root) = image {
        return Ok(Some((root.to_owned(), path.clone())));
    }
    let overlaps = |own: &Path| Path::new(path).starts_with(own) || own.starts_with(path);
    if overlaps(work_dir) || std::fs::canonicalize(work_dir).is_ok_and(|own| overlaps(&own)) {
        let detail = format!("{path:?} is within the agent's own work_dir, {}, or above it", work_dir.display());
        return Err(Error::invalid(&variable, detail, "choose another path, or give the task an image"));
    }
    let beneath = |folder: &PathBuf| {
        let rest = Path::new(path).strip_prefix(folder).ok().and_then(Path::to_str).filter(|rest| !rest.is_empty())?;
        Some((folder.display().to_string(), rest.to_owned()))
    };
    if let Some(place) = folders.iter().find_map(beneath) {
        return Ok(Some(place));
    }
    let shown: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let detail = format!("a task without an image may have volumes beneath {}, and {path:?} is not", shown.join(", "));
    let next = "choose another path, or give the task an image; the operator may allow more ('folders')";
    Err(Error::invalid(&variable, detail, next))
}

/// By the name that is asked for first: other plugins than ours may know the volume by that alone.
fn held(slot: &Slot, wanted: &[Slot]) -> Held {
    let first = wanted.iter().find(|other| other.same(slot)).unwrap_or(slot);
    Held { driver: first.driver.to_string(), name: first.name.clone() }
}

/// As whom a container holds. Mesos' own names are UUIDs, of nested ones with points between.
fn id_of(container: &str) -> Result<String> {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let most = Caller::MAX_ID - Caller::MESOS.len();
    if container.is_empty() || container.len() > most.min(200) || container.starts_with('.') || !container.chars().all(sound) {
        return Err(Error::invalid("container", format!("{container:?} is no container's id"), "look into the agent's log"));
    }
    Ok(format!("{}{container}", Caller::MESOS))
}

#[cfg(test)]
#[path = "isolator_tests.rs"]
mod tests;
