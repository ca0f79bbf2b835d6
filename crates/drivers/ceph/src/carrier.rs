//! An image as a block device: mapped by the kernel ([`kernel`]) or, where it has no rbd, by a process. Where the kernel has nbd, that
//! is `rbd-nbd` ([`nbd`]); elsewhere `qemu-storage-daemon` shows it as a file over FUSE, and a loop device is put on that file.
//!
//! How such a process is found and ended: [`process`].

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dunnage_host::DeviceNumber;
use dunnage_host::helpers::Task;
use dunnage_model::{Bytes, Error, Result, VolumeName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ClientAddress;
use crate::device::Device;
use crate::kernel::{self, Mapped, Mapping};
use crate::nbd;
use crate::process::{self, CLIENT, DEVICE, How, MAPPING, NBD, PID, clear, end, os};

/// What carries an image, and lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    /// The kernel's own client.
    Kernel(Mapped),
    /// A process whose device this is.
    Nbd(Device),
    /// A process that shows it as a file.
    File,
}

impl Carrier {
    /// Its device, if it makes one itself.
    pub fn device(&self) -> Option<Device> {
        match self {
            Carrier::Kernel(mapped) => Some(mapped.device()),
            Carrier::Nbd(device) => Some(device.clone()),
            Carrier::File => None,
        }
    }
}

/// How an image stands on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// It is not here.
    No,
    /// It is carried, and nobody has come to know yet as whom: a start that was interrupted.
    Unnamed,
    /// It is carried, and written to as this client.
    By {
        /// The client.
        client: ClientAddress,
        /// The number of the volume whose image it is.
        volume: Uuid,
        /// By what.
        carrier: Carrier,
    },
    /// What carried it has died.
    Dead,
}

/// What an end came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It has closed the image, with every write of its own answered.
    InOrder,
    /// It has ended because it was told to. Whether that was in order, the cluster knows: who has closed an image is seen there no more.
    Told(ClientAddress),
    /// It was killed, by whomever, or could not write what it had: what it had sent may be on its way.
    Killed,
    /// It has not ended: the kernel's device is open.
    Open,
}

/// What carries the image of this folder, and lives.
fn carrier_of(folder: &Path) -> Result<Option<Carrier>> {
    if let Some(mapping) = Mapping::read(folder)? {
        let client = named(folder)?.map(|(client, _)| client);
        return Ok(mapping.mapped(client)?.map(Carrier::Kernel));
    }
    let Some(pid) = process::find(folder)? else { return Ok(None) };
    if folder.join(NBD).exists() { Ok(nbd::device(pid).map(Carrier::Nbd)) } else { Ok(Some(Carrier::File)) }
}

/// Looks how an image stands on this node.
#[derive(Serialize, Deserialize)]
pub struct Look {
    /// Its folder.
    pub folder: PathBuf,
}

impl Task for Look {
    const NAME: &'static str = "ceph.look";
    type Output = Carried;

    fn run(self) -> Result<Carried> {
        let Look { folder } = self;
        if !folder.is_dir() {
            return Ok(Carried::No);
        }
        Ok(match (carrier_of(&folder)?, named(&folder)?) {
            (Some(carrier), Some((client, volume))) => Carried::By { client, volume, carrier },
            (Some(_), None) => Carried::Unnamed,
            // It may not have come as far as a device.
            (None, None) if process::find(&folder)?.is_some() => Carried::Unnamed,
            (None, _) => Carried::Dead,
        })
    }
}

/// As whom an image is written to, and the number of the volume whose it is; nothing if nobody has come to know.
fn named(folder: &Path) -> Result<Option<(ClientAddress, Uuid)>> {
    let path = folder.join(CLIENT);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(os(format_args!("cannot read {}", path.display())))?,
    };
    let damaged = || Error::internal(format!("{} is damaged", path.display()));
    let (client, volume) = text.split_once(' ').ok_or_else(damaged)?;
    Ok(Some((client.parse()?, volume.parse().map_err(|_| damaged())?)))
}

/// Whether the device of this number is what carries the image of this folder.
pub fn has_device(folder: &Path, number: DeviceNumber) -> bool {
    // Every driver is asked about every mount: most are none of its.
    if ![MAPPING, NBD].iter().any(|file| folder.join(file).exists()) {
        return false;
    }
    let device = carrier_of(folder).map(|carrier| carrier.and_then(|carrier| carrier.device()));
    device.is_ok_and(|device| device.is_some_and(|device| device.number == number))
}

