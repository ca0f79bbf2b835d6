//! What changes when a container's root is not the node's, when the engine is not root's, when a kernel should label
//! files, and when the daemon runs in a container itself. What is shown here stands in docs/environments.md.

use std::fs::{create_dir_all, read_to_string, write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use dunnage_tests::docker::{Bench, IMAGE};
use dunnage_tests::{BOUND, Node, Ran, binary, eventually, is_mounted, kernel, podman, scratch, sh, skip};
use serde_json::{Value, json};

const PG: [&str; 4] = ["-v", "pg:/data", "--volume-driver", "dunnage"];

// SELinux

const LABEL: &str = "context=\"system_u:object_r:container_file_t:s0\"";

#[test]
fn a_label_is_refused_by_a_kernel_without_selinux_at_create_and_nothing_is_made() {
    if read_to_string("/proc/filesystems").is_ok_and(|known| known.contains("selinuxfs")) {
        skip("needs a kernel without SELinux");
        return;
    }
    let mut node = Node::started();
    for fs in ["ext4", "xfs", "btrfs"] {
        let options = json!({ "size": "320M", "fs": fs, "mountOptions": LABEL });
        let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": options }));
        assert!(
            said.contains("invalid_argument{mountOptions}") && said.contains("context=system_u:object_r:container_file_t:s0"),
            "{said}"
        );
        assert!(said.contains("Unknown parameter 'context'"), "in the kernel's words: {said}");
        assert!(node.cli(&["volume", "ls", "-q"]).ok().is_empty());
        assert!(!node.pool().join("pg").exists());
    }
    node.finish();
}

#[test]
fn the_suffixes_for_labels_are_accepted_by_docker() {
    let Some(bench) = Bench::started() else { return };
    for suffix in ["z", "Z"] {
        let mount = format!("pg:/data:{suffix}");
        // The first time, the volume is made by this.
        bench.docker.run(&["-v", &mount, "--volume-driver", "dunnage"], &format!("touch /data/{suffix}")).ok();
    }
    assert_eq!(bench.docker.run(&PG, "ls /data").ok(), "Z\nz");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn the_suffixes_for_labels_are_accepted_by_podman() {
    let Some(bench) = podman::Bench::started() else { return };
    bench.create("pg");
    for suffix in ["z", "Z"] {
        bench.podman.run(&["-v", &format!("pg:/data:{suffix}")], &format!("touch /data/{suffix}")).ok();
    }
    assert_eq!(bench.podman.run(&["-v", "pg:/data"], "ls /data").ok(), "Z\nz");
    bench.wait_until_released("pg");
    bench.finish();
}

// Docker's userns-remap

/// The range of IDs for `daemon`, a user that every Debian has: in this namespace alone, and until it ends.
static SUBORDINATE: LazyLock<()> = LazyLock::new(|| {
    let files = scratch();
    for name in ["subuid", "subgid"] {
        let (ours, etc) = (files.join(name), Path::new("/etc").join(name));
        write(&ours, "daemon:100000:65536\n").expect("a file");
        // Not there before uidmap or Docker's rootless extras are: an empty one says the same.
        drop(std::fs::OpenOptions::new().create(true).append(true).open(&etc));
        sh(&format!("mount --bind {} {}", ours.display(), etc.display()));
    }
});

/// An engine whose containers' root is the node's user 100000.
fn remapped(yaml: &str) -> Option<Bench> {
    LazyLock::force(&SUBORDINATE);
    let bench = Bench::configured(yaml, &["--userns-remap=daemon:daemon"])?;
    let map = bench.docker.run(&[], "cat /proc/self/uid_map").ok();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    Some(bench)
}

#[test]
fn a_remapped_root_may_look_into_a_fresh_volume_and_not_write() {
    let Some(bench) = remapped("") else { return };
    let said = bench.docker.run(&PG, "stat -c '%u %g %a' /data && touch /data/x");
    assert_eq!(said.out.trim(), "65534 65534 755", "it is the node's root's, who is nobody in there");
    assert!(said.fails(1).contains("Permission denied"));
    bench.docker.run(&[&PG[..], &["--userns=host"]].concat(), "touch /data/x").ok();
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn a_volume_that_was_made_for_a_remapped_user_is_its_own() {
    let Some(bench) = remapped("") else { return };
    let create = |name: &str, id: &str| {
        let (uid, gid) = (format!("uid={id}"), format!("gid={id}"));
        bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "-o", &uid, "-o", &gid, "-o", "mode=0700", name]).ok();
    };
    create("roots", "100000");
    create("postgres", "100999");
    const SHOW: &str = "touch /data/x && stat -c '%u %g %a' /data && stat -c '%u %g' /data/x";
    assert_eq!(bench.docker.run(&["-v", "roots:/data"], SHOW).ok(), "0 0 700\n0 0");
    assert_eq!(bench.docker.run(&["-v", "postgres:/data", "--user=999:999"], SHOW).ok(), "999 999 700\n999 999");
    let path = bench.node.mount("postgres", "look");
    assert_eq!(std::fs::metadata(path.join("x")).expect("a file").uid(), 100_999, "on the node");
    bench.node.unmount("postgres", "look");
    bench.finish();
}

#[test]
fn an_endpoint_may_make_all_its_volumes_for_the_remapped_root() {
    let yaml = "endpoints: { docker: [ { name: dunnage, driver: local, defaults: { uid: 100000, gid: 100000 } } ] }\n";
    let Some(bench) = remapped(yaml) else { return };
    assert_eq!(bench.docker.run(&PG, "touch /data/x && stat -c '%u %g %a' /data").ok(), "0 0 755");
    bench.wait_until_released("pg");
    bench.finish();
}

#[test]
fn what_an_image_brings_belongs_to_the_remapped_users() {
    let Some(bench) = remapped("") else { return };
    const OF_IMAGE: &str = "localhost:1/data:1";
    bench.docker.import(OF_IMAGE, |root| {
        create_dir_all(root.join("data")).expect("image");
        write(root.join("data/file"), "of the image").expect("image");
        chown(root.join("data"), Some(70), Some(71)).expect("image");
    });
    let said = bench.docker.cli(
        &[
            &["run", "--rm", "--network=none", "--user=70:71"],
            &PG[..],
            &[OF_IMAGE, "sh", "-c", "touch /data/x && stat -c '%n %u %g' /data /data/file"],
        ]
        .concat(),
    );
    assert_eq!(said.ok(), "/data 70 71\n/data/file 0 0");
    let path = bench.node.mount("pg", "look");
    assert_eq!(std::fs::metadata(path).expect("the volume").uid(), 100_070, "on the node");
    bench.node.unmount("pg", "look");
    bench.finish();
}

// Rootless Podman

/// The user of the rootless Podman: every machine has it, and it has no right at all.
const NOBODY: u32 = 65534;

/// A node whose sockets and mounts lie where everybody may walk, and a Podman of `nobody`.
struct Rootless {
    // Dropped first: it may have volumes of the node.
    podman: Nobody,
    node: Node,
    volumes: PathBuf,
}

struct Nobody(PathBuf);

impl Rootless {
    /// `None` where there is no Podman, or a user may have no namespace (noted as a skip).
    fn started() -> Option<Rootless> {
        let may = Command::new("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Ur", "true"]).status();
        if !may.is_ok_and(|status| status.success()) {
            skip("this machine has no unprivileged user namespaces");
            return None;
        }
        let mut node = podman::Bench::node()?;
        // Short, and on a tmpfs: Podman wants both.
        let folder = PathBuf::from(format!("/run/rootless-{}", node.folder.file_name().expect("name").display()));
        node.plugins = folder.join("plugins");
        let volumes = folder.join("volumes");
        node.configure(&format!("volumes: {{ path: {} }}\n", volumes.display()));
        for path in ["", "home", "run", "tmp"].map(|name| folder.join(name)) {
            create_dir_all(&path).expect("folder");
            chown(&path, Some(NOBODY), Some(NOBODY)).expect("owner");
        }
        node.start();
        sh(&format!("chmod 0755 /run {0} {0}/plugins", folder.display()));
        let runtime = if Path::new("/usr/sbin/runc").exists() { "runc" } else { "crun" };
        let socket = node.socket();
        let text = format!(
            "[containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=1000:1000\", \"nproc=1000:1000\"]\n\
             [engine]\nruntime = \"{runtime}\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
             [engine.volume_plugins]\ndunnage = \"{}\"\n",
            socket.display()
        );
        write(folder.join("containers.conf"), text).expect("containers.conf");
        let podman = Nobody(folder);
        podman.import();
        Some(Rootless { podman, node, volumes })
    }

    /// Nothing of either is left.
    #[track_caller]
    fn finish(mut self) {
        assert_eq!(self.podman.cli(&["ps", "-aq"]).ok(), "", "the test has left containers");
        self.podman.end();
        eventually("nothing is attached", BOUND, || kernel::loops_beneath(&self.node.folder).is_empty());
        let left = kernel::mounts_beneath(&self.volumes);
        assert_eq!(left, [self.volumes.clone()], "only the folder of mounts itself is left");
        self.node.finish();
    }
}

