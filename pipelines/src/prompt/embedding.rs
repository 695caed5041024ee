//! `embedding:name` in a segment. Embeddings are not loaded: what is here is where ComfyUI would look for one,
//! and what it tokenises when it finds none.

use super::PromptWarning;

const MARK: &str = "embedding:";

/// Cuts a segment before each `embedding:` that follows white space, takes out the names, and gives the pieces
/// of text that are left, none empty; each is tokenised as a whole.
///
/// These are the rules of ComfyUI's newer versions: 0.3.64 cut after a space or line feed only, and ended a
/// name at a space only, where now any white space, `<` and `[` end it.
pub(super) fn without_embeddings(segment: &str, warnings: &mut Vec<PromptWarning>) -> Vec<String> {
    let pieces = cut(segment).into_iter().filter(|piece| !piece.is_empty());
    let texts = pieces.map(|piece| match piece.strip_prefix(MARK) {
        None => piece.to_owned(),
        Some(rest) => {
            let (name, rest) = split_name(rest);
            warnings.push(PromptWarning::EmbeddingIgnored { name });
            rest
        }
    });
    texts.filter(|text| !text.is_empty()).collect()
}

fn cut(segment: &str) -> Vec<&str> {
    let marks = segment.match_indices(MARK).map(|(at, _)| at);
    let cuts = marks.filter(|&at| segment[..at].chars().next_back().is_some_and(is_python_space));
    let mut pieces = Vec::new();
    let mut from = 0;
    for at in cuts {
        pieces.push(&segment[from..at]);
        from = at;
    }
    pieces.push(&segment[from..]);
    pieces
}

/// The name, and the text after it that remains.
fn split_name(text: &str) -> (String, String) {
    let mut words = text.split(is_python_space).filter(|word| !word.is_empty());
    let name = words.next().unwrap_or_default();
    let mut rest = words.collect::<Vec<_>>().join(" ");
    let (name, tail) = name.split_at(name.find(['<', '[']).unwrap_or(name.len()));
    if !tail.is_empty() {
        rest = if rest.is_empty() { tail.to_owned() } else { format!("{tail} {rest}") };
    }
    // A name that is not found is looked for without its commas, and as many characters as these are taken
    // from the end: the commas, where they were at the end.
    let bare = name.trim_matches(',');
    if bare.len() < name.len() {
        let commas: String = name.chars().skip(bare.chars().count()).collect();
        rest = format!("{commas} {rest}");
    }
    (name.to_owned(), rest)
}

/// What Python's `str.isspace` and `\s` take for white space.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of text and the names taken out.
    fn read(segment: &str) -> (Vec<String>, Vec<String>) {
        let mut warnings = Vec::new();
        let texts = without_embeddings(segment, &mut warnings);
        let names = warnings.into_iter().map(|PromptWarning::EmbeddingIgnored { name }| name);
        (texts, names.collect())
    }

    #[test]
    fn a_name_is_taken_out_and_the_text_around_it_stays() {
        let cases: [(&str, &[&str], &[&str]); 14] = [
            ("a cat", &["a cat"], &[]),
            ("embedding:bad a cat", &["a cat"], &["bad"]),
            ("a cat embedding:bad", &["a cat "], &["bad"]),
            ("a embedding:x b embedding:y", &["a ", "b"], &["x", "y"]),
            ("a\tembedding:x\tb", &["a\t", "b"], &["x"]),
            ("a,embedding:x", &["a,embedding:x"], &[]),
            ("embedding:x, a", &[", a"], &["x,"]),
            ("embedding:,x, a", &["x, a"], &[",x,"]),
            ("embedding:x<lora> b", &["<lora> b"], &["x"]),
            ("embedding:x[0.5]", &["[0.5]"], &["x"]),
            ("embedding:", &[], &[""]),
            ("embedding: \n x  y", &["y"], &["x"]),
            ("embedding:embedding:x", &[], &["embedding:x"]),
            ("Embedding:x", &["Embedding:x"], &[]),
        ];
        for (segment, texts, names) in cases {
            let found = read(segment);
            assert_eq!(found.0, texts, "texts of {segment:?}");
            assert_eq!(found.1, names, "names of {segment:?}");
        }
    }
}
