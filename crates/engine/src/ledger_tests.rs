//! The ledger on real files: on tmpfs, where it lives, if this machine has one at /dev/shm.

use std::os::unix::fs::MetadataExt;

use dunnage_model::Caller;
use jiff::Timestamp;
use tempfile::TempDir;

use super::*;

fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a folder")
}

fn boot() -> BootId {
    BootId("boot-1".to_owned())
}

fn open(folder: &TempDir) -> (Ledger, Loaded) {
    Ledger::open(folder.path().to_owned(), boot()).expect("the ledger opens")
}

/// What a daemon that starts now would read.
fn reopened(folder: &TempDir) -> Vec<Entry> {
    open(folder).1.entries
}

fn id(driver: &str, name: &str) -> VolumeId {
    VolumeId { driver: driver.parse().expect("driver"), name: name.parse().expect("name") }
}

fn holder(number: usize) -> Holder {
    let caller = Caller::of_plugin(Some(format!("{number:064x}")));
    Holder {
        key: HolderKey { endpoint: "dunnage".parse().expect("endpoint"), caller },
        count: 1,
        provisional: 0,
        undecided: 0,
        since: Timestamp::UNIX_EPOCH,
        mode: Default::default(),
        target: "/var/lib/dunnage/volumes/local/pg".to_owned(),
    }
}

fn entry(holders: usize) -> Entry {
    let staged = Some(Staged { device: dunnage_host::DeviceNumber::new(7, 3), mount_id: 42 });
    Entry { staged, holders: (0..holders).map(holder).collect(), ..Entry::new(id("local", "pg"), boot()) }
}

fn intent() -> Option<Intent> {
    Some(Intent { operation: OperationId("op-0123456789".to_owned()), goal: "unstage".to_owned() })
}

fn file(folder: &TempDir) -> PathBuf {
    folder.path().join("local/pg")
}

fn inode(folder: &TempDir) -> u64 {
    std::fs::metadata(file(folder)).expect("the entry's file").ino()
}

/// Changes one byte of the text of the entry that was written `newest`-last (0: the newest).
fn tear(folder: &TempDir, newest: usize) {
    let mut content = std::fs::read(file(folder)).expect("read");
    let slot = content.len() / 2;
    let mut generations: Vec<(u64, usize)> =
        [0, slot].into_iter().filter_map(|at| Some((read_slot(content.get(at..at + slot)?)?.0, at))).collect();
    generations.sort_unstable();
    let (_, at) = generations[generations.len() - 1 - newest];
    content[at + HEADER + 20] ^= 0xFF;
    std::fs::write(file(folder), content).expect("write");
}

#[test]
fn what_is_written_is_read_at_the_next_start() {
    let folder = folder();
    let mut written = entry(3);
    written.intent = intent();
    (written.holders[1].count, written.holders[1].provisional, written.holders[1].undecided) = (7, 2, 1);
    open(&folder).0.write(&written).expect("write");
    assert_eq!(reopened(&folder), [written]);
}

#[test]
fn the_last_of_many_writes_is_the_one_that_is_read() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    for holders in [1, 2, 3, 2, 5] {
        ledger.write(&entry(holders)).expect("write");
        assert_eq!(reopened(&folder), [entry(holders)]);
    }
}

#[test]
fn a_ledger_goes_on_where_an_earlier_daemon_s_ended() {
    let folder = folder();
    for holders in [1, 2, 3] {
        open(&folder).0.write(&entry(holders)).expect("write");
    }
    assert_eq!(reopened(&folder), [entry(3)]);
}

#[test]
fn volumes_of_one_name_and_two_drivers_have_an_entry_each() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    let other = Entry { volume: id("pxd", "pg"), ..entry(2) };
    ledger.write(&entry(1)).expect("write");
    ledger.write(&other).expect("write");
    let mut entries = reopened(&folder);
    entries.sort_by(|a, b| a.volume.cmp(&b.volume));
    assert_eq!(entries, [entry(1), other]);
}

#[test]
fn volumes_whose_names_differ_in_letter_case_have_an_entry_each() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&Entry { volume: id("local", "PG"), ..entry(2) }).expect("write");
    assert_eq!(reopened(&folder).len(), 2);
}

#[test]
fn a_torn_newest_slot_falls_back_to_the_one_before() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&entry(2)).expect("write");
    tear(&folder, 0);
    assert_eq!(reopened(&folder), [entry(1)]);
}

#[test]
fn a_torn_older_slot_is_of_no_importance() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&entry(2)).expect("write");
    tear(&folder, 1);
    assert_eq!(reopened(&folder), [entry(2)]);
}

#[test]
fn after_a_torn_slot_the_next_write_does_not_touch_the_whole_one() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&entry(2)).expect("write");
    tear(&folder, 0);
    open(&folder).0.write(&entry(3)).expect("write");
    tear(&folder, 0);
    assert_eq!(reopened(&folder), [entry(1)]);
}

