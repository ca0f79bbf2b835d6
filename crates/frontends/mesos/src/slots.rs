//! The volumes that a task names in its environment: `DVDI_VOLUME_NAME`, `…_DRIVER`, `…_OPTS`, `…_CONTAINERPATH`,
//! `…_EXPLICITCREATE` and `…_DVDCLI`, each with the number of its slot at its end, or none, which is slot 0.
//!
//! The words and their defaults are those of mesos-module-dvdi. What it did otherwise: it knew slots 0 to 9 alone; it put a container path
//! and a program's path into a shell's line, and so refused 26 characters elsewhere; here no shell is, every value is read by
//! what reads it everywhere, and a path is a path.

use std::collections::BTreeMap;

use dunnage_model::{EndpointName, Error, Kind, Result, VolumeName, nearest, parse_name, split_options};

/// What every variable of ours begins with.
const PREFIX: &str = "DVDI_VOLUME_";
/// The driver of a slot that names none.
pub const DRIVER: &str = "rexray";
/// More volumes than this no task has by intent.
pub const MOST: usize = 64;
/// No value is longer; the module's C++ knows this number, and the next.
const LONGEST: usize = 4096;
/// Nor are there more variables of volumes.
const VARIABLES: usize = 512;

/// The program that a task may name for a volume without anybody allowing it: it is the one that was meant anyway.
pub const PROGRAM: &str = "/usr/bin/dvdcli";

/// The variables of one slot, by what stands behind [`PREFIX`].
const WORDS: [&str; 6] = ["NAME", "DRIVER", "OPTS", "CONTAINERPATH", "EXPLICITCREATE", "DVDCLI"];

/// A volume that a task wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// The plugin that is asked for it: an endpoint's name.
    pub driver: EndpointName,
    /// The name, as it is asked for: options may stand in it.
    pub name: String,
    /// The volume that it names.
    pub volume: VolumeName,
    /// The options of a volume that is made.
    pub options: Vec<(String, String)>,
    /// Where the task finds it; without it, where the plugin mounts it.
    pub container_path: Option<String>,
    /// It must be there before.
    pub explicit_create: bool,
    /// The program that the task wants to be run for it: nobody runs it.
    pub dvdcli: Option<String>,
}

impl Slot {
    /// As the variable of this slot is called.
    pub fn variable(&self, word: &str) -> String {
        if self.number == 0 { format!("{PREFIX}{word}") } else { format!("{PREFIX}{word}{}", self.number) }
    }

    /// Another slot has the same volume, whatever is said of it beside its name, or in it.
    pub fn same(&self, other: &Slot) -> bool {
        self.driver == other.driver && self.volume == other.volume
    }

    /// What is wished for it; what stands in the name counts above what stands beside it.
    fn wish(&self) -> BTreeMap<String, String> {
        let inside = parse_name(&self.name).map(|name| name.options).unwrap_or_default();
        self.options.iter().chain(&inside).map(|(key, value)| (key.to_ascii_lowercase(), value.clone())).collect()
    }

    /// A task does not choose what root runs. Nothing is run for one that may be named either: it is as if it was not.
    ///
    /// # Errors
    /// `permission` for a program that is not allowed.
    pub fn refuse_program(&self, allowed: &[String]) -> Result<()> {
        match &self.dvdcli {
            Some(program) if program != PROGRAM && !allowed.contains(program) => {
                let (variable, shown) = (self.variable("DVDCLI"), program.chars().take(80).collect::<String>());
                let detail = format!("{variable} is {shown:?}, and no task chooses what is run as root");
                let next = "leave it out; or the operator lets it be named, which runs nothing either (the module's parameter 'dvdcli')";
                Err(Error::new(Kind::Permission, detail, next))
            }
            _ => Ok(()),
        }
    }
}