impl Nobody {
    /// `podman ARGS` as nobody, who has one ID and no range of them.
    fn cli(&self, args: &[&str]) -> Ran {
        let at = |name: &str| self.0.join(name).display().to_string();
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "110", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "podman"]);
        command.args(["--storage-driver", "vfs"]).args(args).current_dir(&self.0).stdin(Stdio::null());
        command.env("HOME", at("home")).env("XDG_RUNTIME_DIR", at("run")).env("TMPDIR", at("tmp"));
        command.env("CONTAINERS_CONF", at("containers.conf")).env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        let output = command.output().expect("podman");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    fn import(&self) {
        let root = self.0.join("image");
        create_dir_all(root.join("bin")).expect("image");
        sh(&format!(
            "cd {}/bin; cp $(command -v busybox) .; for applet in sh cat echo ls sleep stat touch; do ln -s busybox $applet; done",
            root.display()
        ));
        sh(&format!("tar --create --numeric-owner --file {0}/image.tar --directory {0}/image .", self.0.display()));
        self.cli(&["import", &self.0.join("image.tar").display().to_string(), IMAGE]).ok();
    }

    /// Runs a script in a new container, which is gone afterwards.
    fn run(&self, mount: &str, script: &str) -> Ran {
        self.cli(&["run", "--rm", "--pull=never", "-v", mount, IMAGE, "sh", "-c", script])
    }

    /// Ends what a rootless Podman leaves running: a process that keeps its namespaces.
    fn end(&self) {
        self.cli(&["system", "migrate"]).ok();
        let pause = self.0.join("run/libpod/tmp/pause.pid");
        if let Ok(pid) = read_to_string(pause) {
            eventually("Podman's last process ends", BOUND, || !Path::new("/proc").join(pid.trim()).exists());
        }
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        for mount in kernel::mounts_beneath(&self.podman.0).into_iter().rev() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.podman.0);
    }
}

