//! "Did you mean": the nearest right word to a wrong one.

/// The candidate most like `word`, or nothing if none is close enough to be a likely slip of the hand.
///
/// Letter case does not count; two edits in a short word and three in a long one are still a slip.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None; // no slip of a hand, and slow to compare
    }
    let word = word.to_lowercase();
    let reach = if word.len() <= 4 { 1 } else { 1 + word.len() / 4 };
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word, &c.to_lowercase()), c))
        .filter(|(distance, _)| *distance <= reach)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_of_the_hand_finds_the_right_word_and_nonsense_finds_none() {
        assert_eq!(nearest("siez", ["size", "fs"]), Some("size"));
        assert_eq!(nearest("LABEL", ["size", "labels"]), Some("labels"));
        assert_eq!(nearest("zzzzzz", ["size", "labels"]), None);
    }
}
