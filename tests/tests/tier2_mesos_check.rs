//! `dunnage mesos check`, as an operator runs it before anything is launched: with the documents' own apps.

use std::path::PathBuf;

use dunnage_tests::{Node, Ran};
use serde_json::Value;

/// The text of a document from the line that has `from` on to the bracket that closes it.
fn block(document: &str, from: &str) -> String {
    let path = format!("{}/fixtures/seeds/{document}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("a document");
    let begin = text.find(from).expect("it is there");
    let mut depth = 0_i32;
    let end = text[begin..].char_indices().find_map(|(at, c)| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        (c == '}' && depth == 0).then_some(at + 1)
    });
    text[begin..begin + end.expect("it ends")].to_owned()
}

/// A node that is configured and does not run.
struct Bench(Node);

impl Bench {
    fn new(endpoints: &str) -> Bench {
        let node = Node::new();
        node.configure(&format!(
            "drivers: {{ local: {{ type: local }}, pxd: {{ type: ceph, repl: 2 }} }}\nvolumes: {{ hints: warn }}\nendpoints: {{ docker: [ {endpoints} ] }}\n"
        ));
        Bench(node)
    }

    fn check(&self, text: &str, more: &[&str]) -> Ran {
        let file: PathBuf = self.0.folder.join("file");
        std::fs::write(&file, text).expect("written");
        let file = file.display().to_string();
        self.0.cli(&[&["mesos", "check", &file], more].concat())
    }
}

const ALL: &str =
    "{ name: rexray, driver: local }, { name: pxd, driver: pxd }, { name: platform1, driver: local }, { name: platform2, driver: pxd }";

#[test]
fn the_app_of_the_documents_that_mounts_one_volume_and_touches_another_is_told_so() {
    let bench = Bench::new(ALL);
    let app = block("002_7f7b072f2def43f1.txt", "{\n  \"id\": \"hello-play\"");
    let said = bench.check(&app, &[]);
    println!("{}", said.out);
    assert_eq!(said.code, 0, "{}", said.err);
    for words in [
        "volume test1234567890 of endpoint rexray",
        "5GiB, xfs",
        "iops=150",
        "test12345 is no volume of this workload: did you mean test1234567890?",
    ] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    assert_eq!(bench.check(&app, &["--strict"]).code, 2, "for a pipeline that wants no notices");
    // The other one, which touches its own, finds it elsewhere under this configuration; under REX-Ray's it does not.
    let app = block("003_daefce576514952a.txt", "{\n  \"id\": \"hello-play\"");
    let said = bench.check(&app, &[]).ok();
    assert!(said.contains("touches /var/lib/rexray/volumes/test12345, and finds that volume at"), "{said}");
    bench.0.configure("rexray:\n  loglevel: info\nlibstorage:\n  service: vfs\n");
    let said = bench.check(&app, &["--strict"]);
    assert!(!said.out.contains("touches"), "{}", said.out);
}

