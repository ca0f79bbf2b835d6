//! What each command asks of the plugin, and in which order.

use std::collections::BTreeMap;

use dunnage_model::{Access, Bytes, Error, HintPolicy, PartialSpec, parse_name, parse_options};
use serde_json::{Value, json};

use crate::find::Places;
use crate::plugin::{Complaint, Failure, Plugin, Said, Volume};

type Result<T, E = Complaint> = std::result::Result<T, E>;

/// A volume, and what was said with it.
pub struct Asked {
    /// Its name; options may stand in it.
    pub name: String,
    /// The options of one that is made.
    pub options: Vec<(String, String)>,
    /// Who mounts and unmounts it, where that can be said.
    pub id: Option<String>,
    /// Hears what is to be known and is no error.
    pub tell: fn(&str),
}

impl Asked {
    fn named(&self) -> Value {
        match &self.id {
            Some(id) => json!({ "Name": self.name, "ID": id }),
            None => json!({ "Name": self.name }),
        }
    }
}

/// Finds the plugin and makes sure that it is one.
pub async fn activated(places: &Places, driver: &str) -> Result<Plugin> {
    let plugin = Plugin::new(places.find(driver)?);
    plugin.activate().await.map_err(|e| e.told("Plugin.Activate"))?;
    Ok(plugin)
}

async fn look(plugin: &Plugin, asked: &Asked) -> Result<Volume, Failure> {
    let said = plugin.read("Get", asked.named()).await?;
    said.volume.ok_or_else(|| Failure::Refused(format!("no such volume: {}", asked.name)))
}

/// Makes a volume, or sees that it is there as asked.
pub async fn create(plugin: &Plugin, asked: &Asked) -> Result<()> {
    let options: BTreeMap<&str, &str> = asked.options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let said = plugin.call("Create", json!({ "Name": asked.name, "Opts": options })).await.map_err(|e| e.told("Create"))?;
    for warning in said.warnings {
        (asked.tell)(&warning);
    }
    Ok(())
}

/// Removes a volume that is there.
pub async fn remove(plugin: &Plugin, asked: &Asked) -> Result<()> {
    look(plugin, asked).await.map_err(|e| e.told("Get"))?;
    plugin.call("Remove", asked.named()).await.map(drop).map_err(|e| e.told("Remove"))
}

/// Mounts a volume, which is made if it is not there and nothing that was said forbids it, and says where.
pub async fn mount(plugin: &Plugin, asked: &Asked, forbids: Option<&str>) -> Result<String> {
    match look(plugin, asked).await {
        Ok(volume) => tell_differences(&volume, asked),
        // Whoever cannot be reached, or is in doubt, is not asked to make anything.
        Err(failure) if !failure.may_be_absent() => return Err(failure.told("Get")),
        Err(_) => match forbids {
            Some(forbids) => {
                let detail = format!("there is no volume {:?}, and {forbids} forbids to make it", asked.name);
                return Err(Error::not_found(detail, format!("create it first: dvdcli create --volumename={}", asked.name)).into());
            }
            None => create(plugin, asked).await?,
        },
    }
    let Said { mountpoint, .. } = plugin.call("Mount", asked.named()).await.map_err(|e| e.told("Mount"))?;
    let no_path = || Error::unavailable("Mount: the plugin answered no path", "look into the plugin's own log");
    Ok(plugin.on_host(mountpoint).ok_or_else(no_path)?)
}

/// An unmount of what is not mounted is done: Mesos unmounts what it never mounted, and must not fail.
pub async fn unmount(plugin: &Plugin, asked: &Asked) -> Result<()> {
    let looked = look(plugin, asked).await;
    if looked.as_ref().is_err_and(Failure::says_impossible) {
        return told(asked);
    }
    // The volume may be gone from the platform, or be another endpoint's, and mounted all the same: only the plugin knows.
    match plugin.call("Unmount", asked.named()).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.says_absent() => told(asked),
        // Of what it does not have each says no in its own words.
        Err(failure) if looked.is_err_and(|e| e.says_absent()) && failure.may_be_absent() => told(asked),
        Err(failure) => Err(failure.told("Unmount")),
    }
}

