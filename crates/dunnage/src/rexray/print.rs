//! How an answer looks: a table, JSON, or what a template makes of it.

use dunnage_model::{Error, Result};
use gotmpl::Value;
use serde::Serialize;

use super::shape::{Instance, MountInfo, Service, Volume};
use super::{tabs, template};

/// What was asked for with `--format`, `--template` and `--quiet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    pub shape: Shape,
    /// Tabs are turned into columns.
    pub tabs: bool,
    /// A table has no header.
    pub quiet: bool,
}

/// The shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Table,
    Json,
    JsonPretty,
    /// A template for the whole, which is its `.D`.
    Template(String),
    /// A template for each line.
    Each(String),
}

/// An answer, before it has a shape.
pub struct Answer {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    values: Vec<Value>,
    json: Result<[String; 2]>,
}

impl Answer {
    fn new<T: Serialize>(header: &[&'static str], rows: Vec<Vec<String>>, values: Vec<Value>, json: &T) -> Answer {
        let failed = |e: serde_json::Error| Error::internal(format!("cannot write JSON: {e}"));
        let texts = serde_json::to_string(json).and_then(|plain| Ok([plain, serde_json::to_string_pretty(json)?]));
        Answer { header: header.to_vec(), rows, values, json: texts.map_err(failed) }
    }

    /// Volumes; by name, and with their paths where the answer is about paths.
    pub fn volumes(mut volumes: Vec<Volume>, paths: bool) -> Answer {
        volumes.sort_by(|a, b| (&a.name, &a.kind).cmp(&(&b.name, &b.kind)));
        let encrypted = volumes.iter().any(|volume| volume.encrypted);
        let columns = |columns: [Option<&'static str>; 6]| columns.into_iter().flatten().collect::<Vec<_>>();
        let header =
            columns([Some("ID"), Some("Name"), Some("Status"), Some("Size"), encrypted.then_some("Encrypted"), paths.then_some("Path")]);
        let row = |v: &Volume| {
            let mut row = vec![v.id.clone(), v.name.clone(), v.attachment_state.word().to_owned(), v.size.to_string()];
            row.extend(encrypted.then(|| v.encrypted.to_string()));
            row.extend(paths.then(|| v.path.clone().unwrap_or_default()));
            row
        };
        Answer::new(&header, volumes.iter().map(row).collect(), volumes.iter().map(template::volume).collect(), &volumes)
    }

    /// Names, one a line.
    pub fn names(mut names: Vec<String>) -> Answer {
        names.sort();
        let values = names.iter().map(|name| Value::String(name.as_str().into())).collect();
        Answer::new(&[], names.iter().map(|name| vec![name.clone()]).collect(), values, &names)
    }

    /// Mounts, by device.
    pub fn mounts(mut mounts: Vec<MountInfo>) -> Answer {
        mounts.sort_by(|a, b| a.source.cmp(&b.source));
        let row = |m: &MountInfo| vec![m.id.to_string(), m.source.clone(), m.mount_point.clone()];
        let values = mounts.iter().map(template::mount).collect();
        Answer::new(&["ID", "Device", "MountPoint"], mounts.iter().map(row).collect(), values, &mounts)
    }

    /// Services, by name; in JSON under their names.
    pub fn services(services: &std::collections::BTreeMap<String, Service>) -> Answer {
        let row = |s: &Service| vec![s.name.clone(), s.driver.name.clone()];
        let values = services.values().map(template::service).collect();
        Answer::new(&["Name", "Driver"], services.values().map(row).collect(), values, services)
    }

    /// This node, as the services know it; in JSON under their names.
    pub fn instances(instances: &std::collections::BTreeMap<String, Instance>) -> Answer {
        let row = |i: &Instance| vec![i.id.id.clone(), i.name.clone(), i.provider_name.clone(), String::new()];
        let values = instances.values().map(template::instance).collect();
        Answer::new(&["ID", "Name", "Provider", "Region"], instances.values().map(row).collect(), values, instances)
    }

    /// What is in tokens.
    pub fn tokens(rows: Vec<Vec<String>>) -> Answer {
        Answer::new(&["Subject", "IssuedAt", "NotBefore", "Expires"], rows, Vec::new(), &())
    }

    /// The text.
    pub fn print(self, format: &Format) -> Result<String> {
        let aligned = |text: String| if format.tabs { tabs::align(&text) } else { text };
        Ok(match &format.shape {
            Shape::Json => self.json?[0].clone() + "\n",
            Shape::JsonPretty => self.json?[1].clone() + "\n",
            Shape::Template(text) => aligned(template::whole(text, self.values)?),
            Shape::Each(text) => aligned(template::each(text, &self.values)?),
            Shape::Table => {
                let header = (!format.quiet && !self.header.is_empty()).then(|| self.header.join("\t"));
                let lines = header.into_iter().chain(self.rows.into_iter().map(|row| row.join("\t")));
                aligned(lines.map(|line| line + "\n").collect())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Format = Format { shape: Shape::Table, tabs: true, quiet: false };

    fn volumes() -> Vec<Volume> {
        let volume = |name: &str, size| Volume { name: name.into(), id: name.into(), size, kind: "local".into(), ..Volume::default() };
        vec![volume("redis", 1), volume("pg", 16)]
    }

    #[test]
    fn volumes_are_listed_by_name_beneath_a_header() {
        let text = Answer::volumes(volumes(), false).print(&TABLE).expect("text");
        assert_eq!(text, "ID     Name   Status   Size\npg     pg     unknown  16\nredis  redis  unknown  1\n");
    }

    #[test]
    fn quiet_leaves_the_header_out_and_without_tabs_columns_stay_tabs() {
        let quiet = Format { quiet: true, tabs: false, ..TABLE };
        assert_eq!(Answer::volumes(volumes(), false).print(&quiet).expect("text"), "pg\tpg\tunknown\t16\nredis\tredis\tunknown\t1\n");
    }

    #[test]
    fn a_column_for_encryption_or_paths_is_there_only_when_it_is_of_use() {
        let mut all = volumes();
        all[1].encrypted = true;
        let text = Answer::volumes(all.into_iter().map(|v| v.at("/x")).collect(), true).print(&TABLE).expect("text");
        let head = "ID     Name   Status   Size  Encrypted  Path\n";
        assert_eq!(text, format!("{head}pg     pg     unknown  16    true       /x\nredis  redis  unknown  1     false      /x\n"));
    }

    #[test]
    fn an_empty_listing_is_a_header_or_an_empty_list() {
        assert_eq!(Answer::volumes(vec![], true).print(&TABLE).expect("text"), "ID  Name  Status  Size  Path\n");
        assert_eq!(Answer::volumes(vec![], true).print(&Format { shape: Shape::Json, ..TABLE }).expect("text"), "[]\n");
    }

    #[test]
    fn json_comes_in_one_line_or_indented_by_two() {
        let one = vec![volumes().remove(1)];
        let text = |shape| Answer::volumes(one.clone(), false).print(&Format { shape, ..TABLE }).expect("text");
        assert_eq!(text(Shape::Json), "[{\"name\":\"pg\",\"size\":16,\"id\":\"pg\",\"type\":\"local\"}]\n");
        let pretty = "[\n  {\n    \"name\": \"pg\",\n    \"size\": 16,\n    \"id\": \"pg\",\n    \"type\": \"local\"\n  }\n]\n";
        assert_eq!(text(Shape::JsonPretty), pretty);
    }

    #[test]
    fn a_template_is_for_the_whole_and_one_in_the_format_for_each() {
        let text = |shape| Answer::volumes(volumes(), false).print(&Format { shape, ..TABLE }).expect("text");
        assert_eq!(text(Shape::Template(r"{{range .D}}{{.Name}}\t{{.Size}}\n{{end}}".into())), "pg     16\nredis  1\n");
        assert_eq!(text(Shape::Each("{{.Name}}".into())), "pg\nredis\n");
    }
}
