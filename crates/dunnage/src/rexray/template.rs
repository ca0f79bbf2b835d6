//! Go templates over answers: the fields have the names that REX-Ray's had, and its functions `join`, `sort`, `json`, `jsonp`
//! and `printAttState` are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunnage_model::{Error, Result};
use gotmpl::{MissingKey, Template, TemplateError, Value};
use serde::Serialize;

use super::shape::{Attachment, Instance, InstanceId, MountInfo, Service, State, Volume};

/// Where a value keeps its JSON: no field has this name.
const JSON: &str = "";

/// What a template for the whole makes of an answer, which is its `.D`.
pub fn whole(text: &str, values: Vec<Value>) -> Result<String> {
    run(&parse(text)?, &object([("D", Value::List(values.into()))]))
}

/// What a template for each line makes of an answer.
pub fn each(text: &str, values: &[Value]) -> Result<String> {
    let template = parse(text)?;
    values.iter().map(|value| Ok(run(&template, value)? + "\n")).collect()
}

fn parse(text: &str) -> Result<Template> {
    let template = Template::new("template").missing_key(MissingKey::Error);
    let template = template.func("join", join).func("sort", sort).func("printAttState", state);
    let template = template.func("json", |args| json(args, false)).func("jsonp", |args| json(args, true));
    let text = unescape(text);
    balanced(&text)?;
    template.parse(&text).map_err(|e| refused(&e.to_string()))
}

/// Every block has its end: gotmpl 0.6 takes a missing one for the end of the text, and drops what follows one too many.
fn balanced(text: &str) -> Result<()> {
    let mut open = Vec::new();
    for (at, _) in text.match_indices("{{") {
        let action = text.get(at + 2..).unwrap_or_default().trim_start_matches('-').trim_start();
        match action.split(|c: char| !c.is_ascii_alphabetic()).next() {
            Some("if" | "range" | "with" | "block" | "define") => open.push(at),
            Some("end") if open.pop().is_none() => return Err(refused(&format!("template:{}: {{{{end}}}} ends nothing", place(text, at)))),
            _ => {}
        }
    }
    open.pop().map_or(Ok(()), |at| Err(refused(&format!("template:{}: the block that begins there has no {{{{end}}}}", place(text, at)))))
}

/// Line and column.
fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    format!("{}:{}", before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn run(template: &Template, value: &Value) -> Result<String> {
    template.execute_to_string(value).map_err(|e| refused(&e.to_string()))
}

fn refused(why: &str) -> Error {
    let next = "use Go's template syntax with the fields of the JSON, such as '{{range .D}}{{.Name}} {{.Size}}{{end}}'";
    Error::invalid("template", why, next)
}

/// A line's end and a tab may be written as in a Go string; what is between braces is Go's own.
fn unescape(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, action)) = rest.split_once("{{") {
        plain += &outside(before);
        plain += "{{";
        let end = action.find("}}").unwrap_or(action.len());
        plain += action.get(..end).unwrap_or_default();
        rest = action.get(end..).unwrap_or_default();
    }
    plain + &outside(rest)
}

fn outside(text: &str) -> String {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => plain.push('\n'),
            Some('t') => plain.push('\t'),
            Some('r') => plain.push('\r'),
            Some(escaped @ ('\\' | '"')) => plain.push(escaped),
            other => plain.extend(std::iter::once('\\').chain(other)),
        }
    }
    plain
}

type Outcome = std::result::Result<Value, TemplateError>;

fn wrong(what: &str) -> TemplateError {
    TemplateError::Exec(what.to_owned())
}

fn join(args: &[Value]) -> Outcome {
    let [Value::List(list), Value::String(between)] = args else { return Err(wrong("join wants a list and a string")) };
    Ok(text(&list.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)))
}