/// Reads an environment; `driver` is that of slots that name none. All or nothing: one variable that cannot be meant so refuses the task.
///
/// # Errors
/// `invalid_argument` with the variable and what is wrong with it.
pub fn slots<'a>(environment: impl IntoIterator<Item = (&'a str, &'a str)>, driver: &str) -> Result<Vec<Slot>> {
    let mut given: BTreeMap<u32, BTreeMap<&'static str, (&str, &str)>> = BTreeMap::new();
    let ours = environment.into_iter().filter_map(|(variable, value)| Some((variable, variable.strip_prefix(PREFIX)?, value)));
    for (count, (variable, rest, value)) in ours.enumerate() {
        if count == VARIABLES {
            let detail = format!("it is one more than {VARIABLES} variables of volumes");
            return Err(Error::invalid(variable.chars().take(80).collect::<String>(), detail, "use fewer"));
        }
        let (word, number) = word_and_number(variable, rest)?;
        check(variable, value)?;
        if let Some((other, before)) = given.entry(number).or_default().insert(word, (variable, value))
            && before != value
        {
            let detail = format!("{other} and {variable} are one variable of slot {number}, and say {before:?} and {value:?}");
            return Err(Error::invalid(variable, detail, "leave one of them out"));
        }
    }
    let mut slots: Vec<Slot> = Vec::new();
    for (number, variables) in given {
        let of = |word: &str| variables.get(word).copied().filter(|(_, value)| !value.trim().is_empty());
        // As it always was: a slot without a name is not used, whatever else is said of it.
        let Some((variable, name)) = of("NAME") else { continue };
        if slots.len() == MOST {
            return Err(Error::invalid(variable, format!("it is one more than {MOST} volumes"), "use fewer"));
        }
        let slot = Slot {
            number,
            driver: of("DRIVER").map_or(driver, |(_, value)| value.trim()).parse().map_err(|e| named(of("DRIVER"), variable, e))?,
            volume: parse_name(name.trim()).map_err(|e| named(None, variable, e))?.name,
            name: name.trim().to_owned(),
            options: of("OPTS").map_or(Ok(Vec::new()), |(variable, value)| options(variable, value))?,
            container_path: of("CONTAINERPATH").map(|(variable, value)| container_path(variable, value)).transpose()?,
            explicit_create: of("EXPLICITCREATE").map_or(Ok(false), |(variable, value)| truth(variable, value))?,
            dvdcli: of("DVDCLI").map(|(_, value)| value.trim().to_owned()),
        };
        refuse_twice(&slots, &slot)?;
        slots.push(slot);
    }
    Ok(slots)
}

/// `NAME12` is the name of slot 12.
fn word_and_number(variable: &str, rest: &str) -> Result<(&'static str, u32)> {
    let digits = rest.len() - rest.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (word, number) = rest.split_at(rest.len() - digits);
    let Some(word) = WORDS.into_iter().find(|known| *known == word) else {
        let next = match nearest(word, WORDS) {
            Some(meant) => format!("did you mean {PREFIX}{meant}{number}?"),
            None => {
                format!("there are {}, each with the number of its slot behind it", WORDS.map(|word| format!("{PREFIX}{word}")).join(", "))
            }
        };
        let shown: String = variable.chars().take(80).collect();
        return Err(Error::invalid(&shown, format!("{shown} is no variable of a volume"), next));
    };
    let value = if number.is_empty() { Some(0) } else { number.parse().ok() };
    match value {
        Some(value) if number.len() < 2 || !number.starts_with('0') => Ok((word, value)),
        _ => {
            let shown: String = variable.chars().take(80).collect();
            Err(Error::invalid(&shown, format!("{shown} has no number of a slot at its end"), "write 0, 1, 2 and so on"))
        }
    }
}

fn check(variable: &str, value: &str) -> Result<()> {
    if value.len() > LONGEST {
        return Err(Error::invalid(variable, format!("its value has more than {LONGEST} bytes"), "make it shorter"));
    }
    match value.chars().find(|c| c.is_control()) {
        Some(c) => Err(Error::invalid(variable, format!("there is {c:?} in its value"), "leave it out")),
        None => Ok(()),
    }
}

