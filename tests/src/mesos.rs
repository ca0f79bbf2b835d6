//! A Mesos of the operator's own: a master and an agent with the module. `MESOS_BIN` is the folder of `mesos-master`, `mesos-agent` and
//! `mesos-execute`, and `MESOS_INCLUDES` has the folders of its headers, with colons between.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Node, eventually, is_mounted, sh, skip};

/// What a real agent needs for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "com_emccode_mesos_DockerVolumeDriverIsolator";

/// `tiny`, as `docker save` writes an image, made in the folder `$1`: a busybox, folders, and two links that lead elsewhere.
const IMAGE: &str = r#"
root=$(mktemp -d); tar=$(mktemp -d); trap "rm -rf $root $tar" EXIT
id=a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1
mkdir -p $1 $tar/$id $root/bin $root/etc $root/proc $root/sys $root/dev $root/tmp $root/mnt/mesos/sandbox $root/root
cp "$(command -v busybox)" $root/bin/busybox
for word in sh cat ls test echo sync sleep true; do ln -s busybox $root/bin/$word; done
echo of-the-image >$root/etc/own; for file in hosts hostname resolv.conf; do : >$root/etc/$file; done
ln -s /etc $root/out; ln -s nowhere/at/all $root/dangling
config="{\"Cmd\": [\"/bin/sh\"], \"Env\": [\"PATH=/bin\"], \"WorkingDir\": \"/\"}"
printf "{\"tiny\": {\"latest\": \"%s\"}}" $id >$tar/repositories; printf 1.0 >$tar/$id/VERSION
printf "{\"id\": \"%s\", \"created\": \"2026-01-01T00:00:00Z\", \"os\": \"linux\", \"architecture\": \"amd64\", \"config\": %s, \"container_config\": %s}" \
    $id "$config" "$config" >$tar/$id/json
tar -C $root -cf $tar/$id/layer.tar .; tar -C $tar -cf $1/tiny.tar repositories $id
"#;

/// The variables of a task.
pub type Environment<'a> = &'a [(&'a str, &'a str)];

/// A volume of Docker's kind: its path in the task, its mode, its name, and its options.
pub type DockerVolume<'a> = (&'a str, &'a str, &'a str, Environment<'a>);

/// A master, an agent with the module, and a daemon.
pub struct Bench {
    pub node: Node,
    programs: PathBuf,
    master: Child,
    agent: Option<Child>,
    ports: [u16; 2],
}

