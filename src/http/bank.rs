//! Names of places in the expression bank. What decides a picture decides its place: the same request finds the
//! stored picture, any other does not.

use darkroom_pipelines::Speed;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::task::{Background, BankRef, ControlSpec, DetailSpec, ImageFormat, LoraSpec, Owner};

/// Bits of a seed that survive JavaScript's numbers.
pub(super) const SEED_MASK: u64 = (1 << 53) - 1;

/// What a pack's pictures have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PackIdentity<'a> {
    /// Version of this record; a new one empties the bank.
    v: u32,
    owner: &'a str,
    character: &'a str,
    character_prompt: &'a str,
    style: &'a str,
    width: usize,
    height: usize,
    model: &'a str,
    format: ImageFormat,
    steps: usize,
    cfg: f64,
    sampler: &'a str,
    scheduler: &'a str,
    negative_prompt: &'a str,
    loras: &'a [LoraSpec],
    detail: &'a Option<DetailSpec>,
    background: &'a Background,
    #[serde(skip_serializing_if = "Speed::is_exact")]
    speed: Speed,
    /// Only one that the client gave.
    seed: Option<u64>,
}

/// What is asked of [`PackIdentity::new`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Character<'a> {
    /// Whose bank.
    pub(super) owner: &'a Owner,
    /// The character's name.
    pub(super) name: &'a str,
    /// The character's prompt.
    pub(super) prompt: &'a str,
    /// The art style's tags.
    pub(super) style: &'a str,
    /// The seed, if the client gave one.
    pub(super) seed: Option<u64>,
}

impl<'a> PackIdentity<'a> {
    /// Of a character drawn like `spec`.
    pub(super) fn new(character: Character<'a>, spec: &'a crate::task::ImageSpec) -> Self {
        Self {
            v: 2,
            owner: match character.owner {
                Owner::Anyone => "",
                Owner::Key(id) => id.as_str(),
            },
            character: character.name,
            character_prompt: character.prompt,
            style: character.style,
            width: spec.width,
            height: spec.height,
            model: &spec.model,
            format: spec.format,
            steps: spec.steps,
            cfg: spec.cfg,
            sampler: &spec.sampler,
            scheduler: &spec.scheduler,
            negative_prompt: &spec.negative_prompt,
            loras: &spec.loras,
            detail: &spec.detail,
            background: &spec.background,
            speed: spec.speed,
            seed: character.seed,
        }
    }

    /// The place of one expression's picture, with what steers this one alone (a control names its picture by a digest)
    /// and the revisions of the files that it is drawn with: one that was trained anew draws anew.
    pub(super) fn place(
        &self,
        expression_tags: &str,
        controls: &[ControlSpec],
        revisions: &[u64],
    ) -> BankRef {
        BankRef {
            key: hex::encode(self.digest(Some(expression_tags), controls, revisions)),
            character: self.character.to_owned(),
        }
    }

    /// A seed that stays the same for this character, so that pictures asked for later fit the ones in the bank.
    pub(super) fn seed(&self) -> u64 {
        let digest = self.digest(None, &[], &[]);
        digest.iter().take(8).fold(0, |seed, byte| (seed << 8) | u64::from(*byte)) & SEED_MASK
    }

    fn digest(&self, expression_tags: Option<&str>, controls: &[ControlSpec], revisions: &[u64]) -> [u8; 32] {
        // Fields are written in the order of their declaration, so the text is the same each time.
        #[derive(Serialize)]
        struct Record<'a> {
            pack: &'a PackIdentity<'a>,
            expression_tags: Option<&'a str>,
            controls: &'a [ControlSpec],
            revisions: &'a [u64],
        }
        let record = serde_json::to_vec(&Record { pack: self, expression_tags, controls, revisions });
        // Numbers and texts always serialise; should one not, its debug text is as good a record.
        let record = record
            .unwrap_or_else(|_| format!("{self:?}{expression_tags:?}{controls:?}{revisions:?}").into_bytes());
        Sha256::digest(&record).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::rules::testing::spec;
    use crate::task::{ApiKeyId, BlobId, DetailPlaces, Preprocess};

