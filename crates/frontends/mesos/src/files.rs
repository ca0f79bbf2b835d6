//! What people write for Mesos, read for the volumes in it: a Marathon app, a group or a list of them, a `TaskInfo` or a group
//! of them, or the `svc.yml` of a service of dcos-commons.

use std::collections::{BTreeMap, BTreeSet};

use dunnage_model::{Error, Kind, Result};
use serde_json::{Map, Value};

use crate::slots::{Slot, slots};

/// By what a volume is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Road {
    /// The isolator module, by the task's environment.
    Module {
        /// The slot.
        slot: Slot,
        /// The task has an image.
        image: bool,
    },
    /// The agent's `docker/volume` isolator, which calls dvdcli.
    Dvdcli,
    /// `docker run`, by the Docker containerizer.
    Docker,
}

/// A volume that a workload wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// By what.
    pub road: Road,
    /// The plugin that is asked: an endpoint's name.
    pub driver: String,
    /// The name as it is asked for; options may stand in it.
    pub name: String,
    /// The options.
    pub options: Vec<(String, String)>,
    /// Where the task finds it; without it, where the plugin mounts it.
    pub container_path: Option<String>,
    /// It is mounted for reading.
    pub readonly: bool,
    /// It must be there before.
    pub explicit_create: bool,
}

impl Wanted {
    /// The template's variables that nobody has said: what depends on them is not known.
    pub fn unknown(&self) -> BTreeSet<&str> {
        let path = self.container_path.iter();
        let texts = [&self.driver, &self.name].into_iter().chain(path).chain(self.options.iter().flat_map(|(key, value)| [key, value]));
        texts.flat_map(|text| unfilled(text)).collect()
    }
}

/// Something that runs and wants volumes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// What it wants.
    pub volumes: Vec<Wanted>,
    /// What would be refused before anybody is asked for a volume.
    pub refused: Vec<Error>,
    /// What it should know.
    pub notes: Vec<String>,
    /// What it runs, as far as that can be read.
    pub commands: Vec<String>,
}

/// Reads a file; `set` fills the variables of a template (`{{NAME}}`), and `driver` is that of slots that name none.
///
/// # Errors
/// `invalid_argument` when it is nothing that we know, with where that was seen.
pub fn read(text: &str, set: &BTreeMap<String, String>, driver: &str) -> Result<Vec<Workload>> {
    let value = parse(&fill(text, set))?;
    let mut workloads = Vec::new();
    any("", &value, driver, &mut workloads)?;
    Ok(workloads)
}

fn unknown_kind() -> Error {
    let detail = "it is neither an app, a group or a pod of Marathon, nor a TaskInfo, nor an svc.yml of dcos-commons";
    Error::invalid("file", detail, "give what you would give to Marathon, to mesos-execute or to the service's scheduler")
}

/// JSON; a piece of it without its braces, or a message with its name before it and `...` for what is left out, as it stands in
/// documents; or YAML.
fn parse(text: &str) -> Result<Value> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let message = text.strip_prefix("TaskInfo").map(|message| {
        let said = message.lines().filter(|line| !line.trim_end().trim_end_matches(',').ends_with("..."));
        said.collect::<Vec<_>>().join("\n").trim().to_owned()
    });
    let text = message.as_deref().unwrap_or(text);
    let json = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(e) => e,
    };
    if let Ok(value) = serde_json::from_str(&format!("{{{}}}", text.trim_end_matches(','))) {
        return Ok(value);
    }
    match serde_saphyr::from_str::<Value>(text) {
        Ok(value @ Value::Object(_)) if !text.starts_with(['{', '[']) => Ok(value),
        _ if text.starts_with(['{', '[']) => Err(Error::invalid("file", format!("it is no JSON: {json}"), "look at that line")),
        Ok(_) => Err(unknown_kind()),
        Err(e) => Err(Error::invalid("file", format!("it is neither JSON nor YAML: {e}"), "look at that line")),
    }
}

/// Fills a template's variables. One that nobody has said becomes `<NAME>`, which is text in every place where it may stand; the marks of
/// sections go, and what is in them stays.
fn fill(text: &str, set: &BTreeMap<String, String>) -> String {
    let (mut filled, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let Some((inside, behind)) = after.split_once("}}") else {
            filled.push_str("{{");
            rest = after;
            continue;
        };
        let name = inside.trim_start_matches('{').trim();
        let word = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if word(name) {
            match set.get(name) {
                Some(value) => filled.push_str(value),
                None => filled.extend(["<", name, ">"]),
            }
            rest = if inside.starts_with('{') { behind.strip_prefix('}').unwrap_or(behind) } else { behind };
        } else if inside.starts_with(['#', '/', '^', '!']) {
            rest = behind;
        } else {
            // Two braces of JSON.
            filled.push_str("{{");
            rest = after;
        }
    }
    filled.push_str(rest);
    filled
}

