//! `dunnage volume export`: a volume's device, copied to a file.
//!
//! The device is opened exclusively: nobody has it mounted while it is read, or mounts it meanwhile, so that what is copied is
//! whole.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use dunnage_frontend_admin::wire::{Attached, Inspected, Unmounted};
use dunnage_model::{Bytes, CallerKind, Error, HERE, Kind, Result};
use rustix::fs::OFlags;

use crate::cli::WhichArgs;
use crate::client::{NOTHING, ask, uri};
use crate::config::Places;

/// How much is copied at a time; what is zero in it becomes a hole.
const PART: usize = 1 << 20;

/// Runs the command.
pub fn run(places: &Places, which: &WhichArgs, file: &Path) -> Result<()> {
    let new = || File::options().write(true).create_new(true).mode(0o600).open(file);
    let to = match file == Path::new("-") {
        true if std::io::stdout().is_terminal() => {
            return Err(Error::invalid("file", "an image is not for a terminal", "name a file, or send the output to a program"));
        }
        true => None,
        false => Some(new().map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => {
                let detail = format!("there is a file {} already", file.display());
                Error::new(Kind::ExistsIncompatible, detail, "name another, or remove it if nobody needs it")
            }
            _ => Error::os(file.display(), &e),
        })?),
    };
    let copied = attached_copy(places, which, to.as_ref());
    if copied.is_err() && to.is_some() {
        // It is new, and half of an image is none.
        std::fs::remove_file(file).ok();
    }
    let size = copied?;
    eprintln!("{}: exported ({size})", which.name);
    Ok(())
}

fn attached_copy(places: &Places, which: &WhichArgs, to: Option<&File>) -> Result<Bytes> {
    // A hold of the command line is one, however often it is taken: one that was there before stays.
    let before: Inspected = ask(places, which.patience()?, "GET", &uri(which, "")?, &NOTHING)?;
    let had = before.volume.holders.iter().any(|holder| holder.key.caller.kind == CallerKind::CliDevice);
    let name = which.name.parse()?;
    if before.volume.mountpoint.is_some() {
        return Err(mounted().of(&name));
    }
    let attached: Attached = ask(places, which.patience()?, "POST", &uri(which, "/attach")?, &NOTHING)?;
    let copied = copy(Path::new(&attached.device), to);
    let detached = match had {
        true => Ok(()),
        false => ask::<Unmounted>(places, which.patience()?, "POST", &uri(which, "/detach")?, &NOTHING).map(|_| ()),
    };
    if let Err(e) = &detached {
        eprintln!("dunnage: it stays attached: {e}");
    }
    let size = copied.map_err(|e| e.of(&name))?;
    detached?;
    Ok(size)
}

fn mounted() -> Error {
    let detail = "it is mounted, and a copy of it would have half of what is written meanwhile";
    Error::in_use(Vec::new(), HERE, detail, "end what uses it, then export it")
}

fn copy(device: &Path, to: Option<&File>) -> Result<Bytes> {
    let what = format!("cannot read {}", device.display());
    let os = |e: std::io::Error| Error::os(&what, &e);
    let mut from = File::options().read(true).custom_flags(OFlags::EXCL.bits().cast_signed()).open(device).map_err(|e| match e.kind() {
        ErrorKind::ResourceBusy => mounted(),
        _ => os(e),
    })?;
    let size = from.seek(SeekFrom::End(0)).map_err(os)?;
    from.rewind().map_err(os)?;
    let (mut part, mut at, mut told) = (vec![0; PART], 0, Instant::now());
    while at < size {
        let read = from.read(&mut part).map_err(os)?;
        let data = part.get(..read).unwrap_or_default();
        if data.is_empty() {
            return Err(Error::unavailable(format!("{what}: it ends at {}, and should have {}", Bytes(at), Bytes(size)), "try again"));
        }
        let written = match to {
            Some(file) if data.iter().any(|byte| *byte != 0) => file.write_all_at(data, at),
            Some(_) => Ok(()),
            None => std::io::stdout().write_all(data),
        };
        written.map_err(|e| Error::os("cannot write the image", &e))?;
        at += read as u64;
        if told.elapsed().as_secs() >= 1 && std::io::stderr().is_terminal() {
            eprint!("\r{} of {} ", Bytes(at), Bytes(size));
            told = Instant::now();
        }
    }
    if let Some(file) = to {
        file.set_len(size).and_then(|()| file.sync_all()).map_err(|e| Error::os("cannot write the image", &e))?;
    }
    Ok(Bytes(size))
}