fn sort(args: &[Value]) -> Outcome {
    let [Value::List(list), rest @ ..] = args else { return Err(wrong("sort wants a list")) };
    let field = rest.first().map(ToString::to_string).unwrap_or_default();
    let key = |value: &Value| match value {
        Value::Map(map) => map.get(field.trim_start_matches('.')).cloned().unwrap_or(Value::Nil),
        other => other.clone(),
    };
    let mut sorted = list.to_vec();
    sorted.sort_by(|a, b| match (key(a), key(b)) {
        (Value::Int(a), Value::Int(b)) => a.cmp(&b),
        (a, b) => a.to_string().cmp(&b.to_string()),
    });
    if rest.get(1).is_some_and(|order| order.to_string() == "desc") {
        sorted.reverse();
    }
    Ok(Value::List(sorted.into()))
}

fn state(args: &[Value]) -> Outcome {
    match args {
        [Value::Int(number)] => Ok(text(State::word_of(*number))),
        [Value::String(word)] => Ok(Value::String(word.clone())),
        _ => Err(wrong("printAttState wants an attachment state")),
    }
}

fn json(args: &[Value], pretty: bool) -> Outcome {
    let [value] = args else { return Err(wrong("json wants one value")) };
    let value = plain(value);
    let written = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
    written.map(|json| text(&json)).map_err(|e| wrong(&e.to_string()))
}

/// A value as JSON: what came from our shapes has theirs.
fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(truth) => (*truth).into(),
        Value::Int(number) => (*number).into(),
        Value::Uint(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => text.as_ref().into(),
        Value::List(list) => list.iter().map(plain).collect(),
        Value::Map(map) => match map.get(JSON) {
            Some(Value::String(json)) => serde_json::from_str(json).unwrap_or_default(),
            _ => serde_json::Value::Object(map.iter().map(|(key, value)| (key.to_string(), plain(value))).collect()),
        },
        _ => serde_json::Value::Null,
    }
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn number(number: impl TryInto<i64>) -> Value {
    Value::Int(number.try_into().unwrap_or(i64::MAX))
}

type Fields = BTreeMap<Arc<str>, Value>;

fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Map(Arc::new(fields.into_iter().map(|(key, value)| (Arc::from(key), value)).collect()))
}

/// Fields, with the JSON of what they are made from.
fn fields<const N: usize>(of: &impl Serialize, fields: [(&str, Value); N]) -> Fields {
    let json = serde_json::to_string(of).unwrap_or_default();
    fields.into_iter().chain([(JSON, text(&json))]).map(|(key, value)| (Arc::from(key), value)).collect()
}

fn shaped<const N: usize>(of: &impl Serialize, named: [(&str, Value); N]) -> Value {
    Value::Map(Arc::new(fields(of, named)))
}

/// A volume's fields; an answer about paths has the volume within it, too.
pub fn volume(v: &Volume) -> Value {
    let named = [
        ("ID", text(&v.id)),
        ("Name", text(&v.name)),
        ("VolumeName", text(&v.name)),
        ("Status", text(&v.status)),
        ("Size", number(v.size)),
        ("Type", text(&v.kind)),
        ("IOPS", number(v.iops)),
        ("AvailabilityZone", text(&v.availability_zone)),
        ("Encrypted", Value::Bool(v.encrypted)),
        ("NetworkName", text(&v.network_name)),
        ("Attachments", Value::List(v.attachments.iter().map(attachment).collect())),
        ("AttachmentState", number(v.attachment_state as u8)),
        ("MountPoint", text(v.mount_point())),
        ("Fields", object(v.fields.iter().map(|(key, value)| (*key, text(value))))),
        ("Path", text(v.path.as_deref().unwrap_or_default())),
    ];
    let inner = fields(v, named);
    let mut outer = inner.clone();
    outer.insert("Volume".into(), Value::Map(inner.into()));
    Value::Map(outer.into())
}

fn attachment(a: &Attachment) -> Value {
    let fields = [
        ("DeviceName", text(&a.device_name)),
        ("MountPoint", text(&a.mount_point)),
        ("InstanceID", instance_id(&a.instance)),
        ("Status", text(&a.status)),
        ("VolumeID", text(&a.volume)),
    ];
    shaped(a, fields)
}

fn instance_id(id: &InstanceId) -> Value {
    shaped(id, [("ID", text(&id.id)), ("Driver", text(&id.driver)), ("Service", text(&id.service))])
}

