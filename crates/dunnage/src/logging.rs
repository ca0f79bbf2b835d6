//! The log: to stderr in the foreground, else to a file that is opened anew on HUP.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dunnage_model::{Error, Result};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::cli::LogFormat;

/// Where lines go.
#[derive(Clone)]
pub struct Log {
    file: Option<(PathBuf, Arc<Mutex<File>>)>,
}

fn open(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |e: io::Error| Error::os(format_args!("cannot write the log {}", path.display()), &e);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    File::options().append(true).create(true).mode(0o640).open(path).map_err(failed)
}

impl Log {
    /// Begins to log. `file` is none in the foreground.
    pub fn begin(file: Option<&Path>, level: &str, format: LogFormat) -> Result<Log> {
        let level: LevelFilter = level
            .parse()
            .map_err(|_| Error::invalid("log-level", format!("{level:?} is not a level"), "use error, warn, info, debug or trace"))?;
        let log = Log { file: file.map(|path| Ok::<_, Error>((path.to_owned(), Arc::new(Mutex::new(open(path)?))))).transpose()? };
        let lines = tracing_subscriber::fmt::layer().with_writer(log.clone()).with_target(false);
        let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
            LogFormat::Json => lines.json().with_filter(level).boxed(),
            LogFormat::Text => lines.with_ansi(log.file.is_none() && io::stderr().is_terminal()).with_filter(level).boxed(),
        };
        tracing_subscriber::registry().with(layer).try_init().map_err(|e| Error::internal(format!("cannot log: {e}")))?;
        Ok(log)
    }

    /// Opens the file anew, after it was moved away.
    pub fn reopen(&self) -> Result<()> {
        if let Some((path, file)) = &self.file {
            *file.lock().unwrap_or_else(PoisonError::into_inner) = open(path)?;
        }
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.file {
            Some((_, file)) => file.lock().unwrap_or_else(PoisonError::into_inner).write(line),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;
    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}
