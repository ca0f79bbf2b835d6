//! How answers are printed: tables for people, JSON and YAML for programs.

use comfy_table::{ContentArrangement, Table, presets};
use dunnage_model::{Error, Result};
use serde::Serialize;

use crate::cli::Format;

/// Prints a value as JSON or YAML, or as the table that `table` makes.
pub fn print<T: Serialize>(value: &T, format: Format, table: impl FnOnce(&T) -> String) -> Result<()> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => {
            let json = serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("cannot print JSON: {e}")))?;
            json + "\n"
        }
        Format::Yaml => {
            // By way of JSON, so that both show the same.
            let json = serde_json::to_value(value).map_err(|e| Error::internal(format!("cannot print YAML: {e}")))?;
            serde_saphyr::to_string(&json).map_err(|e| Error::internal(format!("cannot print YAML: {e}")))?
        }
    };
    print!("{text}");
    Ok(())
}

/// A plain table: columns apart by spaces, nothing else.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// `key: value` lines, the values in one column.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    rows.iter().map(|(key, value)| format!("{key:width$}  {value}\n")).collect()
}
