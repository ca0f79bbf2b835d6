//! `dunnage mesos check`: what a workload would ask for, by this node's configuration. Nobody is asked anything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use dunnage_engine::Layout;
use dunnage_frontend_mesos::slots::DRIVER;
use dunnage_frontend_mesos::{FOLDERS, Road, WORK_DIR, Wanted, Workload, place, read};
use dunnage_host::Host;
use dunnage_host::helpers::{InProcess, Registry, Runner};
use dunnage_host::linux::Tools;
use dunnage_model::{Access, BootId, EndpointName, Error, Hint, Owner, Result, VolumeName, VolumeSpec, nearest, parse_name, parse_wish};
use serde::Serialize;

use crate::cli::OutputArgs;
use crate::config::{Config, CreatePolicy, DockerEndpoint, Places};
use crate::daemon::closed_driver;
use crate::output;

/// Where volumes of REX-Ray were, which apps name whatever the configuration says.
const REXRAY: &str = "/var/lib/rexray/volumes";

/// What is said of a workload.
#[derive(Debug, Serialize)]
struct Report {
    workload: String,
    volumes: Vec<Asked>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Error>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notices: Vec<String>,
}

/// What would be asked for one volume.
#[derive(Debug, Serialize)]
struct Asked {
    volume: String,
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    by: String,
    /// Where the task finds it.
    at: String,
    readonly: bool,
    /// What it is made as, if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    made_as: Option<VolumeSpec>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hints: Vec<Hint>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notices: Vec<String>,
    /// Template variables that nobody has said.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    unknown: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Error>,
}

/// Runs the command.
pub fn check(places: &Places, file: &Path, set: &[String], module: &Module, strict: bool, output: OutputArgs) -> Result<ExitCode> {
    let mut variables = BTreeMap::new();
    for given in set {
        let Some((name, value)) = given.split_once('=') else {
            return Err(Error::invalid("set", format!("{given:?} has no value"), "write --set NAME=VALUE"));
        };
        variables.insert(name.to_owned(), value.to_owned());
    }
    let text = match file == Path::new("-") {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(file),
    };
    let text = text.map_err(|e| Error::invalid("file", format!("cannot read {}: {e}", file.display()), "name a file of text"))?;
    let workloads = read(&text, &variables, module.driver.as_str())?;
    let config = Config::load(places)?;
    let reports: Vec<Report> = workloads.into_iter().map(|workload| report(places, &config, module, workload)).collect();
    output::print(&reports, output.output, |reports| reports.iter().map(told).collect())?;
    let refused = reports.iter().flat_map(|report| report.refused.iter().chain(report.volumes.iter().filter_map(|v| v.refused.as_ref())));
    // What is not known was not checked.
    let open = |asked: &Asked| !asked.notices.is_empty() || !asked.unknown.is_empty();
    let noticed = reports.iter().any(|report| !report.notices.is_empty() || report.volumes.iter().any(open));
    Ok(match refused.map(|error| error.kind.exit_code()).next() {
        Some(code) => ExitCode::from(code),
        None if strict && noticed => ExitCode::from(2),
        None => ExitCode::SUCCESS,
    })
}

fn report(places: &Places, config: &Config, module: &Module, workload: Workload) -> Report {
    let Workload { name, volumes, refused, mut notes, commands } = workload;
    let volumes: Vec<Asked> = volumes.iter().map(|wanted| asked(places, config, module, wanted)).collect();
    notes.extend(touched(config, &commands, &volumes));
    Report { workload: name, volumes, refused, notices: notes }
}

fn asked(places: &Places, config: &Config, module: &Module, wanted: &Wanted) -> Asked {
    let by = match &wanted.road {
        Road::Module { slot, .. } => format!("the isolator module, slot {}", slot.number),
        Road::Dvdcli => "the agent's docker/volume isolator, by dvdcli".to_owned(),
        Road::Docker => "the Docker containerizer, by docker run".to_owned(),
    };
    let mut asked = Asked {
        volume: wanted.name.clone(),
        endpoint: wanted.driver.clone(),
        driver: None,
        by,
        at: wanted.container_path.clone().unwrap_or_default(),
        readonly: wanted.readonly,
        made_as: None,
        hints: Vec::new(),
        notices: Vec::new(),
        unknown: wanted.unknown().into_iter().map(str::to_owned).collect(),
        refused: None,
    };
    if asked.unknown.is_empty() {
        asked.refused = module.refuse(&wanted.road).and_then(|()| wish(places, config, wanted, &mut asked)).err();
    }
    asked
}