fn told(asked: &Asked) -> Result<()> {
    (asked.tell)(&format!("there is no volume {:?}: nothing to unmount", asked.name));
    Ok(())
}

/// Where a volume is mounted, if it is.
pub async fn path(plugin: &Plugin, asked: &Asked) -> Result<Option<String>> {
    look(plugin, asked).await.map_err(|e| e.told("Get"))?;
    let said = plugin.call("Path", asked.named()).await.map_err(|e| e.told("Path"))?;
    Ok(plugin.on_host(said.mountpoint))
}

/// The name of a volume that is there.
pub async fn get(plugin: &Plugin, asked: &Asked) -> Result<String> {
    look(plugin, asked).await.map(|volume| volume.name).map_err(|e| e.told("Get"))
}

/// The names of all volumes.
pub async fn list(plugin: &Plugin) -> Result<Vec<String>> {
    let said = plugin.call("List", json!({})).await.map_err(|e| e.told("List"))?;
    Ok(said.volumes.unwrap_or_default().into_iter().map(|volume| volume.name).collect())
}

/// A volume that exists is mounted as it is, whatever is asked for. Where Dunnage tells what it is, what differs is said.
fn tell_differences(volume: &Volume, asked: &Asked) {
    let Some(status) = volume.status.as_ref().filter(|status| status["holders"].is_array()) else { return };
    let has = |key: &str| status.get(key).map(|has| has.as_str().map_or_else(|| has.to_string(), str::to_owned));
    let mut differs = Vec::new();
    // What stands in the name counts above what stands beside it. Each is read by itself: one that is wrong hides no other.
    let inside = parse_name(&asked.name).map(|name| name.options).unwrap_or_default();
    let beside = asked.options.iter().filter(|(key, _)| !inside.iter().any(|(k, _)| k.eq_ignore_ascii_case(key)));
    let mut wanted = PartialSpec::default();
    for (key, value) in inside.iter().chain(beside) {
        match parse_options([(key.as_str(), value.as_str())], HintPolicy::Warn, status["driver"].as_str().unwrap_or_default()) {
            Ok(parsed) => wanted = parsed.spec.over(&wanted),
            Err(e) => differs.push(format!("{}: {}", e.detail, e.next)),
        }
    }
    for (key, wanted, usual) in guarantees(&wanted) {
        if let (Some(wanted), Some(has)) = (wanted, has(key))
            && wanted != has
            && !(has == LEFT_OPEN && wanted == usual)
        {
            differs.push(format!("{key}={has}, and not {wanted}"));
        }
    }
    for (label, wanted) in &wanted.labels {
        let has = status["labels"].get(label).and_then(Value::as_str).unwrap_or(LEFT_OPEN);
        if has != wanted {
            differs.push(format!("label {label}={has}, and not {wanted}"));
        }
    }
    if !differs.is_empty() {
        (asked.tell)(&format!("volume {:?} exists, and is mounted as it is: {}", asked.name, differs.join("; ")));
    }
}

/// How Dunnage tells what nobody asked for at create.
const LEFT_OPEN: &str = "-";

/// What is asked for, under the names by which Dunnage tells it; and what a volume is when that was left open.
fn guarantees(spec: &PartialSpec) -> [(&'static str, Option<String>, &'static str); 12] {
    fn text(value: Option<impl ToString>) -> Option<String> {
        value.map(|value| value.to_string())
    }
    [
        ("size", text(spec.size.map(|size| size.round_up(4 * Bytes::KIB))), LEFT_OPEN),
        ("fs", text(spec.fs), LEFT_OPEN),
        ("ro", text(spec.access.map(|access| access == Access::ManyReaders)), "false"),
        ("shared", text(spec.shared), "false"),
        ("thick", text(spec.thick), "false"),
        ("repl", text(spec.repl), LEFT_OPEN),
        ("uid", text(spec.uid), "0"),
        ("gid", text(spec.gid), "0"),
        ("mode", text(spec.mode), "0755"),
        ("preempt", text(spec.preempt), LEFT_OPEN),
        ("rootPath", text(spec.root_path.as_ref()), "/"),
        ("mountOptions", text(spec.mount_options.as_ref()), ""),
    ]
}

#[cfg(test)]
#[path = "verbs_tests.rs"]
mod tests;
