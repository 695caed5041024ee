//! `embedding:name` in a segment: where ComfyUI looks for one, and what it tokenises beside it.

use std::fmt::Debug;
use std::sync::Arc;

use darkroom_models::clip::Embedding;

use super::PromptWarning;

/// What an embedding's name follows.
pub const EMBEDDING_MARK: &str = "embedding:";

/// Where embeddings come from. Names are what prompts say: whoever looks them up is to check them.
pub trait EmbeddingSource: Debug + Send + Sync {
    /// The embedding of this name; `None` where there is none.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn find(&self, name: &str) -> Result<Option<Arc<Embedding>>, String>;
}

/// What embeddings are to one text encoder.
#[derive(Debug, Clone, Copy)]
pub struct EncoderEmbeddings<'a> {
    /// Where they come from; `None`: there are none.
    pub source: Option<&'a dyn EmbeddingSource>,
    /// ComfyUI's name of the encoder: `clip_l`, `clip_g`.
    pub key: &'static str,
    /// Its width. Vectors of another are left out.
    pub width: usize,
}

impl EncoderEmbeddings<'_> {
    /// Every embedding is unknown.
    pub const NONE: EncoderEmbeddings<'static> = EncoderEmbeddings { source: None, key: "", width: 0 };

    fn find(&self, name: &str, warnings: &mut Vec<PromptWarning>) -> Option<Arc<Embedding>> {
        match self.source?.find(name) {
            Ok(found) => found,
            Err(reason) => {
                warnings.push(PromptWarning::EmbeddingUnreadable { name: name.to_owned(), reason });
                None
            }
        }
    }
}

/// A piece of a segment: a group of tokens of its own.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    /// An embedding's name, for warnings, and its vectors.
    Vectors(String, Vec<Arc<[f32]>>),
}

/// Cuts a segment before each `embedding:` that follows white space, finds the embeddings, and gives the pieces, none
/// empty; each text is tokenised as a whole.
///
/// These are the rules of ComfyUI's newer versions: 0.3.64 cut after a space or line feed only, and ended a
/// name at a space only, where now any white space, `<` and `[` end it.
pub(super) fn pieces(
    segment: &str,
    embeddings: &EncoderEmbeddings<'_>,
    warnings: &mut Vec<PromptWarning>,
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for piece in cut(segment).into_iter().filter(|piece| !piece.is_empty()) {
        let Some(rest) = piece.strip_prefix(EMBEDDING_MARK) else {
            pieces.push(Piece::Text(piece.to_owned()));
            continue;
        };
        let (name, mut rest) = split_name(rest);
        let before = warnings.len();
        let mut found = embeddings.find(name, warnings);
        // A name that is not found is looked for without its commas, and as many characters as these are taken
        // from the end: the commas, where they were at the end.
        let bare = name.trim_matches(',');
        if found.is_none() && bare.len() < name.len() {
            found = embeddings.find(bare, warnings);
            let commas: String = name.chars().skip(bare.chars().count()).collect();
            rest = format!("{commas} {rest}");
        }
        match found {
            Some(found) => pieces.push(Piece::Vectors(bare.to_owned(), found.vectors(embeddings.key))),
            None if warnings.len() == before => {
                warnings.push(PromptWarning::EmbeddingIgnored { name: name.to_owned() });
            }
            None => {}
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest));
        }
    }
    pieces
}

fn cut(segment: &str) -> Vec<&str> {
    let marks = segment.match_indices(EMBEDDING_MARK).map(|(at, _)| at);
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

/// The name, and the text after it.
fn split_name(text: &str) -> (&str, String) {
    let mut words = text.split(is_python_space).filter(|word| !word.is_empty());
    let name = words.next().unwrap_or_default();
    let mut rest = words.collect::<Vec<_>>().join(" ");
    let (name, tail) = name.split_at(name.find(['<', '[']).unwrap_or(name.len()));
    if !tail.is_empty() {
        rest = if rest.is_empty() { tail.to_owned() } else { format!("{tail} {rest}") };
    }
    (name, rest)
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
        let texts = pieces(segment, &EncoderEmbeddings::NONE, &mut warnings);
        let texts = texts.into_iter().map(|piece| match piece {
            Piece::Text(text) => text,
            Piece::Vectors(..) => panic!("there are no embeddings"),
        });
        let names = warnings.into_iter().map(|warning| match warning {
            PromptWarning::EmbeddingIgnored { name } => name,
            other => panic!("{other}"),
        });
        (texts.collect(), names.collect())
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
