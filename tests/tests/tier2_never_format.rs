//! Law 5: whatever is on a device, made by its own tools, is refused by its name and stays as it is to the bit; as a
//! volume that is to be mounted, and as storage that is to be formatted.
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunnage_host::helpers::Helpers;
use dunnage_host::linux::Tools;
use dunnage_host::orphans::Brood;
use dunnage_host::{FormatRequest, Host};
use dunnage_model::FsKind;
use dunnage_tests::fuse::Store;
use dunnage_tests::sh;
use dunnage_tests::{Node, binary, scratch};
use serde_json::json;

/// Something that people have on their disks: what it is refused as, and a line of shell that makes it in `IMAGE`.
const DATA: &[(&str, &str)] = &[
    ("ext4", "mke2fs -q -F -t ext4 IMAGE"),
    ("ext2", "mke2fs -q -F -t ext2 IMAGE"),
    ("xfs", "truncate -s 320M IMAGE; mkfs.xfs -q IMAGE"),
    ("btrfs", "truncate -s 320M IMAGE; mkfs.btrfs -q IMAGE"),
    ("crypto_LUKS", "echo -n pw | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 IMAGE -"),
    ("crypto_LUKS", "echo -n pw | cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 IMAGE -"),
    (
        "LVM2_member",
        "d=$(losetup -f --show IMAGE); mkdir -p IMAGE.locks; trap 'losetup -d $d; rm -rf IMAGE.locks' EXIT; \
         pvcreate -q --config \"devices{filter=[\\\"a|.*|\\\"] global_filter=[\\\"a|.*|\\\"] use_devicesfile=0} \
         global{locking_dir=\\\"IMAGE.locks\\\"} activation{udev_sync=0 udev_rules=0}\" $d >/dev/null 2>&1",
    ),
    ("swap", "mkswap -q IMAGE 2>/dev/null"),
    ("ntfs", "mkfs.ntfs -q -F -Q IMAGE >/dev/null 2>&1"),
    ("gpt partition table", "echo 'label: gpt' | sfdisk -q IMAGE"),
    ("dos partition table", "printf 'label: dos\\n2048,,83\\n' | sfdisk -q IMAGE"),
    // No kernel here makes a RAID, and no package of Debian 12 a bcachefs or a ZFS: written as their formats have it.
    ("linux_raid_member", "RAID"),
    (
        // libblkid wants four uberblocks and we one: enough to keep away.
        "zfs_member",
        "printf '\\014\\261\\272\\000' | dd of=IMAGE bs=1K seek=132 conv=notrunc status=none",
    ),
    (
        // libblkid wants a whole superblock; we want to see that the beginning of one is enough to keep away.
        "bcachefs",
        "printf '\\306\\205\\163\\366\\146\\316\\220\\251\\331\\152\\140\\317\\200\\075\\367\\357' \
         | dd of=IMAGE bs=1 seek=4120 conv=notrunc status=none",
    ),
    ("data of an unknown kind", "head -c 64M /dev/urandom > IMAGE"),
    ("data of an unknown kind", "printf x > IMAGE"),
    ("data of an unknown kind", "truncate -s 0 IMAGE; head -c 65536 /dev/zero > IMAGE"),
];

/// Makes a piece of data.
fn make(line: &str, image: &Path) {
    let at = image.display().to_string();
    sh(&format!("rm -f {at}; truncate -s 64M {at}"));
    if line == "RAID" {
        return raid_member(image);
    }
    sh(&line.replace("IMAGE", &at));
}

/// `struct mdp_superblock_1` of include/uapi/linux/raid/md_p.h, version 1.2, 4 KiB from the beginning.
fn raid_member(image: &Path) {
    let mut block = [0_u8; 256];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xa92b_4efc_u32.to_le_bytes());
    put(4, &1_u32.to_le_bytes());
    put(16, &[7; 16]);
    put(144, &8_u64.to_le_bytes()); // super_offset, in sectors
    let sum = block.chunks_exact(4).map(|word| u64::from(u32::from_le_bytes(word.try_into().expect("four")))).sum::<u64>();
    #[allow(clippy::cast_possible_truncation)] // folded, as calc_sb_1_csum does
    let sum = ((sum & 0xffff_ffff) + (sum >> 32)) as u32;
    block[216..220].copy_from_slice(&sum.to_le_bytes());
    use std::os::unix::fs::FileExt;
    std::fs::File::options().write(true).open(image).and_then(|file| file.write_all_at(&block, 4096)).expect("write");
}

fn is_refused_as(said: &str, name: &str) -> bool {
    said.starts_with(&format!("not_blank{{{name}"))
}

/// A copy to compare with.
fn keep(image: &Path) {
    sh(&format!("cp --sparse=always --preserve=timestamps {0} {0}.kept", image.display()));
}

/// It is as it was, to the bit.
#[track_caller]
fn assert_unchanged(image: &Path, what: &str) {
    let at = image.display();
    sh(&format!(
        "cmp {at} {at}.kept && test $(stat -c %.Y {at}) = $(stat -c %.Y {at}.kept) || {{ echo '{what} changed it' >&2; exit 1; }}"
    ));
}