/// Writes down as whom the process writes: from now on it is used.
#[derive(Serialize, Deserialize)]
pub struct Tell {
    /// Its folder.
    pub folder: PathBuf,
    /// As whom.
    pub client: ClientAddress,
    /// To which volume's image: its number, for another may have had its name.
    pub volume: Uuid,
}

impl Task for Tell {
    const NAME: &'static str = "ceph.tell";
    type Output = ();

    fn run(self) -> Result<()> {
        let Tell { folder, client, volume } = self;
        let (path, new) = (folder.join(CLIENT), folder.join("client.new"));
        let write = || std::fs::write(&new, format!("{client} {volume}")).and_then(|()| std::fs::rename(&new, &path));
        write().map_err(os(format_args!("cannot write {}", path.display())))
    }
}

/// Ends what carries an image, when nothing uses that any more, and takes its folder away.
#[derive(Serialize, Deserialize)]
pub struct End {
    /// Its folder.
    pub folder: PathBuf,
}

impl Task for End {
    const NAME: &'static str = "ceph.end";
    type Output = Ended;

    fn run(self) -> Result<Ended> {
        let folder = &self.folder;
        let carrier = carrier_of(folder)?;
        if Mapping::read(folder)?.is_some() {
            if let Some(Carrier::Kernel(mapped)) = &carrier
                && !kernel::unmap(mapped)?
            {
                return Ok(Ended::Open);
            }
            clear(folder)?;
            // Who unmapped it may have been in a hurry.
            return Ok(if carrier.is_some() { Ended::InOrder } else { Ended::Killed });
        }
        // Who is told to end lets go of its device, whoever uses that; from here on nobody begins to.
        let kept = match &carrier {
            Some(Carrier::Nbd(device)) => match nbd::keep(device)? {
                None => return Ok(Ended::Open),
                kept => kept,
            },
            _ => None,
        };
        let in_time = match &kept {
            Some(kept) => {
                let written = nbd::disconnect(kept)?;
                // (It may have been quick.)
                let ended = end(folder, How::Wait)?.unwrap_or(true);
                nbd::free(kept)?;
                written && ended
            }
            None => end(folder, How::Tell)?.unwrap_or(false),
        };
        let (client, by_nbd) = (named(folder)?, folder.join(NBD).exists());
        let was_killed = if by_nbd { !in_time } else { folder.join(PID).exists() };
        clear(folder)?;
        Ok(match client {
            _ if was_killed => Ended::Killed,
            Some((client, _)) if by_nbd => Ended::Told(client),
            _ => Ended::InOrder,
        })
    }
}

/// Waits until the device that a process serves is as long as its image.
#[derive(Serialize, Deserialize)]
pub struct WaitForSize {
    /// Its device.
    pub device: Device,
    /// How long that is to be at least.
    pub size: Bytes,
}

impl Task for WaitForSize {
    const NAME: &'static str = "ceph.wait-for-size";
    type Output = ();

    fn run(self) -> Result<()> {
        nbd::wait_for_size(&self.device, self.size)
    }
}

/// Has the process that carries an image make it longer, if it is shorter: then it knows.
#[derive(Serialize, Deserialize)]
pub struct Lengthen {
    /// Its folder.
    pub folder: PathBuf,
    /// How long it is to be at least.
    pub size: Bytes,
}

impl Task for Lengthen {
    const NAME: &'static str = "ceph.lengthen";
    type Output = ();

    fn run(self) -> Result<()> {
        let path = self.folder.join(DEVICE);
        let what = format!("cannot lengthen {}", path.display());
        let file = File::options().write(true).open(&path).map_err(os(&what))?;
        if file.metadata().map_err(os(&what))?.len() < self.size.0 {
            file.set_len(self.size.0).map_err(os(&what))?;
        }
        Ok(())
    }
}

/// The volumes whose images are on this node, and what carries them.
#[derive(Serialize, Deserialize)]
pub struct All {
    /// The folder of their folders.
    pub folder: PathBuf,
}

impl Task for All {
    const NAME: &'static str = "ceph.all";
    type Output = Vec<(VolumeName, Option<Carrier>)>;

    fn run(self) -> Result<Self::Output> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(os(format_args!("cannot list {}", self.folder.display())))?,
        };
        let all = entries.flatten().filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
        all.map(|(name, folder)| Ok((name, carrier_of(&folder)?))).collect()
    }
}
