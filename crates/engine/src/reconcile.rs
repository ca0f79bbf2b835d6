//! Start: load the ledger, read the kernel, and make the two agree before anybody is served; then, lane by lane, the
//! platforms.
//!
//! | ledger says | kernel shows | then |
//! |---|---|---|
//! | mounted | that device there | kept, with its holders |
//! | mounted | nothing, or another device | its holders hold nothing: dropped, and what is attached is let go |
//! | mounting or unmounting | anything | the job is run to its end: kept if somebody holds it, else undone |
//! | nothing | mounted under our folder | kept, with one holder `unknown` |
//! | nothing | attached, not mounted | detached |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use dunnage_driver::Driver;
use dunnage_host::{DeviceNumber, Medium, MountEntry, Target};
use dunnage_model::{DriverName, EndpointName, Holder, OperationId, Result, VolumeId, VolumeName, VolumeState};

use crate::engine::{Call, Engine, Inner, Settings, unknown_holder};
use crate::lane::{Lane, lock};
use crate::ledger::{Entry, Intent, Ledger};
use crate::planner::{Goal, Staged};

/// What was decided about one entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be.
    Keep,
    /// A job has to finish or undo something.
    Run(Goal),
}

impl Eq for Goal {}

impl Engine {
    /// Loads the ledger, reads the kernel, and makes them agree. Reads no platform: those that hang do not delay a start.
    pub async fn start(settings: Settings) -> Result<Engine> {
        settings.host.mounts.prepare(&settings.volumes).await?;
        let table = settings.host.mounts.table(&settings.volumes).await?;
        let (mut ledger, loaded) = Ledger::open(settings.ledger.clone(), settings.boot.clone())?;
        for note in loaded.notes {
            tracing::info!("ledger: {note}");
        }
        let mut mounted: BTreeMap<PathBuf, MountEntry> = table.into_iter().map(|line| (line.relative.clone(), line)).collect();
        for line in mounted.values_mut() {
            // The table does not tell which folder is mounted; the mount itself does. What the ledger has says whether it is one,
            // whatever became of its driver.
            let written = loaded.entries.iter().find(|entry| settings.layout.place(&entry.volume) == line.relative);
            let volume = settings.layout.volume(&line.relative, |name| owner(&settings, name, line.device));
            let driver = volume.and_then(|volume| settings.drivers.iter().find(|driver| *driver.name() == volume.driver));
            let is_folder = match written.and_then(|entry| entry.staged) {
                Some(staged) => staged.device.folder.is_some(),
                None => driver.is_some_and(|driver| driver.medium() == Medium::Folder),
            };
            if is_folder {
                let target = Target { root: settings.volumes.clone(), relative: line.relative.clone(), medium: Medium::Folder };
                line.device = settings.host.mounts.at(&target).await?.map_or(line.device, |there| there.device);
            }
        }
        let mut lanes = BTreeMap::new();
        let mut jobs = Vec::new();
        for mut entry in loaded.entries {
            let seen = mounted.remove(&settings.layout.place(&entry.volume));
            match judge(&mut entry, seen.as_ref()) {
                Verdict::Keep => {}
                Verdict::Run(goal) => jobs.push((entry.volume.clone(), goal)),
            }
            ledger.write(&entry)?;
            lanes.insert(entry.volume.clone(), Arc::new(Lane::new(entry)));
        }
        for (relative, line) in mounted {
            let Some(volume) = settings.layout.volume(&relative, |name| owner(&settings, name, line.device)) else { continue };
            tracing::warn!(volume = %volume, device = %line.device, "mounted, and the ledger does not know by whom: kept for an unknown holder");
            let mut entry = Entry::new(volume.clone(), settings.boot.clone());
            // No mount number is known; the device is what identifies it.
            entry.staged = Some(Staged { device: line.device, mount_id: 0 });
            let target = settings.volumes.join(&line.relative).display().to_string();
            let nobody: EndpointName = "none".parse()?;
            entry.holders.push(unknown_holder(nobody, settings.clock.now(), target));
            ledger.write(&entry)?;
            lanes.insert(volume, Arc::new(Lane::new(entry)));
        }
        let drivers = settings.drivers.iter().map(|driver| (driver.name().clone(), driver.clone())).collect();
        let engine = Engine(Arc::new(Inner {
            settings,
            drivers,
            lanes: RwLock::new(lanes),
            ledger: Mutex::new(ledger),
            known: RwLock::default(),
            listed: RwLock::default(),
            list_bell: tokio::sync::Notify::new(),
            listing: Mutex::default(),
            owed: Mutex::default(),
            missed: Mutex::default(),
            releasing: Arc::default(),
            touched: Mutex::default(),
            seen: Mutex::default(),
            changes: AtomicU64::new(0),
        }));
        for (volume, goal) in jobs {
            tracing::info!(volume = %volume, goal = goal.word(), "left unfinished: taken up again");
            engine.background(&volume, goal);
        }
        Ok(engine)
    }

