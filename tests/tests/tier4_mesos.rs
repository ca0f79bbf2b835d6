//! The module in a real agent, where there is one: `MESOS_BIN` is the folder of `mesos-master`, `mesos-agent` and `mesos-execute`, and
//! `MESOS_INCLUDES` has the folders of its headers, with colons between.
//!
//! Run by hand: 'MESOS_BIN=… MESOS_INCLUDES=… cargo xtask test --tier 4 --filter mesos'.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dunnage_tests::{Node, eventually, is_mounted, sh, skip};
use serde_json::{Value, json};

/// What a real agent needs for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "com_emccode_mesos_DockerVolumeDriverIsolator";

/// A master, an agent with the module, and a daemon.
struct Bench {
    node: Node,
    programs: PathBuf,
    master: Child,
    agent: Option<Child>,
    ports: [u16; 2],
}

impl Bench {
    fn new() -> Option<Bench> {
        let (Some(programs), Some(includes)) = (std::env::var_os("MESOS_BIN"), std::env::var_os("MESOS_INCLUDES")) else {
            skip("needs a Mesos: MESOS_BIN and MESOS_INCLUDES");
            return None;
        };
        let mut node = Node::new();
        node.configure(
            "volumes: { hints: warn, layout: flat, defaults: { size: 64MiB } }\ndrivers: { local: { type: local } }\n\
             endpoints: { docker: [ { name: dunnage, driver: local }, { name: rexray, driver: local }, { name: platform1, driver: local }, { name: platform2, driver: local } ] }\n",
        );
        node.start();
        let programs = PathBuf::from(programs);
        let (root, folder) = (env!("CARGO_MANIFEST_DIR"), node.folder.clone());
        let folders: Vec<String> = std::env::split_paths(&includes).map(|path| format!("-isystem {}", path.display())).collect();
        sh(&format!(
            "c++ -std=c++11 -fPIC -shared -w -D__STDC_FORMAT_MACROS -I {root}/../mesos-module/include {} {root}/../mesos-module/isolator.cpp {} \
             -Wl,--version-script={root}/../mesos-module/exports.map -lpthread -ldl -lm -lgcc_s -o {}/module.so",
            folders.join(" "),
            dunnage_tests::mesos_module().display(),
            folder.display()
        ));
        let parameter = |key: &str, value: &Path| json!({ "key": key, "value": value });
        let parameters = [
            parameter("plugins", &node.plugins),
            parameter("state_dir", &folder.join("mesos")),
            parameter("binary", &dunnage_tests::binary()),
            parameter("folders", &folder.join("tasks")),
        ];
        std::fs::create_dir_all(folder.join("tasks")).expect("a folder");
        let modules =
            json!({ "libraries": [{ "file": folder.join("module.so"), "modules": [{ "name": NAME, "parameters": parameters }] }] });
        std::fs::write(folder.join("modules.json"), modules.to_string()).expect("written");
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port());
        let master = Self::program(&programs, "mesos-master", &folder)
            .args(["--ip=127.0.0.1", "--hostname=localhost", "--registry=in_memory", &format!("--port={}", ports[0])])
            .arg(format!("--work_dir={}/master", folder.display()))
            .spawn()
            .expect("a master");
        let mut bench = Bench { node, programs, master, agent: None, ports };
        bench.start_agent();
        Some(bench)
    }

    fn program(programs: &Path, name: &str, folder: &Path) -> Command {
        let log = std::fs::File::options().create(true).append(true).open(folder.join(format!("{name}.log"))).expect("a log");
        let mut command = Command::new(programs.join(name));
        command.env("LIBPROCESS_IP", "127.0.0.1").stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        command
    }

    fn start_agent(&mut self) {
        // An agent does not like a second hierarchy beside its own.
        sh("if grep -q ' /sys/fs/cgroup/unified ' /proc/self/mountinfo; then umount /sys/fs/cgroup/unified; fi");
        let folder = self.node.folder.display().to_string();
        let agent = Self::program(&self.programs, "mesos-agent", &self.node.folder)
            .args(["--ip=127.0.0.1", "--hostname=localhost", "--launcher=linux", "--containerizers=mesos", "--no-systemd_enable_support"])
            .args([format!("--master=127.0.0.1:{}", self.ports[0]), format!("--port={}", self.ports[1])])
            .arg(format!("--isolation=cgroups/cpu,filesystem/linux,{NAME}"))
            .arg(format!("--modules=file://{folder}/modules.json"))
            .args([
                format!("--work_dir={folder}/agent"),
                format!("--runtime_dir={folder}/agent-run"),
                format!("--fetcher_cache_dir={folder}/fetch"),
            ])
            .args([format!("--launcher_dir={}", self.programs.display()), format!("--cgroups_root=dunnage_{}", self.ports[1])])
            .arg("--resources=cpus:2;mem:1024;disk:1024;ports:[31000-31100]")
            .spawn()
            .expect("an agent");
        self.agent = Some(agent);
        let registered = format!("curl -s http://127.0.0.1:{}/slaves", self.ports[0]);
        eventually("the agent is registered", PATIENCE, || sh(&format!("{registered} || true")).contains("\"active\":true"));
    }

    fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.kill().expect("killed");
        agent.wait().expect("dead");
    }

    /// A task that goes on while the test does.
    fn task(&self, name: &str, command: &str, environment: &[(&str, &str)]) -> Child {
        let environment: serde_json::Map<String, Value> = environment.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let log = std::fs::File::create(self.node.folder.join(format!("{name}.log"))).expect("a log");
        Command::new(self.programs.join("mesos-execute"))
            .args(["--checkpoint", "--containerizer=mesos", "--resources=cpus:0.1;mem:32"])
            .args([format!("--master=127.0.0.1:{}", self.ports[0]), format!("--name={name}"), format!("--command={command}")])
            .arg(format!("--env={}", Value::Object(environment)))
            .env("LIBPROCESS_IP", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("a task")
    }

    /// What mesos-execute has said so far of a task.
    fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.node.folder.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Runs a task to its end.
    fn run(&self, name: &str, command: &str, environment: &[(&str, &str)]) -> String {
        self.task(name, command, environment).wait().expect("it ends");
        self.said(name)
    }

    fn path(&self, name: &str) -> String {
        self.node.folder.join("tasks").join(name).display().to_string()
    }

    fn mounted(&self, volume: &str) -> bool {
        is_mounted(&self.node.state().join("volumes").join(volume))
    }

    /// The agent ends with its executors, and nothing is left.
    fn finish(mut self) {
        let agent = self.agent.as_ref().map(Child::id).expect("it runs");
        sh(&format!("kill -USR1 {agent}"));
        self.agent.take().expect("it runs").wait().expect("it ends");
        // The agent's own folder is a mount of its own, which it leaves.
        sh(&format!("umount {}/agent", self.node.folder.display()));
        self.node.finish();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in self.agent.iter_mut().chain([&mut self.master]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let root = format!("dunnage_{}", self.ports[1]);
        let _ = Command::new("sh")
            .args(["-c", &format!("find /sys/fs/cgroup/*/{root} -depth -type d -exec rmdir {{}} + 2>/dev/null")])
            .status();
    }
}

#[test]
fn the_environment_of_the_documents_app_gives_a_real_task_its_volumes() {
    let Some(bench) = Bench::new() else { return };
    let at = bench.path("second");
    let said = bench.run(
        "seed",
        &format!("echo one >{}/testing/x && echo two >{at}/x", bench.node.state().join("volumes").display()),
        &[
            ("DVDI_VOLUME_NAME", "testing"),
            ("DVDI_VOLUME_DRIVER", "platform1"),
            ("DVDI_VOLUME_OPTS", "size=1,iops=150,volumetype=io1,newfstype=ext4,overwritefs=false"),
            ("DVDI_VOLUME_NAME1", "testing2"),
            ("DVDI_VOLUME_DRIVER1", "platform2"),
            ("DVDI_VOLUME_OPTS1", "size=1,volumetype=gp2,newfstype=xfs,overwritefs=true"),
            ("DVDI_VOLUME_CONTAINERPATH1", &at),
        ],
    );
    assert!(said.contains("TASK_FINISHED"), "{said}");
    eventually("both are let go of", PATIENCE, || !bench.mounted("testing") && !bench.mounted("testing2"));
    for (volume, text) in [("testing", "one"), ("testing2", "two")] {
        let path = bench.node.cli(&["volume", "mount", volume]).ok();
        assert_eq!(sh(&format!("cat {path}/x")), text);
        bench.node.cli(&["volume", "unmount", volume]).ok();
    }
    bench.finish();
}

#[test]
fn a_live_task_keeps_its_volume_over_a_kill_of_the_agent_and_one_that_has_ended_loses_it_with_the_restart() {
    let Some(mut bench) = Bench::new() else { return };
    let gate = bench.node.folder.join("gate");
    let wait = format!("while ! test -e {}; do sleep 0.1; done", gate.display());
    let mut task = bench.task("live", &wait, &[("DVDI_VOLUME_NAME", "keep")]);
    eventually("it runs", PATIENCE, || bench.said("live").contains("TASK_RUNNING"));
    bench.kill_agent();
    bench.start_agent();
    std::thread::sleep(Duration::from_secs(3));
    assert!(bench.mounted("keep"), "the task lives");
    bench.kill_agent();
    std::fs::write(&gate, "").expect("written");
    std::thread::sleep(Duration::from_secs(3));
    assert!(bench.mounted("keep"), "nobody is there to let go of it");
    bench.start_agent();
    eventually("the next agent lets go of it", PATIENCE, || !bench.mounted("keep"));
    task.kill().and_then(|()| task.wait()).expect("ended");
    bench.finish();
}

#[test]
fn what_a_task_may_not_ask_for_fails_it_with_the_reason_and_a_daemon_that_is_down_does_too() {
    let Some(mut bench) = Bench::new() else { return };
    for (name, environment, says) in [
        ("etc", vec![("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_CONTAINERPATH", "/etc")], "DVDI_VOLUME_CONTAINERPATH"),
        ("shell", vec![("DVDI_VOLUME_NAME", "a;touch /tmp/of-a-test")], "DVDI_VOLUME_NAME"),
        ("nobody", vec![("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_DRIVER", "nobody")], "no volume plugin"),
    ] {
        let said = bench.run(name, "true", &environment);
        assert!(said.contains("TASK_FAILED") && said.contains(says), "{said}");
    }
    assert!(!Path::new("/tmp/of-a-test").exists());
    bench.node.kill();
    let said = bench.run("down", "true", &[("DVDI_VOLUME_NAME", "pg")]);
    assert!(said.contains("TASK_FAILED") && said.contains("nothing answers"), "{said}");
    bench.node.start();
    let said = bench.run("up", "true", &[("DVDI_VOLUME_NAME", "pg")]);
    assert!(said.contains("TASK_FINISHED"), "{said}");
    eventually("it is let go of", PATIENCE, || !bench.mounted("pg"));
    bench.finish();
}
