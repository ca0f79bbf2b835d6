//! The environment of a task: lines of `NAME=value`, with NULs between. Whatever it is, it is read or refused, and what is read is
//! sound.

#![no_main]

use dunnage_frontend_mesos::slots::{DRIVER, MOST, PROGRAM, slots};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let variables: Vec<(&str, &str)> = text.split('\0').filter_map(|line| line.split_once('=')).collect();
    let read = slots(variables.iter().copied(), DRIVER);
    assert_eq!(read, slots(variables.iter().copied(), DRIVER), "twice the same");
    let Ok(slots) = read else { return };
    assert!(slots.len() <= MOST && slots.is_sorted_by_key(|slot| slot.number));
    for slot in &slots {
        dunnage_model::parse_name(&slot.name).expect("a name");
        if let Some(path) = &slot.container_path {
            let downwards = path.split('/').skip(1).all(|part| !matches!(part, "" | "." | "..")) && !path.contains(char::is_control);
            assert!(path.starts_with('/') && path.len() > 1 && downwards, "{path:?}");
        }
        for (at, (key, _)) in slot.options.iter().enumerate() {
            assert!(slot.options[..at].iter().all(|(other, _)| !other.eq_ignore_ascii_case(key)), "{key} twice");
        }
        assert_eq!(slot.refuse_program(&[]).is_ok(), slot.dvdcli.as_deref().is_none_or(|program| program == PROGRAM));
    }
});