#[test]
fn a_rootless_podman_is_kept_from_the_socket_and_says_so() {
    let Some(bench) = Rootless::started() else { return };
    let said = bench.podman.cli(&["volume", "create", "--driver", "dunnage", "pg"]).fails(125);
    assert!(said.contains("dunnage.sock: connect: permission denied"), "{said}");
    assert!(bench.node.cli(&["volume", "ls", "-q"]).ok().is_empty());
    bench.finish();
}

/// What looks like our volume then is one of its own.
#[test]
fn a_rootless_podman_takes_the_name_of_our_volume_for_one_of_its_own() {
    let Some(bench) = Rootless::started() else { return };
    bench.node.cli(&["volume", "create", "-o", "size=64M", "-o", "uid=65534", "pg"]).ok();
    bench.podman.run("pg:/data", "touch /data/x").ok();
    assert_eq!(bench.podman.cli(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]).ok(), "local pg");
    let shown: Value = serde_json::from_str(&bench.node.cli(&["volume", "inspect", "pg", "-o", "json"]).ok()).expect("json");
    assert_eq!(shown["state"], "ready", "nobody mounted ours");
    bench.finish();
}

#[test]
fn a_rootless_podman_binds_a_volume_that_root_has_mounted() {
    let Some(bench) = Rootless::started() else { return };
    // Its namespaces begin before the mount: it has to reach them.
    bench.podman.cli(&["volume", "ls"]).ok();
    bench.node.cli(&["volume", "create", "-o", "size=64M", "-o", "uid=65534", "-o", "gid=65534", "-o", "mode=0700", "pg"]).ok();
    let path = bench.node.cli(&["volume", "mount", "pg"]).ok();
    let bind = format!("{path}:/data");
    assert_eq!(bench.podman.run(&bind, "stat -c '%u %g %a' /data && echo written >/data/x").ok(), "0 0 700");
    assert_eq!(bench.podman.run(&bind, "cat /data/x").ok(), "written");
    assert_eq!(std::fs::metadata(Path::new(&path).join("x")).expect("a file").uid(), NOBODY, "on the node");
    bench.node.cli(&["volume", "unmount", "pg"]).ok();
    bench.finish();
}