impl Bench {
    /// All of it, started; `None` where there is no Mesos (noted as a skip).
    pub fn new() -> Option<Bench> {
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
            crate::mesos_module().display(),
            folder.display()
        ));
        let parameter = |key: &str, value: &Path| json!({ "key": key, "value": value });
        let parameters = [
            parameter("plugins", &node.plugins),
            parameter("state_dir", &folder.join("mesos")),
            parameter("binary", &crate::binary()),
            parameter("folders", &folder.join("tasks")),
        ];
        std::fs::create_dir_all(folder.join("tasks")).expect("a folder");
        // What the agent's own docker/volume runs.
        std::fs::create_dir_all(folder.join("bin")).expect("a folder");
        std::os::unix::fs::symlink(crate::binary(), folder.join("bin/dvdcli")).expect("a link");
        let modules =
            json!({ "libraries": [{ "file": folder.join("module.so"), "modules": [{ "name": NAME, "parameters": parameters }] }] });
        std::fs::write(folder.join("modules.json"), modules.to_string()).expect("written");
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port());
        let master = Self::program(&programs, "mesos-master", &folder)
            .args(["--ip=127.0.0.1", "--hostname=localhost", "--registry=in_memory", &format!("--port={}", ports[0])])
            .arg(format!("--work_dir={}/master", folder.display()))
            .spawn()
            .expect("a master");
        sh(&format!("sh -euc '{IMAGE}' sh {}/images", folder.display()));
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

    /// Starts the agent, and waits until it is known.
    pub fn start_agent(&mut self) {
        // An agent does not like a second hierarchy beside its own.
        sh("if grep -q ' /sys/fs/cgroup/unified ' /proc/self/mountinfo; then umount /sys/fs/cgroup/unified; fi");
        let folder = self.node.folder.display().to_string();
        let path = std::env::var("PATH").expect("PATH");
        let agent = Self::program(&self.programs, "mesos-agent", &self.node.folder)
            .env("PATH", format!("{folder}/bin:{path}"))
            .env("DUNNAGE_PLUGIN_DIR", &self.node.plugins)
            .args(["--ip=127.0.0.1", "--hostname=localhost", "--launcher=linux", "--containerizers=mesos", "--no-systemd_enable_support"])
            .args([format!("--master=127.0.0.1:{}", self.ports[0]), format!("--port={}", self.ports[1])])
            .arg(format!("--isolation=cgroups/cpu,filesystem/linux,docker/runtime,docker/volume,{NAME}"))
            .arg(format!("--modules=file://{folder}/modules.json"))
            .args([
                format!("--work_dir={folder}/agent"),
                format!("--runtime_dir={folder}/agent-run"),
                format!("--fetcher_cache_dir={folder}/fetch"),
                format!("--docker_volume_checkpoint_dir={folder}/docker-volume"),
            ])
            .args([
                "--image_providers=docker".to_owned(),
                format!("--docker_registry={folder}/images"),
                format!("--docker_store_dir={folder}/store"),
            ])
            .args([format!("--launcher_dir={}", self.programs.display()), format!("--cgroups_root=dunnage_{}", self.ports[1])])
            .arg("--resources=cpus:2;mem:1024;disk:1024;ports:[31000-31100]")
            .spawn()
            .expect("an agent");
        self.agent = Some(agent);
        let registered = format!("curl -s http://127.0.0.1:{}/slaves", self.ports[0]);
        eventually("the agent is registered", PATIENCE, || sh(&format!("{registered} || true")).contains("\"active\":true"));
    }

    /// `kill -9` of the agent; its tasks live.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.kill().expect("killed");
        agent.wait().expect("dead");
    }

    /// `kill -9` of all executors.
    pub fn kill_executors(&self) {
        let sandboxes = self.node.folder.join("agent");
        let its = "case $(readlink /proc/$pid/cwd) in";
        sh(&format!("for pid in $(pgrep -f mesos-executor); do {its} {}/*) kill -9 $pid;; esac; done", sandboxes.display()));
    }

    /// A task that goes on while the test does.
    pub fn task(&self, name: &str, command: &str, environment: Environment) -> Child {
        self.task_with(&[], name, command, environment)
    }

    fn task_with(&self, more: &[&str], name: &str, command: &str, environment: Environment) -> Child {
        let environment: serde_json::Map<String, Value> = environment.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let (name_of, command) = (format!("--name={name}"), format!("--command={command}"));
        let environment = format!("--env={}", Value::Object(environment));
        self.execute(name, &[&["--resources=cpus:0.1;mem:32", &name_of, &command, &environment], more].concat())
    }

    /// A task with volumes of Docker's kind.
    pub fn task_of_docker_volumes(&self, name: &str, command: &str, volumes: &[DockerVolume]) -> Child {
        let volume = |(path, mode, name, options): &DockerVolume| {
            let options: Vec<Value> = options.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
            let volume = json!({ "driver": "dunnage", "name": name, "driver_options": { "parameter": options } });
            json!({ "container_path": path, "mode": mode, "source": { "type": "DOCKER_VOLUME", "docker_volume": volume } })
        };
        let volumes = format!("--volumes={}", Value::from_iter(volumes.iter().map(volume)));
        self.task_with(&[&volumes], name, command, &[])
    }

    /// Tasks that share an executor, and are containers within its own: their name, their command, and the variables of it. The first
    /// one's health is looked at all the time, with its own variables.
    pub fn group(&self, name: &str, tasks: &[(&str, &str, Environment)]) -> Child {
        let resource = |name: &str, value: f64| json!({ "name": name, "type": "SCALAR", "scalar": { "value": value } });
        let task = |(at, (name, line, environment)): (usize, &(&str, &str, Environment))| {
            let variables: Vec<Value> = environment.iter().map(|(key, value)| json!({ "name": key, "value": value })).collect();
            let of = |line: &str| json!({ "value": line, "environment": { "variables": variables } });
            let mut task = json!({
                "name": name,
                "task_id": { "value": name },
                "agent_id": { "value": "" },
                "resources": [resource("cpus", 0.1), resource("mem", 32.0)],
                "command": of(line),
            });
            if at == 0 {
                task["health_check"] = json!({ "type": "COMMAND", "command": of("true"), "delay_seconds": 0, "interval_seconds": 1 });
            }
            task
        };
        let file = self.node.folder.join(format!("{name}.json"));
        let tasks: Vec<Value> = tasks.iter().enumerate().map(task).collect();
        std::fs::write(&file, json!({ "tasks": tasks }).to_string()).expect("written");
        self.execute(name, &[&format!("--task_group=file://{}", file.display())])
    }

    fn execute(&self, name: &str, words: &[&str]) -> Child {
        let log = std::fs::File::create(self.node.folder.join(format!("{name}.log"))).expect("a log");
        Command::new(self.programs.join("mesos-execute"))
            .args(["--checkpoint", "--containerizer=mesos", &format!("--master=127.0.0.1:{}", self.ports[0])])
            .args(words)
            .env("LIBPROCESS_IP", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("a task")
    }

    /// What mesos-execute has said so far of a task.
    pub fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.node.folder.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Runs a task with an image to its end: a busybox, with `/out` and `/dangling` leading elsewhere.
    pub fn run_in_image(&self, name: &str, command: &str, environment: Environment) -> String {
        self.task_with(&["--docker_image=tiny"], name, command, environment).wait().expect("it ends");
        self.said(name)
    }

    /// What is in the standard error of all tasks so far.
    pub fn errors(&self) -> String {
        sh(&format!("find {}/agent -name stderr -exec cat {{}} +", self.node.folder.display()))
    }

    /// Who holds a volume.
    pub fn holders(&self, volume: &str) -> usize {
        self.node.holders(volume).iter().filter(|(_, count, ..)| *count > 0).count()
    }

    /// The machine loses power: everything is dead at once, and nothing is mounted any more.
    pub fn cut_power(&mut self) {
        self.kill_agent();
        let root = format!("dunnage_{}", self.ports[1]);
        sh(&format!("for file in $(find /sys/fs/cgroup/*/{root} -name cgroup.procs); do xargs -r kill -9 <$file || true; done; sleep 1"));
        self.node.cut_power();
    }

    /// Runs a task to its end.
    pub fn run(&self, name: &str, command: &str, environment: Environment) -> String {
        self.task(name, command, environment).wait().expect("it ends");
        self.said(name)
    }

    /// A place where tasks without an image may have volumes.
    pub fn path(&self, name: &str) -> String {
        self.node.folder.join("tasks").join(name).display().to_string()
    }

    /// Where the node mounts it.
    pub fn mountpoint(&self, volume: &str) -> PathBuf {
        self.node.state().join("volumes").join(volume)
    }

    /// Whether the node has it mounted.
    pub fn mounted(&self, volume: &str) -> bool {
        is_mounted(&self.mountpoint(volume))
    }

    /// What is in the file `x` of a volume that nobody holds.
    pub fn file_in(&self, volume: &str) -> String {
        let path = self.node.cli(&["volume", "mount", volume]).ok();
        let text = sh(&format!("cat {path}/x"));
        self.node.cli(&["volume", "unmount", volume]).ok();
        text
    }

    /// The agent ends with its executors, and nothing is left.
    pub fn finish(mut self) {
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