#[test]
fn every_form_of_the_documents_says_what_is_asked_of_whom() {
    let bench = Bench::new(ALL);
    let said = bench.check(&block("001_f98a397be9afa02e.txt", "\"env\": {"), &["-o", "json"]).ok();
    let reports: Value = serde_json::from_str(&said).expect("json");
    let volumes = reports[0]["volumes"].as_array().expect("volumes");
    let short: Vec<_> = volumes.iter().map(|v| (v["volume"].as_str(), v["driver"].as_str(), v["made_as"]["fs"].as_str())).collect();
    assert_eq!(short, [(Some("testing"), Some("local"), Some("ext4")), (Some("testing2"), Some("pxd"), Some("xfs"))]);
    assert_eq!(volumes[1]["made_as"]["repl"], 2, "what the driver adds is shown");
    let said = bench.check(&block("003_daefce576514952a.txt", "{\n    \"id\": \"nginx\""), &[]).ok();
    assert!(said.contains("by docker run") && said.contains("at /data/www"), "{said}");
    // By a pipe.
    let mut child = bench.0.command().args(["mesos", "check", "-"]).stdin(std::process::Stdio::piped()).spawn().expect("it runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), b"{\"env\": {}}").expect("written");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn what_would_be_refused_is_refused_with_the_same_words_and_code() {
    let bench = Bench::new("{ name: rexray, driver: local }, { name: pxd, driver: pxd }");
    let app = |env: &str| format!(r#"{{"id":"a","env":{{{env}}}}}"#);
    for (text, code, says) in [
        (app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_DRIVER":"rexrya""#), 3, "did you mean \"rexray\"?"),
        (app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_OPTS":"repl=3""#), 2, "driver local cannot give repl=3"),
        (app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_OPTS":"sise=3""#), 2, "sise"),
        (app(r#""DVDI_VOLUME_NAME":"a b""#), 2, "DVDI_VOLUME_NAME"),
        (app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_CONTAINERPATH":"/a/../../etc""#), 2, "'..'"),
        (app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_DVDCLI":"/tmp/x""#), 9, "DVDI_VOLUME_DVDCLI is \"/tmp/x\""),
        (app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_CONTAINERPATH":"/etc""#), 2, "without an image"),
        (app(r#""DVDI_VOLUME_NAME":{"secret":"name"}"#), 2, "give it as a value"),
        (
            r#"{"task_id":{"value":"t"},"command":{"environment":{"variables":[{"name":"DVDI_VOLUME_NAME","type":"SECRET"}]}}}"#.to_owned(),
            2,
            "give it as a value",
        ),
        (
            r#"{"id":"a","env":{"DVDI_VOLUME_NAME":"pg"},"container":{"type":"MESOS","docker":{"image":"alpine"}}}"#.to_owned(),
            2,
            "say where the task is to find it",
        ),
        (app(r#""DVDI_VOLUME_OPTS":"size=5""#), 0, "has no DVDI_VOLUME_NAME"),
        (app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_EXPLICITCREATE":"true""#), 0, "it must be there before"),
    ] {
        let said = bench.check(&text, &[]);
        assert!(said.code == code && said.out.contains(says), "{text}: exit {}\n{}{}", said.code, said.out, said.err);
    }
    // As the operator has set the module up.
    let text = app(r#""DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_CONTAINERPATH":"/opt/pg","DVDI_VOLUME_DVDCLI":"/opt/dvdcli""#);
    bench.check(&text, &["--folders", "/mnt,/opt", "--dvdcli", "/opt/dvdcli"]).ok();
    bench.check(&text, &["--folders", "/mnt,/opt"]).fails(9);
    let said = bench.check("hello", &[]).fails(2);
    assert!(said.contains("neither an app"), "{said}");
    let said = bench.0.cli(&["mesos", "check", "/nowhere"]).fails(2);
    assert!(said.contains("/nowhere"), "{said}");
}

#[test]
fn a_service_s_template_is_checked_as_far_as_it_is_filled() {
    let bench = Bench::new("{ name: pxd, driver: pxd }");
    let text = "name: {{NAME}}\npods:\n  hello:\n    count: 2\n    tasks:\n      server:\n        cmd: echo\n        volume:\n          path: data\n          \
                type: DOCKER\n          docker_volume_driver: pxd\n          docker_volume_name: {{VOLUME}}\n          docker_driver_options: {{{OPTIONS}}}\n          size: 1500\n";
    let said = bench.check(text, &["--set", "NAME=hw"]).ok();
    assert!(said.contains("not known before the template is filled: --set OPTIONS=… --set VOLUME=…"), "{said}");
    assert_eq!(bench.check(text, &["--strict"]).code, 2, "what is not known was not checked");
    let said = bench.check(text, &["--set", "NAME=hw", "--set", "VOLUME=data", "--set", "OPTIONS=repl=3"]).ok();
    assert!(said.contains("nodes=LocalNode"), "the scheduler adds it: {said}");
    assert!(
        said.contains("hw/hello/server") && said.contains("volume data-1 of endpoint pxd") && said.contains("2GiB, ext4, 3 copies"),
        "{said}"
    );
}

#[test]
fn everything_that_is_asked_for_is_shown_and_the_module_s_own_driver_is_the_operator_s() {
    let bench = Bench::new("{ name: home, driver: local }, { name: pxd, driver: pxd }");
    let options = "size=3,fs=ext4,uid=1000,gid=100,mode=0750,thick=true,preempt=if-dead,mountOptions=noatime,labels=team=db";
    let app = format!(r#"{{"id":"a","env":{{"DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_OPTS":"{options}"}}}}"#);
    let said = bench.check(&app, &["--driver", "home"]).ok();
    for words in ["3GiB, ext4", "uid=1000", "gid=100", "mode=0750", "thick", "preempt=if-dead", "mounted with noatime", "label team=db"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    bench.check(&app, &[]).fails(3);
    let said = bench.check(&app.replace(options, "ro=true"), &["--driver", "home"]).ok();
    assert!(said.contains(", ro"), "{said}");
    let at = |path: &str| format!(r#"{{"id":"a","env":{{"DVDI_VOLUME_NAME":"pg","DVDI_VOLUME_CONTAINERPATH":"{path}"}}}}"#);
    for (path, more, code) in [("/tmp/mesos/x", "/tmp/mesos", 2), ("/tmp/mesos/x", "/var/lib/mesos", 0), ("/srv/agent", "/srv/agent", 2)] {
        assert_eq!(bench.check(&at(path), &["--driver", "home", "--work-dir", more]).code, code, "{path} {more}");
    }
}

#[test]
fn a_task_in_the_form_of_the_documents_is_understood_and_docker_s_is_told_to_be_docker_s() {
    let bench = Bench::new("{ name: pxd, driver: pxd }");
    let task = block("000_32242b94819c26b5.txt", "TaskInfo {");
    let said = bench.check(&task, &[]).ok();
    assert!(said.contains("volume px_vol of endpoint pxd") && said.contains("by dvdcli") && said.contains("at /data"), "{said}");
    let volume = r#"{"container_path":"/data","mode":"RW","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":"pxd","name":"v"}}}"#;
    let said = bench.check(&format!(r#"{{"container":{{"type":"DOCKER","volumes":[{volume}]}}}}"#), &[]).ok();
    assert!(said.contains("volume v of endpoint pxd") && said.contains("by docker run"), "{said}");
}
