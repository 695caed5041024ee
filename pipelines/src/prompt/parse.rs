//! The prompt syntax: weights in parentheses.
//!
//! The rules (`parse_parentheses` and `token_weights` in ComfyUI's `sd1_clip.py`):
//! - `\(` and `\)` are plain parentheses.
//! - `(text)` has 1.1 times the weight around it, `(text:w)` the weight w whatever is around it, if Python's
//!   `float()` can read what follows the last colon and the colon is not the first character. Groups nest.
//! - A `)` too many is plain text, and takes the next `(` with it. From a `(` that is never closed on, all is
//!   one plain text, unless it ends with `)`: then it is read as a group that this last `)` closes.
//!
//! ComfyUI reads each level again, recursively. Here parentheses are paired once and groups wait on a stack of
//! our own, so time is linear and depth costs only memory.

use std::collections::VecDeque;

use super::float::python_float;
use super::{PromptError, PromptLimits};

/// What stands for `\)` and `\(` while parentheses are read; ComfyUI's choice, seen if a prompt contains it.
const HIDDEN_CLOSE: &str = "\0\u{1}";
const HIDDEN_OPEN: &str = "\0\u{2}";
/// How much of a segment an error shows, in characters.
const SHOWN: usize = 60;

/// A piece of a prompt with one weight. The text is as written, without the syntax.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Never empty; tokenised as a whole, so that its tokens do not depend on its neighbours.
    pub text: String,
    /// 1.0 is neutral. May be anything that Python's `float()` gives: see [`check_weights`].
    pub weight: f64,
}

/// Refuses a text that is too long, whatever reads it.
///
/// # Errors
/// [`PromptError::TooLong`] beyond `limits.characters`.
pub fn check_length(text: &str, limits: &PromptLimits) -> Result<(), PromptError> {
    // A text has no more characters than bytes.
    if text.len() > limits.characters {
        let characters = text.chars().count();
        if characters > limits.characters {
            return Err(PromptError::TooLong { characters, limit: limits.characters });
        }
    }
    Ok(())
}

/// Reads a prompt into its weighted pieces, in order; an empty prompt has none. Every text is a valid prompt.
///
/// # Errors
/// [`PromptError::TooLong`] beyond `limits.characters`.
pub fn parse(text: &str, limits: &PromptLimits) -> Result<Vec<Segment>, PromptError> {
    check_length(text, limits)?;
    let hidden = text.replace("\\)", HIDDEN_CLOSE).replace("\\(", HIDDEN_OPEN);
    let (partners, unclosed) = pair_parentheses(hidden.as_bytes());
    let mut parser = Parser { text: &hidden, partners, segments: Vec::new() };
    parser.read(unclosed);
    Ok(parser.segments)
}

/// Refuses weights that are not finite in `f32`, the type that text encoders compute in. ComfyUI accepts them
/// (`(a:inf)`, `(a:nan)`, or 1.1 multiplied some thousand times) and draws a picture of NaN.
///
/// # Errors
/// [`PromptError::Weight`] names the first such segment.
pub fn check_weights(segments: &[Segment]) -> Result<(), PromptError> {
    match segments.iter().find(|segment| !(segment.weight as f32).is_finite()) {
        None => Ok(()),
        Some(Segment { text, weight }) => {
            let mut shown: String = text.chars().take(SHOWN).collect();
            if shown.len() < text.len() {
                shown.push('…');
            }
            Err(PromptError::Weight { text: shown, weight: *weight })
        }
    }
}

/// For each byte that is a parenthesis of a group, the byte index of its partner; and the opening parentheses
/// that are never closed. A `)` too many and the `(` that it takes with it are in neither.
fn pair_parentheses(text: &[u8]) -> (Vec<Option<usize>>, VecDeque<usize>) {
    let mut partners = vec![None; text.len()];
    let mut open = Vec::new();
    let mut too_many = 0_usize;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'(' if too_many > 0 => too_many -= 1,
            b'(' => open.push(at),
            b')' => match open.pop() {
                Some(partner) => {
                    partners[partner] = Some(at);
                    partners[at] = Some(partner);
                }
                None => too_many += 1,
            },
            _ => {}
        }
    }
    (partners, open.into())
}

struct Parser<'a> {
    text: &'a str,
    partners: Vec<Option<usize>>,
    segments: Vec<Segment>,
}