    fn place(
        change: impl FnOnce(&mut Character<'static>, &mut crate::task::ImageSpec),
        tags: &str,
    ) -> String {
        let mut character = Character {
            owner: &Owner::Anyone,
            name: "mia",
            prompt: "1girl",
            style: "anime style",
            seed: None,
        };
        let mut spec = spec();
        change(&mut character, &mut spec);
        PackIdentity::new(character, &spec).place(tags, &spec.controls, &[]).key
    }

    fn lora(strength: f64) -> LoraSpec {
        LoraSpec { lora: "mia".into(), strength, text_strength: 1.0 }
    }

    fn control(picture: &[u8]) -> ControlSpec {
        let (image, preprocess) = (BlobId::of(picture), Preprocess::None);
        ControlSpec { control: "canny".into(), image, preprocess, strength: 1.0, start: 0.0, end: 1.0 }
    }

    fn detail() -> DetailSpec {
        let places = DetailPlaces::Boxes { boxes: vec![[0.0, 0.0, 1.0, 1.0]] };
        DetailSpec { places, denoise: 0.5, size: None, crop_factor: 3.0, feather: 5 }
    }

    #[test]
    fn the_same_request_finds_the_same_place_whatever_the_drawn_seed() {
        let first = place(|_, _| {}, "sad");
        assert_eq!(first, place(|_, spec| spec.seed = 99, "sad"));
        assert_eq!(first.len(), 64);
    }

    #[test]
    fn everything_that_decides_the_picture_decides_its_place() {
        let plain = place(|_, _| {}, "sad");
        let owner: &'static Owner = Box::leak(Box::new(Owner::Key(ApiKeyId::random())));
        let others = [
            place(|_, _| {}, "angry"),
            place(|c, _| c.owner = owner, "sad"),
            place(|c, _| c.name = "tom", "sad"),
            place(|c, _| c.prompt = "1boy", "sad"),
            place(|c, _| c.style = "", "sad"),
            place(|c, _| c.seed = Some(1), "sad"),
            place(|_, s| s.width = 256, "sad"),
            place(|_, s| s.model = "other".into(), "sad"),
            place(|_, s| s.format = ImageFormat::Jpeg { quality: 90 }, "sad"),
            place(|_, s| s.steps = 7, "sad"),
            place(|_, s| s.negative_prompt = "x".into(), "sad"),
            place(|_, s| s.loras.push(lora(1.0)), "sad"),
            place(|_, s| s.loras.push(lora(0.5)), "sad"),
            place(|_, s| s.controls.push(control(b"one")), "sad"),
            place(|_, s| s.controls.push(control(b"other")), "sad"),
            place(|_, s| s.detail = Some(detail()), "sad"),
            place(|_, s| s.background = Background::Key, "sad"),
        ];
        let mut all = others.to_vec();
        all.push(plain);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), others.len() + 1);
    }

    #[test]
    fn a_file_that_was_replaced_has_another_place() {
        let spec = spec();
        let character =
            Character { owner: &Owner::Anyone, name: "mia", prompt: "1girl", style: "", seed: None };
        let identity = PackIdentity::new(character, &spec);
        assert_ne!(identity.place("sad", &[], &[1]), identity.place("sad", &[], &[2]));
        assert_eq!(identity.place("sad", &[], &[1]), identity.place("sad", &[], &[1]));
    }

    #[test]
    fn words_cannot_move_from_one_field_to_the_next() {
        let one = place(|c, _| (c.name, c.prompt) = ("a", "bc"), "x");
        let other = place(|c, _| (c.name, c.prompt) = ("ab", "c"), "x");
        assert_ne!(one, other);
    }

    #[test]
    fn a_characters_seed_stays_and_fits_javascripts_numbers() {
        let spec = spec();
        let of = |name| {
            let character = Character { owner: &Owner::Anyone, name, prompt: "1girl", style: "", seed: None };
            PackIdentity::new(character, &spec).seed()
        };
        assert_eq!(of("mia"), of("mia"));
        assert_ne!(of("mia"), of("tom"));
        assert!(of("mia") <= SEED_MASK);
    }
}
