//! What every driver must do, as cases that run against any of them: `for case in CASES { case.run(&bench).await }`.
//!
//! A driver's own tests call this with the fake host and with the real one.

use std::future::Future;
use std::pin::Pin;

use dunnage_host::{Detached, FormatRequest, Host};
use dunnage_model::{Bytes, Error, HintPolicy, Owner, PartialSpec, RemoveAction, Result, VolumeName, VolumeState};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{Allocated, Driver, NewVolume, Provision};

/// A driver on an empty platform, and the host beneath it.
pub struct Bench<'a> {
    /// The driver.
    pub driver: &'a dyn Driver,
    /// The host.
    pub host: &'a Host,
    /// Who the volumes are to be, of a driver that others could use at the same time.
    pub maker: Option<Owner>,
}

type Run = for<'a> fn(&'a Bench<'a>) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// One thing that a driver must do.
pub struct Case {
    /// In a sentence.
    pub name: &'static str,
    run: Run,
}

impl Case {
    /// Runs it; the error says what was not as it should be.
    pub async fn run(&self, bench: &Bench<'_>) -> Result<()> {
        (self.run)(bench).await
    }
}

macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        /// All of them. Each leaves the platform as empty as it found it.
        pub const CASES: &[Case] = &[$(Case { name: stringify!($case), run: |bench| Box::pin($case(bench)) }),+];
    };
}

cases! {
    a_volume_that_was_never_made_is_nowhere,
    a_made_volume_is_found_and_listed_with_what_was_asked,
    a_half_made_volume_is_not_ready_and_cannot_be_attached,
    names_differ_by_letter_case,
    attaching_twice_gives_one_device,
    a_detached_volume_is_detached_and_doing_it_again_is_nothing,
    an_attached_volume_is_not_removed,
    a_removed_volume_is_gone_and_removing_it_again_is_nothing,
    a_volume_grows_attached_or_not_and_never_shrinks,
    recovery_undoes_a_half_made_volume_and_leaves_a_finished_one,
}

fn expect(truth: bool, what: impl Into<String>) -> Result<()> {
    if truth { Ok(()) } else { Err(Error::internal(what)) }
}

impl Bench<'_> {
    fn provision(&self) -> Result<&dyn Provision> {
        self.driver.provision().ok_or_else(|| Error::internal("this driver makes no volumes"))
    }

    fn new_volume(&self, name: &str) -> Result<NewVolume> {
        let asked = PartialSpec { size: Some("64MiB".parse()?), ..Default::default() };
        let spec = self.driver.complete(asked, &PartialSpec::default(), HintPolicy::Refuse)?;
        let (name, endpoint, created) = (name.parse()?, "conformance".parse()?, Timestamp::UNIX_EPOCH);
        Ok(NewVolume { name, endpoint, spec, created, maker: self.maker.clone() })
    }

    /// Makes a volume by the whole road.
    async fn make(&self, name: &str) -> Result<VolumeName> {
        let new = self.new_volume(name)?;
        let provision = self.provision()?;
        provision.record(&new).await?;
        let Allocated { path, attached } = provision.allocate(&new.name).await?;
        let uuid = Uuid::from_u128(7);
        provision.formatting(&new.name, uuid).await?;
        let request = FormatRequest::plain(path, new.spec.fs, uuid);
        self.host.filesystems.format(&request).await?;
        if attached {
            let detached = self.driver.detach(&new.name, None).await?;
            expect(detached == Detached::Done, format!("its new device is {detached:?}"))?;
        }
        provision.publish(&new.name).await?;
        Ok(new.name)
    }

    async fn remove(&self, name: &VolumeName) -> Result<()> {
        expect(self.provision()?.remove(name).await? == RemoveAction::Removed, "it was not there to be removed")
    }
}

async fn a_volume_that_was_never_made_is_nowhere(bench: &Bench<'_>) -> Result<()> {
    let name: VolumeName = "never-made".parse()?;
    expect(bench.driver.inspect(&name).await?.is_none(), "inspect finds it")?;
    expect(bench.driver.list().await?.volumes.iter().all(|v| v.id.name != name), "list has it")?;
    let error = bench.driver.attach(&name).await.err();
    expect(error.as_ref().map(Error::word) == Some("not_found"), format!("attach says {error:?}"))?;
    expect(bench.driver.detach(&name, None).await? == Detached::NotThere, "detach finds it")
}

async fn a_made_volume_is_found_and_listed_with_what_was_asked(bench: &Bench<'_>) -> Result<()> {
    let name = bench.make("made").await?;
    let asked = bench.new_volume("made")?;
    let info = bench.driver.inspect(&name).await?.ok_or_else(|| Error::internal("inspect does not find it"))?;
    expect(info.state == VolumeState::Ready, format!("it is {}", info.state))?;
    expect(info.spec == asked.spec && info.endpoint == asked.endpoint && info.created == asked.created, "it is not what was asked")?;
    expect(info.fs_uuid == Some(Uuid::from_u128(7)), "its filesystem's UUID is not the recorded one")?;
    expect(bench.driver.list().await?.volumes.iter().any(|v| v.id == info.id), "list does not have it")?;
    bench.remove(&name).await
}

