//! `cargo xtask mutate-laws`: breaks each law on purpose, in a copy of the tree, and sees that its test fails.
//!
//! A test that no mistake makes fail protects nothing. `docs/laws.md` holds, in one or more Markdown tables with
//! exactly these columns, which test stands for which law and a mistake that it must notice:
//!
//! ```text
//! | law | test | mutation | failure seen |
//! |---|---|---|---|
//! | 5 | `dunnage-engine::lib::planner::tests::a_read_error_is_never_formatted` | crates/engine/src/planner.rs: `Found::Unknown => refuse()` → `Found::Unknown => format()` | asked for mkfs |
//! | 3 | `dunnage-tests::tier2_restart::a_killed_daemon_leaves_its_mounts` | crates/engine/src/engine.rs: `// nothing` → `self.release_all();` | the mount is gone |
//! ```
//!
//! - **law**: a number, words after it are for readers. A law may have many rows.
//! - **test**: `package::target::name`. The target is `lib` or `bin` for the unit tests of a crate, else the name of an
//!   integration test; the name is what the harness calls it, whole. `tierN_…` of `dunnage-tests` run as `cargo xtask
//!   test` runs them, as root in a sandbox, against a mutated `dunnage` binary.
//! - **mutation**: ``file: `old` → `new` `` (or `->`; `→ nothing` takes the text away): the old text must be in the file exactly
//!   once. A `|` in a cell is written `\|`; text with backticks stands between double ones.
//! - **failure seen**: what the test said when a person tried it. For readers; the run prints what it says now.
//!
//! A mutation that does not compile proves nothing, so it makes its row broken, as do a test that is not there or that
//! fails without the mutation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::libtest::{self, Outcome, Show};
use crate::mutation::Mutation;
use crate::sandbox::{Sandbox, Who};
use crate::shell::{self, Context, Error, Result, Verdict};
use crate::tiers;
use crate::workspace::{Kind, Profile, TESTS_PACKAGE, Workspace};

#[derive(Args)]
pub struct Options {
    /// Only the rows of this law
    #[arg(long, value_name = "N")]
    law: Option<u32>,
    /// Show the rows and whether each mutation still fits; run nothing
    #[arg(long)]
    list: bool,
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    law: u32,
    test: TestName,
    mutation: Mutation,
}

/// Which test, as cargo and the harness want to know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TestName {
    package: String,
    target: String,
    name: String,
}

impl TestName {
    fn parse(cell: &str) -> Result<Self> {
        let wrong = || Error::new(format!("not a test (want `package::target::name`): {cell}"));
        let mut parts = cell.trim().trim_matches('`').splitn(3, "::").map(str::to_owned);
        let (Some(package), Some(target), Some(name)) = (parts.next(), parts.next(), parts.next()) else { return Err(wrong()) };
        if [&package, &target, &name].iter().any(|part| part.is_empty() || part.contains(char::is_whitespace)) {
            return Err(wrong());
        }
        Ok(Self { package, target, name })
    }

    /// The tier of the tests package's target, else tier 0: what runs without special rights.
    fn tier(&self) -> u8 {
        let tier = (self.package == TESTS_PACKAGE).then(|| tiers::tier_of_target(&self.target));
        tier.flatten().unwrap_or(0)
    }

    /// The words for cargo that build just this executable.
    fn selection(&self) -> Vec<&str> {
        match self.target.as_str() {
            "lib" => vec!["-p", &self.package, "--lib"],
            "bin" => vec!["-p", &self.package, "--bins"],
            target => vec!["-p", &self.package, "--test", target],
        }
    }
}

impl std::fmt::Display for TestName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}::{}::{}", self.package, self.target, self.name)
    }
}

/// Reads the tables of a page.
fn parse(page: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut in_table = false;
    for (number, line) in page.lines().enumerate() {
        let Some(cells) = cells(line) else {
            in_table = false;
            continue;
        };
        let is_rule = cells.iter().all(|cell| !cell.is_empty() && cell.chars().all(|letter| matches!(letter, '-' | ':')));
        if cells.iter().map(|cell| cell.to_lowercase()).eq(["law", "test", "mutation", "failure seen"]) {
            in_table = true;
        } else if in_table && !is_rule {
            rows.push(row(&cells).context(format_args!("docs/laws.md line {}", number + 1))?);
        }
    }
    if rows.is_empty() { Err(Error::new("docs/laws.md has no table `| law | test | mutation | failure seen |`")) } else { Ok(rows) }
}

