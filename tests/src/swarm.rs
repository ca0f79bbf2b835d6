//! Docker Swarm over three machines on one Ceph cluster, and a service that writes: the bench for everything that can happen to
//! one of the machines.
//!
//! The service's only task appends numbered records to a file of its volume. When a record was fsynced, and only then, the task
//! acknowledges it: in a file outside of the volume, on a disk that all machines see and nothing cuts them off from. What the task
//! could not write it says there, too.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::ceph::{Ceph, Manager, POOL};
use crate::docker::{IMAGE, find, image_tar};
use crate::machine::{Machine, SWITCH, Switch};
use crate::{Ran, eventually, scratch, skip};

/// The service's volume.
const VOLUME: &str = "data";
/// The service.
const SERVICE: &str = "writer";
/// The machine that speaks for the swarm. Nothing is done to it; the others go and come.
const MANAGER: usize = 2;
/// How long it may take until a dead machine's volume is written by another. (30 s of it are Ceph's, which sees a client for so long.)
pub const FAILOVER: Duration = Duration::from_secs(90);

/// What the task does. `dd` answers for the fsync, too.
const WRITER: &str = r#"
i=0
while :; do
    i=$((i + 1)); record="$NODE $TASK $i"
    if echo "$record" | dd of=/data/log oflag=append conv=notrunc,fsync 2>/dev/null; then
        echo "$record" >>/outside/acknowledged
    else
        echo "$record" >>/outside/refused
    fi
    sleep 0.05
done
"#;

/// The bench.
pub struct Swarm {
    // Dropped in this order: who uses it before what is used.
    machines: [Machine; 3],
    ceph: Ceph,
    _switch: Switch,
    /// What the task writes outside of the volume.
    outside: PathBuf,
}

/// A record, as the task writes it: its node, its task, and its number.
type Record = (String, String, u64);

impl Swarm {
    /// Three machines in a swarm, and the service's first record; `None` where something for it is missing (noted as a skip).
    pub fn start() -> Option<Swarm> {
        Swarm::start_with("if-dead")
    }

    /// The same, and whether a volume is taken from another machine.
    pub fn start_with(preempt: &str) -> Option<Swarm> {
        let programs = [
            ("dockerd", "docker.io"),
            ("containerd", "docker.io"),
            ("docker", "docker-cli"),
            ("busybox", "busybox-static"),
            ("qemu-storage-daemon", "qemu-system-common"),
            ("ip", "iproute2"),
            ("iptables", "iptables"),
            ("nsenter", "util-linux"),
        ];
        if let Some((program, package)) = programs.into_iter().find(|(program, _)| find(program).is_none()) {
            skip(&format!("needs {program} (package {package})"));
            return None;
        }
        let switch = Switch::new();
        let ceph = Ceph::start_at(SWITCH, 1, Manager::None)?;
        // By itself, librbd cuts off whoever had the lock of an image that it takes, for an hour. Here only the daemon cuts off.
        let mut settings = std::fs::read_to_string(ceph.conf()).expect("ceph.conf");
        settings.push_str("\n[client]\nrbd blocklist on break lock = false\n");
        std::fs::write(ceph.conf(), settings).expect("ceph.conf");
        let folder = scratch();
        let (conf, keyring) = (ceph.conf(), ceph.keyring());
        // A dockerd that was killed never unmounts what its containers had: the daemon is to see that itself.
        let yaml = format!(
            "volumes: {{ defaults: {{ size: 64MiB }} }}\nholders: {{ reconcile: act, grace: 10s }}\n\
             drivers: {{ pxd: {{ type: ceph, conf: {}, keyring: {}, user: dunnage, pool: {POOL} }} }}\n\
             endpoints: {{ docker: [ {{ name: pxd, driver: pxd, preempt: {preempt} }} ] }}\n",
            conf.display(),
            keyring.display()
        );
        let outside = folder.join("outside");
        std::fs::create_dir_all(&outside).expect("folder");
        let machine = |name: &'static str, number| Machine::new(name, number, folder.join(name), &yaml);
        let mut swarm = Swarm { machines: [machine("a", 1), machine("b", 2), machine("c", 3)], ceph, _switch: switch, outside };
        swarm.machines.iter_mut().for_each(Machine::boot);
        let tar = image_tar(&folder, |_| {});
        for machine in &swarm.machines {
            machine.docker(&["import", &tar.display().to_string(), IMAGE]).ok();
        }
        swarm.join();
        swarm.serve();
        Some(swarm)
    }

