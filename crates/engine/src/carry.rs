//! The small loop that carries a plan out: ask, do, add to the facts, ask again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dunnage_driver::{Adopt, Adoption, Driver, Expand, NewVolume, Provision};
use dunnage_host::{Detached, FillRequest, FormatRequest, GrowRequest, MountRequest, Tried};
use dunnage_model::{Client, Error, Result, RootPath, VolumeId, VolumeInfo, VolumeState};

use crate::engine::{Engine, Known};
use crate::lane::{Job, Lane, lock};
use crate::ledger::Intent;
use crate::own::Owning;
use crate::planner::{self, Facts, Goal, Outcome, Staged, Step};

/// Runs one job to its end.
pub(crate) async fn run(engine: &Engine, volume: &VolumeId, lane: &Lane, job: &Job) -> Result<Outcome> {
    let driver = engine.driver(&volume.driver)?.clone();
    let watcher = engine.0.settings.watcher.clone();
    let mut work = Work { engine, volume, lane, job, driver, path: None, uuid: engine.0.settings.random.uuid(), closed: BTreeSet::new() };
    let mut facts = Facts { shared: work.driver.share().is_some(), carried: work.driver.is_carried(), ..Facts::default() };
    loop {
        {
            let state = lock(&lane.state);
            (facts.holders, facts.attachers) = (state.entry.mounters(), state.entry.attachers());
            (facts.staged, facts.kept) = (state.entry.staged, state.entry.kept);
            facts.intended = state.entry.intent.is_some();
            facts.cancelled = job.is_cancelled();
        }
        let step = planner::next(&job.goal, &facts);
        job.set_step(step.word());
        watcher.step(job.goal.word(), step.word(), false);
        tracing::debug!(step = step.word(), "step");
        match step {
            Step::Done(outcome) => {
                work.settle(&facts, outcome == Outcome::StillHeld)?;
                if planner::must_give_up(&facts) && matches!(outcome, Outcome::Created(_) | Outcome::Adopted(_) | Outcome::Recovered(_)) {
                    engine.owe_later(volume, Goal::Unstage);
                }
                if !matches!(outcome, Outcome::Lingering(_)) {
                    lock(&engine.0.owed).remove(&(volume.clone(), job.goal.word()));
                }
                tracing::info!(?outcome, "done");
                return Ok(outcome);
            }
            Step::Refuse(error) => {
                work.settle(&facts, false)?;
                if planner::must_recover(&job.goal, &facts) {
                    // Half made or half removed, and nobody is told of it as that.
                    engine.owe_later(volume, Goal::Recover);
                }
                if planner::must_give_up(&facts) {
                    // The platform says that it is ours, and it may not even be attached.
                    engine.owe_later(volume, Goal::Unstage);
                }
                // That there is no such volume is an answer like any other.
                match error.word() {
                    "not_found" => tracing::info!("refused: {error}"),
                    _ => tracing::warn!("refused: {error}"),
                }
                return Err(error);
            }
            step => {
                let outcome = work.carry(&step, &mut facts).await;
                watcher.step(job.goal.word(), step.word(), true);
                if let Err(error) = outcome {
                    tracing::warn!(step = step.word(), "failed: {error}");
                    match facts.failure {
                        None => facts.failure = Some(error),
                        Some(_) => facts.undo_failed = true,
                    }
                }
            }
        }
    }
}

struct Work<'a> {
    engine: &'a Engine,
    volume: &'a VolumeId,
    lane: &'a Lane,
    job: &'a Job,
    driver: Arc<dyn Driver>,
    /// Where the new storage is.
    path: Option<std::path::PathBuf>,
    /// The UUID of the filesystem that is to be.
    uuid: uuid::Uuid,
    /// The clients of this node that have ended in order.
    closed: BTreeSet<Client>,
}

