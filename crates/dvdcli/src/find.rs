//! Where a plugin of a name is: Docker's own discovery, and its managed plugins, which the old dvdcli did not find. A managed plugin
//! has a root of its own, and speaks of paths in it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use dunnage_model::{Error, Result};
use serde::Deserialize;

/// Where a plugin listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On a unix socket.
    Unix(PathBuf),
    /// On TCP, in the clear.
    Tcp(String),
    /// On TCP, by TLS.
    Tls(String, TlsFiles),
}

/// A plugin that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it listens.
    pub address: Address,
    /// Where its paths are on this host, if it is a managed plugin.
    pub scope: Option<Scope>,
}

impl From<Address> for Found {
    fn from(address: Address) -> Found {
        Found { address, scope: None }
    }
}

/// Where a managed plugin's paths are on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The engine's folder of it.
    folder: PathBuf,
    /// The folder within its root whose mounts reach the host; empty if it has none.
    propagated: String,
}

impl Scope {
    /// The path on the host of one of its own, as the engine has it (moby's `Plugin.ScopedPath`).
    pub fn on_host(&self, path: &str) -> String {
        let (at, rest) = match path.strip_prefix(&self.propagated) {
            Some(rest) if !self.propagated.is_empty() => ("propagated-mount", rest),
            _ => ("rootfs", path),
        };
        self.folder.join(at).join(rest.trim_start_matches('/')).display().to_string()
    }
}

/// The TLS configuration of a plugin's JSON file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TlsFiles {
    /// Anybody is believed.
    pub insecure_skip_verify: bool,
    /// Whom to believe; the system's authorities when it is empty.
    #[serde(rename = "CAFile")]
    pub ca_file: PathBuf,
    /// Our own certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// The folders that are looked into.
pub struct Places {
    /// Sockets.
    pub sockets: PathBuf,
    /// Spec and JSON files.
    pub specs: Vec<PathBuf>,
    /// The engine's own list of its managed plugins.
    pub managed: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        let sockets = std::env::var_os("DUNNAGE_PLUGIN_DIR").map_or_else(|| "/run/docker/plugins".into(), PathBuf::from);
        let specs = ["/etc/docker/plugins", "/usr/lib/docker/plugins"].map(PathBuf::from).to_vec();
        Places { sockets, specs, managed: data_root(Path::new("/etc/docker/daemon.json")).join("plugins") }
    }
}

/// Where an engine keeps its data, as its own configuration has it.
fn data_root(configuration: &Path) -> PathBuf {
    let text = fs::read_to_string(configuration).unwrap_or_default();
    let known: EngineConfig = serde_json::from_str(&text).unwrap_or_default();
    known.data_root.unwrap_or_else(|| "/var/lib/docker".into())
}

impl Places {
    /// The plugin called `name`. It is looked for once: what is not there does not come by waiting.
    pub fn find(&self, name: &str) -> Result<Found> {
        let sound = name.len() <= 255 && !name.contains('\0') && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        if !sound {
            return Err(Error::invalid("volumedriver", format!("{name:?} is no name of a plugin"), "use for example dunnage"));
        }
        let files = |folder: &Path, ending: &str| [format!("{name}.{ending}"), format!("{name}/{name}.{ending}")].map(|f| folder.join(f));
        let mut tried = Vec::new();
        for path in files(&self.sockets, "sock") {
            if is_socket(&path) {
                return Ok(Address::Unix(path).into());
            }
            tried.push(path);
        }
        for folder in &self.specs {
            for path in files(folder, "spec") {
                if let Some(text) = read(&path)? {
                    return address(text.trim(), None).map(Found::from).map_err(|why| bad(&path, &why));
                }
                tried.push(path);
            }
            for path in files(folder, "json") {
                if let Some(text) = read(&path)? {
                    let spec: Spec = serde_json::from_str(&text).map_err(|e| bad(&path, &e.to_string()))?;
                    return address(&spec.addr, spec.tls_config).map(Found::from).map_err(|why| bad(&path, &why));
                }
                tried.push(path);
            }
        }
        if let Some(found) = self.managed_plugin(name) {
            return Ok(found);
        }
        let there = self.names();
        let next = if there.is_empty() { "start it".to_owned() } else { format!("start it, or use one of: {}", there.join(", ")) };
        let tried: Vec<String> = tried.iter().step_by(2).map(|path| path.display().to_string()).collect();
        Err(Error::not_found(format!("there is no volume plugin {name:?} (looked for {})", tried.join(", ")), next))
    }

