//! Images that somebody else has made on a real Ceph, REX-Ray first: found, taken with what is on them, or refused by name.

use dunnage_tests::ceph::{Ceph, Client, POOL};
use dunnage_tests::{Node, kernel, sh};
use serde_json::{Value, json};

const CLIENT: &str = env!("CARGO_BIN_EXE_ceph-client");

/// An image as REX-Ray made them (`rbd create --image-feature layering`), with a filesystem in which this is in a file.
fn image(ceph: &Ceph, image: &str, make: &str, file: &str, text: &str) {
    let (folder, disk) = (ceph.folder.join("tree"), ceph.folder.join("disk"));
    let path = folder.join(file);
    sh(&format!(
        "rm -rf {0} {1}; mkdir -p {2}; echo {text} >{3}",
        folder.display(),
        disk.display(),
        path.parent().expect("a folder").display(),
        path.display()
    ));
    sh(&format!(
        "truncate -s 320M {disk} && {make}",
        disk = disk.display(),
        make = make.replace("TREE", &folder.display().to_string()).replace("DISK", &disk.display().to_string())
    ));
    ceph.command("rbd", &["import", "--no-progress", "--image-feature", "layering", &disk.display().to_string(), image]).ok();
}

const EXT4: &str = "mkfs.ext4 -q -d TREE DISK";

fn read(node: &Node, volume: &str, id: &str) -> String {
    let mounted = node.plugin_ok("VolumeDriver.Mount", &json!({ "Name": volume, "ID": id }));
    sh(&format!("cat {}/file", mounted["Mountpoint"].as_str().expect("a path")))
}

fn listed(ceph: &Ceph, pool: &str) -> Vec<String> {
    ceph.command("rbd", &["ls", pool]).ok().lines().map(str::to_owned).collect()
}

#[test]
fn what_rex_ray_has_made_is_taken_with_its_data_when_it_is_named_as_rex_ray_named_it() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    ceph.ceph(&["osd", "pool", "create", "second", "8"]).ok();
    ceph.command("rbd", &["pool", "init", "second"]).ok();
    image(&ceph, "rbd/old", EXT4, "data/file", "of-rexray");
    image(&ceph, "second/older", EXT4, "data/file", "of-the-second");
    let mut node = Node::new();
    node.endpoint = "rexray";
    node.configure(&format!(
        "rexray:\n  loglevel: info\nlibstorage:\n  service: rbd\nrbd:\n  defaultPool: rbd\n  cephArgs: --conf {} --keyring {} --id dunnage\n",
        ceph.conf().display(),
        ceph.keyring().display()
    ));
    node.start();
    // Nothing is shown that nobody has named.
    assert_eq!(node.plugin_ok("VolumeDriver.List", &json!({}))["Volumes"], json!([]));
    // dockerd says Create before anything else, and no second one is made.
    node.plugin_ok("VolumeDriver.Create", &json!({ "Name": "old", "Opts": {} }));
    assert_eq!(read(&node, "old", "c1"), "of-rexray");
    assert_eq!(read(&node, "second.older", "c2"), "of-the-second");
    assert_eq!((listed(&ceph, POOL), listed(&ceph, "second")), (vec!["old".to_owned()], vec!["older".to_owned()]));
    println!("{}", node.cli(&["volume", "inspect", "second.older"]).ok());
    // And what it would have made in a pool is made there; a dot alone names none.
    for (name, pool, image) in [("second.new", "second", "new"), ("v1.2", POOL, "v1.2")] {
        node.plugin_ok("VolumeDriver.Create", &json!({ "Name": name, "Opts": { "size": "1" } }));
        assert!(listed(&ceph, pool).contains(&image.to_owned()), "{name}");
        node.mount(name, "c");
        node.unmount(name, "c");
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": name }));
        assert!(!listed(&ceph, pool).contains(&image.to_owned()), "{name}");
    }
    node.unmount("old", "c1");
    node.unmount("second.older", "c2");
    for volume in ["old", "second.older"] {
        node.plugin_ok("VolumeDriver.Remove", &json!({ "Name": volume }));
    }
    assert_eq!((listed(&ceph, POOL).len(), listed(&ceph, "second").len()), (0, 0));
    node.finish();
}