async fn a_half_made_volume_is_not_ready_and_cannot_be_attached(bench: &Bench<'_>) -> Result<()> {
    let new = bench.new_volume("half-made")?;
    bench.provision()?.record(&new).await?;
    let info = bench.driver.inspect(&new.name).await?;
    expect(info.map(|i| i.state) == Some(VolumeState::Creating), "it is not shown as being made")?;
    expect(bench.driver.attach(&new.name).await.is_err(), "it was attached")?;
    bench.remove(&new.name).await
}

async fn names_differ_by_letter_case(bench: &Bench<'_>) -> Result<()> {
    let (low, high) = (bench.make("case").await?, bench.make("CASE").await?);
    bench.remove(&low).await?;
    expect(bench.driver.inspect(&high).await?.is_some(), "removing one removed the other")?;
    bench.remove(&high).await
}

async fn attaching_twice_gives_one_device(bench: &Bench<'_>) -> Result<()> {
    let name = bench.make("twice").await?;
    let first = bench.driver.attach(&name).await?;
    let second = bench.driver.attach(&name).await?;
    expect(!first.found && second.found && first.number == second.number, format!("{first:?} and then {second:?}"))?;
    expect(
        bench.driver.attachments().await?.iter().any(|a| a.name == name && a.number == first.number),
        "it is not among what this node has attached",
    )?;
    bench.driver.detach(&name, Some(first.number)).await?;
    bench.remove(&name).await
}

async fn a_detached_volume_is_detached_and_doing_it_again_is_nothing(bench: &Bench<'_>) -> Result<()> {
    let name = bench.make("detach").await?;
    bench.driver.attach(&name).await?;
    // Without the caller's memory: the host knows.
    expect(bench.driver.detach(&name, None).await? == Detached::Done, "it is not detached")?;
    expect(bench.driver.detach(&name, None).await? == Detached::NotThere, "it is detached twice")?;
    expect(bench.driver.attachments().await?.iter().all(|a| a.name != name), "it is among what is attached still")?;
    bench.remove(&name).await
}

async fn an_attached_volume_is_not_removed(bench: &Bench<'_>) -> Result<()> {
    let name = bench.make("in-use").await?;
    let device = bench.driver.attach(&name).await?;
    let error = bench.provision()?.remove(&name).await.err();
    expect(error.as_ref().map(Error::word) == Some("in_use"), format!("remove says {error:?}"))?;
    expect(bench.driver.inspect(&name).await?.is_some_and(|i| i.state == VolumeState::Ready), "the refused removal left a mark")?;
    bench.driver.detach(&name, Some(device.number)).await?;
    bench.remove(&name).await
}

async fn a_removed_volume_is_gone_and_removing_it_again_is_nothing(bench: &Bench<'_>) -> Result<()> {
    let name = bench.make("removed").await?;
    bench.remove(&name).await?;
    expect(bench.driver.inspect(&name).await?.is_none(), "inspect finds it")?;
    expect(bench.provision()?.remove(&name).await? == RemoveAction::NotThere, "it was removed twice")
}

async fn a_volume_grows_attached_or_not_and_never_shrinks(bench: &Bench<'_>) -> Result<()> {
    let Some(larger) = bench.driver.expand() else { return Ok(()) };
    let name = bench.make("larger").await?;
    let device = || async { Ok::<_, Error>(bench.driver.attach(&name).await?.number) };
    for (mib, attached) in [(96, false), (96, false), (128, true), (100, true)] {
        let before = if attached { Some(device().await?) } else { None };
        let info = larger.expand(&name, Bytes::mib(mib)).await?;
        expect(info.spec.size == Bytes::mib(mib.max(if attached { 128 } else { 0 })), format!("it has {}", info.spec.size))?;
        expect(bench.driver.inspect(&name).await?.is_some_and(|seen| seen == info), "inspect says something else")?;
        expect(before.is_none() || before == Some(device().await?), "it got another device")?;
    }
    expect(!larger.grown(&name).await?.growing, "its filesystem is behind still")?;
    bench.driver.detach(&name, None).await?;
    bench.remove(&name).await
}

async fn recovery_undoes_a_half_made_volume_and_leaves_a_finished_one(bench: &Bench<'_>) -> Result<()> {
    let whole = bench.make("whole").await?;
    let half = bench.new_volume("half")?;
    bench.provision()?.record(&half).await?;
    if bench.provision()?.allocate(&half.name).await?.attached {
        bench.driver.detach(&half.name, None).await?;
    }
    bench.provision()?.recover(&half.name).await?;
    bench.provision()?.recover(&whole).await?;
    expect(bench.driver.inspect(&half.name).await?.is_none(), "the half-made one is there still")?;
    expect(bench.driver.inspect(&whole).await?.is_some_and(|i| i.state == VolumeState::Ready), "the finished one is not")?;
    bench.remove(&whole).await
}
