//! Against plugins that are not ours: other words, other ways to answer, other roads to them.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};

use super::*;

/// Answers of a call: status and body.
type Answers = Arc<dyn Fn(&str, &str) -> (u16, String) + Send + Sync>;

/// A plugin that answers as a test says, and remembers what it was asked.
#[derive(Clone)]
struct Stub {
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    fn new(answers: impl Fn(&str, &str) -> (u16, String) + Send + Sync + 'static) -> Stub {
        Stub { answers: Arc::new(answers), asked: Arc::default() }
    }

    fn calls(&self) -> Vec<String> {
        self.asked.lock().expect("lock").clone()
    }

    /// One request, and the connection is closed: as Python's and others' do.
    async fn serve(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
        let (call, body) = loop {
            let n = stream.read(&mut chunk).await.expect("read");
            assert!(n > 0, "broke off");
            read.extend_from_slice(&chunk[..n]);
            let text = String::from_utf8_lossy(&read);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .to_lowercase()
                .split("content-length: ")
                .nth(1)
                .map_or(0, |l| l.lines().next().expect("line").parse().expect("number"));
            if body.len() >= length {
                let call = head.split(' ').nth(1).expect("path").rsplit('.').next().expect("call").to_owned();
                break (call, body.to_owned());
            }
        };
        self.asked.lock().expect("lock").push(format!("{call} {body}"));
        let (status, answer) = (self.answers)(&call, &body);
        let text = format!("HTTP/1.0 {status} x\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(text.as_bytes()).await.expect("write");
        stream.shutdown().await.ok();
    }
}

struct Machine {
    folder: tempfile::TempDir,
    places: Places,
}

impl Machine {
    fn new() -> Machine {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).expect("mkdir");
            path
        };
        let places = Places { sockets: at("run"), specs: vec![at("etc")], managed: at("lib") };
        Machine { folder, places }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("write");
        path.display().to_string()
    }

    /// A stub on a unix socket, found and activated.
    async fn plugin(&self, stub: &Stub) -> Plugin {
        let listener = UnixListener::bind(self.places.sockets.join("stub.sock")).expect("bind");
        let serving = stub.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        activated(&self.places, "stub").await.expect("activated")
    }
}

fn asked(name: &str) -> Asked {
    Asked { name: name.to_owned(), options: vec![("foo".to_owned(), "a=b".to_owned())], id: None, tell: |_| {} }
}

fn err(text: &str) -> (u16, String) {
    (500, json!({ "Err": text }).to_string())
}

fn ok(value: Value) -> (u16, String) {
    (200, value.to_string())
}

/// A plugin without any volume, that says so in `words`, and mounts what was created.
fn without_volume(words: &'static str) -> Stub {
    Stub::new(move |call, _| match call {
        "Activate" => ok(json!({ "Implements": ["NetworkDriver", "VolumeDriver"] })),
        "Get" => err(words),
        "Create" => ok(json!({})),
        "Mount" => ok(json!({ "Mountpoint": "/mnt/x" })),
        _ => err("boom"),
    })
}

