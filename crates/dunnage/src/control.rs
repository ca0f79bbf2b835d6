//! Starting the daemon in the background, stopping it, and asking how it is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use dunnage_engine::Layout;
use dunnage_frontend_admin::wire::{Released, Status};
use dunnage_model::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cli::{LogFormat, OutputArgs, StartArgs};
use crate::client::ask;
use crate::config::{Config, DriverConfig, LocalConfig, Places};
use crate::{daemon, instance, output};

/// How long a daemon may take to serve.
const START: Duration = Duration::from_secs(60);
/// How long a daemon may take to end: it waits for jobs that run.
const STOP: Duration = Duration::from_secs(60);

/// `dunnage start` without -f.
pub fn start(places: &Places, args: &StartArgs) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(daemon::need_root("start"));
    }
    // What is wrong with the configuration is said here, and not in a log.
    Config::load(places)?;
    if let Some(owner) = instance::running(&places.run_dir) {
        println!("The Dunnage daemon is running already at PID {}.", owner.pid);
        return Ok(());
    }
    print!("Starting Dunnage...");
    let pid = match spawn(places, args) {
        Ok(pid) => pid,
        Err(e) => {
            println!("FAILED");
            return Err(e);
        }
    };
    let binary = std::env::current_exe().map_err(|e| Error::os("cannot find this binary", &e))?;
    println!("SUCCESS!\n");
    println!("  The Dunnage daemon is now running at PID {pid}. To\n  shutdown the daemon execute the following command:\n");
    println!("    sudo {} stop{}\n", binary.display(), place_flags(places));
    Ok(())
}

/// The flags that lead another command to the same daemon; none for the usual one.
pub fn place_flags(places: &Places) -> String {
    if places.run_dir == Path::new("/run/dunnage") { String::new() } else { format!(" --run-dir {}", places.run_dir.display()) }
}

