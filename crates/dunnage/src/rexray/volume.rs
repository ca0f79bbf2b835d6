//! `rexray volume …`: what is meant is settled before anything is done, and what was done is printed whatever comes after.

use std::collections::BTreeMap;

use dunnage_engine::VolumeView;
use dunnage_frontend_admin::wire::{Attached, CreateBody, Created, Drivers, Mounted, Removed, Status, Unmounted, Volumes};
use dunnage_model::{Bytes, CreateAction, Error, HERE, Kind, Result, UnmountAction, VolumeName};

use super::args::{CreateArgs, Several, VolumeCommand};
use super::daemon::{Daemon, get, order};
use super::matching::{self, Purpose};
use super::note;
use super::print::{Answer, Format};
use super::shape::{Attachment, InstanceId, State, Volume, gibibytes};

/// Who is asked, and about which service.
pub struct Asked<'a> {
    pub daemon: &'a dyn Daemon,
    /// A driver's or an endpoint's name.
    pub service: Option<String>,
}

/// What `--service` stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    pub driver: Option<String>,
    pub endpoint: Option<String>,
}

/// What came of a command.
#[derive(Debug)]
pub struct Done {
    /// For stdout.
    pub said: String,
    /// For stderr.
    pub failed: Vec<Error>,
}

const NOTHING: () = ();