    /// A plugin that `docker plugin install` brought: its socket lies in a folder named after the plugin's id.
    fn managed_plugin(&self, name: &str) -> Option<Found> {
        let ids = fs::read_dir(&self.sockets).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let ids = ids.filter(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        let installed = |id: &String| {
            let text = fs::read_to_string(self.managed.join(id).join("config.json")).ok()?;
            serde_json::from_str(&text).ok().map(|Installed { plugin }| plugin)
        };
        let all: Vec<(String, Option<Plugin>)> = ids.map(|id| (id.clone(), installed(&id))).collect();
        // By the name it was installed under, of which a tag "latest" may be left out; else by that of its socket.
        let named = |plugin: &Plugin| plugin.name == name || plugin.name.strip_suffix(":latest") == Some(name);
        let by_name = all.iter().filter_map(|(id, plugin)| Some((id, plugin.as_ref().filter(|plugin| named(plugin))?)));
        let by_name = by_name.map(|(id, plugin)| (id, plugin.config.interface.socket.clone()));
        let by_socket = all.iter().map(|(id, _)| (id, format!("{name}.sock")));
        let is_there = |(id, socket): &(&String, String)| is_socket(&self.sockets.join(id).join(socket));
        let (id, socket) = by_name.chain(by_socket).find(is_there)?;
        let plugin = all.iter().find(|(other, _)| other == id)?.1.as_ref();
        let scope = plugin.map(|plugin| Scope { folder: self.managed.join(id), propagated: plugin.config.propagated_mount.clone() });
        Some(Found { address: Address::Unix(self.sockets.join(id).join(socket)), scope })
    }

    /// The plugins that have a socket.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.sockets).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| is_socket(&entry.path()))
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_owned()))
            .collect();
        names.sort();
        names
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    addr: String,
    #[serde(rename = "TLSConfig")]
    tls_config: Option<TlsFiles>,
}

/// The part of an engine's `daemon.json` that tells where its data is.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct EngineConfig {
    data_root: Option<PathBuf>,
}