/// The variables that [`fill`] has left.
fn unfilled(text: &str) -> impl Iterator<Item = &str> {
    text.split('<').skip(1).filter_map(|part| part.split_once('>').map(|(name, _)| name)).filter(|name| !name.is_empty())
}

fn any(within: &str, value: &Value, driver: &str, workloads: &mut Vec<Workload>) -> Result<()> {
    let map = match value {
        Value::Array(items) => return items.iter().try_for_each(|item| any(within, item, driver, workloads)),
        Value::Object(map) => map,
        _ => return Err(unknown_kind()),
    };
    let has = |key: &str| map.contains_key(key);
    if has("pods") {
        service(map, driver, workloads);
    } else if has("apps") || has("groups") {
        let name = below(within, text(map, "id"));
        for kind in ["apps", "groups", "pods"] {
            items(map, kind).try_for_each(|item| any(&name, item, driver, workloads))?;
        }
    } else if has("tasks") && !has("cmd") {
        // A TaskGroupInfo, which shares what it has: each task has volumes of its own.
        items(map, "tasks").filter_map(Value::as_object).for_each(|task| workloads.push(task_info(task, driver)));
    } else if has("task_id") || has("command") && map["command"].is_object() || has_docker_volume(map) {
        workloads.push(task_info(map, driver));
    } else if has("containers") {
        pod(within, map, driver, workloads);
    } else if ["id", "cmd", "args", "env", "container"].into_iter().any(has) {
        workloads.push(app(within, map, driver));
    } else {
        return Err(unknown_kind());
    }
    Ok(())
}

/// No app has one.
fn has_docker_volume(map: &Map<String, Value>) -> bool {
    let volumes = object(map, "container").into_iter().flat_map(|container| items(container, "volumes"));
    volumes.filter_map(Value::as_object).any(|volume| object(volume, "source").is_some_and(|source| source.contains_key("docker_volume")))
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn object<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    map.get(key).and_then(Value::as_object)
}

fn items<'a>(map: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    map.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// A number or a text, as it is written.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

fn below(within: &str, name: &str) -> String {
    if name.starts_with('/') || within.is_empty() { name.to_owned() } else { format!("{}/{name}", within.trim_end_matches('/')) }
}

/// What the environment asks the module for.
fn environment(workload: &mut Workload, variables: &[(String, String)], driver: &str, image: bool) {
    if variables.iter().any(|(key, _)| key.starts_with("DVDI_VOLUME_") && unfilled(key).next().is_some()) {
        return workload
            .notes
            .push("a variable's own name is not known before the template is filled: its volumes were not looked at".to_owned());
    }
    match slots(variables.iter().map(|(key, value)| (key.as_str(), value.as_str())), driver) {
        Err(e) => workload.refused.push(e),
        Ok(slots) => {
            let named = |(key, value): &(String, String)| key.starts_with("DVDI_VOLUME_") && !value.trim().is_empty();
            if slots.is_empty() && variables.iter().any(named) {
                workload
                    .notes
                    .push("its environment says something of a volume, and has no DVDI_VOLUME_NAME: nothing is mounted".to_owned());
            }
            for slot in slots {
                workload.volumes.push(Wanted {
                    driver: slot.driver.to_string(),
                    name: slot.name.clone(),
                    options: slot.options.clone(),
                    container_path: slot.container_path.clone(),
                    readonly: false,
                    explicit_create: slot.explicit_create,
                    road: Road::Module { slot, image },
                });
            }
        }
    }
}

/// Marathon's: texts, or references to secrets.
fn marathon_environment(workload: &mut Workload, map: &Map<String, Value>, driver: &str, image: bool) {
    let Some(variables) = object(map, "env") else { return };
    let mut known = Vec::new();
    for (key, value) in variables {
        match scalar(value) {
            Some(value) => known.push((key.clone(), value)),
            None => secret(workload, key),
        }
    }
    environment(workload, &known, driver, image);
}

