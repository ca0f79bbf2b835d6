//! What a VOLUME argument means: a name, in any letter case, the beginning of one that fits no other, or a
//! `/regular expression/`. A volume's ID is its name.
//!
//! Where letter case decides between two volumes it does decide; what fits several is an error that names them.

use dunnage_model::{Error, Result};
use regex::RegexBuilder;

/// What the volumes are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To show them: all that fit.
    Show,
    /// To do something to them: an argument means one, unless it is a regular expression.
    Change,
    /// To remove them: the same, and never by the beginning of a name.
    Remove,
}

/// A volume's name; the driver parts those of one name.
pub trait Named {
    /// Its name.
    fn name(&self) -> &str;
    /// Its driver.
    fn driver(&self) -> &str;
}

/// The volumes that one argument means.
pub fn meant<'a, V: Named>(all: &'a [V], argument: &str, purpose: Purpose) -> Result<Vec<&'a V>> {
    let found = match expression(argument) {
        Some(text) => by_expression(all, text)?,
        None if purpose == Purpose::Show => with(all, |name| starts(name, argument)),
        None => return one(all, argument, purpose).map(|volume| vec![volume]),
    };
    if found.is_empty() && purpose != Purpose::Show { Err(nothing(argument)) } else { Ok(found) }
}

fn expression(argument: &str) -> Option<&str> {
    argument.strip_prefix('/')?.strip_suffix('/')
}

fn by_expression<'a, V: Named>(all: &'a [V], text: &str) -> Result<Vec<&'a V>> {
    let build = |ignore_case| {
        RegexBuilder::new(text).case_insensitive(ignore_case).build().map_err(|e| {
            let why = e.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Error::invalid("VOLUME", format!("/{text}/ is no regular expression: {why}"), "mend it, or give names")
        })
    };
    let exact = build(false)?;
    let found = with(all, |name| exact.is_match(name));
    if !found.is_empty() {
        return Ok(found);
    }
    let loose = build(true)?;
    Ok(with(all, |name| loose.is_match(name)))
}

fn one<'a, V: Named>(all: &'a [V], argument: &str, purpose: Purpose) -> Result<&'a V> {
    if argument.is_empty() {
        return Err(Error::invalid("VOLUME", "an empty name means no volume", "give a name"));
    }
    for found in [with(all, |name| name == argument), with(all, |name| name.eq_ignore_ascii_case(argument))] {
        match found[..] {
            [] => {}
            [volume] => return Ok(volume),
            _ => return Err(several(argument, &found)),
        }
    }
    let begun = with(all, |name| starts(name, argument));
    match begun[..] {
        [] => Err(nothing(argument)),
        [volume] if purpose == Purpose::Remove => {
            let detail = format!("no volumes found: {argument:?} is only the beginning of {:?}", volume.name());
            Err(Error::invalid("VOLUME", detail, "write the whole name: what is removed is never guessed"))
        }
        [volume] => Ok(volume),
        _ => Err(several(argument, &begun)),
    }
}

fn with<V: Named>(all: &[V], fits: impl Fn(&str) -> bool) -> Vec<&V> {
    all.iter().filter(|volume| fits(volume.name())).collect()
}

fn starts(name: &str, beginning: &str) -> bool {
    name.get(..beginning.len()).is_some_and(|begun| begun.eq_ignore_ascii_case(beginning))
}

fn nothing(argument: &str) -> Error {
    Error::not_found(format!("no volumes found: nothing fits {argument:?}"), "look at 'rexray volume ls'")
}

fn several<V: Named>(argument: &str, found: &[&V]) -> Error {
    let mut names: Vec<String> = found.iter().map(|volume| format!("{}/{}", volume.driver(), volume.name())).collect();
    names.sort();
    let same = found.iter().all(|volume| found.first().is_some_and(|first| first.name() == volume.name()));
    let next = if same { "say which driver with -s" } else { "write the whole name, in its letter case" };
    Error::invalid("VOLUME", format!("{argument:?} fits several volumes: {}", names.join(", ")), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct V(&'static str, &'static str);

    impl Named for V {
        fn name(&self) -> &str {
            self.0
        }
        fn driver(&self) -> &str {
            self.1
        }
    }

    fn names(all: &[V], argument: &str, purpose: Purpose) -> Result<Vec<&'static str>> {
        meant(all, argument, purpose).map(|found| found.into_iter().map(|v| v.0).collect())
    }

    const ALL: &[V] = &[V("pg", "local"), V("pg-old", "local"), V("PG-new", "local"), V("redis", "local"), V("Web", "local")];

    #[test]
    fn a_whole_name_wins_over_those_that_begin_with_it() {
        assert_eq!(names(ALL, "pg", Purpose::Change), Ok(vec!["pg"]));
        assert_eq!(names(ALL, "PG", Purpose::Remove), Ok(vec!["pg"]));
    }

    #[test]
    fn letter_case_decides_where_two_names_differ_in_nothing_else() {
        let all = [V("pg", "local"), V("PG", "local")];
        assert_eq!(names(&all, "PG", Purpose::Remove), Ok(vec!["PG"]));
        let error = names(&all, "Pg", Purpose::Remove).expect_err("two fit").to_string();
        assert!(error.contains("local/PG, local/pg"), "{error}");
    }

    #[test]
    fn a_beginning_that_fits_one_name_means_it_but_never_for_a_removal() {
        assert_eq!(names(ALL, "re", Purpose::Change), Ok(vec!["redis"]));
        assert_eq!(names(ALL, "WE", Purpose::Change), Ok(vec!["Web"]));
        let error = names(ALL, "re", Purpose::Remove).expect_err("only a beginning").to_string();
        assert!(error.contains("no volumes found") && error.contains("\"redis\""), "{error}");
    }

    #[test]
    fn a_beginning_that_fits_several_names_is_an_error_that_has_them_all() {
        let error = names(ALL, "pg-", Purpose::Change).expect_err("two fit").to_string();
        assert!(error.contains("local/PG-new, local/pg-old"), "{error}");
    }

    #[test]
    fn a_listing_shows_all_that_begin_so_and_nothing_is_no_error() {
        assert_eq!(names(ALL, "pg", Purpose::Show), Ok(vec!["pg", "pg-old", "PG-new"]));
        assert_eq!(names(ALL, "nobody", Purpose::Show), Ok(vec![]));
    }

    #[test]
    fn a_regular_expression_may_mean_several_even_for_a_removal() {
        assert_eq!(names(ALL, "/^pg/", Purpose::Remove), Ok(vec!["pg", "pg-old"]), "those of its letter case are meant");
        assert_eq!(names(ALL, "/^WEB$/", Purpose::Change), Ok(vec!["Web"]), "unless there are none");
        assert_eq!(names(ALL, "//", Purpose::Show).map(|all| all.len()), Ok(5));
        assert_eq!(names(ALL, "/nobody/", Purpose::Remove).expect_err("none").word(), "not_found");
        assert!(names(ALL, "/(/", Purpose::Show).expect_err("bad").to_string().contains("no regular expression"));
    }

    #[test]
    fn an_empty_argument_means_nothing() {
        assert!(names(&ALL[..1], "", Purpose::Change).is_err());
    }

    #[test]
    fn two_drivers_with_one_name_must_be_told_apart() {
        let error = names(&[V("pg", "a"), V("pg", "b")], "pg", Purpose::Change).expect_err("two").to_string();
        assert!(error.contains("a/pg, b/pg") && error.contains("-s"), "{error}");
    }
}