/// The part of an engine's `config.json` of a plugin that tells its socket and its paths.
#[derive(Deserialize)]
struct Installed {
    plugin: Plugin,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Plugin {
    name: String,
    config: PluginConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PluginConfig {
    interface: Interface,
    #[serde(default)]
    propagated_mount: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    socket: String,
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// A file's text, if there is such a file.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::os(format_args!("cannot read {}", path.display()), &e)),
    }
}

fn bad(path: &Path, why: &str) -> Error {
    Error::invalid("volumedriver", format!("{}: {why}", path.display()), "write unix:///PATH, tcp://HOST:PORT or https://HOST:PORT there")
}

/// Reads an address as Docker writes it. With a TLS configuration, TCP is TLS.
fn address(text: &str, tls: Option<TlsFiles>) -> Result<Address, String> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("{text:?} is no address"))?;
    let host = rest.trim_end_matches('/').to_owned();
    let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    match (scheme, tls) {
        ("unix", _) => Ok(Address::Unix(PathBuf::from(rest))),
        ("tcp" | "http" | "https", _) if port.is_none() => Err(format!("{text:?} has no port")),
        ("https", tls) => Ok(Address::Tls(host, tls.unwrap_or_default())),
        ("tcp" | "http", Some(tls)) => Ok(Address::Tls(host, tls)),
        ("tcp" | "http", None) => Ok(Address::Tcp(host)),
        _ => Err(format!("{scheme}:// is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    struct Machine {
        folder: tempfile::TempDir,
        sockets: Vec<UnixListener>,
    }

    impl Machine {
        fn new() -> Machine {
            let folder = tempfile::tempdir().expect("tempdir");
            for name in ["run", "etc", "usr", "lib"] {
                fs::create_dir(folder.path().join(name)).expect("mkdir");
            }
            Machine { folder, sockets: Vec::new() }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        fn socket(&mut self, path: &str) -> Address {
            let path = self.path(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            // A socket's path may be 107 bytes long, and a test's folder lies deep: bound by way of its folder.
            let folder = fs::File::open(path.parent().expect("parent")).expect("folder");
            let name = path.file_name().expect("name").to_str().expect("text");
            self.sockets.push(UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).expect("bind"));
            Address::Unix(path)
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        }

        fn find(&self, name: &str) -> Result<Address> {
            self.found(name).map(|found| found.address)
        }

        fn found(&self, name: &str) -> Result<Found> {
            let specs = vec![self.path("etc"), self.path("usr")];
            Places { sockets: self.path("run"), specs, managed: self.path("lib") }.find(name)
        }
    }

    #[test]
    fn a_socket_is_found_before_a_spec_and_a_spec_before_json() {
        let mut machine = Machine::new();
        machine.file("usr/x.json", r#"{"Name":"x","Addr":"tcp://json:1"}"#);
        assert_eq!(machine.find("x"), Ok(Address::Tcp("json:1".into())));
        machine.file("usr/x/x.spec", "tcp://spec:1\n");
        assert_eq!(machine.find("x"), Ok(Address::Tcp("spec:1".into())));
        machine.file("etc/x.spec", "unix:///somewhere/x.sock");
        assert_eq!(machine.find("x"), Ok(Address::Unix("/somewhere/x.sock".into())));
        let nested = machine.socket("run/x/x.sock");
        assert_eq!(machine.find("x"), Ok(nested));
        let plain = machine.socket("run/x.sock");
        assert_eq!(machine.find("x"), Ok(plain));
    }

    #[test]
    fn json_brings_its_tls() {
        let machine = Machine::new();
        machine.file("etc/x.json", r#"{"Name":"x","Addr":"https://h:8443/","TLSConfig":{"InsecureSkipVerify":false,"CAFile":"/ca","CertFile":"/c","KeyFile":"/k"}}"#);
        let tls = TlsFiles { insecure_skip_verify: false, ca_file: "/ca".into(), cert_file: "/c".into(), key_file: "/k".into() };
        assert_eq!(machine.find("x"), Ok(Address::Tls("h:8443".into(), tls)));
    }

    #[test]
    fn a_managed_plugin_is_found_by_its_name_with_and_without_latest_and_by_its_socket() {
        let mut machine = Machine::new();
        let id = "0123456789abcdef".repeat(4);
        let socket = machine.socket(&format!("run/{id}/ebs.sock"));
        machine.file(
            &format!("lib/{id}/config.json"),
            r#"{"plugin":{"Name":"rexray/ebs:latest","Config":{"Interface":{"Socket":"ebs.sock","Types":["docker.volumedriver/1.0"]}}}}"#,
        );
        for name in ["rexray/ebs", "rexray/ebs:latest", "ebs"] {
            assert_eq!(machine.find(name), Ok(socket.clone()), "{name}");
        }
        assert!(machine.find("rexray/ebs:old").is_err());
    }

    #[test]
    fn the_paths_of_a_managed_plugin_are_told_as_they_are_on_the_host() {
        let mut machine = Machine::new();
        let id = "0123456789abcdef".repeat(4);
        machine.socket(&format!("run/{id}/ebs.sock"));
        let config = |more: &str| format!(r#"{{"plugin":{{"Name":"ebs:1","Config":{{{more}"Interface":{{"Socket":"ebs.sock"}}}}}}}}"#);
        let on_host = |machine: &Machine, path: &str| {
            let scope = machine.found("ebs").expect("found").scope.expect("managed");
            scope.on_host(path).strip_prefix(&format!("{}/", machine.path(&format!("lib/{id}")).display())).expect("beneath").to_owned()
        };
        machine.file(&format!("lib/{id}/config.json"), &config(""));
        assert_eq!(on_host(&machine, "/var/lib/volumes/v"), "rootfs/var/lib/volumes/v");
        machine.file(&format!("lib/{id}/config.json"), &config(r#""PropagatedMount":"/var/lib/volumes","#));
        assert_eq!(on_host(&machine, "/var/lib/volumes/v"), "propagated-mount/v");
        assert_eq!(on_host(&machine, "/elsewhere/v"), "rootfs/elsewhere/v");
        machine.socket("run/plain.sock");
        assert_eq!(machine.found("plain").expect("found").scope, None);
    }

    #[test]
    fn an_engine_s_own_configuration_says_where_its_plugins_are() {
        let machine = Machine::new();
        let root = |text: &str| {
            machine.file("etc/daemon.json", text);
            data_root(&machine.path("etc/daemon.json"))
        };
        assert_eq!(root(r#"{"data-root":"/srv/docker","debug":true}"#), Path::new("/srv/docker"));
        for text in ["{}", "nonsense"] {
            assert_eq!(root(text), Path::new("/var/lib/docker"), "{text}");
        }
    }

    #[test]
    fn a_plugin_that_is_not_there_is_an_error_at_once_that_says_where_it_was_looked_for_and_what_is_there() {
        let mut machine = Machine::new();
        machine.socket("run/dunnage.sock");
        let said = machine.find("rexray").expect_err("not there").to_string();
        assert!(said.contains("run/rexray.sock") && said.contains("one of: dunnage"), "{said}");
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let machine = Machine::new();
        for name in ["../x", "/etc/x", "a/../../x", "", "a\0b"] {
            assert!(machine.find(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_bad_file_is_named() {
        let machine = Machine::new();
        for (text, word) in [("nonsense", "no address"), ("npipe:////./pipe/x", "npipe"), ("tcp://host", "no port")] {
            machine.file("etc/x.spec", text);
            let said = machine.find("x").expect_err(text).to_string();
            assert!(said.contains("etc/x.spec") && said.contains(word), "{said}");
        }
    }
}
