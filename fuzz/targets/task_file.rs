//! What `dunnage mesos check` is given: an app, a group, a pod, a TaskInfo, an svc.yml. It is read or refused.

#![no_main]

use std::collections::BTreeMap;

use dunnage_frontend_mesos::files::read;
use dunnage_frontend_mesos::slots::DRIVER;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    drop(read(text, &BTreeMap::new(), DRIVER));
});
