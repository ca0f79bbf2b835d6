//! Against plugins that hang, or refuse: how long an agent waits, and what is left to be done.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;

/// What a wait may take more than it should, on a machine that is busy.
const SLACK: Duration = Duration::from_secs(3);

/// An agent's folders, and plugins that a test plays.
struct Bench {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().expect("a folder"), asked: Arc::default() }
    }

    /// An agent's isolator; another one is what comes after the agent was killed.
    fn isolator(&self) -> Isolator {
        let plugins = Places { sockets: self.folder.path().to_owned(), specs: Vec::new(), managed: "/nowhere".into() };
        Isolator::new(Settings { plugins, folder: self.state(), ..Settings::default() }).expect("a folder")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn written(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.state()).expect("a folder").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("lock").clone()
    }

    /// A plugin that does well, but never answers a call of these.
    fn plugin(&self, name: &str, hangs_in: &'static [&str]) {
        let listener = UnixListener::bind(self.folder.path().join(format!("{name}.sock"))).expect("bound");
        let asked = self.asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, hangs_in, asked.clone()));
            }
        });
    }
}

async fn answer(mut stream: UnixStream, hangs_in: &[&str], asked: Arc<Mutex<Vec<String>>>) {
    let mut read = vec![0; 4096];
    let n = stream.read(&mut read).await.expect("read");
    let head = String::from_utf8_lossy(&read[..n]).into_owned();
    let call = head.split(' ').nth(1).and_then(|uri| uri.rsplit('.').next()).expect("a call").to_owned();
    asked.lock().expect("lock").push(call.clone());
    if hangs_in.contains(&call.as_str()) {
        return std::future::pending().await;
    }
    let body = match call.as_str() {
        "Activate" => r#"{"Implements":["VolumeDriver"]}"#,
        "Get" => r#"{"Volume":{"Name":"pg"},"Err":""}"#,
        "Mount" => r#"{"Mountpoint":"/mnt/pg","Err":""}"#,
        _ => r#"{"Err":""}"#,
    };
    let text = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await.expect("written");
}

fn wants(drivers: &[&str]) -> Vec<(String, String)> {
    let of = |(at, driver): (usize, &&str)| {
        [(format!("DVDI_VOLUME_NAME{at}"), "pg".to_owned()), (format!("DVDI_VOLUME_DRIVER{at}"), (*driver).to_owned())]
    };
    drivers.iter().enumerate().flat_map(of).collect()
}

#[tokio::test]
async fn a_plugin_that_says_what_it_is_and_then_hangs_is_a_failure_within_five_seconds() {
    for hangs_in in [&["Activate"] as &[&str], &["Get"]] {
        let bench = Bench::new();
        bench.plugin("hangs", hangs_in);
        let begun = Instant::now();
        let said = bench.isolator().prepare("c", &wants(&["hangs"]), None).await.expect_err("nobody answers").to_string();
        assert!(said.contains("does not answer within 5 s"), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(5) + SLACK, "{hangs_in:?}: {:?}", begun.elapsed());
    }
}

