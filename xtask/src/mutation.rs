//! One deliberate break of a law: how `docs/laws.md` writes it down, and how it is put into a copy of the tree.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::shell::{Context, Error, Result};

/// A change of the source that a test must notice: one piece of text in one file, there exactly once.
#[derive(Debug, PartialEq, Eq)]
pub struct Mutation {
    file: PathBuf,
    old: String,
    new: String,
}

impl Mutation {
    /// Reads a table's cell: ``path/to/file.rs: `old` → `new` ``.
    pub fn parse(cell: &str) -> Result<Self> {
        let cell = cell.trim();
        let wrong = || Error::new(format!("not a mutation (want `file: \u{60}old\u{60} → \u{60}new\u{60}`): {cell}"));
        let (file, change) = cell.split_once(": ").ok_or_else(wrong)?;
        let file = inside(file.trim().trim_matches('`'))?;
        let (old, rest) = code_span(change.trim_start()).ok_or_else(wrong)?;
        let rest = rest.trim_start();
        let rest = rest.strip_prefix('→').or_else(|| rest.strip_prefix("->")).ok_or_else(wrong)?.trim();
        let new = match rest {
            "nothing" => String::new(),
            _ => code_span(rest).filter(|(_, rest)| rest.trim().is_empty()).ok_or_else(wrong)?.0,
        };
        if old.is_empty() || old == new { Err(wrong()) } else { Ok(Self { file, old, new }) }
    }

    /// Puts the change into the tree at `root`.
    ///
    /// # Errors
    /// When the text is not there exactly once: the code has moved on and the row has not.
    pub fn apply(&self, root: &Path) -> Result<()> {
        let changed = changed(root, &self.file, &self.old, &self.new)?;
        fs::write(root.join(&self.file), changed).context(format_args!("cannot write {}", self.file.display()))
    }

    /// Whether [`Mutation::apply`] would work, without doing it.
    pub fn check(&self, root: &Path) -> Result<()> {
        changed(root, &self.file, &self.old, &self.new).map(drop)
    }
}

fn changed(root: &Path, file: &Path, old: &str, new: &str) -> Result<String> {
    let text = fs::read_to_string(root.join(file)).context(format_args!("cannot read {}", file.display()))?;
    replace_once(&text, old, new).map_err(|times| Error::new(format!("{} has {old:?} {times} times, not once", file.display())))
}

/// The text with the change, or how often the old text is there.
fn replace_once(text: &str, old: &str, new: &str) -> std::result::Result<String, usize> {
    match text.matches(old).count() {
        1 => Ok(text.replacen(old, new, 1)),
        times => Err(times),
    }
}

/// A path that stays in the tree.
fn inside(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_))) && path.components().next().is_some();
    if plain { Ok(path) } else { Err(Error::new(format!("{} is not a path in the tree", path.display()))) }
}

/// Reads a Markdown code span at the beginning of a text and gives its content and what follows. As CommonMark has
/// it: as many backticks close as opened, and one space on either side belongs to the fence.
fn code_span(text: &str) -> Option<(String, &str)> {
    let ticks = text.len() - text.trim_start_matches('`').len();
    if ticks == 0 {
        return None;
    }
    let inner = &text[ticks..];
    let mut from = 0;
    loop {
        let start = from + inner[from..].find('`')?;
        let run = inner[start..].len() - inner[start..].trim_start_matches('`').len();
        if run == ticks {
            let content = &inner[..start];
            let padded =
                content.strip_prefix(' ').and_then(|content| content.strip_suffix(' ')).filter(|content| !content.trim().is_empty());
            return Some((padded.unwrap_or(content).to_owned(), &inner[start + run..]));
        }
        from = start + run;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(file: &str, old: &str, new: &str) -> Mutation {
        Mutation { file: file.into(), old: old.into(), new: new.into() }
    }

    #[test]
    fn an_inline_change_is_read_with_either_arrow() {
        let expected = replace("crates/engine/src/planner.rs", "if blank {", "if true {");
        assert_eq!(Mutation::parse("crates/engine/src/planner.rs: `if blank {` → `if true {`").unwrap(), expected);
        assert_eq!(Mutation::parse("`crates/engine/src/planner.rs`: `if blank {` -> `if true {`").unwrap(), expected);
    }

    #[test]
    fn text_with_backticks_and_colons_keeps_them() {
        let mutation = Mutation::parse("a.rs: `` a: `b` `` → `c::d`").unwrap();
        assert_eq!(mutation, replace("a.rs", "a: `b`", "c::d"));
    }

    #[test]
    fn text_can_be_taken_away() {
        assert_eq!(Mutation::parse("a.rs: `self.fence()?;` → nothing").unwrap(), replace("a.rs", "self.fence()?;", ""));
    }

    #[test]
    fn what_is_no_mutation_is_refused() {
        for cell in [
            "",
            "a.rs",
            "a.rs: old → new",
            "a.rs: `same` → `same`",
            "a.rs: `` → `x`",
            "a.rs: `x` → `y` → `z`",
            "../a.rs: `x` → `y`",
            "/a.rs: `x` → `y`",
        ] {
            assert!(Mutation::parse(cell).is_err(), "{cell:?}");
        }
    }

    #[test]
    fn the_old_text_must_be_there_exactly_once() {
        assert_eq!(replace_once("a b c", "b", "x"), Ok("a x c".into()));
        assert_eq!(replace_once("a b b", "b", "x"), Err(2));
        assert_eq!(replace_once("a c", "b", "x"), Err(0));
    }
}