#[test]
fn a_bound_volume_that_root_unmounts_goes_when_the_rootless_container_does() {
    let Some(bench) = Rootless::started() else { return };
    bench.node.cli(&["volume", "create", "-o", "size=64M", "-o", "uid=65534", "pg"]).ok();
    let path = bench.node.cli(&["volume", "mount", "pg"]).ok();
    let bind = format!("{path}:/data");
    let script = "cd /data; while true; do touch x; sleep 0.01; done";
    bench.podman.cli(&["run", "-d", "--pull=never", "--name=c1", "--stop-signal=KILL", "-v", &bind, IMAGE, "sh", "-c", script]).ok();
    eventually("the container writes", BOUND, || Path::new(&path).join("x").exists());
    bench.node.cli(&["volume", "unmount", "pg"]).ok();
    eventually("it is unmounted on the node", BOUND, || !is_mounted(Path::new(&path)));
    assert_eq!(kernel::loops_beneath(&bench.node.folder).len(), 1, "the container keeps the device");
    bench.podman.cli(&["exec", "c1", "ls", "/data/x"]).ok();
    let said = bench.node.cli(&["volume", "rm", "pg"]).fails(5);
    assert!(said.contains("in_use{n1}") && said.contains("sh (pid "), "{said}");
    bench.podman.cli(&["rm", "-f", "c1"]).ok();
    eventually("the device goes with the container", BOUND, || kernel::loops_beneath(&bench.node.folder).is_empty());
    bench.node.cli(&["volume", "rm", "pg"]).ok();
    bench.finish();
}

/// As it is with a socket of systemd's with `SocketGroup=`: what the daemon was handed it leaves as it is (tier2_systemd).
#[test]
fn a_rootless_podman_whose_group_may_use_the_socket_uses_volumes_by_itself() {
    let Some(bench) = Rootless::started() else { return };
    chown(bench.node.socket(), Some(0), Some(NOBODY)).expect("group");
    sh(&format!("chmod 0660 {}", bench.node.socket().display()));
    let options = ["-o", "size=64M", "-o", "uid=65534", "-o", "gid=65534"];
    bench.podman.cli(&[&["volume", "create", "--driver", "dunnage"], &options[..], &["pg"]].concat()).ok();
    bench.podman.run("pg:/data", "echo written >/data/x").ok();
    bench.node.wait_until_released("pg");
    assert_eq!(bench.podman.run("pg:/data", "cat /data/x && stat -c '%u %g' /data").ok(), "written\n0 0");
    bench.podman.cli(&["volume", "rm", "pg"]).ok();
    assert!(bench.node.cli(&["volume", "ls", "-q"]).ok().is_empty());
    bench.finish();
}

