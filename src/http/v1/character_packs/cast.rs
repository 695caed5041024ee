//! Who is in the pictures: a LoRA of the catalog with the words that call it, a description, and the name under which
//! the expression bank keeps the character.

use sha2::{Digest, Sha256};

use crate::http::error::ApiError;
use crate::http::guides::{Guides, LoraRequest, lora_strength};
use crate::http::words::join;
use crate::task::LoraSpec;

/// Longest name of a character, characters.
const NAME_CHARACTERS: usize = 128;

/// What a request says of its character.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CastRequest<'a> {
    /// `character_lora_id`.
    pub(super) lora: Option<&'a str>,
    /// `lora_strength`.
    pub(super) strength: Option<f64>,
    /// `character_id`.
    pub(super) name: Option<&'a str>,
    /// `character_prompt`.
    pub(super) prompt: Option<&'a str>,
    /// `loras`.
    pub(super) more: &'a [LoraRequest],
}

/// A character that can be drawn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cast {
    /// What the expression bank calls it.
    pub(super) name: String,
    /// Trigger words and description; empty for a LoRA without words.
    pub(super) prompt: String,
    /// The character's LoRA, then the others.
    pub(super) loras: Vec<LoraSpec>,
    /// The revisions of their files.
    pub(super) revisions: Vec<u64>,
}

impl Cast {
    /// Finds the character's LoRA and puts its words before the description.
    pub(super) fn new(guides: &Guides<'_>, request: CastRequest<'_>) -> Result<Self, ApiError> {
        let filled =
            |text: Option<&'_ str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let (lora, description) = (filled(request.lora), filled(request.prompt).unwrap_or_default());
        let mut words = Vec::new();
        let mut all = Vec::new();
        match &lora {
            Some(id) => {
                let found = guides.lora("character_lora_id", id).map_err(named_only)?;
                words = found.trigger_words;
                let strength = request.strength;
                lora_strength("lora_strength", strength.unwrap_or(1.0))?;
                all.push(LoraRequest { id: found.id, strength, text_strength: None });
            }
            None if request.strength.is_some() => {
                return Err(ApiError::invalid("lora_strength", "means nothing without character_lora_id"));
            }
            None => {}
        }
        let own = all.len();
        all.extend_from_slice(request.more);
        let loras = guides.loras("loras", &all).map_err(|error| renumbered(error, own))?;
        let described = description.to_lowercase();
        words.retain(|word| !described.contains(&word.to_lowercase()));
        let words: Vec<&str> = words.iter().map(String::as_str).chain([description.as_str()]).collect();
        let prompt = join(&words);
        let name = match filled(request.name) {
            Some(name) => checked_name(name)?,
            None => loras.first().filter(|_| own > 0).map_or_else(
                || hex::encode(&Sha256::digest(prompt.as_bytes())[..8]),
                |lora| lora.lora.clone(),
            ),
        };
        let revisions = guides.lora_revisions(&loras);
        Ok(Self { name, prompt, loras, revisions })
    }

    /// The same, where there must be something to tell who it is.
    pub(super) fn of_someone(guides: &Guides<'_>, request: CastRequest<'_>) -> Result<Self, ApiError> {
        let cast = Self::new(guides, request)?;
        if cast.prompt.is_empty() && cast.loras.is_empty() {
            return Err(ApiError::invalid("character_prompt", "is missing").hint(
                "describe the character, or name its LoRA in character_lora_id: GET /v1/loras lists them",
            ));
        }
        Ok(cast)
    }
}

fn checked_name(name: String) -> Result<String, ApiError> {
    if name.chars().count() > NAME_CHARACTERS || name.chars().any(char::is_control) {
        let message = format!("must be 1 to {NAME_CHARACTERS} characters on one line");
        return Err(ApiError::invalid("character_id", message));
    }
    Ok(name)
}

/// A LoRA that is not there may have been meant as a name.
fn named_only(error: ApiError) -> ApiError {
    if error.status().as_u16() != 404 {
        return error;
    }
    let hint = error.detail().hint.clone().unwrap_or_default();
    error.hint(format!("{hint}. A character without a LoRA is named by character_id"))
}