#[test]
fn a_person_adopts_what_is_there_and_a_copy_gets_a_uuid_of_its_own() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    image(&ceph, "rbd/pg", EXT4, "file", "whole");
    image(&ceph, "rbd/xs", "mkfs.xfs -q DISK", "file", "nothing");
    ceph.command("rbd", &["cp", "--no-progress", "rbd/pg", "rbd/pg2"]).ok();
    ceph.command("rbd", &["cp", "--no-progress", "rbd/xs", "rbd/xs2"]).ok();
    let mut a = ceph.node("a", "");
    let said = a.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": {} }));
    assert!(said.contains("image pg in pool rbd") && said.contains("volume adopt pg"), "{said}");
    println!("{}", a.cli(&["volume", "adopt", "--all", "--dry-run"]).ok());
    println!("{}", a.cli(&["volume", "adopt", "--all"]).ok());
    assert_eq!(read(&a, "pg", "c"), "whole");
    assert_eq!(read(&a, "pg2", "c"), "whole");
    // A kernel mounts no two filesystems of one UUID.
    for volume in ["xs", "xs2"] {
        a.mount(volume, "c");
    }
    for volume in ["pg", "pg2", "xs", "xs2"] {
        a.unmount(volume, "c");
    }
    assert_eq!(ceph.pool().cluster().blocklisted(), Ok(Vec::new()), "nobody was fenced");
    assert!(a.cli(&["volume", "adopt", "pg"]).err.contains("already"), "once is enough");
    // The next node knows them as ours.
    let mut b = ceph.node("b", "");
    assert_eq!(read(&b, "pg", "c"), "whole");
    b.unmount("pg", "c");
    for node in [&mut a, &mut b] {
        node.finish();
    }
}

#[test]
fn law_6_an_image_that_somebody_has_mapped_is_not_adopted_and_the_address_is_named() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    image(&ceph, "rbd/pg", EXT4, "file", "whole");
    let mut node = ceph.node("a", ", preempt: always");
    let stranger = Client::start(CLIENT, &ceph, &["open", "pg"]);
    let said = node.cli(&["volume", "adopt", "pg"]).fails(5);
    println!("{said}");
    assert!(said.contains(&stranger.address.to_string()), "{said}");
    assert_eq!(ceph.pool().cluster().blocklisted(), Ok(Vec::new()), "nobody is cut off because somebody has said a name");
    assert_ne!(ceph.command("rados", &["-p", POOL, "stat", "dunnage.volume.pg"]).code, 0, "it stays a stranger");
    node.finish();
}

#[test]
fn law_6_one_image_is_one_volume_whatever_it_is_called_and_whatever_pools_a_node_names() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    ceph.ceph(&["osd", "pool", "create", "second", "8"]).ok();
    ceph.command("rbd", &["pool", "init", "second"]).ok();
    image(&ceph, "rbd/pg", EXT4, "file", "whole");
    let mut a = ceph.node("a", "");
    a.cli(&["volume", "adopt", "pg"]).ok();
    a.plugin_ok("VolumeDriver.Create", &json!({ "Name": "own", "Opts": { "size": "32M" } }));
    assert_eq!(read(&a, "pg", "c"), "whole");
    a.unmount("pg", "c");
    // By its pool's name, as REX-Ray called it; and by nodes that keep their records elsewhere.
    let mut b = ceph.node("b", "");
    b.kill();
    let config = b.folder.join("config.yml");
    let text = std::fs::read_to_string(&config).expect("configuration");
    b.configure(&text.replace(&format!("pool: {POOL}"), &format!("pool: second, pools: [{POOL}]")));
    b.start();
    for (node, names, word) in [(&a, ["rbd.pg", "rbd.own"], "ask for"), (&b, ["pg", "own"], "name rbd first")] {
        for name in names {
            for args in [&["volume", "adopt", name][..], &["volume", "adopt", "--overwrite", name]] {
                let said = node.cli(args).fails(4);
                assert!(said.contains("exists_incompatible") && said.contains("already") && said.contains(word), "{args:?}: {said}");
            }
            let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": name, "Opts": {} }));
            assert!(said.contains("exists_incompatible") && said.contains(word), "{said}");
        }
    }
    assert_eq!(read(&a, "pg", "c"), "whole");
    a.unmount("pg", "c");
    // A mark that an interrupted adoption left is nobody's.
    image(&ceph, "rbd/other", EXT4, "file", "whole");
    let id = ceph.pool().image_id("other").expect("asked").expect("there");
    let mark = json!({ "home": "rbd", "volume": "gone", "id": "00000000-0000-4000-8000-000000000000" });
    assert_eq!(ceph.pool().create(&format!("dunnage.image.{id}"), 1, mark.to_string().as_bytes()), Ok(true));
    b.cli(&["volume", "adopt", "other"]).ok();
    assert!(a.cli(&["volume", "adopt", "other"]).fails(4).contains("whose record is in pool second"));
    for (node, volume) in [(&a, "pg"), (&a, "own"), (&b, "other")] {
        node.cli(&["volume", "rm", volume]).ok();
    }
    assert_eq!((listed(&ceph, POOL).len(), listed(&ceph, "second").len()), (0, 0));
    let objects = ceph.command("rados", &["-p", POOL, "ls"]).ok();
    assert!(!objects.contains("dunnage.image."), "{objects}");
    for node in [&mut a, &mut b] {
        node.finish();
    }
}