// The daemon in a container

const DAEMON: &str = "localhost:1/dunnage:1";

/// A bench whose daemon is about to run in a container: the one beside the engine has stopped.
struct Contained {
    bench: Bench,
    state: PathBuf,
}

impl Contained {
    /// `None` where there is no engine (noted as a skip).
    fn ready() -> Option<Contained> {
        let mut bench = Bench::started()?;
        let state = bench.node.state();
        bench.node.stop();
        sh(&format!("umount {0}/volumes; mount --bind {0} {0}; mount --make-shared {0}", state.display()));
        bench.docker.import(DAEMON, |root| {
            std::fs::copy(binary(), root.join("bin/dunnage")).expect("image");
            let tools = ["mke2fs", "e2fsck"].map(|tool| sh(&format!("PATH=$PATH:/usr/sbin:/sbin command -v {tool}")));
            create_dir_all(root.join("usr/sbin")).expect("image");
            create_dir_all(root.join("etc")).expect("image");
            std::fs::copy("/etc/mke2fs.conf", root.join("etc/mke2fs.conf")).expect("image");
            for tool in &tools {
                sh(&format!("cp -L {tool} {}/usr/sbin/", root.display()));
            }
            let libraries = sh(&format!("ldd {} {} | grep -o '/[^ ]*[.]so[^ ]*' | sort -u", binary().display(), tools.join(" ")));
            for library in libraries.lines() {
                sh(&format!("mkdir -p {0}$(dirname {library}); cp -L {library} {0}{library}", root.display()));
            }
        });
        Some(Contained { bench, state })
    }

    /// Makes the folder of mounts on the node, as another daemon there may have left it.
    fn prepare(&self) {
        let volumes = self.state.join("volumes");
        sh(&format!(
            "mount -t tmpfs -o mode=0711,size=64k,nr_inodes=200k,nosuid,nodev,noexec dunnage {0}; mount -o remount,bind,ro {0}",
            volumes.display()
        ));
    }

    /// Begins the daemon's container.
    fn begin(&self, propagation: &str) {
        self.begin_among("--pid=host", propagation);
    }

    fn begin_among(&self, processes: &str, propagation: &str) {
        let node = &self.bench.node;
        let [state, run, plugins] = [&self.state, &node.run_dir(), &node.plugins].map(|path| path.display().to_string());
        let mounts = [format!("{state}:{state}:{propagation}"), format!("{run}:{run}"), format!("{plugins}:{plugins}")];
        let mut args = vec!["run", "-d", "--name=dunnage", "--network=none", processes, "--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE"];
        args.extend(["--security-opt=apparmor=unconfined", "--device-cgroup-rule=b 7:* rwm", "--device-cgroup-rule=c 10:237 rwm"]);
        args.extend(mounts.iter().flat_map(|mount| ["-v", mount]));
        args.extend(["-v", "/dev:/dev", DAEMON, "/bin/dunnage", "--state-dir", &state, "--run-dir", &run, "--plugin-dir", &plugins]);
        args.extend(["--node", "n1", "start", "-f"]);
        self.bench.docker.cli(&args).ok();
    }

    #[track_caller]
    fn serves(&self) {
        eventually("the daemon in the container serves", BOUND, || {
            assert!(self.bench.docker.is_running("dunnage"), "it ended: {}", self.says());
            self.bench.node.cli(&["status"]).code == 0
        });
    }

    fn says(&self) -> String {
        self.bench.docker.cli(&["logs", "dunnage"]).err
    }

