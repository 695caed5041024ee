//! What Qwen-Image asks the language model about a prompt: a fixed instruction around it, whose own hidden states are
//! dropped. The same ids as diffusers' `QwenImagePipeline` and ComfyUI's `QwenImageTokenizer` make.

use crate::tokenizer::{QwenTokenizer, TokenizerError};

/// What a turn of the conversation begins with. A text that begins with it is a conversation of its own.
const TURN: &str = "<|im_start|>";
const BEFORE: &str = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, \
                      text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";

/// A prompt as the text encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The whole conversation's; at least `drop + 1`.
    pub ids: Vec<u32>,
    /// How many hidden states from the first on condition nothing: the instruction's, 34 with Qwen's vocabulary.
    pub drop: usize,
}

/// The ids of `text` within the template, of which `most` (at least 1) are kept behind those that are dropped. diffusers
/// keeps 1024, ComfyUI all.
///
/// What is dropped is what ComfyUI drops: what stands before the second turn, and `user` with the line's end that opens
/// it. diffusers drops 34 ids always, which is the same unless the prompt begins with an empty line: its end makes one
/// token with the one before it, and the turn's beginning stays.
///
/// # Errors
/// Those of [`QwenTokenizer::encode`].
pub fn prompt_ids(tokenizer: &QwenTokenizer, text: &str, most: usize) -> Result<Prompt, TokenizerError> {
    let mut ids = match text.starts_with(TURN) {
        true => tokenizer.encode(text)?,
        false => tokenizer.encode(&format!("{BEFORE}{text}{AFTER}"))?,
    };
    let drop = dropped(&ids, tokenizer.id(TURN), &tokenizer.encode("user\n")?);
    ids.truncate(drop.saturating_add(most.max(1)));
    Ok(Prompt { ids, drop })
}

/// `user` opens the user's turn.
fn dropped(ids: &[u32], turn: Option<u32>, user: &[u32]) -> usize {
    let turns = ids.iter().enumerate().filter(|(_, id)| Some(**id) == turn).map(|(place, _)| place);
    // Of a conversation of one turn, that one.
    let Some(second) = turns.take(2).last() else { return 0 };
    let opened = second + 1 + user.len();
    let opens = ids.get(second + 1..).is_some_and(|rest| rest.starts_with(user));
    if opens && ids.len() > opened { opened } else { second }
}