impl Parser<'_> {
    /// Reads the whole text. Between unclosed parentheses all groups are complete. At an unclosed one, if the
    /// text ends with `)`, the two make a group whose inside is again such a text: the `(` that lost its `)`
    /// is now unclosed, and the last one, for it is further right than all the others.
    fn read(&mut self, mut unclosed: VecDeque<usize>) {
        let (mut from, mut to, mut weight) = (0, self.text.len(), 1.0);
        while let Some(open) = unclosed.pop_front() {
            self.read_groups(from, open, weight);
            // The partner is none where the last byte is no `)`, or is the unclosed `(` itself.
            let closing = to.checked_sub(1).filter(|&last| self.text.as_bytes()[last] == b')');
            let Some((last, robbed)) = closing.and_then(|last| Some((last, self.partners[last]?))) else {
                self.push(open, to, weight);
                return;
            };
            unclosed.push_back(robbed);
            (to, weight) = self.weigh(open + 1, last, weight);
            from = open + 1;
        }
        self.read_groups(from, to, weight);
    }

    /// Reads a stretch in which every group is complete.
    fn read_groups(&mut self, from: usize, to: usize, weight: f64) {
        let mut waiting = vec![(from, to, weight)];
        while let Some((from, to, weight)) = waiting.pop() {
            let opens = |at: usize| match self.partners[at] {
                Some(close) if close > at => Some((at, close)),
                _ => None,
            };
            let Some((open, close)) = (from..to).find_map(opens) else {
                self.push(from, to, weight);
                continue;
            };
            self.push(from, open, weight);
            let (end, inside) = self.weigh(open + 1, close, weight);
            waiting.push((close + 1, to, weight));
            waiting.push((open + 1, end, inside));
        }
    }

    /// Where the text of a group ends, without its `:weight`, and the weight it gets.
    fn weigh(&self, from: usize, to: usize, around: f64) -> (usize, f64) {
        let inside = &self.text.as_bytes()[from..to];
        // A parenthesis is in no number, so only what follows the last one can be a weight; looking no further
        // back keeps the time linear.
        let colon = inside.iter().rposition(|byte| matches!(byte, b':' | b'(' | b')'));
        if let Some(colon) = colon.filter(|&at| at > 0 && inside[at] == b':')
            && let Some(weight) = python_float(&self.text[from + colon + 1..to])
        {
            return (from + colon, weight);
        }
        (to, around * 1.1)
    }

    fn push(&mut self, from: usize, to: usize, weight: f64) {
        if from < to {
            let text = self.text[from..to].replace(HIDDEN_CLOSE, ")").replace(HIDDEN_OPEN, "(");
            self.segments.push(Segment { text, weight });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rules as they are told, level by level; quadratic, and only as deep as the stack.
    fn level_by_level(text: &str, weight: f64, segments: &mut Vec<(String, f64)>) {
        for item in items(text) {
            let Some(mut inside) = item.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else {
                segments.push((item.replace(HIDDEN_CLOSE, ")").replace(HIDDEN_OPEN, "("), weight));
                continue;
            };
            let mut inner_weight = weight * 1.1;
            if let Some(colon) = inside.rfind(':').filter(|&at| at > 0)
                && let Some(number) = python_float(&inside[colon + 1..])
            {
                (inside, inner_weight) = (&inside[..colon], number);
            }
            level_by_level(inside, inner_weight, segments);
        }
    }

    fn items(text: &str) -> Vec<&str> {
        let (mut items, mut depth, mut start) = (Vec::new(), 0, 0);
        for (at, byte) in text.bytes().enumerate() {
            if byte == b'(' {
                if depth == 0 {
                    items.push(&text[start..at]);
                    start = at;
                }
                depth += 1;
            } else if byte == b')' {
                depth -= 1;
                if depth == 0 {
                    items.push(&text[start..=at]);
                    start = at + 1;
                }
            }
        }
        items.push(&text[start..]);
        items.retain(|item| !item.is_empty());
        items
    }

    fn assert_read_as_told(text: &str) -> Result<(), TestCaseError> {
        let hidden = text.replace("\\)", HIDDEN_CLOSE).replace("\\(", HIDDEN_OPEN);
        let mut told = Vec::new();
        level_by_level(&hidden, 1.0, &mut told);
        let read = parse(text, &PromptLimits { characters: usize::MAX, chunks: 1 }).unwrap();
        let bits = |weight: f64| if weight.is_nan() { f64::NAN.to_bits() } else { weight.to_bits() };
        let read: Vec<_> = read.into_iter().map(|s| (s.text, bits(s.weight))).collect();
        let told: Vec<_> = told.into_iter().map(|(text, weight)| (text, bits(weight))).collect();
        prop_assert_eq!(read, told, "{:?}", text);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn one_pass_reads_what_level_by_level_reading_reads(text in r"[()(): a1.\\]{0,40}") {
            assert_read_as_told(&text)?;
        }

        #[test]
        fn groups_with_weights_are_read_alike(
            pieces in prop::collection::vec(
                prop::sample::select(vec!["(", "(", ")", ")", ":1.5)", ":nan)", ":-2", ":", "é", "b c", "\\(", "\\)", "\0\u{1}"]),
                0..30,
            ),
        ) {
            assert_read_as_told(&pieces.concat())?;
        }

        #[test]
        fn any_text_is_a_prompt(text in any::<String>()) {
            assert_read_as_told(&text)?;
        }
    }
}
