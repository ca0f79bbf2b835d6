//! A machine with a kernel of its own, emulated: for what the machine that the tests run on has no module for.
//!
//! It sees the machine's own files, read only, and so runs its programs. What it is told to do lies in a folder that both see.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dunnage_host::crash::VARIABLE;
use rustix::process::{Pid, Signal, kill_process};

use crate::machine::NET;
use crate::{News, Ran, binary, eventually, sh, skip};

/// Emulated, everything takes longer.
const PATIENCE: Duration = Duration::from_secs(240);

/// What it needs of its kernel to begin, and for volumes. How it gets at Ceph's images the tests say.
const MODULES: &str = "crc32c_generic virtio_pci virtio_net 9pnet_virtio 9p loop fuse ext4 xfs";

/// Makes its first filesystem: `$1` is the kernel's folder, `$2` the new file.
const INITRD: &str = r#"
kernel=$1; out=$2; version=$(ls "$kernel/lib/modules"); root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/root" "$root/modules"
cp "$(command -v busybox)" "$root/bin/busybox"
for module in $MODULES; do modprobe -d "$kernel" -S "$version" --show-depends "$module"; done |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$root/modules/order"
while read -r file; do cp "$file" "$root/modules/"; basename "$file"; done <"$root/modules/order" >"$root/modules/names"
cp "$INIT" "$root/init"; chmod +x "$root/init"
cd "$root" && find . | cpio -o -H newc --quiet | gzip -1 >"$out"
"#;

/// What it does first; afterwards, whatever it is told.
const INIT: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc; $bb mount -t sysfs sys /sys; $bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/names); do $bb insmod /modules/$module; done
for word in $($bb cat /proc/cmdline); do case $word in vm.*=*) eval "vm_${word#vm.}" ;; esac; done
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose root /root
for folder in proc sys dev; do $bb mount --move /$folder /root/$folder; done
for folder in run tmp mnt; do $bb mount -t tmpfs tmpfs /root/$folder; done
$bb mkdir -p /root/run/lock /root/run/docker/plugins /root/mnt/share
$bb mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none share /root/mnt/share
$bb ip link set lo up; $bb ip address add $vm_address/24 dev eth0; $bb ip link set eth0 up
$bb hostname $vm_name
$bb mkdir -p /root/run/systemd/system
printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh /mnt/share/loop\n' >/root/run/systemd/system/loop.service
case $vm_init in
systemd) exec $bb switch_root /root /lib/systemd/systemd --unit=loop.service ;;
*) rmdir /root/run/systemd/system; exec $bb switch_root /root /bin/sh /mnt/share/loop ;;
esac
"#;

/// Takes its orders one by one.
const LOOP: &str = r#"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
cd /mnt/share; n=1
while :; do
    if test -f order.$n; then
        sh -e order.$n >out.$n 2>err.$n </dev/null; echo $? >code; mv code code.$n; n=$((n + 1))
    else sleep 0.05; fi
done
"#;

/// Where its daemon comes by crash points.
const CRASH: &str = "/run/crash";

/// A virtual machine.
pub struct Vm {
    name: &'static str,
    folder: PathBuf,
    orders: std::cell::Cell<u32>,
    passed: News,
    process: Child,
}

