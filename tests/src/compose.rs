//! `docker-compose` on a test's own Docker Engine: a project in a folder, brought up and down.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::docker::{Bench, find};
use crate::{Ran, skip};

/// A project: a folder with a `docker-compose.yml`, and the engine that it speaks to.
pub struct Project {
    pub bench: Bench,
    folder: PathBuf,
}

/// What its containers and volumes are named after.
pub const NAME: &str = "shop";

impl Project {
    /// A daemon with a configuration (none if empty), an engine and an empty project; `None` where something is missing
    /// (noted as a skip).
    pub fn configured(yaml: &str) -> Option<Project> {
        if find("docker-compose").is_none() {
            skip("needs docker-compose (package docker-compose)");
            return None;
        }
        let bench = Bench::configured(yaml, &[])?;
        let folder = bench.node.folder.join(NAME);
        std::fs::create_dir_all(&folder).expect("project");
        Some(Project { bench, folder })
    }

    /// The same without a configuration, with this `docker-compose.yml`.
    pub fn of(yaml: &str) -> Option<Project> {
        let project = Project::configured("")?;
        project.write(yaml);
        Some(project)
    }

    /// Writes its `docker-compose.yml` anew.
    pub fn write(&self, yaml: &str) {
        std::fs::write(self.folder.join("docker-compose.yml"), yaml).expect("project");
    }

    /// `docker-compose ARGS`.
    pub fn compose(&self, args: &[&str]) -> Ran {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "110"]).arg(find("docker-compose").expect("docker-compose"));
        command.args(["--project-name", NAME]).args(args).current_dir(&self.folder);
        command.env("DOCKER_HOST", self.bench.docker.host()).env("DOCKER_CONFIG", self.folder.join("config"));
        command.stdin(Stdio::null());
        let output = command.output().expect("docker-compose");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}