fn named(of: Option<(&str, &str)>, or: &str, error: Error) -> Error {
    let variable = of.map_or(or, |(variable, _)| variable);
    Error::invalid(variable, error.detail, error.next)
}

fn options(variable: &str, text: &str) -> Result<Vec<(String, String)>> {
    let mut options: Vec<(String, String)> = Vec::new();
    for option in split_options(text).into_iter().filter(|option| !option.is_empty()) {
        let Some((key, value)) = option.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            return Err(Error::invalid(variable, format!("{option:?} is no key=value"), "write size=5,fs=ext4"));
        };
        if options.iter().any(|(other, _)| other.eq_ignore_ascii_case(key)) {
            return Err(Error::invalid(variable, format!("{key} is given twice"), "give it once"));
        }
        options.push((key.to_owned(), value.to_owned()));
    }
    Ok(options)
}

/// A path is taken as it is, and never by a shell: what counts is that it leads nowhere but downwards.
fn container_path(variable: &str, path: &str) -> Result<String> {
    let refuse = |detail: &str| Err(Error::invalid(variable, format!("{path:?} {detail}"), "give an absolute path, such as /data"));
    if !path.starts_with('/') {
        return refuse("is not absolute");
    }
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".").peekable();
    if parts.peek().is_none() {
        return refuse("is the root itself");
    }
    let parts: Vec<&str> = parts.collect();
    if parts.contains(&"..") {
        return refuse("has '..' in it");
    }
    Ok(format!("/{}", parts.join("/")))
}

fn truth(variable: &str, value: &str) -> Result<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        other => Err(Error::invalid(variable, format!("{other:?} is neither true nor false"), "write true or false")),
    }
}

