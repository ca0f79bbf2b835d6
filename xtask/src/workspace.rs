//! What cargo knows of the project: where it is, its packages, and the test executables that it builds.
//!
//! The tests are built by cargo and run by us, because those that need root go through sudo and cargo must not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::shell::{self, Context, Error, Result};

/// The package whose integration tests need root and real peers; its targets are named `tierN_…`.
pub const TESTS_PACKAGE: &str = "dunnage-tests";

/// A cargo workspace and where its builds go.
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    packages: Vec<Package>,
}

struct Package {
    id: String,
    name: String,
    version: String,
    dir: PathBuf,
}

/// How programs are built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// The programs that are shipped, tested and measured.
pub struct Programs {
    pub dunnage: PathBuf,
    /// The small static one: it starts in a third of the time that the whole binary takes.
    pub dvdcli: PathBuf,
    /// The core of the Mesos module, with panics that unwind: built for tests alone.
    pub mesos_module: PathBuf,
    /// What the machines of tier 4 boot.
    pub kernel: Option<PathBuf>,
}

/// One executable full of tests.
#[derive(Debug)]
pub struct TestExecutable {
    pub package: String,
    pub target: String,
    pub kind: Kind,
    pub path: PathBuf,
    /// The package's folder, which cargo makes a test's working directory.
    pub dir: PathBuf,
}

/// What the tests of an executable are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A library or binary itself.
    Unit,
    /// A file of its own under `tests/`.
    Integration,
}

impl Workspace {
    /// The workspace that the current directory is in.
    pub fn here() -> Result<Self> {
        Self::read(&mut Command::new("cargo"))
    }

    /// The workspace at `root`, built into `target`.
    pub fn at(root: &Path, target: &Path) -> Result<Self> {
        Self::read(Command::new("cargo").current_dir(root).env("CARGO_TARGET_DIR", target))
    }

    fn read(cargo: &mut Command) -> Result<Self> {
        let text = shell::output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
        Self::parse(&text)
    }

    fn parse(metadata: &str) -> Result<Self> {
        let metadata: Value = serde_json::from_str(metadata).context("cannot read what cargo metadata says")?;
        let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let package = |package: &Value| -> Result<Package> {
            let manifest = PathBuf::from(text(package, "manifest_path")?);
            Ok(Package {
                id: text(package, "id")?,
                name: text(package, "name")?,
                version: text(package, "version")?,
                dir: manifest.parent().map(Path::to_path_buf).unwrap_or_default(),
            })
        };
        Ok(Self {
            root: text(&metadata, "workspace_root")?.into(),
            target: text(&metadata, "target_directory")?.into(),
            packages: packages.iter().map(package).collect::<Result<_>>()?,
        })
    }

    /// A cargo command in this workspace.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = Command::new("cargo");
        cargo.arg(subcommand).current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        cargo
    }

    /// Where the programs are, once they are built.
    pub fn programs(&self, profile: Profile) -> Result<Programs> {
        let folder = if profile == Profile::Release { "release" } else { "debug" };
        let own = self.target.join(folder);
        let dvdcli = self.target.join(host()?).join(folder).join("dvdcli");
        Ok(Programs { dunnage: own.join("dunnage"), dvdcli, mesos_module: own.join("libdunnage_mesos_module.a"), kernel: None })
    }

    /// Builds them.
    pub fn build_programs(&self, profile: Profile) -> Result<Programs> {
        let options: &[&str] = if profile == Profile::Release { &["--release", "--locked"] } else { &[] };
        shell::run(self.cargo("build").args(options).args(["-p", "dunnage"]))?;
        let mut small = self.cargo("build");
        small.args(options).args(["-p", "dunnage-dvdcli", "--bin", "dvdcli", "--no-default-features"]);
        // With a target named, flags are the program's alone and not those of build scripts and macros.
        shell::run(small.args(["--target", &host()?]).env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
        if profile == Profile::Dev {
            shell::run(self.cargo("build").args(["-p", "dunnage-mesos-module"]))?;
        }
        self.programs(profile)
    }

    /// The version of a package.
    pub fn version_of(&self, package: &str) -> Result<&str> {
        let found = self.packages.iter().find(|known| known.name == package);
        found.map(|package| package.version.as_str()).ok_or_else(|| Error::new(format!("the workspace has no package {package}")))
    }

    /// Builds tests (`which`: more words for `cargo test --no-run`) and says where they are.
    pub fn build_tests(&self, which: &[&str]) -> Result<Vec<TestExecutable>> {
        let mut cargo = self.cargo("test");
        cargo.args(["--no-run", "--message-format=json-render-diagnostics"]).args(which);
        println!("$ {}", shell::shown(&cargo));
        let built = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
        if !built.status.success() {
            return Err(Error::new("the tests do not build"));
        }
        self.executables(&String::from_utf8_lossy(&built.stdout))
    }

    fn executables(&self, messages: &str) -> Result<Vec<TestExecutable>> {
        let mut found = Vec::new();
        for line in messages.lines().filter(|line| line.starts_with('{')) {
            let message: Value = serde_json::from_str(line).context("cannot read what cargo says of a build")?;
            let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
            let (true, Some(executable)) = (is_test, message["executable"].as_str()) else { continue };
            let id = text(&message, "package_id")?;
            let package = self.packages.iter().find(|package| package.id == id);
            let package = package.ok_or_else(|| Error::new(format!("cargo built tests of {id}, which is not in the workspace")))?;
            let is_integration = message["target"]["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
            found.push(TestExecutable {
                package: package.name.clone(),
                target: text(&message["target"], "name")?,
                kind: if is_integration { Kind::Integration } else { Kind::Unit },
                path: executable.into(),
                dir: package.dir.clone(),
            });
        }
        Ok(found)
    }
}

/// What rustc calls this machine.
fn host() -> Result<String> {
    let said = shell::output(Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Error::new("rustc does not say its host"))
}

fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).ok_or_else(|| Error::new(format!("cargo does not say the {key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{"workspace_root":"/p","target_directory":"/p/target","packages":[
        {"id":"path+file:///p/a#0.1.0","name":"a","version":"0.1.0","manifest_path":"/p/a/Cargo.toml"}]}"#;

    #[test]
    fn an_integration_test_is_told_from_a_unit_test_and_a_plain_build_is_neither() {
        let workspace = Workspace::parse(METADATA).unwrap();
        let built = concat!(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///p/a#0.1.0","target":{"kind":["lib"],"name":"a"},"profile":{"test":true},"executable":"/t/a-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///p/a#0.1.0","target":{"kind":["test"],"name":"b"},"profile":{"test":true},"executable":"/t/b-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///p/a#0.1.0","target":{"kind":["bin"],"name":"c"},"profile":{"test":false},"executable":"/t/c"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = workspace.executables(built).unwrap();
        let found: Vec<_> = found.iter().map(|one| (one.target.as_str(), one.kind)).collect();
        assert_eq!(found, [("a", Kind::Unit), ("b", Kind::Integration)]);
        assert_eq!(workspace.version_of("a").unwrap(), "0.1.0");
        assert!(workspace.version_of("z").is_err());
    }
}
