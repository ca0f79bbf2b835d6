//! Has an image carried: by the first of the ways that can.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use dunnage_host::helpers::Task;
use dunnage_host::linux::{carrier, to_background};
use dunnage_model::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::ClientAddress;
use crate::device::Device;
use crate::kernel::{self, Mapping};
use crate::nbd;
use crate::process::{self, CONF, DEVICE, How, MAPPING, NBD, PID, QEMU, RBD_NBD, SAID, clear, end, export, forget, os};
use crate::tasks::Place;

/// What is said of a program that is not there.
const NOT_INSTALLED: &str = "it is not installed";

/// How long it may take to open an image.
const PATIENCE: Duration = Duration::from_secs(30);

/// By what an image is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// By the first of the others that can.
    #[default]
    Auto,
    /// By the kernel's own client.
    Kernel,
    /// By `rbd-nbd`, as a device of the kernel's nbd.
    Nbd,
    /// By `qemu-storage-daemon`, as a file.
    Process,
}

/// What came of a start.
#[derive(Serialize, Deserialize)]
pub struct Started {
    /// Its device, if it makes one itself.
    pub device: Option<Device>,
    /// As whom the kernel writes. A process does not say.
    pub client: Option<ClientAddress>,
    /// Why it is not what would have been better, and could have been.
    pub why_not: Vec<String>,
}

/// Has an image carried, and waits until it can be used.
#[derive(Serialize, Deserialize)]
pub struct Start {
    /// By what.
    pub way: Way,
    /// Its folder.
    pub folder: PathBuf,
    /// The image's pool.
    pub place: Place,
    /// The image.
    pub image: String,
}

impl Task for Start {
    const NAME: &'static str = "ceph.start";
    type Output = Started;

    fn run(self) -> Result<Started> {
        self.prepare()?;
        let mut why_not = Vec::new();
        if self.way == Way::Kernel || self.way == Way::Auto && kernel::is_here() {
            let why = kernel::map(&self.folder, &self.place.access.user, &self.place.pool, &self.image)?;
            let mapped = Mapping::read(&self.folder)?.map_or(Ok(None), |mapping| mapping.mapped(None))?;
            if let Some(mapped) = mapped {
                return Ok(Started { client: Some(mapped.client), device: Some(mapped.device()), why_not });
            }
            let why = format!("the kernel cannot map it: {}", why.as_deref().unwrap_or("it is mapped, and the kernel does not show it"));
            self.or_fail(why, "the package ceph-common", &mut why_not)?;
            forget(&self.folder, MAPPING)?;
        }
        if self.way == Way::Nbd || self.way == Way::Auto && nbd::is_here() {
            File::create(self.folder.join(NBD)).map_err(os(self.cannot()))?;
            let why = self.background(self.nbd())?;
            let pid = process::find(&self.folder)?;
            if let Some((pid, device)) = pid.and_then(|pid| Some((pid, nbd::device(pid)?))).filter(|_| why.is_none()) {
                std::fs::write(self.folder.join(NBD), pid.as_raw_nonzero().to_string()).map_err(os(self.cannot()))?;
                return Ok(Started { device: Some(device), client: None, why_not });
            }
            end(&self.folder, How::Kill)?;
            let why = format!("{} cannot show it: {}", RBD_NBD, why.as_deref().unwrap_or("it runs, and has no device"));
            self.or_fail(why, "the package rbd-nbd", &mut why_not)?;
            forget(&self.folder, NBD)?;
        }
        let Some(why) = self.background(self.qemu())? else { return Ok(Started { device: None, client: None, why_not }) };
        clear(&self.folder)?;
        let (pool, user) = (&self.place.pool, &self.place.access.user);
        let next = match &*why {
            NOT_INSTALLED => "install the packages qemu-system-common and qemu-block-extra".to_owned(),
            _ => format!("look at the image with 'rbd info {pool}/{}', and at the key of client.{user}", self.image),
        };
        Err(Error::unavailable(format!("{QEMU} cannot show image {:?} of pool {pool:?}: {why}", self.image), next))
    }
}

impl Start {
    fn cannot(&self) -> String {
        format!("cannot make {}", self.folder.display())
    }

    /// Makes the folder, and says there how the cluster is reached.
    fn prepare(&self) -> Result<()> {
        let (folder, access) = (&self.folder, &self.place.access);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(os(self.cannot()))?;
        // The key is where the configuration says, or where ours does. And nothing is kept in a process that may die.
        let mut conf = std::fs::read_to_string(&access.conf).map_err(os(format_args!("cannot read {}", access.conf.display())))?;
        let settings = format!("client mount timeout = {}\nrbd cache = false\n", PATIENCE.as_secs() / 2);
        conf.push_str(&format!("\n[client.{}]\n{settings}", access.user));
        if let Some(keyring) = &access.keyring {
            conf.push_str(&format!("keyring = {}\n", keyring.display()));
        }
        std::fs::write(self.folder.join(CONF), conf).map_err(os(self.cannot()))?;
        File::create(folder.join(DEVICE)).map(|_| ()).map_err(os(self.cannot()))
    }

    /// One way failed: the next is tried, unless it was to be this one.
    fn or_fail(&self, why: String, package: &str, why_not: &mut Vec<String>) -> Result<()> {
        if self.way == Way::Auto {
            why_not.push(why);
            return Ok(());
        }
        clear(&self.folder)?;
        let next = format!("look at the kernel's log, and whether {package} is installed; or leave 'attach' out of the driver's settings");
        Err(Error::unavailable(format!("image {:?} of pool {:?}: {why}", self.image, self.place.pool), next))
    }

    fn nbd(&self) -> Command {
        let mut command = carrier(RBD_NBD);
        command.args(["map", "--conf"]).arg(self.folder.join(CONF)).args(["--id", &self.place.access.user]);
        command.arg(format!("{}/{}", self.place.pool, self.image));
        command
    }

    fn qemu(&self) -> Command {
        let blockdev = json!({
            "driver": "rbd",
            "node-name": "volume",
            "pool": self.place.pool,
            "image": self.image,
            "conf": self.folder.join(CONF),
            "user": self.place.access.user,
            "discard": "unmap",
            "cache": { "direct": true },
        });
        let mut command = carrier(QEMU);
        command.args(["--blockdev", &blockdev.to_string(), "--export", &export(&self.folder), "--daemonize", "--pidfile"]);
        command.arg(self.folder.join(PID));
        command
    }

    /// Starts a process that carries the image. Gives what it had to say about it when it failed.
    fn background(&self, mut command: Command) -> Result<Option<String>> {
        let said =
            File::options().create(true).truncate(true).write(true).mode(0o600).open(self.folder.join(SAID)).map_err(os(self.cannot()))?;
        let status = match to_background(command.stdout(Stdio::null()).stderr(said), PATIENCE) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Some(NOT_INSTALLED.to_owned())),
            status => status.map_err(os(format_args!("cannot start {}", command.get_program().display())))?,
        };
        let Some(status) = status else {
            // The one that was waited for.
            end(&self.folder, How::Kill)?;
            let detail =
                format!("image {:?} of pool {:?} could not be opened within {} s", self.image, self.place.pool, PATIENCE.as_secs());
            return Err(Error::unavailable(detail, "look at 'ceph status' and at the network to its storage daemons"));
        };
        if status.success() {
            return Ok(None);
        }
        let said = std::fs::read_to_string(self.folder.join(SAID)).unwrap_or_default();
        Ok(Some(said.lines().last().unwrap_or("it said nothing").chars().take(300).collect()))
    }
}