    /// Asks the platforms what they have, and finishes or undoes what crashes have left there. One that hangs does not
    /// keep another waiting. Gives those that could not be asked.
    pub async fn settle(&self) -> Vec<DriverName> {
        self.settle_these(self.driver_names()).await
    }

    /// The same for some of them.
    pub async fn settle_these(&self, drivers: Vec<DriverName>) -> Vec<DriverName> {
        let mut asking = tokio::task::JoinSet::new();
        for driver in drivers.iter().filter_map(|name| self.0.drivers.get(name)) {
            let (engine, driver) = (self.clone(), driver.clone());
            asking.spawn(async move { (!engine.settle_one(&*driver).await).then(|| driver.name().clone()) });
        }
        asking.join_all().await.into_iter().flatten().collect()
    }

    async fn settle_one(&self, driver: &dyn Driver) -> bool {
        if let Err(e) = self.refresh(driver.name()).await {
            tracing::error!(driver = %driver.name(), "cannot be listed: {e}");
            return false;
        }
        let attachments = match driver.attachments().await {
            Ok(attachments) => attachments,
            Err(e) => {
                tracing::error!(driver = %driver.name(), "cannot say what is attached: {e}");
                return false;
            }
        };
        for attachment in attachments {
            let volume = VolumeId { driver: driver.name().clone(), name: attachment.name };
            if self.is_idle(&volume) {
                tracing::warn!(volume = %volume, device = %attachment.number, "attached, and nobody wants it: let go");
                self.owe(volume, Goal::Unstage);
            }
        }
        let Some(share) = driver.share() else { return true };
        // What this run had claimed when its daemon was killed, or by a change that came late, and does not use.
        let owners = match share.owners().await {
            Ok(owners) => owners,
            Err(e) => {
                tracing::error!(driver = %driver.name(), "cannot say what is whose: {e}");
                return false;
            }
        };
        let me = self.me();
        for (name, _) in owners.into_iter().filter(|(_, record)| record.owner() == Some(&me)) {
            let volume = VolumeId { driver: driver.name().clone(), name };
            if self.is_idle(&volume) {
                tracing::warn!(volume = %volume, "this node's, and nobody here wants it: given up");
                self.owe(volume, Goal::Unstage);
            }
        }
        true
    }

    fn is_idle(&self, volume: &VolumeId) -> bool {
        let lane = self.lane(volume);
        let state = lock(&lane.state);
        state.entry.is_empty() && state.jobs.is_empty()
    }

    /// Reads a driver's whole list into memory, and takes up what is half done there.
    pub(crate) async fn refresh(&self, name: &dunnage_model::DriverName) -> Result<()> {
        let driver = self.driver(name)?.clone();
        let listing_lock = self.listing_lock(name);
        let _one_at_a_time = listing_lock.lock().await;
        // What is learned from here on is newer than the list.
        lock(&self.0.touched).retain(|id| id.driver != *name);
        let listing = driver.list().await?;
        for error in &listing.unreadable {
            tracing::error!(driver = %name, "a volume cannot be read: {error}");
        }
        let now = self.0.settings.clock.now();
        let mut half_done = Vec::new();
        {
            let mut known = crate::view::write(&self.0.known);
            let touched = lock(&self.0.touched);
            known.retain(|id, _| id.driver != *name || touched.contains(id));
            for info in listing.volumes {
                if matches!(info.state, VolumeState::Creating | VolumeState::Removing) {
                    half_done.push(info.id.clone());
                } else if !touched.contains(&info.id) {
                    known.insert(info.id.clone(), crate::engine::Known { info: Arc::new(info), seen: now });
                }
            }
        }
        crate::view::write(&self.0.listed).insert(name.clone(), now);
        self.0.list_bell.notify_waiters();
        for volume in half_done {
            // In its lane: a create that runs is not half done, and is over when this one's turn comes.
            self.owe(volume, Goal::Recover);
        }
        Ok(())
    }