impl Vm {
    /// Switches one on that is connected to the switch of the thread, is run by `systemd` or by nothing but what it is told (`plain`), and
    /// whose kernel has this module besides; `None` where something for it is missing (noted as a skip).
    pub fn boot(init: &str, module: &str, name: &'static str, number: u8, folder: &Path) -> Option<Vm> {
        let Some(kernel) = std::env::var_os("DUNNAGE_TEST_KERNEL").map(PathBuf::from) else {
            skip("needs a Debian kernel to boot: run 'cargo xtask test --tier 4'");
            return None;
        };
        let share = folder.join("share");
        std::fs::create_dir_all(&share).expect("folder");
        let (initrd, script) = (folder.join("initrd"), folder.join("init"));
        std::fs::write(&script, INIT).expect("init");
        std::fs::write(share.join("loop"), LOOP).expect("loop");
        let mut make = Command::new("sh");
        make.args(["-euc", INITRD, "sh"]).arg(&kernel).arg(&initrd).env("MODULES", format!("{MODULES} {module}")).env("INIT", &script);
        assert!(make.status().expect("sh").success(), "there is no first filesystem");
        let image = sh(&format!("ls {}/boot/vmlinuz-*", kernel.display()));
        let tap = format!("t{number}");
        sh(&format!("ip tuntap add {tap} mode tap; ip link set {tap} master br0 up"));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024", "-smp", "1", "-nodefaults", "-no-user-config"]);
        qemu.args(["-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", &image, "-initrd"]).arg(&initrd);
        qemu.args(["-append", &format!("console=ttyS0 quiet panic=-1 vm.init={init} vm.name={name} vm.address={NET}.{number}")]);
        for (tag, path, mode) in [("root", Path::new("/"), ",readonly=on"), ("share", &*share, "")] {
            qemu.args(["-fsdev", &format!("local,id={tag},path={},security_model=none,multidevs=remap{mode}", path.display())]);
            qemu.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        qemu.args(["-netdev", &format!("tap,id=n,ifname={tap},script=no,downscript=no")]);
        qemu.args(["-device", &format!("virtio-net-pci,netdev=n,mac=02:00:00:00:01:{number:02x}")]);
        let console = |mode: &mut std::fs::OpenOptions| mode.open(folder.join("console")).expect("console");
        let out = console(File::options().create(true).append(true));
        let process = qemu.stdin(Stdio::null()).stderr(out.try_clone().expect("console")).stdout(out).spawn().expect("qemu");
        let vm = Vm { name, folder: folder.to_owned(), orders: 0.into(), passed: News::default(), process };
        vm.sh("true").ok();
        Some(vm)
    }

    /// Runs a script in it.
    pub fn sh(&self, script: &str) -> Ran {
        let n = self.orders.get() + 1;
        self.orders.set(n);
        let at = |name: &str| self.folder.join("share").join(format!("{name}.{n}"));
        let new = self.folder.join("share/new");
        std::fs::write(&new, script).and_then(|()| std::fs::rename(&new, at("order"))).expect("an order");
        eventually(&format!("{} does {script:?}", self.name), PATIENCE, || at("code").exists());
        let read = |name| std::fs::read_to_string(at(name)).expect("an answer");
        Ran { code: read("code").trim().parse().expect("a code"), out: read("out"), err: read("err") }
    }

    /// The configuration of its daemon.
    pub fn configure(&self, yaml: &str) {
        std::fs::write(self.folder.join("share/config.yml"), yaml).expect("configuration");
    }

    /// Starts a daemon with this configuration, and waits until it serves.
    pub fn start_daemon(&self, yaml: &str) {
        self.configure(yaml);
        let line = self.line("start -f --log-level debug");
        self.sh(&format!("mkdir -p {CRASH}; {VARIABLE}={CRASH} setsid {line} </dev/null >>/mnt/share/log 2>&1 & echo $! >/run/daemon"))
            .ok();
        self.wait_until_it_serves();
    }

    /// Waits until its daemon serves.
    pub fn wait_until_it_serves(&self) {
        self.sh(&format!("for i in $(seq 200); do {} && exit 0; sleep 0.1; done; exit 1", self.line("status"))).ok();
    }

    /// `kill -9` of it.
    pub fn kill_daemon(&self) {
        self.sh("kill -9 $(cat /run/daemon); while test -d /proc/$(cat /run/daemon); do sleep 0.1; done").ok();
    }

    /// Whether it runs.
    pub fn daemon_runs(&self) -> bool {
        self.sh("test -d /proc/$(cat /run/daemon)").code == 0
    }

    /// Whoever comes by this point next dies there.
    pub fn die_at(&self, point: &str) {
        self.sh(&format!("echo {point} >{CRASH}/new; mv {CRASH}/new {CRASH}/die")).ok();
    }

    /// Whether somebody has died there.
    pub fn somebody_died(&self) -> bool {
        self.sh(&format!("test ! -e {CRASH}/die")).code == 0
    }

    /// The points that were passed since the last call of this.
    pub fn passed(&self) -> Vec<String> {
        self.passed.of(&self.sh(&format!("cat {CRASH}/passed || true")).out)
    }

    /// The daemon's command line.
    pub fn line(&self, args: &str) -> String {
        let places = "--config /mnt/share/config.yml --state-dir /run/state --run-dir /run/dunnage";
        format!("{} {places} --node {} {args}", binary().display(), self.name)
    }

    /// `dunnage ARGS` in it.
    pub fn dunnage(&self, args: &str) -> Ran {
        self.sh(&self.line(args))
    }

    /// It stands still.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, signal).expect("a signal");
    }

    /// What it said on its console.
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.folder.join("console")).unwrap_or_default()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("share/log")).unwrap_or_default();
            eprintln!("--- {}: the console ---\n{}\n--- {}: the daemon's log ---\n{log}", self.name, self.console(), self.name);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