/// A variable whose value nobody is shown.
fn secret(workload: &mut Workload, variable: &str) {
    if variable.starts_with("DVDI_VOLUME_") {
        let detail = "it is a secret, which the module cannot read";
        workload.refused.push(Error::invalid(variable, detail, "give it as a value"));
    }
}

fn marathon_refuses(key: &str, detail: impl Into<String>, next: &str) -> Error {
    Error::invalid(key, format!("Marathon refuses it: {}", detail.into()), next)
}

fn app(within: &str, app: &Map<String, Value>, driver: &str) -> Workload {
    let mut workload = Workload { name: below(within, text(app, "id")), ..Workload::default() };
    workload.commands.extend(app.get("cmd").and_then(scalar));
    workload.commands.extend(items(app, "args").filter_map(scalar));
    let image =
        object(app, "container").and_then(|container| object(container, "docker")).is_some_and(|docker| docker.contains_key("image"));
    marathon_environment(&mut workload, app, driver, image);
    if app.contains_key("volumes") {
        workload.notes.push("'volumes' beside 'container' is no word of Marathon: volumes are named in 'container'".to_owned());
    }
    let Some(container) = object(app, "container") else { return workload };
    let docker = object(container, "docker");
    let by_docker = text(container, "type").eq_ignore_ascii_case("docker") || (text(container, "type").is_empty() && docker.is_some());
    if by_docker {
        without_module(&mut workload);
    }
    let external: Vec<&Map<String, Value>> =
        items(container, "volumes").filter_map(Value::as_object).filter(|volume| volume.contains_key("external")).collect();
    for volume in &external {
        external_volume(&mut workload, volume, by_docker);
    }
    let instances = app.get("instances").and_then(Value::as_u64).unwrap_or(1);
    if !external.is_empty() && instances > 1 {
        let detail = format!("an app with external volumes has one instance, and this one {instances}");
        workload.refused.push(marathon_refuses("instances", detail, "make an app of each"));
    }
    if let Some(docker) = docker {
        parameters(&mut workload, docker);
    }
    workload
}

/// Docker's containers are none of the module's.
fn without_module(workload: &mut Workload) {
    let count = workload.volumes.len();
    workload.volumes.retain(|volume| !matches!(volume.road, Road::Module { .. }));
    if workload.volumes.len() < count {
        let note = "the module is of the Mesos containerizer, and this runs by Docker's: DVDI_VOLUME_* is not looked at";
        workload.notes.push(note.to_owned());
    }
}

/// `{"containerPath": "data", "mode": "RW", "external": {"name": "pg", "provider": "dvdi", "size": 5, "options": {"dvdi/driver": "pxd"}}}`
fn external_volume(workload: &mut Workload, volume: &Map<String, Value>, by_docker: bool) {
    let Some(external) = object(volume, "external") else { return };
    let (name, provider, path) = (text(external, "name"), text(external, "provider"), text(volume, "containerPath"));
    let mut refuse = |key: &str, detail: &str, next: &str| workload.refused.push(marathon_refuses(key, detail, next));
    if !provider.is_empty() && provider != "dvdi" {
        return refuse("provider", &format!("there is no provider {provider:?}"), "write \"provider\": \"dvdi\"");
    }
    if name.is_empty() {
        return refuse("name", "an external volume needs a name", "give it one");
    }
    let mut options = Vec::new();
    let mut driver = None;
    for (key, value) in object(external, "options").into_iter().flatten() {
        let Some(value) = scalar(value) else {
            return refuse(key, "an option is a text", "write it in quotes");
        };
        match key.strip_prefix("dvdi/") {
            Some("driver") => driver = Some(value),
            Some(key) => options.push((key.to_owned(), value)),
            None => {
                return refuse(
                    key,
                    &format!("the options of provider dvdi begin with dvdi/, and {key:?} does not"),
                    "write dvdi/ before it",
                );
            }
        }
    }
    let Some(driver) = driver else {
        return refuse("dvdi/driver", "it is missing", "add \"dvdi/driver\": \"NAME\" to the options");
    };
    let size = external.get("size").and_then(scalar);
    if by_docker && (size.is_some() || !options.is_empty()) {
        refuse(
            "options",
            "for the Docker containerizer only dvdi/driver may be given",
            "make the volume before, or put the options into its name",
        );
    }
    if by_docker && !path.starts_with('/') {
        refuse("containerPath", "for the Docker containerizer it is absolute", "begin it with /");
    }
    if !by_docker && !path.starts_with('/') && path.trim_end_matches('/').contains('/') {
        refuse("containerPath", "a relative path is one word", "make it absolute, or one word");
    }
    let readonly = text(volume, "mode").eq_ignore_ascii_case("ro");
    if readonly && !by_docker {
        refuse("mode", "for the Mesos containerizer an external volume is RW", "write RW");
    }
    options.extend(size.map(|size| ("size".to_owned(), size)));
    let road = if by_docker { Road::Docker } else { Road::Dvdcli };
    let container_path = Some(path.to_owned());
    workload.volumes.push(Wanted { road, driver, name: name.to_owned(), options, container_path, readonly, explicit_create: false });
}