/// The client's own list does not have the character's LoRA at its head.
fn renumbered(error: ApiError, own: usize) -> ApiError {
    let Some(field) = error.detail().field.clone() else { return error };
    let place = field.strip_prefix("loras[").and_then(|rest| rest.split_once(']'));
    let Some((index, rest)) = place.and_then(|(index, rest)| Some((index.parse::<usize>().ok()?, rest)))
    else {
        return error;
    };
    match index.checked_sub(own) {
        Some(index) => error.renamed(&[(&field, &format!("loras[{index}]{rest}"))]),
        None => error.renamed(&[(&field, "character_lora_id")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::http::guides::testing::{TestShelf, fit, loras};

    fn cast(request: CastRequest<'_>) -> Result<Cast, ApiError> {
        let (shelf, config) = (TestShelf(loras()), Config::default());
        Cast::of_someone(&Guides::new(&shelf, &config, fit()), request)
    }

    fn field(request: CastRequest<'_>) -> (u16, String) {
        let error = cast(request).unwrap_err();
        (error.status().as_u16(), error.detail().field.clone().unwrap())
    }

    #[test]
    fn a_lora_brings_its_words_and_its_name() {
        let only = cast(CastRequest { lora: Some("mia"), ..Default::default() }).unwrap();
        assert_eq!((only.name.as_str(), only.prompt.as_str()), ("mia", "mia_v2"));
        assert_eq!(only.loras, [LoraSpec { lora: "mia".into(), strength: 1.0, text_strength: 1.0 }]);
        let both = cast(CastRequest {
            lora: Some("mia"),
            prompt: Some("1girl, Mia_v2, red hair"),
            ..Default::default()
        });
        assert_eq!(both.unwrap().prompt, "1girl, Mia_v2, red hair");
        let strength = CastRequest { lora: Some("mia"), strength: Some(0.6), ..Default::default() };
        assert_eq!(cast(strength).unwrap().loras[0].text_strength, 0.6);
    }

    #[test]
    fn a_description_alone_is_named_by_itself_or_by_character_id() {
        let named =
            cast(CastRequest { name: Some("tom"), prompt: Some("1boy"), ..Default::default() }).unwrap();
        assert_eq!((named.name.as_str(), named.loras.len()), ("tom", 0));
        let unnamed = |prompt| cast(CastRequest { prompt: Some(prompt), ..Default::default() }).unwrap().name;
        assert_eq!(unnamed("1boy"), unnamed("1boy"));
        assert_ne!(unnamed("1boy"), unnamed("1girl"));
    }

    #[test]
    fn a_lora_that_is_not_there_is_404_and_told_how_to_name_a_character() {
        let error =
            cast(CastRequest { lora: Some("zoe"), prompt: Some("1girl"), ..Default::default() }).unwrap_err();
        assert_eq!(
            (error.status().as_u16(), error.detail().field.as_deref()),
            (404, Some("character_lora_id"))
        );
        let hint = error.detail().hint.as_deref().unwrap();
        assert!(hint.contains("GET /v1/loras") && hint.contains("character_id"), "{hint}");
    }

    #[test]
    fn a_wrong_character_names_its_field() {
        let none = CastRequest::default();
        assert_eq!(field(none), (422, "character_prompt".into()));
        assert_eq!(field(CastRequest { lora: Some("old"), ..none }), (422, "character_lora_id".into()));
        assert_eq!(
            field(CastRequest { lora: Some("mia"), strength: Some(f64::NAN), ..none }).1,
            "lora_strength"
        );
        assert_eq!(field(CastRequest { strength: Some(1.0), prompt: Some("x"), ..none }).1, "lora_strength");
        assert_eq!(field(CastRequest { name: Some("a\nb"), prompt: Some("x"), ..none }).1, "character_id");
        let more = [LoraRequest { id: "zzz".into(), strength: None, text_strength: None }];
        assert_eq!(
            field(CastRequest { lora: Some("mia"), more: &more, ..none }),
            (404, "loras[0].id".into())
        );
    }
}
