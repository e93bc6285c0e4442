//! Suggestions for mistyped words.

/// The least similarity (Jaro) at which a word is suggested.
const ALIKE: f64 = 0.75;

/// Returns the candidate most similar to `word`, if it is similar enough.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_ascii_lowercase();
    let rated = candidates
        .into_iter()
        .map(|candidate| (strsim::jaro(&word, candidate), candidate));
    let best = rated.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (best.0 > ALIKE).then_some(best.1)
}

/// Returns `; did you mean "login"?`, or nothing.
pub fn did_you_mean<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    nearest(word, candidates).map_or(String::new(), |meant| format!("; did you mean {meant:?}?"))
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_typing_error_has_its_word_and_another_word_has_none() {
        let words = ["listen", "login", "data", "partitions"];
        for (typed, meant) in [
            ("listn", Some("listen")),
            ("logn", Some("login")),
            ("Login", Some("login")),
            ("partition", Some("partitions")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, words), meant, "{typed}");
        }
    }
}
