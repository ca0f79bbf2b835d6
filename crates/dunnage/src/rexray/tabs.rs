//! Columns out of tabs, as Go's text/tabwriter makes them: a column is as wide as the widest of its cells in lines that
//! follow each other, and two blanks. What comes after a line's last tab belongs to no column.

/// What parts columns.
const PADDING: usize = 2;

/// The text with blanks in place of its tabs.
pub fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    // Of each cell that a tab ends: how wide its column is there.
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut at = 0;
        while at < lines.len() {
            let block = widths.iter().skip(at).take_while(|line| line.len() > column).count();
            let cells = lines.iter().skip(at).take(block).filter_map(|cells| cells.get(column));
            let width = cells.map(|cell| cell.chars().count() + PADDING).max().unwrap_or(0);
            widths.iter_mut().skip(at).take(block).filter_map(|line| line.get_mut(column)).for_each(|w| *w = width);
            at += block.max(1);
        }
    }
    let line = |(cells, widths): (&Vec<&str>, &Vec<usize>)| -> String {
        let mut columns = widths.iter();
        cells.iter().map(|cell| columns.next().map_or((*cell).to_owned(), |width| format!("{cell:width$}"))).collect()
    };
    lines.iter().zip(&widths).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::align;

    #[test]
    fn a_column_is_as_wide_as_its_widest_cell_and_two_blanks() {
        assert_eq!(align("ID\tName\tSize\nvol-1\tpg\t16\n"), "ID     Name  Size\nvol-1  pg    16\n");
    }

    #[test]
    fn a_line_without_a_tab_ends_a_column() {
        assert_eq!(align("a\tb\nnothing\nlonger\tb"), "a  b\nnothing\nlonger  b");
    }

    #[test]
    fn an_empty_last_column_leaves_no_text_but_keeps_the_blanks_before_it() {
        assert_eq!(align("Size\tPath\n16\t\n"), "Size  Path\n16    \n");
    }
}