#[test]
fn a_write_that_is_cut_off_anywhere_leaves_the_entry_before_it() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&entry(2)).expect("write");
    let before = std::fs::read(file(&folder)).expect("read");
    ledger.write(&entry(3)).expect("write");
    let after = std::fs::read(file(&folder)).expect("read");
    let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    let (first, last) = (changed[0], changed[changed.len() - 1]);
    for cut in (first + 1..last).step_by(7) {
        let mut torn = after.clone();
        torn[cut..].copy_from_slice(&before[cut..]);
        std::fs::write(file(&folder), torn).expect("write");
        assert_eq!(reopened(&folder), [entry(2)], "cut off at byte {cut}");
    }
}

#[test]
fn when_both_slots_are_torn_there_is_a_note_and_no_entry() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&entry(2)).expect("write");
    tear(&folder, 1);
    tear(&folder, 0);
    let (_, loaded) = open(&folder);
    assert_eq!(loaded.entries, []);
    assert!(loaded.notes.iter().any(|note| note.contains("local/pg")), "{:?}", loaded.notes);
    assert!(!file(&folder).exists(), "the note would be written again at every start");
}

#[test]
fn an_empty_file_is_no_entry() {
    let folder = folder();
    open(&folder).0.write(&entry(1)).expect("write");
    std::fs::write(file(&folder), "").expect("truncate");
    assert_eq!(reopened(&folder), []);
}

#[test]
fn a_length_that_reaches_beyond_the_slot_is_a_torn_slot() {
    let folder = folder();
    open(&folder).0.write(&entry(1)).expect("write");
    let mut content = std::fs::read(file(&folder)).expect("read");
    let slot = content.len() / 2;
    content[slot + 12..slot + 16].copy_from_slice(&u32::MAX.to_le_bytes());
    std::fs::write(file(&folder), content).expect("write");
    assert_eq!(reopened(&folder), []);
}

#[test]
fn law_3_an_entry_of_another_boot_is_discarded() {
    let folder = folder();
    open(&folder).0.write(&entry(1)).expect("write");
    let (_, loaded) = Ledger::open(folder.path().to_owned(), BootId("boot-2".to_owned())).expect("open");
    assert_eq!(loaded.entries, []);
    assert!(loaded.notes.iter().any(|note| note.contains("earlier boot")), "{:?}", loaded.notes);
    assert!(!file(&folder).exists());
}

/// As the first version wrote it: a file for ever.
#[test]
fn law_3_an_entry_of_the_first_format_is_read() {
    let folder = folder();
    std::fs::create_dir_all(file(&folder).parent().expect("a folder")).expect("folder");
    std::fs::write(file(&folder), include_bytes!("../tests/fixtures/ledger-format-1")).expect("write");
    let [entry] = reopened(&folder).try_into().expect("one entry");
    let [holder] = entry.holders.as_slice() else { panic!("{entry:?}") };
    assert_eq!((holder.count, holder.undecided, holder.key.caller.id.as_ref().map(String::len)), (2, 1, Some(64)));
    assert_eq!(entry.staged.map(|staged| (staged.device.minor, staged.mount_id)), Some((3, 4711)));
    assert_eq!(entry.intent.map(|intent| intent.goal), Some("unstage".to_owned()));
}

#[test]
fn law_3_an_entry_that_only_a_newer_version_can_read_is_refused_and_left_as_it_is() {
    let folder = folder();
    let newer = Entry { format: FORMAT + 2, min_reader: FORMAT + 1, ..entry(1) };
    open(&folder).0.write(&newer).expect("write");
    let before = std::fs::read(file(&folder)).expect("read");
    let error = Ledger::open(folder.path().to_owned(), boot()).err().expect("too new");
    assert_eq!(error.word(), "exists_incompatible");
    assert!(error.detail.contains("format 3"), "{error}");
    assert_eq!(std::fs::read(file(&folder)).expect("read"), before);
}

#[test]
fn law_3_an_entry_of_a_newer_version_that_we_can_read_is_read() {
    let folder = folder();
    let newer = Entry { format: FORMAT + 2, ..entry(1) };
    open(&folder).0.write(&newer).expect("write");
    assert_eq!(reopened(&folder), [newer]);
}

#[test]
fn an_entry_with_two_hundred_holders_grows_beyond_its_slot_and_is_read() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&entry(200)).expect("write");
    assert_eq!(reopened(&folder), [entry(200)]);
}

#[test]
fn growing_leaves_no_other_file_behind() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&entry(200)).expect("write");
    assert_eq!(std::fs::read_dir(folder.path().join("local")).expect("list").count(), 1);
}

#[test]
fn giving_holders_back_rewrites_the_file_in_place() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(200)).expect("write");
    let before = inode(&folder);
    for holders in (0..200).rev() {
        ledger.write(&Entry { intent: intent(), ..entry(holders) }).expect("write");
        assert_eq!(inode(&folder), before, "a new file was made to hold {holders} holders");
    }
    assert_eq!(reopened(&folder)[0].holders, []);
}