#[test]
fn a_volume_whose_image_has_something_else_is_not_mounted_and_says_what_it_is() {
    let node = Node::started();
    for (name, line) in DATA {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "v", "Opts": { "size": "16M" } }));
        let image = node.image("v");
        make(line, &image);
        // Large enough not to be a volume that was cut short; a short one is told by that.
        let short = std::fs::metadata(&image).expect("image").len() < 16 << 20;
        keep(&image);
        let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "v", "ID": "c1" }));
        if short {
            assert!(said.starts_with("platform_unavailable") && said.contains("it is damaged"), "{line}: {said}");
        } else {
            assert!(is_refused_as(&said, name), "{line}: {said}");
        }
        assert_unchanged(&image, "the mount");
        node.assert_nothing_left();
        std::fs::remove_dir_all(image.parent().expect("folder")).expect("remove");
    }
}

struct Bench {
    host: Host,
    folder: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let folder = scratch();
        let (brood, _) = Brood::begin(&folder.join("helpers")).expect("begin");
        Bench { host: dunnage_host::linux::host(Arc::new(Helpers::new(binary(), brood)), Tools::find()), folder }
    }

    /// Asks for a format, which has to be refused; gives what is said.
    async fn refused(&self, path: &Path, fs: FsKind) -> String {
        let request = FormatRequest::plain(path.to_owned(), fs, uuid::Uuid::new_v4());
        self.host.filesystems.format(&request).await.expect_err("it was formatted").to_string()
    }
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work);
}

#[test]
fn storage_that_has_something_on_it_is_not_formatted_with_anything() {
    run(async {
        let bench = Bench::new();
        let image = bench.folder.join("image");
        for (name, line) in DATA {
            make(line, &image);
            keep(&image);
            let name = if std::fs::metadata(&image).expect("image").len() > 68 * 1024 { name } else { "too little for any filesystem" };
            for fs in FsKind::ALL {
                let said = bench.refused(&image, fs).await;
                assert!(is_refused_as(&said, name), "{fs} over {line}: {said}");
                assert_unchanged(&image, fs.as_str());
            }
        }
    });
}

#[test]
fn storage_that_is_not_there_or_is_no_storage_is_not_formatted() {
    run(async {
        let bench = Bench::new();
        let nothing = bench.folder.join("nothing");
        for fs in FsKind::ALL {
            bench.refused(&nothing, fs).await;
            assert!(!nothing.exists(), "{fs} made a file");
            bench.refused(Path::new("/dev/null"), fs).await;
            bench.refused(&bench.folder, fs).await;
        }
    });
}

#[test]
fn a_device_that_was_only_ever_read_as_zeroes_is_not_taken_for_blank() {
    run(async {
        let bench = Bench::new();
        let image = bench.folder.join("image");
        sh(&format!("truncate -s 64M {}", image.display()));
        let device = sh(&format!("losetup -f --show {}", image.display()));
        let said = bench.refused(Path::new(&device), FsKind::Ext4).await;
        sh(&format!("losetup -d {device}"));
        assert!(said.starts_with("not_blank{"), "{said}");
    });
}

/// What cannot be read is refused with the reason, and was not written.
#[track_caller]
fn assert_unreadable(said: &str) {
    assert!(said.starts_with("not_blank{nobody knows: it cannot be read (Input/output error"), "{said}");
}

#[test]
fn storage_whose_reads_fail_is_not_formatted() {
    run(async {
        let bench = Bench::new();
        let store = Store::new(env!("CARGO_BIN_EXE_fuse-store"), &bench.folder.join("store"), 64 << 20);
        let image = store.path().join("image");
        // One that was never written would be blank; of this one nobody can say.
        sh(&format!("truncate -s 16M {0}; printf x | dd of={0} conv=notrunc status=none; sync", image.display()));
        keep(&image);
        let device = sh(&format!("losetup -f --show {}", image.display()));
        store.lose(&image);
        let mut said = Vec::new();
        for path in [image.as_path(), Path::new(&device)] {
            for fs in FsKind::ALL {
                said.push(bench.refused(path, fs).await);
            }
        }
        sh(&format!("losetup -d {device}"));
        store.find_again();
        said.iter().for_each(|said| assert_unreadable(said));
        assert_unchanged(&image, "a format that could not read it");
    });
}

#[test]
fn a_volume_whose_image_cannot_be_read_is_not_mounted_and_is_itself_again_when_it_can() {
    let mut node = Node::new();
    let store = Store::new(env!("CARGO_BIN_EXE_fuse-store"), &scratch(), 64 << 20);
    node.configure(&format!("drivers: {{ local: {{ type: local, pool: {} }} }}\n", store.path().join("pool").display()));
    node.start();
    node.fill("v");
    let image = store.path().join("pool/v/image");
    keep(&image);
    store.lose(&image);
    let said = node.plugin_err("VolumeDriver.Mount", &json!({ "Name": "v", "ID": "c1" }));
    store.find_again();
    assert_unreadable(&said);
    assert_unchanged(&image, "a mount that could not read it");
    node.assert_nothing_left();
    node.assert_data("v");
    drop(node); // its volumes lie on the store
}