/// The module's parameters, as far as they say what a task may have.
#[derive(Debug, Args)]
pub struct Module {
    /// The module's parameter 'driver': the endpoint of slots that name none
    #[arg(long, value_name = "ENDPOINT", default_value = DRIVER)]
    driver: EndpointName,
    /// The module's parameter 'folders': beneath which a task without an image may have volumes
    #[arg(long, value_name = "FOLDERS", value_delimiter = ',', default_values = FOLDERS)]
    folders: Vec<PathBuf>,
    /// The module's parameter 'work_dir': where the agent has its own state, and a task without an image no volume
    #[arg(long, value_name = "FOLDER", default_value = WORK_DIR)]
    work_dir: PathBuf,
    /// The module's parameter 'dvdcli': programs that a task may name, and that are not run
    #[arg(long, value_name = "PROGRAMS", value_delimiter = ',')]
    dvdcli: Vec<String>,
}

impl Module {
    /// What it says before anybody is asked.
    fn refuse(&self, road: &Road) -> Result<()> {
        let Road::Module { slot, image } = road else { return Ok(()) };
        slot.refuse_program(&self.dvdcli)?;
        place(slot, image.then_some(""), &self.folders, &self.work_dir).map(drop)
    }
}

/// What its endpoint would say to it.
fn wish(places: &Places, config: &Config, wanted: &Wanted, asked: &mut Asked) -> Result<()> {
    let endpoint = config.docker.iter().find(|endpoint| endpoint.name.as_str() == wanted.driver);
    let endpoint = endpoint.ok_or_else(|| no_endpoint(config, &wanted.driver))?;
    let named = parse_name(&wanted.name)?;
    asked.volume = named.name.to_string();
    let spec = made_as(places, config, endpoint, wanted, &named.options, asked).map_err(|e| e.of(&named.name))?;
    if asked.at.is_empty() {
        let place = match config.volumes.layout {
            Layout::ByDriver => config.volumes.path.join(asked.driver.as_deref().unwrap_or_default()),
            Layout::Flat => config.volumes.path.clone(),
        };
        let at = place.join(named.name.as_str());
        asked.at = spec.root_path.as_ref().map_or(at.clone(), |inside| at.join(inside.as_str())).display().to_string();
    }
    if wanted.explicit_create || endpoint.create == CreatePolicy::Explicit {
        asked.notices.push("it is not made: it must be there before".to_owned());
    } else {
        asked.made_as = Some(spec);
    }
    Ok(())
}

fn made_as(
    places: &Places,
    config: &Config,
    endpoint: &DockerEndpoint,
    wanted: &Wanted,
    inline: &[(String, String)],
    asked: &mut Asked,
) -> Result<VolumeSpec> {
    let beside = wanted.options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let parsed = parse_wish(inline, beside, endpoint.hints, endpoint.driver.as_str())?;
    asked.hints = parsed.unheeded;
    let defaults = endpoint.defaults.clone().over(&config.volumes.defaults);
    let shared = parsed.spec.shared.or(defaults.shared) == Some(true);
    let name = endpoint.shared.as_ref().filter(|_| shared).unwrap_or(&endpoint.driver);
    asked.driver = Some(name.to_string());
    let unknown = || Error::internal(format!("driver {name} is not configured"));
    let runner: Arc<dyn Runner> = Arc::new(InProcess(Registry::default()));
    let host: Host = dunnage_host::linux::host(runner.clone(), Tools::find());
    let me = Owner { node: "check".parse()?, boot: BootId(String::new()) };
    let driver = config.drivers.get(name).ok_or_else(unknown)?;
    closed_driver(places, name, driver, &host, &me, &|| Ok(runner.clone()))?.complete(parsed.spec, &defaults, endpoint.hints)
}

fn no_endpoint(config: &Config, driver: &str) -> Error {
    let all: Vec<&str> = config.docker.iter().map(|endpoint| endpoint.name.as_str()).collect();
    let file = config.source.as_ref().map_or("the built-in configuration".to_owned(), |path| path.display().to_string());
    let next = match nearest(driver, all.iter().copied()) {
        Some(meant) => format!("did you mean {meant:?}? If not, add one of that name to 'endpoints'"),
        None if all.is_empty() => "add one of that name to 'endpoints'".to_owned(),
        None => format!("there are: {}; add one of that name to 'endpoints'", all.join(", ")),
    };
    Error::not_found(format!("{file} has no endpoint {driver}"), next)
}