fn row(cells: &[String]) -> Result<Row> {
    let [law, test, mutation, _seen] = cells else {
        return Err(Error::new(format!("{} cells and not 4; a | in a cell is written \\|", cells.len())));
    };
    let digits: String = law.chars().skip_while(|letter| !letter.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let law = digits.parse().map_err(|_| Error::new(format!("no law's number: {law:?}")))?;
    Ok(Row { law, test: TestName::parse(test)?, mutation: Mutation::parse(mutation)? })
}

/// The cells of a table's line; `\|` is a plain `|`.
fn cells(line: &str) -> Option<Vec<String>> {
    const BAR: &str = "\u{0}";
    let line = line.trim().replace("\\|", BAR);
    let inner = line.strip_prefix('|')?;
    Some(inner.strip_suffix('|').unwrap_or(inner).split('|').map(|cell| cell.trim().replace(BAR, "|")).collect())
}

/// What became of a row.
enum Fate {
    /// The test failed, and said this.
    Noticed(String),
    Survived,
    Broken(String),
}

/// Runs the rows that were asked for.
pub fn run(options: &Options) -> Result<Verdict> {
    let workspace = Workspace::here()?;
    let page = fs::read_to_string(workspace.root.join("docs/laws.md")).context("cannot read docs/laws.md")?;
    let rows: Vec<Row> = parse(&page)?.into_iter().filter(|row| options.law.is_none_or(|law| law == row.law)).collect();
    if rows.is_empty() {
        return Err(Error::new("docs/laws.md has no row for this law"));
    }
    let lines: Vec<String> = rows.iter().map(|row| format!("{:>3}  {}", row.law, row.test)).collect();
    if options.list {
        let fits: Vec<_> = rows.iter().map(|row| row.mutation.check(&workspace.root)).collect();
        for (line, fit) in lines.iter().zip(&fits) {
            println!("{line}{}", fit.as_ref().map_or_else(|error| format!("\n     BROKEN: {error}"), |()| String::new()));
        }
        return Ok(Verdict::passed_if(fits.iter().all(Result::is_ok)));
    }
    let fates = Mutants::open(&workspace)?.fates(&rows);
    println!("\nlaw  test");
    for (line, fate) in lines.iter().zip(&fates) {
        let said = match fate {
            Fate::Noticed(seen) => format!("noticed: {seen}"),
            Fate::Survived => "SURVIVED: the test passes although the law is broken".into(),
            Fate::Broken(why) => format!("BROKEN ROW: {why}"),
        };
        println!("{line}\n       {said}");
    }
    let noticed = fates.iter().filter(|fate| matches!(fate, Fate::Noticed(_))).count();
    println!("\n{noticed} of {} mutations noticed", fates.len());
    Ok(Verdict::passed_if(noticed == fates.len()))
}

/// The copy of the tree in which the mutations are made, with a build folder of its own so that each costs one
/// incremental build.
struct Mutants {
    source: PathBuf,
    tree: PathBuf,
    workspace: Workspace,
    sandbox: Sandbox,
}

impl Mutants {
    fn open(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("mutants");
        let (tree, build) = (folder.join("tree"), folder.join("build"));
        mirror(&workspace.root, &tree)?;
        let copy = Workspace::at(&tree, &build)?;
        let sandbox = Sandbox::open(&copy)?;
        Ok(Self { source: workspace.root.clone(), tree, workspace: copy, sandbox })
    }

    fn fates(&self, rows: &[Row]) -> Vec<Fate> {
        let mut sound: BTreeMap<&TestName, std::result::Result<(), String>> = BTreeMap::new();
        for row in rows {
            sound.entry(&row.test).or_insert_with(|| {
                println!("\n== {} as it is", row.test);
                self.unmutated(&row.test)
            });
        }
        let fate = |row: &Row| {
            if let Some(Err(why)) = sound.get(&row.test) {
                return Fate::Broken(why.clone());
            }
            println!("\n== law {}: {} mutated", row.law, row.test);
            self.mutated(row)
        };
        rows.iter().map(fate).collect()
    }

    fn unmutated(&self, test: &TestName) -> std::result::Result<(), String> {
        let outcome = self.try_test(test).map_err(|error| error.to_string())?;
        match (&outcome.broken, &outcome.counts) {
            (Some(broken), _) => Err(format!("without the mutation: {broken}")),
            (None, counts) if counts.failed > 0 => {
                Err(format!("fails without the mutation: {}", outcome.first_failure().unwrap_or_default()))
            }
            (None, counts) if counts.passed == 0 => Err("no test of this name runs".into()),
            _ => Ok(()),
        }
    }

    fn mutated(&self, row: &Row) -> Fate {
        let outcome = row.mutation.apply(&self.tree).and_then(|()| self.try_test(&row.test));
        // By comparing with the source, which also puts back what an interrupted run left mutated.
        let restored = mirror(&self.source, &self.tree);
        match (outcome, restored) {
            (Err(error), _) | (_, Err(error)) => Fate::Broken(error.to_string()),
            (Ok(outcome), Ok(())) if outcome.counts.failed > 0 => Fate::Noticed(outcome.first_failure().unwrap_or_else(|| "failed".into())),
            (Ok(Outcome { broken: Some(why), .. }), Ok(())) => Fate::Noticed(why),
            (Ok(_), Ok(())) => Fate::Survived,
        }
    }

    /// Builds and runs one test in the tree as it is now. An error means that it did not come to run.
    fn try_test(&self, test: &TestName) -> Result<Outcome> {
        let who = tiers::who(test.tier());
        if who == Who::Root {
            if let Some(reason) = self.sandbox.refusal() {
                return Err(Error::new(reason));
            }
            shell::run(self.workspace.cargo("build").args(["-p", "dunnage"]))?;
        }
        let built = self.workspace.build_tests(&test.selection())?;
        let kind = if matches!(test.target.as_str(), "lib" | "bin") { Kind::Unit } else { Kind::Integration };
        let programs = self.workspace.programs(Profile::Dev)?;
        let mut outcome = Outcome::default();
        // A package may have several binaries; all others find no test of this name.
        for executable in built.iter().filter(|one| one.kind == kind && one.package == test.package) {
            let place = self.sandbox.place(who)?;
            let mut command = self.sandbox.command(&place, &programs, &executable.path, &executable.dir);
            command.args(["--exact", &test.name]);
            outcome = libtest::run(command, Show::Nothing)?;
            // A mutant may well leave things behind; they are cleared and not held against it.
            let (skips, _) = self.sandbox.close(&place);
            if !skips.trim().is_empty() {
                return Err(Error::new(format!("did not run: {}", skips.trim())));
            }
            if outcome.counts.passed + outcome.counts.failed > 0 || outcome.broken.is_some() {
                break;
            }
        }
        Ok(outcome)
    }
}

/// Makes `tree` the same as what git knows of `source`, or would know: uncommitted work is tested, too. Files that are
/// the same are not touched, so that cargo builds only what has changed.
fn mirror(source: &Path, tree: &Path) -> Result<()> {
    let mut git = Command::new("git");
    let listed = shell::output(git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(source))?;
    let wanted: std::collections::BTreeSet<PathBuf> =
        listed.split_terminator('\0').map(PathBuf::from).filter(|file| source.join(file).is_file()).collect();
    for file in &wanted {
        let (from, to) = (source.join(file), tree.join(file));
        let text = fs::read(&from).context(format_args!("cannot read {}", from.display()))?;
        if fs::read(&to).is_ok_and(|there| there == text) {
            continue;
        }
        let folder = to.parent().unwrap_or(tree);
        fs::create_dir_all(folder).context(format_args!("cannot make {}", folder.display()))?;
        fs::copy(&from, &to).context(format_args!("cannot copy {}", from.display()))?;
    }
    let mut there = Vec::new();
    files_below(tree, &mut there)?;
    for path in there {
        if path.strip_prefix(tree).is_ok_and(|file| !wanted.contains(file)) {
            fs::remove_file(&path).context(format_args!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).context(format_args!("cannot read {}", folder.display()))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# Laws

| law | what |
|---|---|
| 1 | another table |

| Law | Test | Mutation | Failure seen |
|:--|---|---|---|
| 5. Never format data | `dunnage-engine::lib::planner::tests::a` | a.rs: `a \\|\\| b` → `a` | asked for mkfs |
| 3 | dunnage-tests::tier2_restart::b | b.rs: `x` → nothing | |
";

    #[test]
    fn rows_are_read_from_the_right_tables_only() {
        let rows = parse(PAGE).unwrap();
        assert_eq!(rows.iter().map(|row| row.law).collect::<Vec<_>>(), [5, 3]);
        assert_eq!(rows[0].test.name, "planner::tests::a");
        assert_eq!(rows[0].mutation, Mutation::parse("a.rs: `a || b` → `a`").unwrap());
    }

    /// A row whose text was changed in the code would be noticed only by whoever replays it next.
    #[test]
    fn every_mutation_of_the_table_fits_the_tree() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let rows = parse(&fs::read_to_string(root.join("docs/laws.md")).unwrap()).unwrap();
        let broken: Vec<_> = rows.iter().filter_map(|row| Some(format!("{}: {}", row.test, row.mutation.check(root).err()?))).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    #[test]
    fn a_row_that_cannot_be_read_is_named_by_its_line() {
        let page = format!("{PAGE}| 4 | no test | a.rs: `a` → `b` | x |\n");
        assert!(parse(&page).unwrap_err().to_string().contains("line 11"));
        let page = format!("{PAGE}| 4 | a::lib::b | a.rs: `a || c` → `b` | x |\n");
        assert!(parse(&page).unwrap_err().to_string().contains("written \\|"));
        assert!(parse("no table").is_err());
    }

    #[test]
    fn only_tier_tests_of_the_tests_package_run_as_root() {
        let who = |cell| tiers::who(TestName::parse(cell).unwrap().tier());
        assert_eq!(who("dunnage-tests::tier2_restart::b"), Who::Root);
        assert_eq!(who("dunnage-tests::lib::b"), Who::Us);
        assert_eq!(who("dunnage-engine::tier2_restart::b"), Who::Us);
    }

    #[test]
    fn cargo_is_asked_for_one_executable() {
        let selection = |cell| TestName::parse(cell).unwrap().selection().join(" ");
        assert_eq!(selection("a::lib::b::c"), "-p a --lib");
        assert_eq!(selection("a::bin::b"), "-p a --bins");
        assert_eq!(selection("a::tier2_x::b"), "-p a --test tier2_x");
        assert!(TestName::parse("a::b").is_err());
    }
}