#[test]
fn an_unmount_of_any_number_of_holders_never_needs_a_new_file() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    for holders in 1..80 {
        ledger.write(&entry(holders)).expect("write");
        let before = inode(&folder);
        ledger.write(&Entry { intent: intent(), ..entry(holders - 1) }).expect("write");
        assert_eq!(inode(&folder), before, "{holders} holders and one less");
    }
}

#[test]
fn a_new_file_has_room_for_an_intent_however_full_it_is() {
    for padding in 0..400 {
        let folder = folder();
        let (mut ledger, _) = open(&folder);
        let mut full = entry(11);
        full.holders[0].target = "x".repeat(padding);
        ledger.write(&full).expect("write");
        let before = inode(&folder);
        ledger.write(&Entry { intent: intent(), ..full }).expect("write");
        assert_eq!(inode(&folder), before, "padded with {padding}");
    }
}

#[test]
fn a_write_that_fits_needs_no_new_pages() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    let (before, size) = (inode(&folder), std::fs::metadata(file(&folder)).expect("meta").len());
    for holders in [2, 10, 3] {
        ledger.write(&entry(holders)).expect("write");
    }
    let meta = std::fs::metadata(file(&folder)).expect("meta");
    assert_eq!((meta.ino(), meta.len()), (before, size));
}

#[test]
fn a_new_file_has_all_of_its_pages_from_the_beginning() {
    let folder = folder();
    for holders in [1, 200] {
        open(&folder).0.write(&entry(holders)).expect("write");
        let content = File::open(file(&folder)).expect("open");
        let first_hole = rustix::fs::seek(&content, rustix::fs::SeekFrom::Hole(0)).expect("seek");
        assert_eq!(first_hole, content.metadata().expect("meta").len(), "{holders} holders");
    }
}

#[test]
fn an_entry_that_says_nothing_has_no_file() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    ledger.write(&Entry::new(id("local", "pg"), boot())).expect("write");
    assert!(!file(&folder).exists());
}

#[test]
fn an_entry_that_never_said_anything_makes_no_file() {
    let folder = folder();
    open(&folder).0.write(&Entry::new(id("local", "pg"), boot())).expect("write");
    assert!(!file(&folder).exists());
}

#[test]
fn a_forgotten_volume_can_be_written_again() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    for _ in 0..2 {
        ledger.write(&entry(2)).expect("write");
        assert_eq!(reopened(&folder), [entry(2)]);
        ledger.write(&Entry::new(id("local", "pg"), boot())).expect("write");
        assert_eq!(reopened(&folder), []);
    }
}

#[test]
fn forgetting_an_entry_whose_file_somebody_has_removed_is_no_error() {
    let folder = folder();
    let (mut ledger, _) = open(&folder);
    ledger.write(&entry(1)).expect("write");
    std::fs::remove_file(file(&folder)).expect("remove");
    assert_eq!(ledger.write(&Entry::new(id("local", "pg"), boot())), Ok(()));
}

#[test]
fn what_a_growth_that_was_cut_off_left_is_tidied_at_start() {
    let folder = folder();
    open(&folder).0.write(&entry(1)).expect("write");
    let left = folder.path().join("local/pg.new!");
    for content in [std::fs::read(file(&folder)).expect("read"), b"half a".to_vec()] {
        std::fs::write(&left, content).expect("write");
        assert_eq!(reopened(&folder), [entry(1)]);
        assert!(!left.exists());
    }
}

#[test]
fn law_12_nobody_but_root_reads_who_holds_what() {
    let folder = folder();
    open(&folder).0.write(&entry(1)).expect("write");
    let mode = |path: &Path| std::fs::metadata(path).expect("meta").mode() & 0o777;
    assert_eq!((mode(&file(&folder)), mode(&folder.path().join("local"))), (0o600, 0o700));
}

#[test]
fn an_entry_says_something_when_it_has_a_mount_a_holder_or_an_intent() {
    let nothing = Entry::new(id("local", "pg"), boot());
    assert!(nothing.is_empty());
    assert!(!Entry { staged: entry(0).staged, ..nothing.clone() }.is_empty());
    assert!(!Entry { holders: vec![holder(1)], ..nothing.clone() }.is_empty());
    assert!(!Entry { intent: intent(), ..nothing }.is_empty());
}

#[test]
fn only_holders_that_hold_nothing_are_swept() {
    let mut entry = entry(4);
    for holder in &mut entry.holders {
        holder.count = 0;
    }
    (entry.holders[1].count, entry.holders[2].provisional, entry.holders[3].undecided) = (1, 1, 1);
    entry.sweep();
    assert_eq!(
        entry.holders.iter().map(|holder| holder.key.clone()).collect::<Vec<_>>(),
        (1..4).map(|n| holder(n).key).collect::<Vec<_>>()
    );
}
