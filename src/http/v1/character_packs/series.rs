//! One character in many expressions, each with a template, a place in the expression bank and one seed for all. What
//! `expressions` and `stickers` share.

use bytes::Bytes;

use super::cast::Cast;
use super::styled_spec;
use super::templating::Templating;
use crate::http::bank::{Character, PackIdentity};
use crate::http::error::ApiError;
use crate::http::rules::{Rules, random_seed};
use crate::http::words::{Style, Words, join};
use crate::service::ModelDefaults;
use crate::task::{Background, DetailSpec, ImageFormat, ImageSpec, Owner};

/// Most expressions of one pack.
const EXPRESSIONS: usize = 24;

/// What a series is made of.
pub(super) struct Series<'a> {
    pub(super) words: &'a Words,
    pub(super) rules: &'a Rules,
    pub(super) owner: &'a Owner,
    pub(super) defaults: ModelDefaults,
    pub(super) cast: &'a Cast,
    pub(super) style: &'a Style,
    /// Tags after the style's: what is behind the character.
    pub(super) backdrop: &'a str,
    pub(super) expressions: &'a [String],
    pub(super) resolution: Option<&'a str>,
    pub(super) templating: Option<Templating<'a>>,
    pub(super) detail: Option<DetailSpec>,
    pub(super) background: Background,
    pub(super) format: ImageFormat,
    /// Only one that the client gave.
    pub(super) seed: Option<u64>,
    pub(super) bypass_bank: bool,
}

impl Series<'_> {
    /// Its pictures, and the files that they need.
    pub(super) fn specs(&self) -> Result<(Vec<ImageSpec>, Vec<Bytes>), ApiError> {
        let given = self.expressions.len();
        if given > EXPRESSIONS {
            let message = format!("has {given} entries; {EXPRESSIONS} is the most");
            return Err(ApiError::invalid("expression_tags", message));
        }
        let expressions = self.words.expressions(self.expressions)?;
        self.rules.check_count("expression_tags", expressions.len())?;
        let mut specs = Vec::with_capacity(expressions.len());
        let mut uploads: Vec<Bytes> = Vec::new();
        for expression in expressions {
            let prompt = join(&[&self.cast.prompt, &expression.tags, &self.style.tags, self.backdrop]);
            let spec = styled_spec(self.rules, self.defaults.clone(), prompt, self.style, self.resolution)
                .map_err(|error| error.renamed(&[("prompt", "character_prompt")]))?;
            let mut spec = ImageSpec {
                loras: self.cast.loras.clone(),
                detail: self.detail.clone(),
                background: self.background.clone(),
                format: self.format,
                label: Some(expression.name.clone()),
                ..spec
            };
            let mut revisions = self.cast.revisions.clone();
            if let Some(templating) = &self.templating
                && let Some((control, file)) = templating.control(&expression.name)?
            {
                spec.controls.push(control);
                revisions.push(templating.revision);
                if !uploads.contains(&file) {
                    uploads.push(file);
                }
            }
            let style = join(&[&self.style.tags, self.backdrop]);
            let identity = PackIdentity::new(
                Character {
                    owner: self.owner,
                    name: &self.cast.name,
                    prompt: &self.cast.prompt,
                    style: &style,
                    seed: self.seed,
                },
                &spec,
            );
            let place = identity.place(&expression.tags, &spec.controls, &revisions);
            let kept_seed = identity.seed();
            spec.seed = self.seed.unwrap_or(kept_seed);
            spec.bank = Some(place);
            specs.push(spec);
        }
        // Whoever wants them drawn anew wants others than the bank has; one seed keeps them one character.
        if self.bypass_bank && self.seed.is_none() {
            let seed = random_seed();
            specs.iter_mut().for_each(|spec| spec.seed = seed);
        }
        Ok((specs, uploads))
    }
}

/// The detail pass over faces, where it is wanted (or nothing was said) and there is a detector; a warning where it was
/// asked for and there is none.
pub(super) fn face_detail(
    guides: &crate::http::guides::Guides<'_>,
    wanted: Option<bool>,
    warnings: &mut Vec<String>,
) -> Option<DetailSpec> {
    if wanted == Some(false) {
        return None;
    }
    let detail = guides.face_detail();
    if wanted == Some(true) && detail.is_none() {
        warnings.push("apply_detailing: left out, since the models folder has no face detector".into());
    }
    detail
}