/// A mount's fields.
pub fn mount(m: &MountInfo) -> Value {
    let fields = [
        ("ID", number(m.id)),
        ("Parent", number(m.parent)),
        ("Major", number(m.major)),
        ("Minor", number(m.minor)),
        ("Root", text(&m.root)),
        ("MountPoint", text(&m.mount_point)),
        ("Opts", text(&m.opts)),
        ("Optional", text(&m.optional)),
        ("FSType", text(&m.fs_type)),
        ("Source", text(&m.source)),
        ("VFSOpts", text(&m.vfs_opts)),
    ];
    shaped(m, fields)
}

/// A service's fields.
pub fn service(s: &Service) -> Value {
    let driver = shaped(&s.driver, [("Name", text(&s.driver.name)), ("Type", text(s.driver.kind))]);
    shaped(s, [("Name", text(&s.name)), ("Driver", driver)])
}

/// An instance's fields.
pub fn instance(i: &Instance) -> Value {
    let fields = [("InstanceID", instance_id(&i.id)), ("Name", text(&i.name)), ("ProviderName", text(&i.provider_name))];
    shaped(i, fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rexray::tests::view;
    use dunnage_model::Bytes;

    fn values() -> Vec<Value> {
        let mounted = Volume::of(&view("pg", Bytes::gib(16), Some("/v/pg")), "n1").at("/v/pg");
        vec![volume(&mounted), volume(&Volume::of(&view("redis", Bytes::gib(2), None), "n1"))]
    }

    #[track_caller]
    fn made(template: &str) -> String {
        whole(template, values()).expect(template)
    }

    #[test]
    fn fields_have_the_names_that_they_had_in_go() {
        assert_eq!(made("{{range .D}}{{.ID}}/{{.Name}}/{{.Size}}/{{.Type}}/{{.IOPS}}/{{.Encrypted}} {{end}}"), {
            "pg/pg/16/local/0/false redis/redis/2/local/0/false "
        });
        assert_eq!(made("{{range .D}}{{range .Attachments}}{{.InstanceID.ID}} {{.MountPoint}}{{end}}{{end}}"), "n1 /v/pg");
        assert_eq!(made("{{with index .D 0}}{{.Path}} {{.Volume.Name}} {{.Fields.fs}}{{end}}"), "/v/pg pg ext4");
    }

    #[test]
    fn the_functions_of_old_are_there() {
        assert_eq!(made("{{range .D}}{{.AttachmentState | printAttState}} {{end}}"), "attached available ");
        assert_eq!(made(r#"{{range sort .D "Name" "desc"}}{{.Name}} {{end}}"#), "redis pg ");
        assert_eq!(made(r#"{{range sort .D "Size"}}{{.Name}} {{end}}"#), "redis pg ");
        let json = made("{{index .D 1 | json}}");
        assert!(json.contains(r#""attachmentState":3"#) && json.contains(r#""id":"redis""#), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&made("{{.D | jsonp}}")).expect("json").as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_line_s_end_and_a_tab_may_be_written_as_in_go() {
        assert_eq!(made(r"{{range .D}}{{.Name}}\t{{.Size}}\n{{end}}"), "pg\t16\nredis\t2\n");
        assert_eq!(made(r#"{{range .D}}{{.Name}}{{"\n"}}{{end}}\d\\"#), "pg\nredis\n\\d\\");
    }

    #[test]
    fn what_is_no_template_is_refused_with_its_place_and_an_unknown_field_by_name() {
        for (bad, place) in [
            ("{{range .D}}", "template:1:1"),
            ("a\nb {{if .D}}c", "template:2:3"),
            ("a{{end}}b", "template:1:2"),
            ("{{.D", "template:1"),
            ("\n{{nobody .D}}", "nobody"),
            ("{{range .D}}{{.Nobody}}{{end}}", "Nobody"),
        ] {
            let error = whole(bad, values()).expect_err(bad).to_string();
            assert!(error.contains(place) && error.contains("invalid_argument{template}"), "{error}");
        }
    }

    #[test]
    fn a_template_for_each_ends_every_line() {
        assert_eq!(each("{{.Name}}={{.Size}}", &values()).expect("text"), "pg=16\nredis=2\n");
    }
}
