//! An image as a block device of the kernel's own client, the module `rbd`.
//!
//! Mapped by the command `rbd`, which knows what the module wants to hear; looked at and unmapped through sysfs. Each image has a
//! client of its own (`noshare`), for whoever fences a client fences all that it has.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dunnage_host::DeviceNumber;
use dunnage_host::linux::to_background;
use dunnage_model::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::ClientAddress;
use crate::device::Device;
use crate::process::{CONF, MAPPING, SAID};

/// Where the module shows itself.
const BUS: &str = "/sys/bus/rbd";
/// A client for each image, which nobody else may write to as long as it is mapped; and its device is made by the kernel itself.
const OPTIONS: &str = "noshare,exclusive,noudev";
/// How long a mapping may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An image that the kernel has mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped {
    id: u32,
    pool: String,
    image: String,
    /// As whom the kernel writes to it.
    pub client: ClientAddress,
    number: DeviceNumber,
}

impl Mapped {
    /// Its device.
    pub fn device(&self) -> Device {
        Device { path: format!("/dev/rbd{}", self.id).into(), number: self.number }
    }

    fn read(id: u32) -> Option<Mapped> {
        let folder = Path::new(BUS).join("devices").join(id.to_string());
        let value = |name| std::fs::read_to_string(folder.join(name)).ok().map(|text| text.trim_end().to_owned());
        let number = DeviceNumber::new(value("major")?.parse().ok()?, value("minor")?.parse().ok()?);
        Some(Mapped { id, pool: value("pool")?, image: value("name")?, client: value("client_addr")?.parse().ok()?, number })
    }
}

/// All images that the kernel has mapped, whoever asked for them.
fn all() -> Result<Vec<Mapped>> {
    let entries = match std::fs::read_dir(Path::new(BUS).join("devices")) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::os("cannot list the images that the kernel has mapped", &e))?,
    };
    // One that goes while it is read is gone.
    Ok(entries.flatten().filter_map(|entry| Mapped::read(entry.file_name().to_str()?.parse().ok()?)).collect())
}

/// What was to be mapped, and what of it was mapped before: by somebody else.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mapping {
    pool: String,
    image: String,
    before: Vec<u32>,
}

impl Mapping {
    /// What was written down in a folder; nothing if nothing was.
    pub fn read(folder: &Path) -> Result<Option<Mapping>> {
        let path = folder.join(MAPPING);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|e| Error::os(format_args!("cannot read {}", path.display()), &e))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::internal(format!("{} is damaged: {e}", path.display())))
    }

    /// What came of it, if it is mapped: by this client, or, if nobody has come to know by whom, by none that was there before.
    pub fn mapped(&self, client: Option<ClientAddress>) -> Result<Option<Mapped>> {
        let is_its = |one: &Mapped| client.map_or_else(|| !self.before.contains(&one.id), |client| one.client == client);
        let is_it = |one: &Mapped| one.pool == self.pool && one.image == self.image && is_its(one);
        Ok(all()?.into_iter().find(is_it))
    }
}

/// Whether this kernel has the module; it is loaded if need be.
pub fn is_here() -> bool {
    has_module("rbd", Path::new(BUS))
}

/// Whether the kernel has a module, which shows itself there; it is loaded if need be.
pub fn has_module(name: &str, shows: &Path) -> bool {
    let load = || to_background(Command::new("modprobe").args(["-q", name]).stdout(Stdio::null()).stderr(Stdio::null()), PATIENCE);
    shows.exists() || load().is_ok() && shows.exists()
}

/// Has the kernel map an image; in its folder is how the cluster is reached. Gives what the command had to say when it failed.
pub fn map(folder: &Path, user: &str, pool: &str, image: &str) -> Result<Option<String>> {
    let same = |one: &Mapped| one.pool == pool && one.image == image;
    let before = all()?.into_iter().filter(same).map(|one| one.id).collect();
    let mapping = Mapping { pool: pool.to_owned(), image: image.to_owned(), before };
    let (path, new) = (folder.join(MAPPING), folder.join("mapping.new"));
    let text = serde_json::to_vec(&mapping).map_err(|e| Error::internal(format!("a mapping cannot be written: {e}")))?;
    let write = || std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path));
    write().map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))?;
    let said = folder.join(SAID);
    let try_with = |options: &str| -> Result<Option<String>> {
        let to = std::fs::File::create(&said).map_err(|e| Error::os(format_args!("cannot make {}", said.display()), &e))?;
        // It dies with the helper that waits for it: nothing is mapped behind the back of a retry.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "rbd", "--conf"]).arg(folder.join(CONF));
        command.args(["--id", user, "device", "map", "--options", options]);
        command.args(["--pool", pool, "--image", image]).stdout(Stdio::null()).stderr(to);
        match to_background(&mut command, PATIENCE) {
            Ok(Some(status)) if status.success() => Ok(None),
            Ok(Some(_)) => Ok(Some(std::fs::read_to_string(&said).unwrap_or_default().trim().replace('\n', "; "))),
            Ok(None) => {
                let detail = format!("the kernel could not map image {image:?} of pool {pool:?} within {} s", PATIENCE.as_secs());
                Err(Error::unavailable(detail, "look at 'ceph status', at the network to the monitors, and at the kernel's log"))
            }
            Err(e) => Err(Error::os("cannot start rbd by setpriv (package util-linux)", &e)),
        }
    };
    match try_with(OPTIONS)? {
        // The command tries the older protocol, unless the operator's configuration says otherwise, and the monitors may have none.
        Some(why) if why.contains("ms_mode") => try_with(&format!("{OPTIONS},ms_mode=prefer-crc")),
        outcome => Ok(outcome),
    }
}

/// Has the kernel let go of an image; `false` while something has it open.
pub fn unmap(mapped: &Mapped) -> Result<bool> {
    // The first is there where devices share one major number, as they do unless the module was told otherwise.
    let files = ["remove_single_major", "remove"].map(|name| Path::new(BUS).join(name));
    let file = files.iter().find(|file| file.exists()).unwrap_or(&files[1]);
    let write = || std::fs::File::options().write(true).open(file)?.write_all(mapped.id.to_string().as_bytes());
    match write() {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::ResourceBusy => Ok(false),
        // It is gone.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
        Err(e) => Err(Error::os(format_args!("cannot unmap {}", mapped.device().path.display()), &e)),
    }
}