/// Starts a daemon of its own session and waits until it serves.
pub fn spawn(places: &Places, args: &StartArgs) -> Result<u32> {
    let os = |what: &str| {
        let what = format!("cannot start the daemon: {what}");
        move |e: std::io::Error| Error::os(what, &e)
    };
    let binary = std::env::current_exe().map_err(os("its binary"))?;
    if let Some(folder) = args.log_file.parent() {
        std::fs::create_dir_all(folder).map_err(os("the folder of its log"))?;
    }
    let mut log = File::options().create(true).append(true).read(true).open(&args.log_file).map_err(os("its log"))?;
    let before = log.seek(SeekFrom::End(0)).map_err(os("its log"))?;
    let mut command = Command::new(&binary);
    // Whatever this is called: the name picks the face.
    command.arg0(binary.with_file_name("dunnage"));
    if let Some(config) = &places.config {
        command.arg("--config").arg(config);
    }
    if let Some(node) = &places.node {
        command.arg("--node").arg(node.as_str());
    }
    command.arg("--state-dir").arg(&places.state_dir).arg("--run-dir").arg(&places.run_dir).arg("--plugin-dir").arg(&places.plugin_dir);
    command.args([
        "start",
        "--detached",
        "--log-level",
        &args.log_level,
        "--log-format",
        if args.log_format == LogFormat::Json { "json" } else { "text" },
    ]);
    command.arg("--log-file").arg(&args.log_file);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone().map_err(os("its log"))?).current_dir("/");
    // A group of its own: it lives on when this terminal ends.
    command.process_group(0);
    let mut child = command.spawn().map_err(os("its process"))?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(os("its process"))? {
            let mut said = String::new();
            log.seek(SeekFrom::Start(before)).and_then(|_| log.read_to_string(&mut said)).map_err(os("its log"))?;
            let last =
                said.lines().rev().find(|line| line.contains("dunnage: ")).unwrap_or("it said nothing").trim_start_matches("dunnage: ");
            return Err(Error::unavailable(
                format!("the daemon ended at once ({status}): {last}"),
                format!("look at {}", args.log_file.display()),
            ));
        }
        if ask::<Status>(places, Duration::from_secs(1), "GET", "/v1/status", &()).is_ok_and(|status| status.pid == child.id()) {
            return Ok(child.id());
        }
        if begun.elapsed() > START {
            let detail = format!("it does not serve after {} s", START.as_secs());
            return Err(Error::timeout("start", detail));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `dunnage stop`
pub fn stop(places: &Places, release: bool) -> Result<()> {
    if instance::running(&places.run_dir).is_none() {
        if release {
            let detail = "the daemon does not run, so nothing can be let go";
            return Err(Error::unavailable(detail, "start it, then ask again; or unmount by hand what 'findmnt -t ext4,xfs,btrfs' shows"));
        }
        println!("The Dunnage daemon is not running.");
        return Ok(());
    }
    if release {
        let released: Released = ask(places, Duration::from_secs(90), "POST", "/v1/release", &())?;
        for error in &released.failed {
            eprintln!("dunnage: {error}");
        }
        if let Some(error) = released.failed.into_iter().next() {
            return Err(error);
        }
    }
    if end(places)?.is_none() {
        return Ok(());
    }
    let rest = if release { "every volume was let go" } else { "what is mounted stays mounted" };
    println!("The Dunnage daemon has stopped; {rest}.");
    Ok(())
}

/// Ends the daemon, and waits until it has ended. Gives its process, or nothing if none ran.
pub fn end(places: &Places) -> Result<Option<u32>> {
    let Some(owner) = instance::running(&places.run_dir) else { return Ok(None) };
    let pid = i32::try_from(owner.pid).ok().and_then(Pid::from_raw).ok_or_else(|| Error::internal("a process number that is none"))?;
    let failed = |e: rustix::io::Errno| Error::os(format_args!("cannot stop the daemon (pid {})", owner.pid), &e.into());
    // By descriptor: the number cannot become another process' meanwhile.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
    if !owner.lives() {
        return Ok(None);
    }
    rustix::process::pidfd_send_signal(&pidfd, Signal::TERM).map_err(failed)?;
    let patience = Timespec { tv_sec: STOP.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).map_err(failed)?;
    if ended == 0 {
        return Err(Error::timeout("stop", format!("the daemon (pid {}) has not ended after {} s", owner.pid, STOP.as_secs())));
    }
    Ok(Some(owner.pid))
}

/// `dunnage stop --hand-over`
pub fn hand_over(places: &Places) -> Result<()> {
    let Config { volumes, drivers, .. } = Config::load(places)?;
    if volumes.layout != Layout::Flat {
        let detail = "mounts lie at PATH/DRIVER/NAME, where no other service looks for them";
        return Err(Error::invalid("hand-over", detail, "let everything go instead: dunnage stop --release"));
    }
    dunnage_host::linux::give_back(&volumes.path)?;
    for driver in drivers.values() {
        if let DriverConfig::Local(LocalConfig { pool, vfs: Some(vfs), .. }) = driver {
            let given = dunnage_driver_local::give_back(pool, &volumes.path, vfs)?;
            for name in &given.back {
                println!("{name} is where REX-Ray's vfs looks for it, as a folder.");
            }
            for name in &given.stay {
                println!("{name} stays in {}: REX-Ray's vfs never knew it.", pool.display());
            }
        }
    }
    let count = dunnage_host::linux::mounted_beneath(&volumes.path)?.len();
    println!("{} is a plain folder again. What was mounted in it is mounted in it ({count} mounts).", volumes.path.display());
    Ok(())
}

/// `dunnage restart`
pub fn restart(places: &Places) -> Result<()> {
    stop(places, false)?;
    let args = StartArgs {
        foreground: false,
        log_level: "info".to_owned(),
        log_format: LogFormat::Text,
        log_file: "/var/log/dunnage/dunnage.log".into(),
        detached: false,
    };
    start(places, &args)
}

/// `dunnage status`
pub fn status(places: &Places, output: OutputArgs) -> Result<ExitCode> {
    let status: Status = match ask(places, Duration::from_secs(2), "GET", "/v1/status", &()) {
        Ok(status) => status,
        Err(e) if e.word() == "platform_unavailable" && instance::running(&places.run_dir).is_none() => {
            println!("stopped");
            return Ok(ExitCode::from(20));
        }
        Err(e) => return Err(e),
    };
    let degraded = !status.degraded.is_empty();
    output::print(&status, output.output, |status| {
        let mut rows = vec![
            ("state", if degraded { "degraded" } else { "running" }.to_owned()),
            ("pid", status.pid.to_string()),
            ("version", status.version.clone()),
            ("node", status.node.clone()),
            ("configuration", status.config.clone()),
        ];
        rows.extend(status.endpoints.iter().map(|e| ("endpoint", format!("{} (driver {}) at {}", e.name, e.driver, e.socket))));
        rows.extend(status.degraded.iter().map(|sentence| ("degraded", sentence.clone())));
        output::pairs(&rows)
    })?;
    Ok(ExitCode::from(if degraded { 21 } else { 0 }))
}
