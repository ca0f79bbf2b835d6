//! The commands that ask the daemon: volumes and drivers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use dunnage_engine::{Evicted, Missing, NodeView, VolumeView};
use dunnage_frontend_admin::AdminClient;
use dunnage_frontend_admin::wire::{
    AdoptBody, Adopted, Attached, CreateBody, Created, Drivers, FenceBody, Fenced, Held, Inspected, Mounted, Nodes, ReleaseBody, Removed,
    ResizeBody, Resized, Strangers, Unmounted, Volumes,
};
use dunnage_host::Probe;
use dunnage_model::{Client, Error, Holder, NodeId, OwnerRecord, OwnerState, Result, UnmountAction, VolumeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::{HolderCommand, NodeArgs, NodeCommand, OutputArgs, VolumeCommand, WhichArgs, patience};
use crate::config::Places;
use crate::output;

/// One call to the daemon, from a command that does nothing else.
pub fn ask<T: DeserializeOwned>(places: &Places, patience: Duration, method: &str, uri: &str, body: &impl Serialize) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
    runtime.block_on(AdminClient::new(&places.run_dir, patience).ask(method, uri, body))
}

const USUAL: Duration = Duration::from_secs(30);
pub const NOTHING: () = ();

pub fn uri(which: &WhichArgs, verb: &str) -> Result<String> {
    // A checked name needs no escaping in a path.
    let name: dunnage_model::VolumeName = which.name.parse()?;
    let driver = which.driver.as_deref().map(str::parse::<dunnage_model::DriverName>).transpose()?;
    Ok(format!("/v1/volumes/{name}{verb}{}", driver.map(|d| format!("?driver={d}")).unwrap_or_default()))
}