#[test]
fn law_5_what_has_no_filesystem_is_not_adopted_and_only_a_person_s_word_destroys_it() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    image(&ceph, "rbd/luks", "echo -n secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 DISK -", "file", "x");
    image(&ceph, "rbd/noise", "dd if=/dev/urandom of=DISK bs=1M seek=8 count=1 conv=notrunc status=none", "file", "x");
    let sum = |image: &str| sh(&format!("rbd -c {} --name client.admin export --no-progress {image} - | sha256sum", ceph.conf().display()));
    let before = (sum("luks"), sum("noise"));
    let mut node = ceph.node("a", "");
    let said = node.cli(&["volume", "adopt", "luks"]).fails(10);
    assert!(said.contains("crypto_LUKS") && said.contains("image luks of pool rbd") && said.contains("--overwrite luks"), "{said}");
    let said = node.cli(&["volume", "adopt", "noise"]).fails(10);
    assert!(said.contains("data of an unknown kind"), "{said}");
    assert_eq!((sum("luks"), sum("noise")), before, "something was written");
    println!("{}", node.cli(&["volume", "adopt", "--overwrite", "luks"]).ok());
    let path = node.mount("luks", "c");
    assert_eq!(sh(&format!("ls -A {}", path.display())), "");
    node.unmount("luks", "c");
    let volume: Value = serde_json::from_str(&node.cli(&["volume", "inspect", "luks", "-o", "json"]).ok()).expect("json");
    println!("{volume}");
    assert!(kernel::loops_beneath(&node.folder).is_empty());
    node.finish();
}

/// The barrier waits for what an old owner has sent to the image's own pool, and would not for what it has sent elsewhere.
#[test]
fn law_6_an_image_whose_data_is_in_another_pool_is_neither_made_nor_taken() {
    let Some(ceph) = Ceph::with_devices(1) else { return };
    ceph.ceph(&["osd", "pool", "create", "data", "8"]).ok();
    ceph.command("rbd", &["create", "--size", "64M", "--image-feature", "layering", "--data-pool", "data", "rbd/split"]).ok();
    let device = ceph.folder.join("disk");
    sh(&format!("truncate -s 64M {0} && mkfs.ext4 -q {0}", device.display()));
    ceph.command("rbd", &["import", "--no-progress", "--data-pool", "data", &device.display().to_string(), "rbd/apart"]).ok();
    let mut node = ceph.node("a", "");
    let said = node.cli(&["volume", "adopt", "apart"]).fails(2);
    assert!(said.contains("keeps its data in another pool"), "{said}");
    // The cluster's own configuration has new images made so.
    let conf = std::fs::read_to_string(ceph.conf()).expect("a configuration");
    std::fs::write(ceph.conf(), conf.replace("[global]", "[global]\nrbd default data pool = data")).expect("written");
    node.kill();
    node.start();
    let said = node.plugin_err("VolumeDriver.Create", &json!({ "Name": "pg", "Opts": {} }));
    assert!(said.contains("rbd_default_data_pool"), "{said}");
    assert_eq!(listed(&ceph, POOL), ["apart", "split"], "what was made for it is gone");
    node.finish();
}
