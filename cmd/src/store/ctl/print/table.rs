//! Tables of box-drawing lines: headings in the middle, cells to the right.

use super::{Answer, file_rows, hash_rows, health_rows, member_rows, status_rows};

const MEMBERS: &[&str] = &["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
const HEALTH: &[&str] = &["ENDPOINT", "HEALTH", "TOOK", "ERROR"];
const FILE: &[&str] = &["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"];
const HASHES: &[&str] = &["ENDPOINT", "HASH"];
const STATUS: &[&str] = &[
    "ENDPOINT",
    "ID",
    "VERSION",
    "DB SIZE",
    "IS LEADER",
    "IS LEARNER",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "ERRORS",
];

/// `None` for what is no list.
pub fn text(answer: &Answer<'_>) -> Option<String> {
    let (headings, rows) = match answer {
        Answer::MemberList(answer) => (MEMBERS, member_rows(answer)),
        Answer::Health(list) => (HEALTH, health_rows(list)),
        Answer::Status(list) => (STATUS, status_rows(list)),
        Answer::HashKv(list) => (HASHES, hash_rows(list)),
        Answer::File(status) => (FILE, file_rows(status)),
        _ => return None,
    };
    Some(draw(headings, &rows))
}

pub(super) fn draw(headings: &[&str], rows: &[Vec<String>]) -> String {
    let length = |text: &str| text.chars().count();
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(at, heading)| rows.iter().map(|row| length(&row[at])).fold(length(heading), usize::max))
        .collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", parts.join(middle))
    };
    let line = |cells: Vec<String>| format!("│{}│\n", cells.join("│"));
    let heading = |(text, width): (&&str, &usize)| format!(" {text:^width$} ");
    let mut text = rule("┌", "┬", "┐");
    text += &line(headings.iter().zip(&widths).map(heading).collect());
    text += &rule("├", "┼", "┤");
    for row in rows {
        text += &line(row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:>width$} ")).collect());
    }
    text + &rule("└", "┴", "┘")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = [vec!["127.0.0.1:1".to_owned(), "7".to_owned()]];
        let want = "┌─────────────┬──────┐\n│  ENDPOINT   │ HASH │\n├─────────────┼──────┤\n│ 127.0.0.1:1 │    7 │\n└─────────────┴──────┘\n";
        assert_eq!(draw(HASHES, &rows), want);
    }
}
