//! What was expected beside what came, line by line.

use serde_json::Value;
use std::fmt::Write as _;

/// Panics unless both are equal, and shows where they differ: `-` was expected, `+` came.
#[track_caller]
pub(super) fn assert_same(what: &str, expected: &[String], actual: &[String]) {
    if expected != actual {
        panic!("{what} (- expected, + actual)\n{}", diff(expected, actual));
    }
}

/// Lines of a longest common subsequence unmarked, the others marked.
fn diff(expected: &[String], actual: &[String]) -> String {
    // common[i][j]: lines that expected[i..] and actual[j..] have in common, in order.
    let mut common = vec![vec![0_usize; actual.len() + 1]; expected.len() + 1];
    for i in (0..expected.len()).rev() {
        for j in (0..actual.len()).rev() {
            common[i][j] = if expected[i] == actual[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < expected.len() || j < actual.len() {
        let (mark, line) = match (expected.get(i), actual.get(j)) {
            (Some(line), Some(other)) if line == other => {
                (i, j) = (i + 1, j + 1);
                (' ', line)
            }
            (Some(line), other) if other.is_none() || common[i + 1][j] >= common[i][j + 1] => {
                i += 1;
                ('-', line)
            }
            (_, Some(line)) => {
                j += 1;
                ('+', line)
            }
            (_, None) => unreachable!("the loop ends when both are at their ends"),
        };
        let _ = writeln!(text, "  {mark} {line}");
    }
    if text.is_empty() { "  (nothing)\n".to_owned() } else { text }
}

/// A JSON document as lines to compare: objects with one field a line.
pub(super) fn lines(document: &Value) -> Vec<String> {
    let pretty = serde_json::to_string_pretty(document).unwrap_or_default();
    pretty.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_keeps_what_is_common() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(diff(&lines("a b c"), &lines("a x c d")), "    a\n  - b\n  + x\n    c\n  + d\n");
    }
}