/// `dunnage volume …`
pub fn volume(places: &Places, command: VolumeCommand) -> Result<()> {
    match command {
        VolumeCommand::Ls { quiet, driver, output } => {
            let driver = driver.as_deref().map(str::parse::<dunnage_model::DriverName>).transpose()?;
            let uri = format!("/v1/volumes{}", driver.map(|d| format!("?driver={d}")).unwrap_or_default());
            let volumes: Volumes = ask(places, USUAL, "GET", &uri, &NOTHING)?;
            for note in &volumes.notes {
                eprintln!("dunnage: {note}");
            }
            if quiet {
                volumes.volumes.iter().for_each(|volume| println!("{}", volume.info.id.name));
                return Ok(());
            }
            output::print(&volumes.volumes, output.output, |volumes| {
                let row = |v: &VolumeView| {
                    vec![
                        v.info.id.name.to_string(),
                        v.info.id.driver.to_string(),
                        v.info.spec.shown_size(),
                        v.info.spec.fs.to_string(),
                        v.state(),
                        v.holders.iter().map(|h| h.total()).sum::<u32>().to_string(),
                        v.mountpoint.clone().unwrap_or_else(|| "-".to_owned()),
                    ]
                };
                output::table(&["NAME", "DRIVER", "SIZE", "FS", "STATE", "HOLDERS", "MOUNTPOINT"], volumes.iter().map(row))
            })
        }
        VolumeCommand::Inspect { which, output } => {
            let inspected: Inspected = ask(places, which.patience()?, "GET", &uri(&which, "")?, &NOTHING)?;
            output::print(&inspected, output.output, describe)
        }
        VolumeCommand::Create { which, options, endpoint } => create(places, &which, options, endpoint, None),
        VolumeCommand::Import { made, image, options, endpoint } => {
            let image = std::path::absolute(&image).map_err(|e| Error::os(image.display(), &e))?;
            create(places, &made, options, endpoint, Some(image))
        }
        VolumeCommand::Export { which, file } => crate::export::run(places, &which, &file),
        VolumeCommand::Adopt { name, driver, endpoint, all: _, r#match, dry_run, root_path, overwrite, timeout } => {
            let patience = patience(timeout)?;
            let body = AdoptBody { driver, endpoint, root_path, overwrite };
            match name {
                Some(name) => adopt(places, patience, &name.parse()?, &body),
                None => adopt_all(places, patience, &body, r#match.as_deref(), dry_run),
            }
        }
        VolumeCommand::Resize { which, size } => {
            let Resized { action, volume } = ask(places, which.patience()?, "POST", &uri(&which, "/resize")?, &ResizeBody { size })?;
            eprintln!("{}: {action} ({})", volume.id, volume.spec.shown_size());
            println!("{}", volume.id.name);
            Ok(())
        }
        VolumeCommand::Rm { which } => {
            let removed: Removed = ask(places, which.patience()?, "DELETE", &uri(&which, "")?, &NOTHING)?;
            eprintln!("{}: {}", which.name, removed.action);
            println!("{}", which.name);
            Ok(())
        }
        VolumeCommand::Attach { which } => {
            let attached: Attached = ask(places, which.patience()?, "POST", &uri(&which, "/attach")?, &NOTHING)?;
            eprintln!("{}: {}", which.name, attached.action);
            println!("{}", attached.device);
            Ok(())
        }
        VolumeCommand::Detach { which } => {
            let done: Unmounted = ask(places, which.patience()?, "POST", &uri(&which, "/detach")?, &NOTHING)?;
            let what = if done.action == UnmountAction::NotHeld { "was not attached by the command line" } else { "detached" };
            eprintln!("{}: {what}", which.name);
            if !done.lingering.is_empty() {
                eprintln!("its device stays attached: a copy of the mount lives on in {}", done.lingering.join(", "));
            }
            Ok(())
        }
        VolumeCommand::Mount { which } => {
            let mounted: Mounted = ask(places, which.patience()?, "POST", &uri(&which, "/mount")?, &NOTHING)?;
            eprintln!("{}: {}", which.name, mounted.action);
            println!("{}", mounted.path);
            Ok(())
        }
        VolumeCommand::Unmount { which } => {
            let done: Unmounted = ask(places, which.patience()?, "POST", &uri(&which, "/unmount")?, &NOTHING)?;
            eprintln!("{}: {}", which.name, done.action);
            if !done.lingering.is_empty() {
                eprintln!("its device stays attached: a copy of the mount lives on in {}", done.lingering.join(", "));
            }
            Ok(())
        }
    }
}

fn create(places: &Places, which: &WhichArgs, options: Vec<String>, endpoint: Option<String>, image: Option<PathBuf>) -> Result<()> {
    which.name.parse::<dunnage_model::VolumeName>()?;
    let mut body = CreateBody { name: which.name.clone(), driver: which.driver.clone(), endpoint, options: Default::default(), image };
    for option in options {
        let Some((key, value)) = option.split_once('=') else {
            let detail = format!("option {option:?} has no value");
            return Err(Error::invalid(option, detail, "write it as key=value, for example size=2G"));
        };
        if body.options.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Error::invalid(key, format!("option {key:?} is given twice"), "give it once"));
        }
    }
    let created: Created = ask(places, which.patience()?, "POST", "/v1/volumes", &body)?;
    for hint in &created.unheeded {
        eprintln!("dunnage: the hint {}={} is not followed", hint.key, hint.value);
    }
    eprintln!("{}: {} ({}, {})", created.volume.id, created.action, created.volume.spec.shown_size(), created.volume.spec.fs);
    println!("{}", created.volume.id.name);
    Ok(())
}

fn adopt(places: &Places, patience: Duration, name: &dunnage_model::VolumeName, body: &AdoptBody) -> Result<()> {
    let Adopted { action, volume } = ask(places, patience, "POST", &format!("/v1/volumes/{name}/adopt"), body)?;
    let shown = volume.spec.root_path.as_ref().map(|path| format!(", containers are given its {path}")).unwrap_or_default();
    eprintln!("{}: {action} ({}, {}, endpoint {}{shown})", volume.id, volume.spec.shown_size(), volume.spec.fs, volume.endpoint);
    println!("{name}");
    Ok(())
}