    /// One list of a driver is read at a time.
    pub(crate) fn listing_lock(&self, name: &dunnage_model::DriverName) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.0.listing).entry(name.clone()).or_default().clone()
    }

    /// Has something done, now, and again with every sweep until it is.
    pub(crate) fn owe(&self, volume: VolumeId, goal: Goal) {
        self.owe_later(&volume, goal.clone());
        self.background(&volume, goal);
    }

    /// The same, from the next sweep on.
    pub(crate) fn owe_later(&self, volume: &VolumeId, goal: Goal) {
        lock(&self.0.owed).insert((volume.clone(), goal.word()), goal);
    }

    /// Tries again what could not be done: to unmount what nobody holds, to finish or undo what was left half done.
    pub fn sweep(&self) {
        let left_over: Vec<VolumeId> = crate::view::read(&self.0.lanes)
            .iter()
            .filter(|(_, lane)| lock(&lane.state).is_left_over())
            .map(|(volume, _)| volume.clone())
            .collect();
        let owed: Vec<_> = lock(&self.0.owed).iter().map(|((volume, _), goal)| (volume.clone(), goal.clone())).collect();
        for (volume, goal) in left_over.into_iter().map(|volume| (volume, Goal::Unstage)).chain(owed) {
            self.background(&volume, goal);
        }
        let nameless: Vec<VolumeId> = crate::view::read(&self.0.lanes)
            .iter()
            .filter(|(_, lane)| lock(&lane.state).entry.is_to_be_released())
            .map(|(volume, _)| volume.clone())
            .collect();
        // One look at all processes at a time.
        if !nameless.is_empty()
            && let Ok(turn) = self.0.releasing.clone().try_lock_owned()
        {
            let engine = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                for volume in nameless {
                    match engine.release_unknown(&volume).await {
                        Ok(true) => engine.owe(volume, Goal::Unstage),
                        Ok(false) => {}
                        Err(e) => tracing::warn!(%volume, "nobody can say who uses it: {e}"),
                    }
                }
            });
        }
        // Lanes of names that were only asked about.
        crate::view::write(&self.0.lanes).retain(|_, lane| {
            let state = lock(&lane.state);
            Arc::strong_count(lane) > 1 || !state.entry.is_empty() || !state.jobs.is_empty()
        });
    }

    pub(crate) fn background(&self, volume: &VolumeId, goal: Goal) {
        let call = Call { operation: self.operation(), patience: Duration::ZERO };
        self.submit(&call, volume, goal);
    }
}

/// Whose volume is mounted, where only its name is known: the driver's whose device it is by the kernel's word; else the first.
fn owner(settings: &Settings, name: &VolumeName, device: DeviceNumber) -> Option<DriverName> {
    let has = settings.drivers.iter().find(|driver| driver.has_in_place(name, device));
    // A folder's driver cannot say so without asking a disk. What is mounted of one is on a disk that is no loop (major 7).
    let of_folders = settings.drivers.iter().find(|driver| driver.medium() == Medium::Folder && device.major != 7);
    let first = has.or(of_folders).or(settings.drivers.first()).map(|driver| driver.name());
    first.or(settings.unavailable.keys().next()).cloned()
}

/// The table above, for one entry.
pub(crate) fn judge(entry: &mut Entry, seen: Option<&MountEntry>) -> Verdict {
    let there = match (entry.staged, seen) {
        (Some(staged), Some(line)) => staged.device == line.device,
        _ => false,
    };
    let kept = entry.kept.is_some();
    for holder in &mut entry.holders {
        if there || (kept && !holder.wants_mount()) {
            // The answer was on its way: its caller may have read it. Kept, until a retry or an unmount tells.
            holder.undecided += holder.provisional;
        }
        // Not mounted when the daemon died: no answer had left.
        holder.provisional = 0;
    }
    entry.sweep();
    if !there {
        let gone = |holder: &Holder| holder.wants_mount() || !kept;
        for holder in entry.holders.iter().filter(|holder| gone(holder)) {
            tracing::warn!(volume = %entry.volume, %holder, "held a mount that is gone: dropped");
        }
        entry.holders.retain(|holder| !gone(holder));
    }
    if entry.staged.is_some() && !there {
        entry.staged = None;
        // Its device may be attached yet: that stays written down until it is known to be gone.
        entry.intent = Some(Intent { operation: OperationId("op-at-start".to_owned()), goal: Goal::Unstage.word().to_owned() });
    }
    if entry.attachers() > 0 && entry.staged.is_none() && entry.intent.is_none() {
        // The device alone, for those who want no more. Whether it is there yet is the kernel's to say, by and by.
        return Verdict::Keep;
    }
    if there && entry.mounters() > 0 {
        // An unmount that had begun, and somebody came: it stays.
        entry.intent = None;
        return Verdict::Keep;
    }
    Verdict::Run(Goal::Unstage)
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