impl Asked<'_> {
    /// The driver or the endpoint that the service is.
    pub fn chosen(&self) -> Result<Chosen> {
        let Some(service) = &self.service else { return Ok(Chosen::default()) };
        let status: Status = get(self.daemon, "/v1/status")?;
        if let Some(endpoint) = status.endpoints.iter().find(|e| e.name.eq_ignore_ascii_case(service)) {
            return Ok(Chosen { driver: Some(endpoint.driver.clone()), endpoint: Some(endpoint.name.clone()) });
        }
        let drivers: Drivers = get(self.daemon, "/v1/drivers")?;
        let mut known: Vec<String> = drivers.iter().map(|driver| driver.name.to_string()).collect();
        if let Some(driver) = known.iter().find(|driver| driver.eq_ignore_ascii_case(service)) {
            return Ok(Chosen { driver: Some(driver.clone()), endpoint: None });
        }
        known.extend(status.endpoints.into_iter().map(|endpoint| endpoint.name));
        let detail = format!("there is no driver and no endpoint {service:?}");
        Err(Error::invalid("service", detail, format!("there are: {}", known.join(", "))))
    }

    /// Every volume of the service, by name.
    fn volumes(&self) -> Result<Vec<Volume>> {
        let chosen = self.chosen()?;
        let node = get::<Status>(self.daemon, "/v1/status")?.node;
        let uri = format!("/v1/volumes{}", chosen.driver.map(|driver| format!("?driver={driver}")).unwrap_or_default());
        let answer: Volumes = get(self.daemon, &uri)?;
        answer.notes.iter().for_each(|sentence| note(sentence));
        let ours = answer.volumes.iter().filter(|v| chosen.endpoint.as_ref().is_none_or(|endpoint| endpoint == v.info.endpoint.as_str()));
        let mut volumes: Vec<Volume> = ours.map(|view| Volume::of(view, &node)).collect();
        volumes.sort_by(|a, b| (&a.name, &a.kind).cmp(&(&b.name, &b.kind)));
        Ok(volumes)
    }

    /// The volumes that arguments mean, each once. A regular expression means those only that `why_not` has nothing against.
    fn meant(&self, several: &Several, purpose: Purpose, why_not: impl Fn(&Volume) -> Option<Error>) -> Result<Vec<Result<Volume>>> {
        let all = self.volumes()?;
        let mut meant: Vec<Result<Volume>> = Vec::new();
        for argument in &several.volumes {
            let found = matching::meant(&all, argument, purpose).and_then(|mut found| {
                let refused = found.iter().find_map(|volume| why_not(volume));
                found.retain(|volume| why_not(volume).is_none());
                match refused {
                    Some(error) if found.is_empty() => Err(error),
                    _ => Ok(found),
                }
            });
            match found {
                Ok(found) => {
                    for volume in found {
                        if !meant.iter().flatten().any(|before| before == volume) {
                            meant.push(Ok(volume.clone()));
                        }
                    }
                }
                Err(error) if several.continue_on_error => meant.push(Err(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(meant)
    }

    /// The same volumes as they are now, or as they were if that cannot be found out.
    fn afresh(&self, done: Vec<Volume>) -> Vec<Volume> {
        let now = if done.is_empty() { Vec::new() } else { self.volumes().unwrap_or_default() };
        let fresh = |old: Volume| {
            let path = old.path.clone();
            let new = now.iter().find(|new| (&new.name, &new.kind) == (&old.name, &old.kind)).cloned();
            Volume { path, ..new.unwrap_or(old) }
        };
        done.into_iter().map(fresh).collect()
    }

    fn on<T: serde::de::DeserializeOwned>(&self, method: &str, volume: &Volume, verb: &str) -> Result<T> {
        // A checked name needs no escaping in a path.
        let uri = format!("/v1/volumes/{}{verb}?driver={}", volume.name, volume.kind);
        order(self.daemon, method, &uri, &NOTHING)
    }
}

/// Does something with one after the other, until one fails that may not.
fn one_by_one<A, T>(all: Vec<Result<A>>, go_on: bool, mut work: impl FnMut(A) -> Result<T>) -> (Vec<T>, Vec<Error>) {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for one in all {
        match one.and_then(&mut work) {
            Ok(result) => done.push(result),
            Err(error) => {
                failed.push(error);
                if !go_on {
                    break;
                }
            }
        }
    }
    (done, failed)
}

/// `rexray volume …`
pub fn volume(asked: &Asked<'_>, format: &Format, dry_run: bool, command: VolumeCommand) -> Result<Done> {
    let finish = |answer: Answer, failed| Ok(Done { said: answer.print(format)?, failed });
    match command {
        VolumeCommand::Ls { volumes, attached, available, path } => {
            let all = asked.volumes()?;
            let mut fits = Vec::new();
            for argument in &volumes {
                fits.extend(matching::meant(&all, argument, Purpose::Show)?);
            }
            let shown = all.iter().filter(|volume| volumes.is_empty() || fits.contains(volume)).filter(|volume| {
                let state = volume.attachment_state;
                match (attached || path, available) {
                    (true, _) => state == State::Attached,
                    (false, true) => state == State::Available,
                    (false, false) => true,
                }
            });
            let with_path = |volume: Volume| {
                let at = if dry_run { String::new() } else { volume.mount_point().to_owned() };
                volume.at(at)
            };
            let shown = shown.cloned().map(|volume| if path { with_path(volume) } else { volume }).collect();
            finish(Answer::volumes(shown, path), Vec::new())
        }
        VolumeCommand::Create(args) => create(asked, format, dry_run, args),
        VolumeCommand::Rm { several, force: _ } => {
            let meant = asked.meant(&several, Purpose::Remove, |_| None)?;
            let (done, failed) = one_by_one(meant, several.continue_on_error, |volume| {
                if !dry_run {
                    asked.on::<Removed>("DELETE", &volume, "")?;
                }
                Ok(volume.name)
            });
            finish(Answer::names(done), failed)
        }
        VolumeCommand::Attach { several, force, idempotent } => {
            let there = |volume: &Volume| {
                let refused = !(force || idempotent) && volume.attachment_state == State::Attached;
                refused.then(|| already(volume, "it is attached already"))
            };
            let meant = asked.meant(&several, Purpose::Change, there)?;
            let (done, failed) = one_by_one(meant, several.continue_on_error, |volume| {
                if !dry_run {
                    asked.on::<Attached>("POST", &volume, "/attach")?;
                }
                Ok(volume)
            });
            let done = if dry_run { done } else { asked.afresh(done) };
            finish(Answer::volumes(done, false), failed)
        }
        VolumeCommand::Detach { several, force: _, idempotent } => {
            let_go(asked, format, dry_run, &several, &Undo { verb: "/detach", participle: "attached", idempotent })
        }
        VolumeCommand::Unmount { several, idempotent } => {
            let_go(asked, format, dry_run, &several, &Undo { verb: "/unmount", participle: "mounted", idempotent })
        }
        VolumeCommand::Mount { several, overwrite_fs, fs_type, idempotent } => {
            overwrite(overwrite_fs);
            let meant = asked.meant(&several, Purpose::Change, |_| None)?;
            let (done, failed) = one_by_one(meant, several.continue_on_error, |volume| {
                other_fs(&volume, &fs_type);
                if dry_run {
                    let at = if idempotent { volume.mount_point().to_owned() } else { String::new() };
                    return Ok(volume.at(at));
                }
                // Whether it is mounted already makes no difference: this command line is one holder, however often it asks.
                let mounted: Mounted = asked.on("POST", &volume, "/mount")?;
                Ok(volume.at(mounted.path))
            });
            let done = if dry_run { done } else { asked.afresh(done) };
            finish(Answer::volumes(done, true), failed)
        }
    }
}

fn already(volume: &Volume, detail: &str) -> Error {
    named(Error::new(Kind::ExistsIncompatible, format!("no volumes found: {detail}"), "add -i where that is fine"), volume)
}

fn named(error: Error, volume: &Volume) -> Error {
    match volume.name.parse() {
        Ok(name) => error.of(&name),
        Err(_) => error,
    }
}

/// What takes a mount or an attachment back.
struct Undo {
    verb: &'static str,
    participle: &'static str,
    idempotent: bool,
}

fn let_go(asked: &Asked<'_>, format: &Format, dry_run: bool, several: &Several, undo: &Undo) -> Result<Done> {
    let free = |volume: &Volume| volume.attachment_state != State::Attached;
    let not_there =
        |volume: &Volume| (!undo.idempotent && free(volume)).then(|| already(volume, &format!("it is not {}", undo.participle)));
    let meant = asked.meant(several, Purpose::Change, not_there)?;
    let (done, failed) = one_by_one(meant, several.continue_on_error, |volume| {
        if free(&volume) {
            return Ok(volume);
        }
        if dry_run {
            return Ok(volume.let_go());
        }
        let undone: Unmounted = asked.on("POST", &volume, undo.verb)?;
        match undone.action {
            UnmountAction::NotHeld if !volume.mount_point().is_empty() => {
                let detail = format!("it is {}, and not by this command line: nothing was done", undo.participle);
                return Err(named(Error::in_use(vec![], HERE, detail, "'dunnage holder ls' shows who holds it"), &volume));
            }
            // An unmount detaches as well, as REX-Ray's did: this command line's own hold on the device goes with it.
            _ if undo.verb == "/unmount" && undone.action != UnmountAction::StillHeld => {
                asked.on::<Unmounted>("POST", &volume, "/detach")?;
            }
            UnmountAction::StillHeld => note(&format!("{}: {}, it stays {}", volume.name, undone.action, undo.participle)),
            _ => {}
        }
        if !undone.lingering.is_empty() {
            let who = undone.lingering.join(", ");
            note(&format!("{}: its device stays attached: a copy of the mount lives on in {who}", volume.name));
        }
        Ok(volume)
    });
    let done = if dry_run { done } else { asked.afresh(done) };
    Ok(Done { said: Answer::volumes(done, false).print(format)?, failed })
}

/// Old apps send it at every launch.
fn overwrite(asked: bool) {
    if asked {
        note("--overwriteFS does nothing: data is never overwritten");
    }
}

fn other_fs(volume: &Volume, asked: &str) {
    if let Some(fs) = volume.fields.get("fs").filter(|fs| !asked.is_empty() && !fs.eq_ignore_ascii_case(asked)) {
        note(&format!("{}: --fsType {asked} does nothing: it has {fs} since it was created", volume.name));
    }
}

fn create(asked: &Asked<'_>, format: &Format, dry_run: bool, args: CreateArgs) -> Result<Done> {
    let options = options(&args)?;
    let names: Vec<Result<VolumeName>> = args.names.iter().map(|name| name.parse()).collect();
    if let Some(error) = names.iter().find_map(|name| name.as_ref().err()).filter(|_| !args.continue_on_error) {
        return Err(error.clone());
    }
    overwrite(args.overwrite_fs);
    let chosen = asked.chosen()?;
    let node = if args.amount { get::<Status>(asked.daemon, "/v1/status")?.node } else { String::new() };
    let (done, failed) = one_by_one(names, args.continue_on_error, |name| {
        if dry_run {
            let volume = imagined(&args, &options, &name, &node)?;
            return Ok(if args.amount { volume.at("") } else { volume });
        }
        let body = CreateBody {
            name: name.to_string(),
            driver: chosen.driver.clone(),
            endpoint: chosen.endpoint.clone(),
            options: options.clone(),
            image: None,
        };
        let created: Created = order(asked.daemon, "POST", "/v1/volumes", &body)?;
        if created.action == CreateAction::AlreadyThere {
            let detail = "there is a volume of that name already; nothing was done";
            return Err(Error::new(Kind::ExistsIncompatible, detail, "use it, or choose another name").of(&name));
        }
        for hint in &created.unheeded {
            note(&format!("{name}: the hint {}={} is not followed", hint.key, hint.value));
        }
        let view =
            VolumeView { info: created.volume, age: 0, mountpoint: None, device: None, holders: vec![], missing: vec![], jobs: vec![] };
        let volume = Volume::of(&view, &node);
        if args.amount {
            // A mount attaches.
            let mounted: Mounted = asked.on("POST", &volume, "/mount")?;
            return Ok(volume.at(mounted.path));
        }
        if args.attach {
            asked.on::<Attached>("POST", &volume, "/attach")?;
        }
        Ok(volume)
    });
    let done = if dry_run || !(args.attach || args.amount) { done } else { asked.afresh(done) };
    if done.is_empty() && !failed.is_empty() {
        return Ok(Done { said: String::new(), failed });
    }
    Ok(Done { said: Answer::volumes(done, args.amount).print(format)?, failed })
}

/// What the flags ask for, in the daemon's words.
fn options(args: &CreateArgs) -> Result<BTreeMap<String, String>> {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let size = given(&args.size).filter(|size| size.trim() != "0");
    if let Some(size) = &size {
        size.parse::<Bytes>()?;
    }
    let options = [
        ("size", size),
        ("type", given(&args.volume_type)),
        ("iops", (args.iops > 0).then(|| args.iops.to_string())),
        ("availabilityZone", given(&args.availability_zone)),
        ("fs", given(&args.fs_type)),
        ("encrypted", args.encrypted.then(|| "true".to_owned())),
        ("encryptionKey", given(&args.encryption_key)),
        ("snapshotID", given(&args.snapshot_id)),
        ("overwriteFs", args.overwrite_fs.then(|| "true".to_owned())),
    ];
    Ok(options.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

/// What a dry run shows: the words that were given.
fn imagined(args: &CreateArgs, options: &BTreeMap<String, String>, name: &VolumeName, node: &str) -> Result<Volume> {
    let size = options.get("size").map(|size| size.parse::<Bytes>()).transpose()?;
    let here = || Attachment { instance: InstanceId { id: node.to_owned(), ..InstanceId::default() }, ..Attachment::default() };
    Ok(Volume {
        name: name.to_string(),
        size: size.map_or(0, gibibytes),
        kind: args.volume_type.clone(),
        iops: args.iops,
        availability_zone: args.availability_zone.clone(),
        encrypted: args.encrypted,
        attachments: args.amount.then(here).into_iter().collect(),
        attachment_state: if args.attach || args.amount { State::Attached } else { State::Unsaid },
        ..Volume::default()
    })
}