/// One volume may be had at several paths, and is one volume; one path has one volume.
fn refuse_twice(before: &[Slot], slot: &Slot) -> Result<()> {
    for other in before {
        if slot.container_path.is_some() && other.container_path == slot.container_path {
            let detail = format!("slot {} has the same path", other.number);
            return Err(Error::invalid(slot.variable("CONTAINERPATH"), detail, "give each volume a path of its own"));
        }
        if slot.same(other) && (other.wish(), other.explicit_create) != (slot.wish(), slot.explicit_create) {
            let detail = format!("slot {} is the same volume with other options", other.number);
            return Err(Error::invalid(slot.variable("NAME"), detail, "give both the same options"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(environment: &[(&str, &str)]) -> Result<Vec<Slot>> {
        slots(environment.iter().copied(), DRIVER)
    }

    fn said(environment: &[(&str, &str)]) -> String {
        of(environment).expect_err("refused").to_string()
    }

    #[test]
    fn the_environments_of_the_seeds_name_their_volumes() {
        let two = of(&[
            ("DVDI_VOLUME_NAME", "testing"),
            ("DVDI_VOLUME_DRIVER", "platform1"),
            ("DVDI_VOLUME_OPTS", "size=5,iops=150,volumetype=io1,newfstype=ext4,overwritefs=false"),
            ("DVDI_VOLUME_NAME1", "testing2"),
            ("DVDI_VOLUME_DRIVER1", "platform2"),
            ("DVDI_VOLUME_OPTS1", "size=6,volumetype=gp2,newfstype=xfs,overwritefs=true"),
        ])
        .expect("two volumes");
        let short = |slot: &Slot| (slot.number, slot.driver.to_string(), slot.name.clone(), slot.options.len());
        assert_eq!(
            two.iter().map(short).collect::<Vec<_>>(),
            [(0, "platform1".to_owned(), "testing".to_owned(), 5), (1, "platform2".to_owned(), "testing2".to_owned(), 4)]
        );
        let one = of(&[("DVDI_VOLUME_NAME", "test1234567890"), ("DVDI_VOLUME_OPTS", "size=5"), ("PATH", "/bin")]).expect("one");
        assert_eq!((one[0].driver.as_str(), one[0].explicit_create, one[0].container_path.is_none()), ("rexray", false, true));
    }

    #[test]
    fn slots_have_as_many_digits_as_one_likes_and_none_is_zero() {
        let slots =
            of(&[("DVDI_VOLUME_NAME12", "c"), ("DVDI_VOLUME_NAME0", "a"), ("DVDI_VOLUME_NAME2", "b"), ("DVDI_VOLUME_OPTS", "size=1")]);
        let slots = slots.expect("three");
        assert_eq!(slots.iter().map(|slot| slot.number).collect::<Vec<_>>(), [0, 2, 12]);
        assert_eq!(slots[0].options, [("size".to_owned(), "1".to_owned())], "no number is slot 0");
        assert_eq!(of(&[("DVDI_VOLUME_NAME", "a"), ("DVDI_VOLUME_NAME0", "a")]).map(|slots| slots.len()), Ok(1));
        assert!(said(&[("DVDI_VOLUME_NAME", "a"), ("DVDI_VOLUME_NAME0", "b")]).contains("are one variable of slot 0"));
        for wrong in ["DVDI_VOLUME_NAME01", "DVDI_VOLUME_NAME99999999999", "DVDI_VOLUME_NAME_X", "DVDI_VOLUME_NAM", "DVDI_VOLUME_"] {
            let said = said(&[(wrong, "a")]);
            assert!(said.contains(wrong), "{said}");
        }
        assert!(said(&[("DVDI_VOLUME_NAM1", "a")]).contains("did you mean DVDI_VOLUME_NAME1?"));
    }

    #[test]
    fn a_slot_without_a_name_is_not_used() {
        assert_eq!(of(&[("DVDI_VOLUME_OPTS3", "size=5"), ("DVDI_VOLUME_NAME3", " ")]), Ok(Vec::new()));
    }

    #[test]
    fn the_task_s_own_program_is_noted_and_the_rest_is_read_as_everywhere() {
        let slots = of(&[
            ("DVDI_VOLUME_NAME", "size=5,name=pg"),
            ("DVDI_VOLUME_CONTAINERPATH", "//data/./x/"),
            ("DVDI_VOLUME_EXPLICITCREATE", " TRUE "),
            ("DVDI_VOLUME_DVDCLI", "/tmp/evil"),
        ]);
        let slot = slots.expect("one").remove(0);
        assert_eq!(
            (slot.container_path.as_deref(), slot.explicit_create, slot.dvdcli.as_deref()),
            (Some("/data/x"), true, Some("/tmp/evil"))
        );
        let refused = slot.refuse_program(&[]).expect_err("nobody allowed it").to_string();
        assert!(refused.contains("DVDI_VOLUME_DVDCLI is \"/tmp/evil\""), "{refused}");
        assert_eq!(slot.refuse_program(&["/tmp/evil".to_owned()]), Ok(()));
        let usual = of(&[("DVDI_VOLUME_NAME3", "pg"), ("DVDI_VOLUME_DVDCLI3", "/usr/bin/dvdcli")]).expect("one").remove(0);
        assert_eq!(usual.refuse_program(&[]), Ok(()));
        for (variable, value) in [
            ("DVDI_VOLUME_CONTAINERPATH", "data"),
            ("DVDI_VOLUME_CONTAINERPATH", "/a/../../etc"),
            ("DVDI_VOLUME_CONTAINERPATH", "/"),
            ("DVDI_VOLUME_CONTAINERPATH", "/a\nb"),
            ("DVDI_VOLUME_OPTS", "size"),
            ("DVDI_VOLUME_OPTS", "size=1,Size=2"),
            ("DVDI_VOLUME_DRIVER", "../x"),
            ("DVDI_VOLUME_EXPLICITCREATE", "perhaps"),
        ] {
            let said = said(&[("DVDI_VOLUME_NAME", "pg"), (variable, value)]);
            assert!(said.contains(variable), "{variable}={value}: {said}");
        }
        for name in ["a b/../c=d;$(id)", "../x", "a`b`", "-rf"] {
            assert!(said(&[("DVDI_VOLUME_NAME", name)]).contains("DVDI_VOLUME_NAME"), "{name}");
        }
    }

    #[test]
    fn a_volume_may_be_had_twice_and_a_path_may_not() {
        let twice = |path: &'static str, options: &'static str| {
            of(&[
                ("DVDI_VOLUME_NAME", "pg"),
                ("DVDI_VOLUME_CONTAINERPATH", "/a"),
                ("DVDI_VOLUME_NAME1", "pg"),
                ("DVDI_VOLUME_CONTAINERPATH1", path),
                ("DVDI_VOLUME_OPTS1", options),
            ])
        };
        assert_eq!(twice("/b", "").map(|slots| slots.len()), Ok(2));
        assert!(twice("/a", "").expect_err("one path").to_string().contains("DVDI_VOLUME_CONTAINERPATH1"));
        assert!(twice("/b", "size=5").expect_err("two wishes").to_string().contains("other options"));
        let inline =
            |options: &str| of(&[("DVDI_VOLUME_NAME", "pg"), ("DVDI_VOLUME_OPTS", options), ("DVDI_VOLUME_NAME1", "Size=5,name=pg")]);
        let slots = inline("size=5").expect("one wish");
        assert!(slots[0].same(&slots[1]), "one volume, by two names");
        assert!(inline("").expect_err("two wishes").to_string().contains("other options"));
    }

    #[test]
    fn what_is_too_much_is_refused_and_what_is_another_s_costs_nothing() {
        let long = "x".repeat(1 << 20);
        assert!(said(&[("DVDI_VOLUME_NAME", &long)]).contains("DVDI_VOLUME_NAME}: its value has more than 4096 bytes"));
        // As much of it as the module's C++ hands over.
        assert!(said(&[("DVDI_VOLUME_NAME", &long[..4097])]).contains("more than 4096 bytes"));
        assert!(said(&[(&format!("DVDI_VOLUME_NAME{}", "1".repeat(5000)), "pg")]).contains("no number of a slot"));
        let others: Vec<(String, String)> = (0..10_000).map(|n| (format!("X{n}"), long[..100].to_owned())).collect();
        let environment = others.iter().map(|(k, v)| (k.as_str(), v.as_str())).chain([("DVDI_VOLUME_NAME", "pg")]);
        assert_eq!(slots(environment, DRIVER).map(|slots| slots.len()), Ok(1));
        let many: Vec<(String, String)> = (0..=64).map(|n| (format!("DVDI_VOLUME_NAME{n}"), format!("v{n}"))).collect();
        let refused = slots(many.iter().map(|(k, v)| (k.as_str(), v.as_str())), DRIVER).expect_err("too many");
        assert!(refused.to_string().contains("one more than 64"), "{refused}");
        let many: Vec<(String, String)> = (0..=512).map(|n| (format!("DVDI_VOLUME_OPTS{n}"), "size=1".to_owned())).collect();
        let refused = slots(many.iter().map(|(k, v)| (k.as_str(), v.as_str())), DRIVER).expect_err("too many").to_string();
        assert!(refused.contains("DVDI_VOLUME_OPTS512") && refused.contains("one more than 512 variables"), "{refused}");
    }

    proptest! {
        #[test]
        fn no_environment_crashes_the_reader_or_leads_out_of_the_container(
            variables in prop::collection::vec(("(DVDI_VOLUME_)?(NAME|DRIVER|OPTS|CONTAINERPATH|DVDCLI|X)?[0-9]{0,3}", ".{0,40}|(/[a-z.]{0,3}){0,5}"), 0..12)
        ) {
            if let Ok(slots) = slots(variables.iter().map(|(k, v)| (k.as_str(), v.as_str())), DRIVER) {
                for slot in slots {
                    prop_assert!(parse_name(&slot.name).is_ok());
                    if let Some(path) = slot.container_path {
                        prop_assert!(path.starts_with('/') && path.len() > 1 && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | "..")));
                    }
                }
            }
        }
    }
}
