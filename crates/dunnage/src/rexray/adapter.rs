//! `rexray adapter`, and why there is no `rexray snapshot`: a service is one of our drivers.

use std::collections::BTreeMap;

use dunnage_frontend_admin::wire::{Drivers, Status};
use dunnage_model::{Error, Result};

use super::args::{AdapterArgs, AdapterCommand, SnapshotCommand};
use super::daemon::get;
use super::print::Answer;
use super::shape::{DriverInfo, Instance, InstanceId, NextDevice, Service};
use super::volume::Asked;

/// `rexray adapter …`
pub fn adapter(asked: &Asked<'_>, group: AdapterArgs) -> Result<String> {
    let format = group.format.format(false)?;
    let drivers: Drivers = get(asked.daemon, "/v1/drivers")?;
    let chosen = asked.chosen()?;
    let drivers = drivers.iter().filter(|d| chosen.driver.as_ref().is_none_or(|name| name == d.name.as_str()));
    let answer = match group.command.unwrap_or(AdapterCommand::Types) {
        AdapterCommand::Types => {
            let service = |name: &str, kind: &str| Service {
                name: name.to_owned(),
                driver: DriverInfo {
                    name: kind.to_owned(),
                    kind: "block",
                    next_device: NextDevice { ignore: true, prefix: "", pattern: "" },
                },
            };
            Answer::services(&drivers.map(|d| (d.name.to_string(), service(d.name.as_str(), &d.kind))).collect())
        }
        AdapterCommand::Instances => {
            let status: Status = get(asked.daemon, "/v1/status")?;
            let instances: BTreeMap<String, Instance> = drivers
                .map(|d| {
                    let id = InstanceId { id: status.node.clone(), driver: d.kind.clone(), service: d.name.to_string() };
                    (d.name.to_string(), Instance { id, name: status.node.clone(), provider_name: d.kind.clone() })
                })
                .collect();
            Answer::instances(&instances)
        }
    };
    answer.print(&format)
}

/// `rexray snapshot …`: what is missing is said first, as it was.
pub fn snapshot(command: Option<SnapshotCommand>) -> Error {
    let missing = |flag: &str| Error::invalid(flag, format!("missing --{flag}"), format!("give it: --{flag} ID"));
    match command {
        Some(SnapshotCommand::Create(flags)) if flags.volumeid.is_empty() => missing("volumeid"),
        Some(SnapshotCommand::Remove(flags)) if flags.snapshotid.is_empty() => missing("snapshotid"),
        Some(SnapshotCommand::Copy(flags)) if flags.snapshotid.is_empty() && flags.volumeid.is_empty() => missing("snapshotid"),
        _ => Error::unavailable("no driver of this version has snapshots", "copy the files of the mounted volume instead"),
    }
}