    #[track_caller]
    fn finish(self) {
        assert!(kernel::loops_beneath(&self.bench.node.folder).is_empty(), "nothing is attached");
        sh(&format!("! mountpoint -q {0}/volumes || umount {0}/volumes; umount {0}", self.state.display()));
        self.bench.finish();
    }
}

#[test]
fn containers_have_volumes_of_a_daemon_that_runs_in_a_container_too() {
    let Some(contained) = Contained::ready() else { return };
    contained.begin("rshared");
    contained.serves();
    let bench = &contained.bench;
    bench.docker.cli(&["volume", "create", "-d", "dunnage", "-o", "size=64M", "pg"]).ok();
    let writer = bench.writer("c1", "pg");
    assert!(is_mounted(&bench.node.mountpoint("pg")), "it has reached the node");
    let table = bench.docker.run(&PG, "cat /proc/self/mountinfo").ok();
    assert!(table.lines().any(|line| line.contains(" /data ") && line.contains(" - ext4 /dev/loop")), "{table}");
    writer.assert_goes_on();
    bench.docker.end("c1");
    bench.node.wait_until_released("pg");
    bench.docker.cli(&["volume", "rm", "pg"]).ok();
    bench.docker.end("dunnage");
    contained.finish();
}

#[test]
fn a_daemons_container_may_be_killed_and_made_anew_under_running_containers() {
    let Some(contained) = Contained::ready() else { return };
    contained.begin("rshared");
    contained.serves();
    let bench = &contained.bench;
    let writer = bench.writer("c1", "pg");
    let id = kernel::mount_id(&bench.node.mountpoint("pg"));
    bench.docker.cli(&["kill", "dunnage"]).ok();
    bench.docker.end("dunnage");
    assert_eq!(kernel::mount_id(&bench.node.mountpoint("pg")), id, "nobody touched the mount");
    writer.assert_goes_on();
    contained.begin("rshared");
    contained.serves();
    assert_eq!(bench.node.holders("pg").len(), 1, "it knows who holds it");
    writer.assert_goes_on();
    assert!(bench.docker.run(&PG, "cat /data/log").ok().starts_with('x'));
    bench.docker.end("c1");
    bench.node.wait_until_released("pg");
    bench.docker.end("dunnage");
    contained.finish();
}

#[test]
fn a_daemon_in_a_container_whose_mounts_would_reach_nobody_does_not_start() {
    let Some(contained) = Contained::ready() else { return };
    for propagation in ["rprivate", "rslave"] {
        contained.begin(propagation);
        eventually("it ends", BOUND, || !contained.bench.docker.is_running("dunnage"));
        let said = contained.says();
        assert!(said.contains("invalid_argument{volumes.private_namespace}") && said.contains("rshared"), "{propagation}: {said}");
        contained.bench.docker.end("dunnage");
    }
    contained.finish();
}

/// That there is such a folder on the node says nothing: what is mounted on the container's copy has to come there.
#[test]
fn a_daemon_in_a_container_that_has_only_a_copy_of_the_folder_of_mounts_does_not_start() {
    let Some(contained) = Contained::ready() else { return };
    contained.prepare();
    contained.begin("rprivate");
    eventually("it ends", BOUND, || !contained.bench.docker.is_running("dunnage"));
    let said = contained.says();
    assert!(said.contains("invalid_argument{volumes.private_namespace}") && said.contains("rshared"), "{said}");
    contained.bench.docker.end("dunnage");
    contained.finish();
}

#[test]
fn a_daemon_in_a_container_that_does_not_see_the_nodes_processes_does_not_start() {
    let Some(contained) = Contained::ready() else { return };
    contained.begin_among("--pid=", "rshared");
    eventually("it ends", BOUND, || !contained.bench.docker.is_running("dunnage"));
    let said = contained.says();
    assert!(said.contains("invalid_argument{volumes.private_namespace}") && said.contains("--pid=host"), "{said}");
    contained.bench.docker.end("dunnage");
    contained.finish();
}