    fn join(&self) {
        let address =
            |machine: &Machine| (format!("--advertise-addr={}", machine.address()), format!("--listen-addr={}:2377", machine.address()));
        let manager = &self.machines[MANAGER];
        let (advertise, listen) = address(manager);
        manager.docker(&["swarm", "init", &advertise, &listen, "--dispatcher-heartbeat=1s"]).ok();
        let token = manager.docker(&["swarm", "join-token", "-q", "worker"]).ok();
        for worker in &self.machines[..MANAGER] {
            let (advertise, listen) = address(worker);
            worker.docker(&["swarm", "join", "--token", &token, &advertise, &listen, &format!("{}:2377", manager.address())]).ok();
        }
        self.wait_until_ready();
    }

    /// Every machine that is on can be given a task with a volume of ours.
    pub fn wait_until_ready(&self) {
        let shown = "{{.Status.State}} {{.Spec.Availability}} {{range .Description.Engine.Plugins}}{{.Type}}={{.Name}} {{end}}";
        for machine in &self.machines {
            eventually("a node is ready, and its engine has said what plugins it has", FAILOVER, || {
                let said = self.docker(&["node", "inspect", "--format", shown, machine.name]).out;
                said.starts_with("ready active ") && said.contains("Volume=pxd ")
            });
        }
    }

    fn serve(&self) {
        let volume = format!("--mount=type=volume,volume-driver=pxd,source={VOLUME},target=/data");
        let outside = format!("--mount=type=bind,source={},target=/outside", self.outside.display());
        let names = ["--env=NODE={{.Node.Hostname}}", "--env=TASK={{.Task.ID}}"];
        let ends = ["--stop-signal=KILL", "--stop-grace-period=5s", "--restart-delay=1s"];
        let flags = ["--detach", "--no-resolve-image", "--name", SERVICE, &volume, &outside];
        self.docker(&[&["service", "create"], &flags[..], &names, &ends, &[IMAGE, "sh", "-c", WRITER]].concat()).ok();
        self.wait_for("the first record", |owner| owner.is_some());
    }

    /// A service with a task on every machine and a volume for each, `data-1` and so on; waits until all write.
    pub fn serve_replicas(&self) {
        let volume = "--mount=type=volume,volume-driver=pxd,source=data-{{.Task.Slot}},target=/data";
        let outside = format!("--mount=type=bind,source={},target=/outside", self.outside.display());
        let names = ["--env=NODE={{.Node.Hostname}}", "--env=TASK={{.Task.ID}}", "--env=SLOT={{.Task.Slot}}"];
        let ends = ["--stop-signal=KILL", "--stop-grace-period=5s", "--restart-delay=1s", "--replicas=3"];
        let script = format!("mkdir -p /outside/$SLOT{}", WRITER.replace("/outside/", "/outside/$SLOT/"));
        let flags = ["--detach", "--no-resolve-image", "--name", "replicas", volume, &outside];
        self.docker(&[&["service", "create"], &flags[..], &names, &ends, &[IMAGE, "sh", "-c", &script]].concat()).ok();
        for slot in 1..=3 {
            eventually("every replica writes", FAILOVER, || self.writer_of(slot).is_some());
        }
    }

    /// Who acknowledged last of a replica.
    pub fn writer_of(&self, slot: u32) -> Option<String> {
        self.outside(&format!("{slot}/acknowledged")).pop().map(|(node, _, _)| node)
    }