impl Work<'_> {
    async fn carry(&mut self, step: &Step, facts: &mut Facts) -> Result<()> {
        let host = &self.engine.0.settings.host;
        let target = self.engine.target(self.volume);
        let name = &self.volume.name;
        match step {
            Step::Done(_) | Step::Refuse(_) => {}
            Step::Inspect => {
                let info = self.driver.inspect(name).await?;
                self.remember(info.as_ref());
                facts.growth = info.as_ref().map(|info| host.filesystems.growth(info.spec.fs));
                facts.volume = Some(info);
            }
            Step::LookAtMount => {
                let at = host.mounts.at(&target).await?;
                facts.in_place = at.is_some_and(|there| self.driver.has_in_place(name, there.device));
                facts.at = Some(at);
            }
            Step::Record => {
                if let Goal::Create { spec, endpoint, .. } = &self.job.goal {
                    let created = self.engine.0.settings.clock.now();
                    let maker = facts.shared.then(|| self.engine.me());
                    let new = NewVolume { name: name.clone(), endpoint: endpoint.clone(), spec: (**spec).clone(), created, maker };
                    facts.provision_tried = true;
                    self.provision()?.record(&new).await?;
                    // What was let go of before was another's.
                    (facts.detached, facts.given_up) = (None, false);
                    (facts.own_tried, facts.owned) = (facts.shared, facts.shared);
                } else if facts.shared && matches!(self.job.goal, Goal::Adopt(_)) {
                    let adoption = self.adoption(facts, None)?;
                    facts.provision_tried = true;
                    self.adopt()?.claim(&adoption, &self.engine.me()).await?;
                    (facts.detached, facts.given_up) = (None, false);
                    facts.own_tried = true;
                } else {
                    self.write_intent(Some(Intent { operation: self.job.operation.clone(), goal: self.job.goal.word().to_owned() }))?;
                }
                // What was removed or recovered before was another's; from now on that undoes this run.
                (facts.removed, facts.recovered) = (None, None);
                facts.recorded = true;
            }
            Step::Allocate => {
                let allocated = self.provision()?.allocate(name).await?;
                self.path = Some(allocated.path);
                (facts.allocated, facts.attached_new) = (true, allocated.attached);
            }
            Step::ProbeNew => facts.probed_new = Some(host.filesystems.probe(self.new_storage()?).await?),
            Step::Formatting => {
                self.provision()?.formatting(name, self.uuid).await?;
                facts.formatting = true;
            }
            Step::Format => {
                match &self.job.goal {
                    Goal::Create { source: Some(source), spec, .. } => {
                        let (from, to) = (source.clone(), self.new_storage()?.to_owned());
                        host.filesystems.fill(&FillRequest { from, to, fs: spec.fs, uuid: self.uuid }).await?;
                    }
                    _ => host.filesystems.format(&self.format_request()?).await?,
                }
                facts.formatted = true;
            }
            Step::Publish => {
                let info = self.provision()?.publish(name).await?;
                self.remember(Some(&info));
                facts.published = true;
            }
            Step::Own => {
                facts.own_tried = true;
                self.owning(facts)?.own().await?;
                facts.owned = true;
                // What was known of it may have been changed by whom it belonged to until now.
                facts.volume = None;
            }
            Step::Name => {
                self.owning(facts)?.name().await?;
                facts.named = true;
            }
            Step::Confirm => {
                match facts.at.flatten() {
                    _ if facts.shared => self.owning(facts)?.confirm().await?,
                    Some(there) => self.driver.confirm(name, there.device).await?,
                    None => return Err(Error::internal("nothing is mounted that could be confirmed")),
                }
                facts.confirmed = true;
            }
            Step::GiveUp => {
                self.owning(facts)?.give_up(&self.closed).await?;
                facts.given_up = true;
            }
            Step::Evict(node) => {
                facts.own_tried = true;
                self.owning(facts)?.evict(node).await?;
                (facts.evicted, facts.given_up) = (true, true);
            }
            Step::Attach => facts.attached = Some(self.driver.attach(name).await?),
            Step::Expand(size) => {
                let info = self.expanding()?.expand(name, *size).await?;
                self.remember(Some(&info));
                (facts.volume, facts.expanded) = (Some(Some(info)), true);
            }
            Step::Grow => facts.grew = Some(self.grow(facts).await.inspect_err(|e| tracing::warn!("its filesystem has not grown: {e}"))),
            Step::Grown => {
                let noted = self.expanding()?.grown(name).await;
                facts.grown = Some(match noted {
                    Ok(info) => {
                        self.remember(Some(&info));
                        facts.volume = Some(Some(info));
                        Ok(())
                    }
                    Err(e) => {
                        tracing::warn!("its filesystem has grown, which could not be written down: {e}");
                        Err(e)
                    }
                });
            }
            Step::Check => {
                let attached = facts.attached.as_ref().ok_or_else(|| Error::internal("nothing to check"))?;
                let fs = info(facts)?.spec.fs;
                let checked = host.filesystems.check(&attached.path, fs).await?;
                tracing::warn!(?checked, "the filesystem had errors and was checked");
                facts.checked = true;
                // To be looked at afresh.
                facts.probe = None;
            }
            Step::Mount => {
                let request = self.mount_request(facts)?;
                facts.mount_tried = true;
                match host.mounts.mount(&request).await? {
                    Tried::Mounted(at) => facts.mounted = Some(at),
                    Tried::Found(probe) => facts.probe = Some(probe),
                }
            }
            Step::Commit if self.job.goal == Goal::Attach => {
                let attached = facts.attached.as_ref().ok_or_else(|| Error::internal("nothing to commit"))?;
                let mut state = lock(&self.lane.state);
                state.entry.kept = Some(attached.number);
                state.entry.intent = None;
                self.engine.persist(&state.entry)?;
                facts.committed = true;
            }
            Step::Commit => {
                let at = facts.mounted.or(facts.at.flatten()).ok_or_else(|| Error::internal("nothing to commit"))?;
                let mut state = lock(&self.lane.state);
                state.entry.staged = Some(Staged { device: at.device, mount_id: at.mount_id });
                state.entry.intent = None;
                self.engine.persist(&state.entry)?;
                facts.committed = true;
            }
            Step::Unmount(device) => facts.unmounted = Some(host.mounts.unmount(&target, *device).await?),
            Step::WhoUses(device) => facts.users = Some(host.mounts.users(*device, &target.path()).await?),
            Step::Detach(device) => {
                let clients = match self.driver.share() {
                    Some(share) => share.mine(name).await?,
                    None => BTreeSet::new(),
                };
                let detached = self.driver.detach(name, *device).await?;
                if detached == Detached::Done {
                    self.closed = clients;
                }
                facts.detached = Some(detached);
            }
            Step::Release => {
                let mut state = lock(&self.lane.state);
                state.entry.staged = None;
                state.entry.intent = None;
                if state.entry.attachers() == 0 {
                    state.entry.kept = None;
                }
                self.engine.persist(&state.entry)?;
                facts.released = true;
            }
            Step::Remove => {
                facts.provision_tried = true;
                let action = self.provision()?.remove(name).await?;
                self.remember(None);
                facts.removed = Some(action);
                // Nobody owns what is not there.
                (facts.own_tried, facts.owned) = (false, false);
            }
            Step::LookForStranger => facts.stranger = Some(self.adopt()?.stranger(name).await?),
            Step::LookInside(fs) => {
                let attached = facts.attached.as_ref().ok_or_else(|| Error::internal("nothing to look into"))?;
                facts.inside = Some(host.filesystems.look_inside(&attached.path, *fs).await?);
            }
            Step::Renew => {
                self.adopt()?.renew(name, self.uuid).await?;
                facts.stranger = Some(self.adopt()?.stranger(name).await?);
                facts.renewed = true;
            }
            Step::Adopt(root_path) => {
                let info = self.adopt()?.adopt(&self.adoption(facts, root_path.clone())?).await?;
                self.remember(Some(&info));
                facts.adopted = true;
            }
            Step::Discard => {
                self.adopt()?.discard(name).await?;
                self.remember(None);
                facts.discarded = true;
            }
            Step::Recover => {
                let done = self.provision()?.recover(name).await?;
                let info = self.driver.inspect(name).await?;
                self.remember(info.as_ref());
                if info.is_none() {
                    // Nobody owns what is not there.
                    (facts.own_tried, facts.owned) = (false, false);
                }
                (facts.volume, facts.recovered) = (Some(info), Some(done));
            }
        }
        Ok(())
    }

    /// An unmount that came to nothing, for the volume is busy or held again, is not under way any more. (Where undoing
    /// failed, the intent stays for the next start.)
    fn settle(&self, facts: &Facts, still_held: bool) -> Result<()> {
        let busy = matches!(facts.unmounted, Some(dunnage_host::Unmounted::Busy));
        // A mount that the ledger does not know by its device keeps the intent: it is all that tells of it.
        let known = facts.staged.is_some();
        let nothing = self.job.goal == Goal::Unstage && known && (busy || still_held);
        // Its own, or that of a daemon that died.
        let written = lock(&self.lane.state).entry.intent.is_some();
        if nothing && written { self.write_intent(None) } else { Ok(()) }
    }

    fn write_intent(&self, intent: Option<Intent>) -> Result<()> {
        let mut state = lock(&self.lane.state);
        state.entry.intent = intent;
        self.engine.persist(&state.entry)
    }

    fn remember(&self, info: Option<&VolumeInfo>) {
        // A list that is being read may be older than this.
        lock(&self.engine.0.touched).insert(self.volume.clone());
        self.engine.0.changes.fetch_add(1, Ordering::AcqRel);
        let mut known = crate::view::write(&self.engine.0.known);
        match info {
            // Half-made volumes are nobody's business yet.
            Some(info) if info.state != VolumeState::Creating => {
                let seen = self.engine.0.settings.clock.now();
                known.insert(self.volume.clone(), Known { info: Arc::new(info.clone()), seen });
            }
            _ => {
                known.remove(self.volume);
            }
        }
    }

    fn owning(&self, facts: &Facts) -> Result<Owning<'_>> {
        let share = self.driver.share().ok_or_else(|| Error::internal("a volume that no other node can have was to be owned"))?;
        let known = self.engine.known(self.volume);
        let info = facts.volume.iter().flatten().next().or(known.as_deref());
        let usual = || crate::view::read(&self.engine.0.settings.preempt).usual;
        let policy = info.map_or_else(usual, |info| self.engine.preempt_of(info));
        Ok(Owning { engine: self.engine, share, volume: self.volume, lane: self.lane, job: self.job, policy })
    }

    fn provision(&self) -> Result<&dyn Provision> {
        self.driver.provision().ok_or_else(|| {
            let detail = format!("driver {} does not make or remove volumes", self.driver.name());
            Error::invalid("driver", detail, "make it with the platform's own tools")
        })
    }

    fn expanding(&self) -> Result<&dyn Expand> {
        self.driver.expand().ok_or_else(|| {
            let detail = format!("driver {} does not make volumes larger", self.driver.name());
            Error::invalid("driver", detail, "make a larger volume, and copy the data into it")
        })
    }

    /// Has the filesystem fill its device, mounted or not.
    async fn grow(&self, facts: &Facts) -> Result<()> {
        let (info, mounted) = (info(facts)?, facts.mounted.or(facts.at.flatten()));
        let attached = facts.attached.as_ref().map(|attached| attached.path.clone());
        let device = attached.or_else(|| mounted.map(|there| there.device.node()));
        self.engine
            .0
            .settings
            .host
            .filesystems
            .grow(&GrowRequest {
                device: device.ok_or_else(|| Error::internal("nothing to grow"))?,
                fs: info.spec.fs,
                uuid: info.fs_uuid.ok_or_else(|| Error::internal("a volume without a filesystem was to grow"))?,
                at: mounted.map(|_| self.engine.target(self.volume).path()),
            })
            .await
    }

    fn adopt(&self) -> Result<&dyn Adopt> {
        self.driver.adopt().ok_or_else(|| {
            let detail = format!("driver {} does not adopt volumes", self.driver.name());
            Error::invalid("driver", detail, "make a volume, and copy the data into it")
        })
    }

    fn adoption(&self, facts: &Facts, root_path: Option<RootPath>) -> Result<Adoption> {
        let Goal::Adopt(wanted) = &self.job.goal else { return Err(Error::internal("nothing is to be adopted")) };
        let stranger = facts.stranger.iter().flatten().next();
        Ok(planner::adoption(wanted, stranger, root_path, &self.volume.name, self.engine.0.settings.clock.now()))
    }

    fn new_storage(&self) -> Result<&std::path::Path> {
        self.path.as_deref().ok_or_else(|| Error::internal("there is no new storage"))
    }

    fn format_request(&self) -> Result<FormatRequest> {
        let Goal::Create { spec, .. } = &self.job.goal else { return Err(Error::internal("nothing is to be formatted")) };
        Ok(FormatRequest {
            path: self.new_storage()?.to_owned(),
            fs: spec.fs,
            uuid: self.uuid,
            uid: spec.uid.unwrap_or(0),
            gid: spec.gid.unwrap_or(0),
            mode: spec.mode.map_or(0o755, dunnage_model::Mode::bits),
            root_path: spec.root_path.clone(),
            options: spec.mount_options.clone(),
        })
    }

    fn mount_request(&self, facts: &Facts) -> Result<MountRequest> {
        let attached = facts.attached.as_ref().ok_or_else(|| Error::internal("nothing to mount"))?;
        let info = info(facts)?;
        Ok(MountRequest {
            device: attached.path.clone(),
            number: attached.number,
            fs: info.spec.fs,
            uuid: info.fs_uuid.ok_or_else(|| Error::internal("a volume without a filesystem was to be mounted"))?,
            target: self.engine.target(self.volume),
            mode: info.spec.access.publish_mode(),
            // A thick volume keeps the space that it was given.
            discard: !info.spec.thick,
            options: info.spec.mount_options.clone(),
            root_path: info.spec.root_path.clone(),
        })
    }
}

fn info(facts: &Facts) -> Result<&VolumeInfo> {
    facts.volume.as_ref().and_then(Option::as_ref).ok_or_else(|| Error::internal("the volume was not looked at"))
}