#[tokio::test]
async fn a_mount_creates_where_a_plugin_says_in_its_own_words_that_there_is_none() {
    let machine = Machine::new();
    let stub = without_volume("resource not found");
    let plugin = machine.plugin(&stub).await;
    assert_eq!(mount(&plugin, &asked("x"), None).await, Ok("/mnt/x".to_owned()));
    let calls = ["Activate {}", r#"Get {"Name":"x"}"#, r#"Create {"Name":"x","Opts":{"foo":"a=b"}}"#, r#"Mount {"Name":"x"}"#];
    assert_eq!(stub.calls(), calls);
}

thread_local! {
    static TOLD: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

#[tokio::test]
async fn what_another_s_volume_differs_in_is_not_said_for_its_options_are_its_own() {
    let machine = Machine::new();
    let there = |status: Value| {
        Stub::new(move |call, _| match call {
            "Activate" => ok(json!({ "Implements": ["VolumeDriver"] })),
            "Get" => ok(json!({ "Volume": { "Name": "x", "Status": status } })),
            _ => ok(json!({ "Mountpoint": "/mnt/x" })),
        })
    };
    let asked = Asked { tell: |line| TOLD.with_borrow_mut(|told| told.push(line.to_owned())), ..asked("size=5,name=x") };
    let plugin = machine.plugin(&there(json!({ "size": "16MiB", "fs": "xfs" }))).await;
    assert_eq!(mount(&plugin, &asked, None).await, Ok("/mnt/x".to_owned()));
    assert_eq!(TOLD.take(), [""; 0]);
}

#[tokio::test]
async fn a_mount_creates_nothing_where_the_platform_does_not_answer() {
    let machine = Machine::new();
    let stub = without_volume("platform_unavailable: driver x did not answer; ask again");
    let plugin = machine.plugin(&stub).await;
    let said = mount(&plugin, &asked("x"), None).await.expect_err("in doubt").to_string();
    assert!(said.contains("did not answer"), "{said}");
    assert_eq!(stub.calls().len(), 2, "{:?}", stub.calls());
}

#[tokio::test]
async fn an_answer_without_a_path_is_no_mount() {
    let machine = Machine::new();
    let stub = Stub::new(|call, _| match call {
        "Activate" => ok(json!({ "Implements": ["VolumeDriver"] })),
        "Get" => ok(json!({ "Volume": { "Name": "x" } })),
        _ => ok(json!({ "Mountpoint": "" })),
    });
    let plugin = machine.plugin(&stub).await;
    assert!(mount(&plugin, &asked("x"), None).await.expect_err("no path").to_string().contains("no path"));
}

#[tokio::test]
async fn an_unmount_asks_the_plugin_where_it_is_in_doubt_and_tells_what_it_says() {
    let machine = Machine::new();
    let stub = without_volume("strange trouble");
    let plugin = machine.plugin(&stub).await;
    let said = unmount(&plugin, &asked("x")).await.expect_err("boom").to_string();
    assert!(said.contains("Unmount: the plugin says: boom"), "{said}");
}

#[tokio::test]
async fn an_unmount_of_what_a_plugin_does_not_have_is_done() {
    for words in ["no such volume", "Volume x does not exist", "not_found: volume \"x\": there is none; create it"] {
        let machine = Machine::new();
        let stub = without_volume(words);
        let plugin = machine.plugin(&stub).await;
        assert_eq!(unmount(&plugin, &asked("x")).await, Ok(()), "{words}");
        assert!(stub.calls().iter().any(|call| call.starts_with("Unmount")), "it may be mounted all the same: {:?}", stub.calls());
    }
}

#[tokio::test]
async fn an_error_that_is_plain_text_is_told_as_it_is() {
    let machine = Machine::new();
    let stub = Stub::new(|call, _| match call {
        "Activate" => ok(json!({ "Implements": ["VolumeDriver"] })),
        _ => (500, "out of cheese\n".to_owned()),
    });
    let plugin = machine.plugin(&stub).await;
    assert!(list(&plugin).await.expect_err("no").to_string().contains("List: the plugin says: out of cheese"));
}

#[tokio::test]
async fn what_is_no_volume_plugin_is_refused() {
    let machine = Machine::new();
    let _listener = UnixListener::bind(machine.places.sockets.join("net.sock")).expect("bind");
    let stub = Stub::new(|_, _| ok(json!({ "Implements": ["NetworkDriver"] })));
    tokio::spawn(async move { stub.serve(_listener.accept().await.expect("accept").0).await });
    let said = activated(&machine.places, "net").await.map(|_| ()).expect_err("no").to_string();
    assert!(said.contains("NetworkDriver"), "{said}");
}

#[tokio::test]
async fn a_plugin_is_reached_over_tcp() {
    let machine = Machine::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    machine.file("etc/far.spec", &format!("tcp://{}", listener.local_addr().expect("address")));
    let stub = without_volume("no");
    tokio::spawn(async move { stub.serve(listener.accept().await.expect("accept").0).await });
    activated(&machine.places, "far").await.map(drop).expect("activated");
}

#[tokio::test]
async fn over_tls_both_sides_prove_who_they_are() {
    let machine = Machine::new();
    let ca = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
    let (ca_pem, key_pem) = (ca.cert.pem(), ca.signing_key.serialize_pem());
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert.der().clone()).expect("root");
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().expect("verifier");
    let key = PrivateKeyDer::try_from(ca.signing_key.serialize_der()).expect("key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![ca.cert.der().clone()], key)
        .expect("config");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("localhost:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let stub = without_volume("no");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                stub.clone().serve(stream).await;
            }
        }
    });
    let (ca_file, key_file) = (machine.file("ca.pem", &ca_pem), machine.file("key.pem", &key_pem));
    let spec = |name: &str, tls: Value| {
        machine.file(
            &format!("etc/{name}.json"),
            &json!({ "Name": name, "Addr": format!("https://localhost:{port}"), "TLSConfig": tls }).to_string(),
        );
    };
    spec("good", json!({ "CAFile": ca_file, "CertFile": ca_file, "KeyFile": key_file }));
    activated(&machine.places, "good").await.map(drop).expect("activated");
    spec("blind", json!({ "InsecureSkipVerify": true, "CertFile": ca_file, "KeyFile": key_file }));
    activated(&machine.places, "blind").await.map(drop).expect("activated");
    spec("nobody", json!({ "CAFile": ca_file }));
    assert!(activated(&machine.places, "nobody").await.is_err(), "without a certificate of its own");
    spec("stranger", json!({ "CertFile": ca_file, "KeyFile": key_file }));
    assert!(activated(&machine.places, "stranger").await.is_err(), "the server's certificate is known to nobody");
}