    /// Every record that a replica acknowledged is in its volume, and nobody else has that.
    #[track_caller]
    pub fn check_replica(&self, slot: u32) {
        let round = format!("replica {slot}");
        let acknowledged = self.outside(&format!("{slot}/acknowledged"));
        let has = |machine: &Machine| machine.mounts().into_iter().find(|path| path.ends_with(format!("data-{slot}")));
        let mounted: Vec<_> = self.machines.iter().filter_map(|machine| Some((machine, has(machine)?))).collect();
        let [(machine, path)] = &mounted[..] else { panic!("{round} is mounted at {} machines", mounted.len()) };
        let there = records(&machine.sh(&format!("cat {}/log", path.display())).ok());
        judge(&round, &acknowledged, &there);
        println!("{round}: all of {} acknowledged records are there, {} writes", acknowledged.len(), machine.name);
    }

    /// The replicas go, and all that they had is let go of.
    pub fn end_replicas(&self) {
        self.docker(&["service", "rm", "replicas"]).ok();
        let rest = |machine: &Machine| machine.mounts().iter().any(|path| !path.ends_with(VOLUME));
        for machine in &self.machines {
            eventually("a machine has let the replicas' volumes go", FAILOVER, || !rest(machine));
        }
    }

    /// `docker ARGS` at the manager.
    pub fn docker(&self, args: &[&str]) -> Ran {
        self.machines[MANAGER].docker(args)
    }