/// What commands touch in a folder of volumes, and is none of the workload's.
fn touched(config: &Config, commands: &[String], volumes: &[Asked]) -> Vec<String> {
    let own: BTreeSet<&str> = volumes.iter().map(|asked| asked.volume.as_str()).collect();
    let mut folders = vec![REXRAY.to_owned(), config.volumes.path.display().to_string()];
    if config.volumes.layout == Layout::ByDriver {
        folders.extend(config.drivers.keys().map(|driver| config.volumes.path.join(driver.as_str()).display().to_string()));
    }
    let mut notices = BTreeSet::new();
    for command in commands {
        for folder in &folders {
            for (at, _) in command.match_indices(&format!("{folder}/")) {
                let rest = command.get(at + folder.len() + 1..).unwrap_or_default();
                let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "_.-".contains(*c)).collect();
                let is_folder = folders.iter().any(|other| *other == format!("{folder}/{name}"));
                if name.parse::<VolumeName>().is_err() || is_folder {
                    continue;
                }
                if let Some(asked) = volumes.iter().find(|asked| asked.volume == name) {
                    if !Path::new(&asked.at).starts_with(Path::new(folder).join(&name)) {
                        notices.insert(format!("its command touches {folder}/{name}, and finds that volume at {}", asked.at));
                    }
                    continue;
                }
                let meant = match nearest(&name, own.iter().copied()).or_else(|| own.iter().copied().find(|own| own.starts_with(&*name))) {
                    Some(meant) => format!(": did you mean {meant}?"),
                    None if own.is_empty() => String::new(),
                    None => format!(", which has {}", own.iter().copied().collect::<Vec<_>>().join(", ")),
                };
                notices.insert(format!("its command touches {folder}/{name}, and {name} is no volume of this workload{meant}"));
            }
        }
    }
    notices.into_iter().collect()
}

/// What is made, as far as it is not what all volumes are.
fn wish_shown(spec: &VolumeSpec) -> String {
    let mut words = vec![spec.shown_size(), spec.fs.to_string()];
    words.extend(spec.repl.map(|copies| format!("{copies} copies")));
    words.extend(match spec.access {
        Access::SingleWriter => None,
        Access::ManyReaders => Some("ro".to_owned()),
        Access::ManyWriters => Some("shared".to_owned()),
    });
    words.extend(spec.thick.then(|| "thick".to_owned()));
    words.extend(spec.uid.map(|uid| format!("uid={uid}")));
    words.extend(spec.gid.map(|gid| format!("gid={gid}")));
    words.extend(spec.mode.map(|mode| format!("mode={mode}")));
    words.extend(spec.preempt.map(|preempt| format!("preempt={preempt}")));
    words.extend((!spec.mount_options.is_empty()).then(|| format!("mounted with {}", spec.mount_options)));
    words.extend(spec.labels.iter().map(|(key, value)| format!("label {key}={value}")));
    words.join(", ")
}

fn told(report: &Report) -> String {
    let mut lines = vec![if report.workload.is_empty() { "(no name)".to_owned() } else { report.workload.clone() }];
    if report.volumes.is_empty() && report.refused.is_empty() {
        lines.push("  asks for no volume".to_owned());
    }
    for asked in &report.volumes {
        let driver = asked.driver.as_ref().map(|driver| format!(" (driver {driver})")).unwrap_or_default();
        lines.push(format!("  volume {} of endpoint {}{driver}", asked.volume, asked.endpoint));
        lines.push(format!("    asked for by {}", asked.by));
        let readonly = if asked.readonly { ", for reading" } else { "" };
        if !asked.at.is_empty() {
            lines.push(format!("    found by the task at {}{readonly}", asked.at));
        }
        if let Some(spec) = &asked.made_as {
            lines.push(format!("    made, if it is not there, with {}", wish_shown(spec)));
        }
        if !asked.hints.is_empty() {
            let hints: Vec<String> = asked.hints.iter().map(|hint| format!("{}={}", hint.key, hint.value)).collect();
            lines.push(format!("    not followed: {}", hints.join(", ")));
        }
        lines.extend(asked.notices.iter().map(|notice| format!("    notice: {notice}")));
        if !asked.unknown.is_empty() {
            let set: Vec<String> = asked.unknown.iter().map(|name| format!("--set {name}=…")).collect();
            lines.push(format!("    not known before the template is filled: {}", set.join(" ")));
        }
        lines.extend(asked.refused.iter().map(|error| format!("    REFUSED: {error}")));
    }
    lines.extend(report.refused.iter().map(|error| format!("  REFUSED: {error}")));
    lines.extend(report.notices.iter().map(|notice| format!("  notice: {notice}")));
    lines.join("\n") + "\n"
}
