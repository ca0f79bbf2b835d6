//! The commands that ask the daemon: volumes and drivers.

use std::time::Duration;

use dunnage_engine::{Missing, VolumeView};
use dunnage_frontend_admin::AdminClient;
use dunnage_frontend_admin::wire::{
    AdoptBody, Adopted, Attached, CreateBody, Created, Drivers, Held, Inspected, Mounted, ReleaseBody, Removed, Strangers, Unmounted,
    Volumes,
};
use dunnage_host::Probe;
use dunnage_model::{Error, Holder, Result, UnmountAction, VolumeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::{HolderCommand, OutputArgs, VolumeCommand, WhichArgs, patience};
use crate::config::Places;
use crate::output;

/// One call to the daemon, from a command that does nothing else.
pub fn ask<T: DeserializeOwned>(places: &Places, patience: Duration, method: &str, uri: &str, body: &impl Serialize) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Error::os("cannot start", &e))?;
    runtime.block_on(AdminClient::new(&places.run_dir, patience).ask(method, uri, body))
}

const USUAL: Duration = Duration::from_secs(30);
const NOTHING: () = ();

fn uri(which: &WhichArgs, verb: &str) -> Result<String> {
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
        VolumeCommand::Create { which, options, endpoint } => {
            which.name.parse::<dunnage_model::VolumeName>()?;
            let mut body = CreateBody { name: which.name.clone(), driver: which.driver.clone(), endpoint, options: Default::default() };
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
        VolumeCommand::Adopt { name, driver, endpoint, all: _, r#match, dry_run, root_path, overwrite, timeout } => {
            let patience = patience(timeout)?;
            let body = AdoptBody { driver, endpoint, root_path, overwrite };
            match name {
                Some(name) => adopt(places, patience, &name.parse()?, &body),
                None => adopt_all(places, patience, &body, r#match.as_deref(), dry_run),
            }
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
    let Inspected { volume, node, space, notes } = inspected;
    let spec = &volume.info.spec;
    let mut rows = vec![
        ("name", volume.info.id.name.to_string()),
        ("driver", volume.info.id.driver.to_string()),
        ("endpoint", volume.info.endpoint.to_string()),
        ("node", node.clone()),
        ("state", volume.state()),
        ("size", spec.shown_size()),
        ("used", space.map_or("unknown while it is not mounted".to_owned(), |s| format!("{} ({} free)", s.used, s.available))),
        ("spent", format!("{} of the pool{}", volume.info.usage.spent, if spec.thick { " (thick)" } else { "" })),
        ("fs", format!("{}{}", spec.fs, volume.info.fs_uuid.map(|uuid| format!(" {uuid}")).unwrap_or_default())),
        ("created", format!("{:.0}", volume.info.created)),
        ("mounted at", volume.mountpoint.clone().unwrap_or_else(|| "-".to_owned())),
    ];
    if let Some(why) = &volume.info.why {
        rows.push(("why", why.clone()));
    }
    if volume.holders.is_empty() {
        rows.push(("holders", "nobody".to_owned()));
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