/// Of the Docker containerizer: words of `docker run`.
fn parameters(workload: &mut Workload, docker: &Map<String, Value>) {
    let given: Vec<(&str, &str)> =
        items(docker, "parameters").filter_map(Value::as_object).map(|given| (text(given, "key"), text(given, "value"))).collect();
    let driver = given.iter().rev().find(|(key, _)| *key == "volume-driver").map(|(_, value)| *value);
    for (_, value) in given.iter().filter(|(key, _)| matches!(*key, "volume" | "v")) {
        // `NAME:/path[:ro]`; a name has no colon.
        let mut parts = value.splitn(3, ':');
        let (name, path, mode) = (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
        let Some(path) = path.filter(|_| !name.starts_with('/') && !name.is_empty()) else { continue };
        let Some(driver) = driver else {
            workload.notes.push(format!("volume {name} is Docker's own: there is no parameter volume-driver"));
            continue;
        };
        workload.volumes.push(Wanted {
            road: Road::Docker,
            driver: driver.to_owned(),
            name: name.to_owned(),
            options: Vec::new(),
            container_path: Some(path.to_owned()),
            readonly: mode.split(',').any(|word| word == "ro"),
            explicit_create: false,
        });
    }
}

/// A pod of Marathon: its environment is that of each of its containers, which have more.
fn pod(within: &str, pod: &Map<String, Value>, driver: &str, workloads: &mut Vec<Workload>) {
    let name = below(within, text(pod, "id"));
    for container in items(pod, "containers").filter_map(Value::as_object) {
        let mut workload = Workload { name: below(&name, text(container, "name")), ..Workload::default() };
        let shell = object(container, "exec").and_then(|exec| object(exec, "command")).map(|command| text(command, "shell").to_owned());
        workload.commands.extend(shell);
        let mut all = object(pod, "environment").cloned().unwrap_or_default();
        all.extend(object(container, "environment").cloned().unwrap_or_default());
        let mut around = Map::new();
        around.insert("env".to_owned(), Value::Object(all));
        marathon_environment(&mut workload, &around, driver, container.contains_key("image"));
        workloads.push(workload);
    }
}

/// Mesos' own: `TaskInfo` of mesos.proto as JSON.
fn task_info(task: &Map<String, Value>, driver: &str) -> Workload {
    let id = object(task, "task_id").map(|id| text(id, "value")).unwrap_or_default();
    let mut workload = Workload { name: if id.is_empty() { text(task, "name") } else { id }.to_owned(), ..Workload::default() };
    let executor = object(task, "executor");
    for of in [Some(task), executor].into_iter().flatten() {
        if let Some(command) = object(of, "command") {
            workload.commands.extend(command.get("value").and_then(scalar));
            let given = object(command, "environment").into_iter().flat_map(|environment| items(environment, "variables"));
            let (secrets, plain): (Vec<_>, Vec<_>) =
                given.filter_map(Value::as_object).partition(|variable| text(variable, "type") == "SECRET");
            let secrets = secrets.into_iter().map(|variable| text(variable, "name"));
            secrets.for_each(|name| secret(&mut workload, name));
            let variables: Vec<(String, String)> =
                plain.into_iter().map(|variable| (text(variable, "name").to_owned(), text(variable, "value").to_owned())).collect();
            let mesos = object(of, "container").and_then(|container| object(container, "mesos"));
            environment(&mut workload, &variables, driver, mesos.is_some_and(|mesos| mesos.contains_key("image")));
        }
        let Some(container) = object(of, "container") else { continue };
        let by_docker = text(container, "type").eq_ignore_ascii_case("docker");
        if by_docker {
            without_module(&mut workload);
        }
        let volumes = items(container, "volumes").filter_map(Value::as_object);
        volumes.for_each(|volume| docker_volume(&mut workload, volume, by_docker));
        if let Some(docker) = object(container, "docker").filter(|_| by_docker) {
            parameters(&mut workload, docker);
        }
    }
    workload
}

/// A `Volume` whose source is a `DOCKER_VOLUME`.
fn docker_volume(workload: &mut Workload, volume: &Map<String, Value>, by_docker: bool) {
    let Some(asked) = object(volume, "source").and_then(|source| object(source, "docker_volume")) else { return };
    let (driver, name) = (text(asked, "driver"), text(asked, "name"));
    if name.is_empty() || driver.is_empty() && !by_docker {
        let missing = if name.is_empty() { "name" } else { "driver" };
        let detail = format!("the agent refuses a docker_volume without {missing}");
        return workload.refused.push(Error::invalid(missing, detail, "give it one"));
    }
    if driver.is_empty() {
        return workload.notes.push(format!("volume {name} is Docker's own: it names no driver"));
    }
    let mut options = Vec::new();
    let given = object(asked, "driver_options").into_iter().flat_map(|options| items(options, "parameter"));
    for parameter in given.filter_map(Value::as_object) {
        let key = text(parameter, "key");
        // As the agent has it: the last of one key counts.
        options.retain(|(other, _): &(String, String)| other != key);
        options.push((key.to_owned(), text(parameter, "value").to_owned()));
    }
    if by_docker && !options.is_empty() {
        options.clear();
        let note = format!("the Docker containerizer drops the driver_options of volume {name} without a word: put them into its name");
        workload.notes.push(note);
    }
    let road = if by_docker { Road::Docker } else { Road::Dvdcli };
    let mut refuse = |detail: String, next: &str| workload.refused.push(Error::new(Kind::ExistsIncompatible, detail, next));
    if by_docker && workload.volumes.iter().any(|other| other.road == Road::Docker && other.driver != driver) {
        refuse(
            format!("the Docker containerizer takes one driver for a container, and {driver} is another"),
            "give all volumes one driver",
        );
    }
    if !by_docker && workload.volumes.iter().any(|other| other.road == road && other.driver == driver && other.name == name) {
        refuse(format!("the agent refuses volume {name} of driver {driver} twice in one container"), "mount it once");
    }
    workload.volumes.push(Wanted {
        road,
        driver: driver.to_owned(),
        name: name.to_owned(),
        options,
        container_path: Some(text(volume, "container_path").to_owned()),
        readonly: text(volume, "mode").eq_ignore_ascii_case("ro"),
        explicit_create: false,
    });
}

/// A service of dcos-commons. Volumes stand at a pod, at a resource set or at a task.
fn service(service: &Map<String, Value>, driver: &str, workloads: &mut Vec<Workload>) {
    for (pod_name, pod) in object(service, "pods").into_iter().flatten() {
        let Some(pod) = pod.as_object() else { continue };
        let count = pod.get("count").and_then(Value::as_u64).unwrap_or(1);
        let name = below(text(service, "name"), pod_name);
        let mut of_pod = Workload { name: name.clone(), ..Workload::default() };
        raw_volumes(&mut of_pod, pod, count);
        for set in object(pod, "resource-sets").into_iter().flat_map(Map::values).filter_map(Value::as_object) {
            raw_volumes(&mut of_pod, set, count);
        }
        for (task_name, task) in object(pod, "tasks").into_iter().flatten() {
            let Some(task) = task.as_object() else { continue };
            let mut workload = Workload { name: below(&name, task_name), ..Workload::default() };
            workload.commands.extend(task.get("cmd").and_then(scalar));
            raw_volumes(&mut workload, task, count);
            marathon_environment(&mut workload, task, driver, pod.contains_key("image"));
            if workload != (Workload { name: workload.name.clone(), commands: workload.commands.clone(), ..Workload::default() }) {
                workloads.push(workload);
            }
        }
        if !of_pod.volumes.is_empty() || !of_pod.refused.is_empty() {
            workloads.push(of_pod);
        }
    }
}

/// `volume: {…}` and `volumes: {NAME: {…}}`, of type DOCKER.
fn raw_volumes(workload: &mut Workload, map: &Map<String, Value>, count: u64) {
    let several = object(map, "volumes").into_iter().flat_map(Map::values);
    for volume in map.get("volume").into_iter().chain(several).filter_map(Value::as_object) {
        if text(volume, "type").eq_ignore_ascii_case("docker") {
            raw_volume(workload, volume, count);
        }
    }
}

fn raw_volume(workload: &mut Workload, volume: &Map<String, Value>, count: u64) {
    let (driver, name) = (text(volume, "docker_volume_driver"), text(volume, "docker_volume_name"));
    if driver.is_empty() || name.is_empty() {
        let missing = if driver.is_empty() { "docker_volume_driver" } else { "docker_volume_name" };
        return workload.refused.push(Error::invalid(missing, "a volume of type DOCKER needs it", "give it one"));
    }
    let mut options = Vec::new();
    for option in text(volume, "docker_driver_options").split(',').map(str::trim).filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => options.push((key.trim().to_owned(), value.trim().to_owned())),
            None if unfilled(option).next().is_some() => options.push((option.to_owned(), option.to_owned())),
            None => workload.notes.push(format!("option {option:?} has no value, and dcos-commons drops it without a word")),
        }
    }
    // In MB there, in whole GB of a volume.
    match volume.get("size").and_then(scalar) {
        Some(size) if unfilled(&size).next().is_some() => options.insert(0, ("size".to_owned(), size)),
        Some(size) => match size.parse::<u64>() {
            Ok(megabytes) => options.insert(0, ("size".to_owned(), megabytes.div_ceil(1024).max(1).to_string())),
            Err(_) => workload.refused.push(Error::invalid("size", format!("{size:?} is no number of MB"), "write a whole number")),
        },
        None => {}
    }
    if driver != "pxd" {
        workload.notes.push(format!("dcos-commons' own fork takes docker_volume_driver pxd alone, and this is {driver}"));
    }
    let shared = options.iter().any(|(key, value)| key == "shared" && value == "true");
    // The scheduler adds this, and of pxd puts all of it into the name, where it counts above what stands beside.
    options.retain(|(key, _)| key != "nodes");
    options.push(("nodes".to_owned(), "LocalNode".to_owned()));
    let names: Vec<String> = if shared { vec![name.to_owned()] } else { (0..count.clamp(1, 3)).map(|n| format!("{name}-{n}")).collect() };
    if !shared && count > 3 {
        workload.notes.push(format!("{name}-3 to {name}-{} are like {name}-2", count - 1));
    }
    for name in names {
        let inline = options.iter().fold(format!("name={name}"), |name, (key, value)| format!("{name};{key}={value}"));
        workload.volumes.push(Wanted {
            road: Road::Dvdcli,
            driver: driver.to_owned(),
            name: if driver == "pxd" { inline } else { name },
            options: options.clone(),
            container_path: Some(text(volume, "path").to_owned()),
            readonly: false,
            explicit_create: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::DRIVER;
    use proptest::prelude::*;

    fn of(text: &str) -> Vec<Workload> {
        read(text, &BTreeMap::new(), DRIVER).expect("readable")
    }

    fn seed(name: &str) -> String {
        let path = format!("{}/../../../tests/fixtures/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).expect("a seed")
    }

    /// The text from the line that has `from` on to the bracket that closes it.
    fn block(text: &str, from: &str) -> String {
        let begin = text.find(from).expect("there");
        let mut depth = 0_i32;
        let end = text[begin..].char_indices().find_map(|(at, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (c == '}' && depth == 0).then_some(at + 1)
        });
        text[begin..begin + end.expect("closed")].to_owned()
    }

    #[test]
    fn the_seeds_apps_are_read_in_every_form_that_they_have() {
        // A piece without its braces.
        let piece = of(&block(&seed("001_f98a397be9afa02e.txt"), "\"env\": {"));
        let short = |volume: &Wanted| (volume.driver.clone(), volume.name.clone(), volume.options.len());
        assert_eq!(
            piece[0].volumes.iter().map(short).collect::<Vec<_>>(),
            [("platform1".to_owned(), "testing".to_owned(), 5), ("platform2".to_owned(), "testing2".to_owned(), 4)]
        );
        let whole = of(&block(&seed("002_7f7b072f2def43f1.txt"), "{\n  \"id\": \"hello-play\""));
        assert_eq!(
            (whole[0].name.as_str(), short(&whole[0].volumes[0])),
            ("hello-play", ("rexray".to_owned(), "test1234567890".to_owned(), 5))
        );
        assert!(whole[0].notes[0].contains("'volumes' beside 'container'"), "{:?}", whole[0].notes);
        assert!(whole[0].commands[0].contains("/var/lib/rexray/volumes/test12345/hello"));
        let docker = of(&block(&seed("003_daefce576514952a.txt"), "{\n    \"id\": \"nginx\""));
        assert_eq!(docker[0].volumes[0].road, Road::Docker);
        assert_eq!(short(&docker[0].volumes[0]), ("rexray".to_owned(), "nginx-data".to_owned(), 0));
        assert_eq!(docker[0].volumes[0].container_path.as_deref(), Some("/data/www"));
    }

    #[test]
    fn an_external_volume_of_marathon_is_dvdcli_s_or_docker_s_and_what_marathon_refuses_is_said() {
        let external = |container: &str, rest: &str| {
            format!(
                r#"{{"id":"/a","instances":1,"container":{{{container}"volumes":[{{"containerPath":"data","mode":"RW",
                "external":{{"name":"pg","provider":"dvdi","options":{{"dvdi/driver":"pxd","dvdi/repl":"3"}}{rest}}}}}]}}}}"#
            )
        };
        let app = of(&external("", r#","size":5"#)).remove(0);
        assert_eq!((app.refused.len(), &app.volumes[0].road), (0, &Road::Dvdcli));
        assert_eq!(app.volumes[0].options, [("repl".to_owned(), "3".to_owned()), ("size".to_owned(), "5".to_owned())]);
        let by_docker = of(&external(r#""type":"DOCKER","#, "")).remove(0);
        let said: Vec<String> = by_docker.refused.iter().map(ToString::to_string).collect();
        assert!(said.len() == 2 && said[0].contains("only dvdi/driver") && said[1].contains("absolute"), "{said:?}");
        let many = of(&external("", "").replace("\"instances\":1", "\"instances\":3")).remove(0);
        assert!(many.refused[0].to_string().contains("one instance"), "{:?}", many.refused);
    }

    #[test]
    fn groups_lists_pods_and_tasks_are_gone_into() {
        let app = |id: &str| format!(r#"{{"id":"{id}","env":{{"DVDI_VOLUME_NAME":"{id}"}}}}"#);
        let group = format!(r#"{{"id":"/g","apps":[{}],"groups":[{{"id":"h","apps":[{}]}}]}}"#, app("a"), app("b"));
        let names = |text: &str| of(text).into_iter().map(|workload| workload.name).collect::<Vec<_>>();
        assert_eq!(names(&group), ["/g/a", "/g/h/b"]);
        assert_eq!(names(&format!("[{},{}]", app("a"), app("b"))), ["a", "b"]);
        let pod = of(
            r#"{"id":"/p","environment":{"DVDI_VOLUME_NAME":"pg"},"containers":[{"name":"c","environment":{"DVDI_VOLUME_OPTS":"size=1"}}]}"#,
        );
        assert_eq!((pod[0].name.as_str(), pod[0].volumes[0].options.len()), ("/p/c", 1));
        let volume = r#"{"container_path":"data","mode":"RO","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":"pxd","name":"v",
            "driver_options":{"parameter":[{"key":"size","value":"1"},{"key":"size","value":"2"}]}}}}"#;
        let variables = r#"{"variables":[{"name":"DVDI_VOLUME_NAME","value":"w"}]}"#;
        let task = format!(
            r#"{{"name":"t","task_id":{{"value":"t1"}},"command":{{"value":"sleep 1","environment":{variables}}},"container":{{"type":"MESOS","volumes":[{volume},{volume}]}}}}"#
        );
        let task = of(&task).remove(0);
        assert_eq!((task.name.as_str(), task.volumes.len(), task.refused.len()), ("t1", 3, 1));
        assert!(task.volumes[1].readonly && task.volumes[1].options == [("size".to_owned(), "2".to_owned())], "the last of a key counts");
        assert!(task.refused[0].to_string().contains("twice in one container"));
    }

    #[test]
    fn a_service_of_dcos_commons_has_a_volume_for_each_of_its_pods_and_its_template_is_filled() {
        let text = "name: {{FRAMEWORK_NAME}}\npods:\n  hello:\n    count: {{HELLO_COUNT}}\n    {{#PLACEMENT}}placement: x{{/PLACEMENT}}\n    tasks:\n      server:\n        \
                    goal: RUNNING\n        cmd: \"echo hello\"\n        volume:\n          path: hello-path\n          type: DOCKER\n          \
                    docker_volume_driver: pxd\n          docker_volume_name: {{NAME}}\n          docker_driver_options: {{{OPTIONS}}}\n          size: {{DISK}}\n";
        let set = [("FRAMEWORK_NAME", "hw"), ("HELLO_COUNT", "2"), ("NAME", "vol"), ("OPTIONS", "repl=2,lost"), ("DISK", "1500")];
        let set: BTreeMap<String, String> = set.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let service = read(text, &set, DRIVER).expect("readable");
        assert_eq!(service.len(), 1);
        let names: Vec<&str> = service[0].volumes.iter().map(|volume| volume.name.as_str()).collect();
        let inline = |n: u8| format!("name=vol-{n};size=2;repl=2;nodes=LocalNode");
        assert_eq!((service[0].name.as_str(), names), ("hw/hello/server", vec![inline(0).as_str(), inline(1).as_str()]));
        let beside: Vec<String> = service[0].volumes[0].options.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(beside, ["size=2", "repl=2", "nodes=LocalNode"]);
        assert!(service[0].notes[0].contains("\"lost\" has no value"), "{:?}", service[0].notes);
        let unfilled = of(text).remove(0);
        assert_eq!(unfilled.volumes[0].unknown().into_iter().collect::<Vec<_>>(), ["DISK", "NAME", "OPTIONS"]);
    }

    #[test]
    fn a_task_is_one_by_its_docker_volume_and_in_the_form_of_the_documents() {
        let document = seed("000_32242b94819c26b5.txt");
        let of_document = |from: &str| of(&block(&document[document.find(from).expect("there")..], "TaskInfo {")).remove(0);
        let short = |task: &Workload| {
            let volume = &task.volumes[0];
            (volume.road.clone(), volume.driver.clone(), volume.name.clone(), volume.options.len(), volume.container_path.clone())
        };
        let wanted = |options: usize| (Road::Dvdcli, "pxd".to_owned(), "px_vol".to_owned(), options, Some("/data".to_owned()));
        assert_eq!(short(&of_document("Here's how you would")), wanted(0));
        assert_eq!(short(&of_document("You can also speciy")), wanted(1));
        let volume = |driver: &str| {
            format!(
                r#"{{"container_path":"/data","mode":"RO","source":{{"type":"DOCKER_VOLUME","docker_volume":{{"name":"v",{driver}
                "driver_options":{{"parameter":[{{"key":"repl","value":"3"}}]}}}}}}}}"#
            )
        };
        let task = |container: &str| of(&format!(r#"{{"container":{{{container}}}}}"#)).remove(0);
        let of_pxd = volume(r#""driver":"pxd","#);
        assert_eq!(short(&task(&format!(r#""type":"MESOS","volumes":[{of_pxd}]"#))).0, Road::Dvdcli);
        // Docker's own containers are another's.
        let environment = r#""environment":{"variables":[{"name":"DVDI_VOLUME_NAME","value":"w"}]}"#;
        let docker = of(&format!(
            r#"{{"task_id":{{"value":"t"}},"command":{{{environment}}},"container":{{"type":"DOCKER","docker":{{"image":"x"}},"volumes":[{of_pxd},{}]}}}}"#,
            volume(r#""driver":"other","#)
        ));
        assert_eq!(
            docker[0].volumes.iter().map(|volume| (volume.road.clone(), volume.options.len())).collect::<Vec<_>>(),
            [(Road::Docker, 0), (Road::Docker, 0)]
        );
        assert!(docker[0].notes[0].contains("DVDI_VOLUME_* is not looked at") && docker[0].notes[1].contains("without a word"));
        assert!(docker[0].refused[0].to_string().contains("one driver"), "{:?}", docker[0].refused);
        assert!(task(&format!(r#""type":"DOCKER","volumes":[{}]"#, volume(""))).notes[0].contains("Docker's own"));
    }

    #[test]
    fn what_is_nothing_of_mesos_is_said_to_be_that() {
        for text in ["", "hello", "{}", "[1]", "{\"id\": ", "a: b", "42"] {
            let error = read(text, &BTreeMap::new(), DRIVER).expect_err(text);
            assert_eq!(error.word(), "invalid_argument", "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_crashes_the_reader(text in ".{0,200}|\\{\"(id|env|container|tasks|pods)\":[\\[\\]{}\",:a-z0-9]{0,60}\\}") {
            drop(read(&text, &BTreeMap::new(), DRIVER));
        }
    }
}
