//! YAML text as a tree of nodes that know where they stand.
//!
//! It is built from the parser's events and not by serde, because scalars must keep their source text (`mode: 0755` is
//! octal, `16` is a size, `5%` a share), every key its place, and a second key of one name must be seen. What YAML has
//! beyond maps, lists and scalars is refused: without aliases there is no bomb to defuse.

use std::collections::BTreeMap;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::flaws::{At, Flaws, below, item, quoted};

/// How deep maps and lists may stand in each other; the deepest key that we know is at 5.
const MAX_DEPTH: usize = 32;

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub at: At,
    pub value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// `key:` with nothing behind it, `~`, `null`.
    Nothing,
    /// A word, a number, a text: as it was written.
    Scalar {
        text: String,
        /// Without quotes: only then is `true` a truth and not a text.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Something that was refused and told already; reading it adds no second flaw.
    Refused,
}

impl Value {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nothing => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
            Value::Refused => "something else",
        }
    }
}

/// One key of a map.
#[derive(Debug)]
pub(super) struct Entry {
    pub at: At,
    pub key: String,
    pub node: Node,
}

/// The tree of a text; `None` when it is empty, or cannot be read (`flaws` has why).
pub(super) fn parse(text: &str, flaws: &mut Flaws) -> Option<Node> {
    let mut options = granit_parser::options! {
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    options.set_emit_comments(false);
    let mut builder = Builder { events: Parser::new_from_str_with_options(text, options), flaws };
    match builder.document() {
        Ok(node) => node,
        Err(stop) => {
            let at = place(stop.marker());
            let why = match stop.info() {
                info if info.is_empty() => "this is not YAML".to_owned(),
                info => format!("this is not YAML: {info}"),
            };
            flaws.add(at, "config", why, advice(text, at));
            None
        }
    }
}

/// What to do about text that is no YAML. Tabs are the usual reason, and the hardest to see.
fn advice(text: &str, at: At) -> String {
    let tabbed = |line: usize| {
        text.lines().nth(line.wrapping_sub(1)).is_some_and(|l| l.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t'))
    };
    // The parser sometimes notices only where the next line begins.
    match [at.line, at.line.wrapping_sub(1)].into_iter().find(|line| tabbed(*line)) {
        Some(line) => format!("line {line} is indented with a tab, and YAML wants spaces"),
        None => "look at the brackets, quotes and indentation here and just above".to_owned(),
    }
}

fn place(marker: &granit_parser::Marker) -> At {
    At { line: marker.line(), column: marker.col() + 1 }
}

struct Builder<'t, 'f> {
    events: Parser<'t, StrInput<'t>>,
    flaws: &'f mut Flaws,
}

impl<'t> Builder<'t, '_> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, ScanError> {
        self.events.next_event().transpose()
    }

    /// The one document of the text.
    fn document(&mut self) -> Result<Option<Node>, ScanError> {
        let mut root = None;
        let mut documents = 0;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents == 2 {
                        self.flaws.add(place(&span.start), "config", "a second YAML document begins here", "keep to one: remove the '---'");
                        return Ok(None);
                    }
                }
                Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
                event => root = Some(self.node(event, span, "")?),
            }
        }
        Ok(root)
    }

    /// The node that begins with `event`. The parser bounds how deep this goes.
    fn node(&mut self, event: Event<'t>, span: Span, path: &str) -> Result<Node, ScanError> {
        let at = place(&span.start);
        self.refuse_extras(&event, at, path);
        let value = match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                if plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
                    Value::Nothing
                } else {
                    Value::Scalar { text: text.into_owned(), plain }
                }
            }
            Event::SequenceStart(..) => self.list(path)?,
            Event::MappingStart(..) => self.map(path)?,
            _ => {
                self.flaws.add(at, path, "aliases (*name) are not read here", "write the value out");
                Value::Refused
            }
        };
        Ok(Node { at, value })
    }

    /// Anchors and tags would change what a value means to other readers and not to us.
    fn refuse_extras(&mut self, event: &Event<'t>, at: At, path: &str) {
        if event.anchor_id().is_some() {
            self.flaws.add(at, path, "anchors (&name) are not read here", "write the value out wherever it is needed");
        }
        if let Some(tag) = event.tag() {
            let what = format!("the tag {} is not read here", quoted(&tag.original()));
            self.flaws.add(at, path, what, "leave it out: each key knows what it wants");
        }
    }

    fn list(&mut self, path: &str) -> Result<Value, ScanError> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.node(event, span, &item(path, items.len()))?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, path: &str) -> Result<Value, ScanError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: BTreeMap<String, At> = BTreeMap::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::MappingEnd {
                break;
            }
            let at = place(&span.start);
            // A key keeps its text, whatever it would be as a value: a driver may be called `null`.
            let key = if let Event::Scalar(text, ..) = &event {
                self.refuse_extras(&event, at, path);
                Some(text.clone().into_owned()).filter(|key| !key.is_empty())
            } else {
                self.node(event, span, path)?;
                None
            };
            let Some((event, span)) = self.next()? else { break };
            let inner = below(path, key.as_deref().unwrap_or("?"));
            let node = self.node(event, span, &inner)?;
            let Some(key) = key else {
                self.flaws.add(at, path, "a key must be a word", "write it as 'key: value'");
                continue;
            };
            if let Some(first) = places.get(&key) {
                let what = format!("key {} is given twice, first on line {}", quoted(&key), first.line);
                self.flaws.add(at, &inner, what, "keep one of the two");
                continue;
            }
            places.insert(key.clone(), at);
            entries.push(Entry { at, key, node });
        }
        Ok(Value::Map(entries))
    }
}