/// One after the other: what cannot be adopted keeps nothing else from it.
fn adopt_all(places: &Places, patience: Duration, body: &AdoptBody, pattern: Option<&str>, dry_run: bool) -> Result<()> {
    let pattern = pattern.map(|text| regex::Regex::new(&format!("^(?:{text})$"))).transpose();
    let pattern = pattern.map_err(|e| Error::invalid("match", format!("--match: {e}"), "write a regular expression, such as 'db-.*'"))?;
    let uri = format!("/v1/strangers{}", body.driver.as_ref().map(|d| format!("?driver={d}")).unwrap_or_default());
    let Strangers { mut strangers, notes } = ask(places, patience, "GET", &uri, &NOTHING)?;
    for note in &notes {
        eprintln!("dunnage: {note}");
    }
    strangers.retain(|(_, stranger)| pattern.as_ref().is_none_or(|pattern| pattern.is_match(stranger.name.as_str())));
    if strangers.is_empty() {
        eprintln!("there is nothing to adopt");
    }
    let mut failed = None;
    for (driver, stranger) in strangers {
        if dry_run {
            let copy = stranger.copy_of.as_ref().map(|of| format!(", a copy of {of}: it gets a UUID of its own")).unwrap_or_default();
            let what = match &stranger.found {
                Probe::Known(known) => format!("would be adopted: {} with {}{copy}", stranger.size, known.fs),
                Probe::Blank => "has nothing on it".to_owned(),
                Probe::Unknown { signature } => format!("has {signature} on it, and no filesystem"),
            };
            eprintln!("{driver}/{}: {what} ({})", stranger.name, stranger.place);
            println!("{}", stranger.name);
            continue;
        }
        let body = AdoptBody { driver: Some(driver.to_string()), ..body.clone() };
        if let Err(e) = adopt(places, patience, &stranger.name, &body) {
            eprintln!("dunnage: {e}");
            failed.get_or_insert(e);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn describe(inspected: &Inspected) -> String {
    let Inspected { volume, node, space, ownership, owner, preempt, notes } = inspected;
    let spec = &volume.info.spec;
    let mut rows = vec![
        ("name", volume.info.id.name.to_string()),
        ("driver", volume.info.id.driver.to_string()),
        ("endpoint", volume.info.endpoint.to_string()),
        ("node", node.clone()),
        ("state", volume.state()),
        ("size", spec.shown_size() + if volume.info.growing { " (its filesystem grows when it is mounted next)" } else { "" }),
        ("used", space.map_or("unknown while it is not mounted".to_owned(), |s| format!("{} ({} free)", s.used, s.available))),
        ("fs", format!("{}{}", spec.fs, volume.info.fs_uuid.map(|uuid| format!(" {uuid}")).unwrap_or_default())),
        ("created", format!("{:.0}", volume.info.created)),
        ("mounted at", volume.mountpoint.clone().unwrap_or_else(|| "-".to_owned())),
    ];
    let device = volume.device.filter(|device| device.folder.is_none());
    rows.extend(device.map(|device| ("device", device.node().display().to_string())));
    let thick = if spec.thick { " (thick)" } else { "" };
    rows.extend(volume.info.usage.spent.map(|spent| ("spent", format!("{spent} of the pool{thick}"))));
    if let Some(why) = &volume.info.why {
        rows.push(("why", why.clone()));
    }
    rows.extend(ownership.iter().flat_map(owner_rows));
    rows.extend(owner.iter().map(|owner| ("its node is", format!("{}: {}", owner.state.word(), owner.how))));
    rows.extend(preempt.iter().map(|preempt| ("preempt", format!("{preempt} (for a mount on this node)"))));
    if volume.holders.is_empty() {
        let here = if ownership.is_some() { " on this node" } else { "" };
        rows.push(("holders", format!("nobody{here}")));
    }
    rows.extend(volume.holders.iter().map(|holder| {
        let gone = gone(&volume.missing, holder).map(|gone| format!(" (its container is gone {gone})"));
        ("holder", format!("{holder}{}", gone.unwrap_or_default()))
    }));
    rows.extend(spec.root_path.iter().map(|path| ("shown", format!("{path} of it"))));
    rows.extend((!spec.mount_options.is_empty()).then(|| ("mounted with", spec.mount_options.to_string())));
    rows.extend(spec.hints.iter().map(|(key, value)| ("unheeded", format!("{key}={value}"))));
    rows.extend(spec.labels.iter().map(|(key, value)| ("label", format!("{key}={value}"))));
    rows.extend(
        volume
            .jobs
            .iter()
            .map(|job| ("under way", format!("{} at step {} since {:.0} [{}]", job.goal, job.step, job.since, job.operation))),
    );
    rows.extend(notes.iter().map(|note| ("note", note.clone())));
    output::pairs(&rows)
}

fn gone(missing: &[Missing], holder: &Holder) -> Option<String> {
    let missing = missing.iter().find(|missing| missing.holder == holder.key)?;
    let kept = missing.kept.as_ref().map(|why| format!("; kept: {why}")).unwrap_or_default();
    Some(format!("since {:.0}, says {}{kept}", missing.since, missing.witness))
}

/// `dunnage holder …`
pub fn holder(places: &Places, command: HolderCommand) -> Result<()> {
    match command {
        HolderCommand::Ls { gone: only_gone, output } => {
            let mut held: Held = ask(places, USUAL, "GET", "/v1/holders", &NOTHING)?;
            if only_gone {
                for held in &mut held {
                    held.holders.retain(|holder| held.missing.iter().any(|missing| missing.holder == holder.key));
                }
                held.retain(|held| !held.holders.is_empty());
            }
            output::print(&held, output.output, |held| {
                let row = |volume: &VolumeId, holder: &Holder, missing: &[Missing]| {
                    vec![
                        volume.name.to_string(),
                        volume.driver.to_string(),
                        holder.key.to_string(),
                        holder.total().to_string(),
                        format!("{:.0}", holder.since),
                        gone(missing, holder).unwrap_or_else(|| "-".to_owned()),
                    ]
                };
                let rows = held.iter().flat_map(|held| held.holders.iter().map(move |holder| row(&held.volume, holder, &held.missing)));
                output::table(&["VOLUME", "DRIVER", "HOLDER", "COUNT", "SINCE", "CONTAINER GONE"], rows)
            })
        }
        HolderCommand::Release { which, id } => {
            let body = ReleaseBody { id };
            let released: Holder = ask(places, which.patience()?, "POST", &uri(&which, "/release")?, &body)?;
            eprintln!("{}: let go of for {released}", which.name);
            Ok(())
        }
    }
}

/// `dunnage node …`
pub fn node(places: &Places, command: NodeCommand) -> Result<ExitCode> {
    // A checked name needs no escaping in a path.
    let call = |node: &NodeArgs, verb: &str| node.which.parse().map(|node: NodeId| format!("/v1/nodes/{node}/{verb}"));
    match command {
        NodeCommand::Ls { driver, quiet, output } => {
            let driver = driver.as_deref().map(str::parse::<dunnage_model::DriverName>).transpose()?;
            let uri = format!("/v1/nodes{}", driver.map(|d| format!("?driver={d}")).unwrap_or_default());
            let Nodes { nodes, notes } = ask(places, USUAL, "GET", &uri, &NOTHING)?;
            for note in &notes {
                eprintln!("dunnage: {note}");
            }
            if quiet {
                nodes.iter().for_each(|node| println!("{}", node.node));
                return Ok(ExitCode::SUCCESS);
            }
            output::print(&nodes, output.output, |nodes| {
                let row = |node: &NodeView| {
                    let fenced = if node.fenced { ", fenced" } else { "" };
                    let state = format!("{}{fenced}", node.state.word());
                    vec![node.node.to_string(), node.driver.to_string(), state, node.volumes.len().to_string(), node.how.clone()]
                };
                output::table(&["NODE", "DRIVER", "STATE", "VOLUMES", "HOW WE KNOW"], nodes.iter().map(row))
            })?;
        }
        NodeCommand::Fence { which, force, timeout } => {
            let body = FenceBody { driver: which.driver.clone(), force };
            let evicted: Fenced = ask(places, patience(timeout)?, "POST", &call(&which, "fence")?, &body)?;
            for Evicted { volume, error } in &evicted {
                match error {
                    None => eprintln!("{volume}: taken from {}, and free", which.which),
                    Some(error) => eprintln!("dunnage: {error}"),
                }
            }
            if let Some(error) = evicted.into_iter().find_map(|evicted| evicted.error) {
                return Ok(ExitCode::from(error.kind.exit_code()));
            }
            eprintln!("{}: cut off; it takes no volume until 'dunnage node unfence {}'", which.which, which.which);
        }
        NodeCommand::Unfence { which } => {
            let body = FenceBody { driver: which.driver.clone(), force: false };
            let () = ask(places, USUAL, "POST", &call(&which, "unfence")?, &body)?;
            eprintln!("{}: it may take volumes again", which.which);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whose a volume is, in rows.
fn owner_rows(record: &OwnerRecord) -> Vec<(&'static str, String)> {
    let clients = |clients: &BTreeSet<Client>| clients.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let owner = match &record.state {
        OwnerState::Free => "no node".to_owned(),
        OwnerState::Held { owner, taken, .. } => {
            format!("node {} (boot {}){}", owner.node, owner.boot, if *taken { ", which has taken it from another" } else { "" })
        }
        OwnerState::Fencing { by, victims, everybody } => {
            let whom = if *everybody { "everybody who has it open".to_owned() } else { clients(victims) };
            format!("node {} (boot {}) takes it, and cuts off {whom}", by.node, by.boot)
        }
    };
    let mut rows = vec![("owner", owner), ("epoch", record.epoch.to_string())];
    rows.extend(record.clients().map(|named| ("written by", format!("client {}", clients(named)))));
    rows.extend((!record.cut.is_empty()).then(|| ("cut off", format!("client {}", clients(&record.cut)))));
    rows
}

/// `dunnage driver ls`
pub fn drivers(places: &Places, quiet: bool, output: OutputArgs) -> Result<()> {
    let drivers: Drivers = ask(places, USUAL, "GET", "/v1/drivers", &NOTHING)?;
    if quiet {
        drivers.iter().for_each(|driver| println!("{}", driver.name));
        return Ok(());
    }
    for warning in drivers.iter().filter_map(|d| d.capacity.as_ref()).flat_map(|c| &c.warnings) {
        eprintln!("dunnage: {warning}");
    }
    output::print(&drivers, output.output, |drivers| {
        let row = |d: &dunnage_engine::DriverView| {
            let mut row = vec![d.name.to_string(), d.kind.clone()];
            match (&d.capacity, &d.error) {
                (Some(c), _) => {
                    row.extend([c.space.total, c.space.used, c.space.available, c.promised, c.reserve].map(|b| b.to_string()));
                    row.push(c.place.clone());
                }
                (None, error) => {
                    row.extend(std::iter::repeat_n("-".to_owned(), 5));
                    row.push(error.as_ref().map(ToString::to_string).unwrap_or_default());
                }
            }
            row
        };
        output::table(&["NAME", "TYPE", "TOTAL", "USED", "FREE", "PROMISED", "RESERVE", "PLACE"], drivers.iter().map(row))
    })
}
