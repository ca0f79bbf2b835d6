//! `rexray env`: the configuration as the variables that REX-Ray would read. Secrets are not shown.

use dunnage_model::{Access, Preempt, Result};

use crate::config::rexray::{OPS, variable};
use crate::config::{Config, CreatePolicy, Places, RemovePolicy};

/// The variables, by name: what is in force for the first endpoint, and every key of a REX-Ray configuration.
pub fn env(places: &Places) -> Result<Vec<(String, String)>> {
    let config = Config::load(places)?;
    let mut all = std::collections::BTreeMap::new();
    let mut set = |key: &str, value: String| drop(all.insert(variable(key), value));
    let op = |key: &str| format!("libstorage.{OPS}{key}");
    set(&op("mount.path"), config.volumes.path.display().to_string());
    if let Some(endpoint) = config.docker.first() {
        let spec = endpoint.defaults.clone().over(&config.volumes.defaults).complete()?;
        set("libstorage.service", endpoint.driver.to_string());
        set(&op("mount.rootPath"), spec.root_path.map_or_else(|| "/".to_owned(), |path| path.to_string()));
        set(&op("mount.preempt"), (endpoint.preempt != Preempt::Never).to_string());
        set(&op("create.disable"), (endpoint.create == CreatePolicy::Explicit).to_string());
        set(&op("remove.disable"), (endpoint.remove == RemovePolicy::Refuse).to_string());
        set(&op("create.default.size"), spec.size.0.div_ceil(dunnage_model::Bytes::GIB).to_string());
        set(&op("create.default.fsType"), spec.fs.to_string());
        if let Some(mode) = spec.mode.filter(|_| spec.access == Access::SingleWriter) {
            set("linux.volume.filemode", mode.to_string());
        }
    }
    for told in &config.told {
        set(&told.key, told.value.clone());
    }
    Ok(all.into_iter().collect())
}