    /// A machine by its name.
    pub fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines.iter_mut().find(|machine| machine.name == name).expect("a machine")
    }

    /// Cuts a machine off from the swarm, and from nothing else.
    pub fn silence_towards_the_manager(&self, name: &str) {
        let machine = self.machines.iter().find(|machine| machine.name == name).expect("a machine");
        machine.silence_towards(&self.machines[MANAGER].address());
    }

    /// Whether a client was ever cut off from the cluster.
    pub fn fenced(&self) -> bool {
        !self.ceph.pool().cluster().blocklisted().expect("a list").is_empty()
    }

    /// Whether the swarm takes a machine for alive.
    pub fn is_ready(&self, name: &str) -> bool {
        self.docker(&["node", "inspect", "--format", "{{.Status.State}}", name]).out.trim() == "ready"
    }

    /// Its tasks go to other machines, and new ones, too.
    pub fn drain(&self, name: &str) {
        self.docker(&["node", "update", "--availability=drain", name]).ok();
    }

    /// It gets tasks again.
    pub fn activate(&self, name: &str) {
        self.docker(&["node", "update", "--availability=active", name]).ok();
    }

    /// What the service's tasks came to, as `docker service ps` shows it.
    pub fn tasks(&self) -> String {
        self.docker(&["service", "ps", "--no-trunc", "--format", "{{.Node}} {{.CurrentState}} {{.Error}}", SERVICE]).out
    }

    /// The machine that writes, which is not the one that speaks for the swarm: from there the service is moved first.
    pub fn writer(&self) -> &'static str {
        let manager = self.machines[MANAGER].name;
        if self.owner().as_deref() == Some(manager) {
            self.drain(manager);
            self.wait_for("the service leaves the manager", |owner| owner.is_some_and(|owner| owner != manager));
            self.activate(manager);
        }
        let owner = self.owner();
        self.machines.iter().map(|machine| machine.name).find(|name| owner.as_deref() == Some(*name)).expect("somebody writes")
    }

    /// Who acknowledged last.
    pub fn owner(&self) -> Option<String> {
        self.outside("acknowledged").pop().map(|(node, _, _)| node)
    }

    /// Waits for a record by somebody who fits; gives the time that it took.
    pub fn wait_for(&self, what: &str, fits: impl Fn(Option<&str>) -> bool) -> Duration {
        let begun = Instant::now();
        while !fits(self.owner().as_deref()) {
            assert!(begun.elapsed() < FAILOVER, "not within {FAILOVER:?}: {what}; {}", self.tasks());
            std::thread::sleep(Duration::from_millis(20));
        }
        begun.elapsed()
    }

    /// A machine goes on acknowledging.
    pub fn goes_on(&self, name: &str) {
        let count = || self.acknowledged_by(name);
        let before = count();
        eventually(&format!("{name} goes on writing"), FAILOVER, || count() > before + 3);
    }

    /// How many records a machine has acknowledged.
    pub fn acknowledged_by(&self, name: &str) -> usize {
        self.outside("acknowledged").iter().filter(|(node, _, _)| node == name).count()
    }

    /// How many records a machine could not write.
    pub fn refused_by(&self, name: &str) -> usize {
        self.outside("refused").iter().filter(|(node, _, _)| node == name).count()
    }

    fn outside(&self, file: &str) -> Vec<Record> {
        records(&std::fs::read_to_string(self.outside.join(file)).unwrap_or_default())
    }

    /// The machines that have the volume mounted.
    pub fn mounted_at(&self) -> Vec<&'static str> {
        self.machines.iter().filter(|machine| !machine.mounts().is_empty()).map(|machine| machine.name).collect()
    }

    /// What has to be so whenever one machine writes and all others are well: it alone has the volume, every acknowledged record is
    /// there, and nobody wrote after who came later.
    #[track_caller]
    pub fn check(&self, round: &str) {
        let owner = self.owner().expect("somebody writes");
        self.goes_on(&owner);
        for machine in self.machines.iter().filter(|machine| machine.name != owner) {
            let clean = format!("{round}: {} is clean: {:?}, {:?}", machine.name, machine.mounts(), machine.carriers());
            eventually(&clean, FAILOVER, || machine.is_clean());
        }
        assert_eq!(self.mounted_at(), [owner.as_str()], "{round}: who has it mounted");
        // What comes after this need not be seen.
        let acknowledged = self.outside("acknowledged");
        let machine = self.machines.iter().find(|machine| machine.name == owner).expect("a machine");
        let there = records(&machine.sh(&format!("cat {}/log", machine.mounts()[0].display())).ok());
        judge(round, &acknowledged, &there);
        println!("{round}: all of {} acknowledged records are there, {owner} writes", acknowledged.len());
    }

    /// The end: the service goes, and everybody has let go. Now that nothing of the volume is in anybody's memory it is read again.
    pub fn finish(mut self) {
        self.docker(&["service", "rm", SERVICE]).ok();
        for machine in &self.machines {
            eventually("a machine has let go", FAILOVER, || machine.is_clean());
        }
        let machine = &self.machines[0];
        let device = machine.dunnage(&["volume", "attach", VOLUME]).ok();
        let found = machine.sh(&format!("e2fsck -fn {device} 2>&1"));
        machine.dunnage(&["volume", "detach", VOLUME]).ok();
        assert_eq!(found.code, 0, "the filesystem is damaged: {}", found.out);
        let path = machine.dunnage(&["volume", "mount", VOLUME]).ok();
        let there = records(&machine.sh(&format!("cat {path}/log")).ok());
        machine.dunnage(&["volume", "unmount", VOLUME]).ok();
        judge("at the end", &self.outside("acknowledged"), &there);
        self.machines.iter_mut().for_each(Machine::shut_down);
    }
}

/// Every acknowledged record is there, once, and in order; nobody wrote after who came later.
#[track_caller]
fn judge(round: &str, acknowledged: &[Record], there: &[Record]) {
    let set: BTreeSet<&Record> = there.iter().collect();
    assert_eq!(set.len(), there.len(), "{round}: a record is there twice");
    let lost: Vec<_> = acknowledged.iter().filter(|record| !set.contains(record)).collect();
    assert!(lost.is_empty(), "{round}: {} acknowledged records are lost: {lost:?}", lost.len());
    let mut over = BTreeSet::new();
    for pair in there.windows(2) {
        let [(_, before, number), (_, after, next)] = pair else { continue };
        if before == after {
            assert!(number < next, "{round}: {pair:?}");
        } else {
            over.insert(before);
            assert!(!over.contains(after), "{round}: somebody wrote after who came later: {pair:?}");
        }
    }
}

/// Every line has to be a whole one.
fn records(text: &str) -> Vec<Record> {
    let record = |line: &str| {
        let [node, task, number] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        Some((node.to_owned(), task.to_owned(), number.parse().ok()?))
    };
    text.lines().map(|line| record(line).unwrap_or_else(|| panic!("this is no record: {line:?}"))).collect()
}
