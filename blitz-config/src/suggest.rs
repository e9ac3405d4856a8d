//! "Did you mean": the known word nearest to an unknown one.
//!
//! Owns: the distance and what counts as near. Does not own: which words are known.
#![forbid(unsafe_code)]

/// Words longer than this (bytes) are not compared: the distance is quadratic, and no key is as long.
const WORD_BYTES_MAX: usize = 64;

/// The known word that `word` was most likely meant to be, if one is near enough.
///
/// Near: equal but for case and `-` for `_`, or the known word with a unit that was left off
/// (`keep_alive` for `keep_alive_ms`), or at most a third of the letters wrong.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.is_empty() || word.len() > WORD_BYTES_MAX {
        return None;
    }
    let word = fold(word);
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        let folded = fold(candidate);
        let distance = if folded == word {
            0
        } else if word.len() >= 4
            && folded.strip_prefix(word.as_str()).is_some_and(|rest| rest.starts_with('_'))
        {
            1
        } else {
            edits(word.as_bytes(), folded.as_bytes())
        };
        let limit = (word.len().max(folded.len()) / 3).max(1);
        if distance <= limit && best.is_none_or(|(shortest, _)| distance < shortest) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

fn fold(word: &str) -> String {
    word.to_ascii_lowercase().replace('-', "_")
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`: the restricted
/// Damerau-Levenshtein distance, three rows at a time.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous_a = None;
    for (row, &from) in a.iter().enumerate() {
        let mut current = Vec::with_capacity(b.len() + 1);
        let mut left = row + 1;
        current.push(left);
        let mut previous_b = None;
        for (column, (&to, pair)) in b.iter().zip(last.windows(2)).enumerate() {
            let &[diagonal, above] = pair else { break };
            let mut cost = (diagonal + usize::from(from != to)).min(above + 1).min(left + 1);
            if previous_a == Some(to)
                && previous_b == Some(from)
                && let Some(&swapped) = column.checked_sub(1).and_then(|column| before_last.get(column))
            {
                cost = cost.min(swapped + 1);
            }
            current.push(cost);
            left = cost;
            previous_b = Some(to);
        }
        previous_a = Some(from);
        before_last = std::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{edits, nearest};

    #[test]
    fn counts_edits() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("adress", "address", 1),
            ("upstraem", "upstream", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(a.as_bytes(), b.as_bytes()), distance, "{a} to {b}");
        }
    }

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["address", "weight", "keep_alive_ms"];
        assert_eq!(nearest("adress", known), Some("address"));
        assert_eq!(nearest("Address", known), Some("address"));
        assert_eq!(nearest("keep-alive-ms", known), Some("keep_alive_ms"));
        assert_eq!(nearest("keep_alive", known), Some("keep_alive_ms"));
        assert_eq!(nearest("banana", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"a".repeat(1000), known), None);
    }
}