/// The agent's own patience is shorter than an unmount's.
#[tokio::test]
async fn the_reason_of_a_refusal_is_told_before_anything_is_let_go_of_and_that_is_done_all_the_same() {
    let bench = Bench::new();
    bench.plugin("stuck", &["Unmount"]);
    let agent = bench.isolator();
    let begun = Instant::now();
    let said = agent.prepare("c", &wants(&["stuck", "nobody"]), None).await.expect_err("the second one").to_string();
    assert!(said.contains("no volume plugin \"nobody\""), "{said}");
    assert!(begun.elapsed() < SLACK && bench.written() == ["c.json"], "{:?}: {:?}", begun.elapsed(), bench.written());
    assert!(!bench.asked().contains(&"Unmount".to_owned()), "it was answered after that");
    let undone = async {
        while !bench.asked().contains(&"Unmount".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = agent.tend() => {}
        () = undone => {}
    }
    // Who was never asked for anything has nothing to let go of.
    agent.prepare("d", &wants(&["nobody", "stuck"]), None).await.expect_err("the first one");
    assert_eq!(bench.written(), ["c.json"]);
}

#[tokio::test]
async fn what_was_left_is_let_go_of_at_once_and_is_not_held_up_by_a_plugin_that_hangs() {
    let bench = Bench::new();
    bench.plugin("stuck", &["Unmount"]);
    bench.plugin("good", &[]);
    let agent = bench.isolator();
    let work = async {
        agent.prepare("stuck", &wants(&["stuck", "nobody"]), None).await.expect_err("refused");
        // A round is under way, and waits for that one.
        while !bench.asked().contains(&"Unmount".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let begun = Instant::now();
        agent.prepare("good", &wants(&["good", "nobody"]), None).await.expect_err("refused");
        while bench.written() != ["stuck.json"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(begun.elapsed() < RETRY / 2, "nobody rang: {:?}", begun.elapsed());
    };
    tokio::select! {
        () = agent.tend() => {}
        () = work => {}
    }
}

/// Its start waits for the answer.
#[tokio::test]
async fn an_agent_that_starts_or_cleans_up_waits_two_seconds_for_a_plugin_that_hangs_whatever_there_is_to_let_go_of() {
    let bench = Bench::new();
    bench.plugin("stuck", &["Unmount"]);
    bench.plugin("stuck2", &["Get"]);
    bench.plugin("good", &[]);
    let first = bench.isolator();
    for container in ["a", "b", "c"] {
        first.prepare(container, &wants(&["stuck", "good"]), None).await.expect("prepared");
    }
    let held = |driver: &str| Held { driver: driver.to_owned(), name: "pg".to_owned() };
    let volumes = BTreeSet::from([held("stuck2"), held("stuck")]);
    first.write(&Checkpoint { container: "d".to_owned(), volumes, ended: false }).expect("written");
    drop(first);
    let second = bench.isolator();
    let begun = Instant::now();
    let mut gone = second.recover(&BTreeSet::from(["c".to_owned()])).await;
    gone.sort();
    assert_eq!(gone, ["a", "b", "d"]);
    assert!(begun.elapsed() < Duration::from_secs(2) + SLACK, "recover: {:?}", begun.elapsed());
    let begun = Instant::now();
    second.cleanup("c").await;
    assert!(begun.elapsed() < Duration::from_secs(2) + SLACK, "cleanup: {:?}", begun.elapsed());
    for container in ["a", "b", "c", "d"] {
        assert!(second.read(container).expect("readable").is_some_and(|checkpoint| checkpoint.ended), "{container} is forgotten");
    }
}

/// An agent that gives a container up does not wait for its mounts.
#[tokio::test]
async fn a_container_that_ends_while_it_is_prepared_is_let_go_of_when_that_is_done() {
    let bench = Bench::new();
    bench.plugin("slow", &["Mount"]);
    let agent = bench.isolator();
    let (volumes, asked) = (wants(&["slow"]), || bench.asked().contains(&"Mount".to_owned()));
    let work = async {
        let preparing = agent.prepare("c", &volumes, None);
        let ending = async {
            while !asked() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            agent.cleanup("c").await;
        };
        tokio::select! {
            _ = preparing => {}
            () = ending => {}
        }
        assert!(agent.read("c").expect("readable").is_some_and(|checkpoint| checkpoint.ended));
        while !bench.written().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = agent.tend() => {}
        () = work => {}
    }
    assert_eq!(bench.asked().last().map(String::as_str), Some("Unmount"));
}

#[tokio::test]
async fn a_volume_that_two_slots_name_in_two_ways_is_mounted_and_let_go_of_once() {
    let bench = Bench::new();
    bench.plugin("good", &[]);
    let agent = bench.isolator();
    let one = [("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_OPTS", "size=5"), ("DVDI_VOLUME_CONTAINERPATH", "/srv/a")];
    let other = [("DVDI_VOLUME_NAME1", "size=5,name=pg"), ("DVDI_VOLUME_CONTAINERPATH1", "/srv/b"), ("DVDI_VOLUME_DRIVER1", "good")];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let wanted: Vec<_> = one.into_iter().chain(other).chain([("DVDI_VOLUME_DRIVER", "good")]).map(owned).collect();
    let binds = agent.prepare("c", &wanted, None).await.expect("prepared");
    assert_eq!(binds.iter().map(|bind| bind.target.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    agent.cleanup("c").await;
    let count = |call: &str| bench.asked().iter().filter(|asked| *asked == call).count();
    assert_eq!((count("Mount"), count("Unmount")), (1, 1));
}

#[tokio::test]
async fn what_a_killed_agent_had_not_written_to_its_end_is_removed_by_the_next() {
    let bench = Bench::new();
    let agent = bench.isolator();
    std::fs::write(bench.state().join("c.new"), "{\"contai").expect("written");
    std::fs::write(bench.state().join("another's"), "").expect("written");
    assert_eq!(agent.recover(&BTreeSet::new()).await, [""; 0]);
    assert_eq!(bench.written(), ["another's"]);
}

#[test]
fn a_task_without_an_image_has_no_volume_in_the_agent_s_own_folder_by_whatever_name_that_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(at("state")).expect("a folder");
    std::os::unix::fs::symlink(at("state"), at("link")).expect("a link");
    let said = |path: &str, work_dir: &str, image: Option<&str>| {
        let wanted = slots([("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_CONTAINERPATH", path)], "rexray").expect("a slot");
        place(&wanted[0], image, &[folder.path().to_owned(), "/tmp".into()], Path::new(work_dir)).map_err(|e| e.to_string())
    };
    for (path, work_dir) in [
        ("/tmp/mesos/slaves/x", WORK_DIR),
        ("/tmp/mesos", WORK_DIR),
        (&at("state/x"), &at("state")),
        (&at("state/x"), &at("link")),
        (&at("link/x"), &at("link")),
        (&at("deep"), &at("deep/er")),
    ] {
        let said = said(path, work_dir, None).expect_err(path);
        assert!(said.contains("DVDI_VOLUME_CONTAINERPATH") && said.contains("the agent's own work_dir"), "{said}");
    }
    for (path, image) in [("/tmp/mesos2", None), ("/tmp/pg", None), ("/tmp/mesos", Some("/an/image"))] {
        assert!(said(path, WORK_DIR, image).is_ok(), "{path}");
    }
}
