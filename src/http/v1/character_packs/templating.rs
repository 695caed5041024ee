//! Template pictures of expressions as controls: their edges keep every character's face in the same place.

use std::borrow::Cow;

use bytes::Bytes;

use crate::http::error::ApiError;
use crate::http::guides::{Guides, control_strength};
use crate::service::ControlType;
use crate::task::{BlobId, ControlSpec, Preprocess};
use crate::templates::{TemplateError, TemplateSet, Templates};

/// How strongly a template counts where nothing is said.
const STRENGTH: f64 = 0.8;
/// The gateways' thresholds, on 8-bit grey.
pub(super) const EDGES: Preprocess = Preprocess::OpencvCanny { low: 100.0, high: 200.0 };

/// What a request says of templates.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TemplateRequest<'a> {
    /// `use_templates`.
    pub(super) wanted: Option<bool>,
    /// `template_set`.
    pub(super) set: Option<&'a str>,
    /// `template_strength`.
    pub(super) strength: Option<f64>,
}

/// A set of templates and the ControlNet that follows them.
#[derive(Debug)]
pub(super) struct Templating<'a> {
    templates: &'a Templates,
    set: TemplateSet,
    control: String,
    /// Of the ControlNet's file.
    pub(super) revision: u64,
    strength: f64,
    /// Whether the client asked for templates, so that a missing one is refused.
    asked: bool,
    most_bytes: usize,
}

impl<'a> Templating<'a> {
    /// `None` where none are wanted, or nothing was said and there is no ControlNet or set.
    pub(super) fn new(
        templates: &'a Templates,
        default_set: &str,
        guides: &Guides<'_>,
        request: TemplateRequest<'_>,
        most_bytes: usize,
    ) -> Result<Option<Self>, ApiError> {
        if request.wanted == Some(false) {
            for (field, given) in
                [("template_set", request.set.is_some()), ("template_strength", request.strength.is_some())]
            {
                if given {
                    return Err(ApiError::invalid(field, "means nothing with use_templates false"));
                }
            }
            return Ok(None);
        }
        let strength = control_strength("template_strength", request.strength.unwrap_or(STRENGTH))?;
        let asked = request.wanted == Some(true) || request.set.is_some() || request.strength.is_some();
        let Some(control) = guides.control_for(ControlType::Canny) else {
            if asked {
                let field = if request.set.is_some() { "template_set" } else { "use_templates" };
                return Err(guides.no_control(field, ControlType::Canny));
            }
            return Ok(None);
        };
        let set = match templates.set(request.set.unwrap_or(default_set)) {
            Ok(set) => set,
            Err(error) if asked => return Err(refused(&error)),
            Err(_) => return Ok(None),
        };
        Ok(Some(Self {
            templates,
            set,
            revision: control.revision,
            control: control.id,
            strength,
            asked,
            most_bytes,
        }))
    }

    /// The control that an expression's template makes, and the template's file. `None` where the set has none for it
    /// and nobody asked for one.
    pub(super) fn control(&self, expression: &str) -> Result<Option<(ControlSpec, Bytes)>, ApiError> {
        if !self.asked && !self.set.pictures.iter().any(|name| name == expression) {
            return Ok(None);
        }
        let bytes = self.templates.read(&self.set, expression, self.most_bytes).map_err(|e| refused(&e))?;
        let bytes = match bytes {
            Cow::Borrowed(bytes) => Bytes::from_static(bytes),
            Cow::Owned(bytes) => bytes.into(),
        };
        let spec = ControlSpec {
            control: self.control.clone(),
            image: BlobId::of(&bytes),
            preprocess: EDGES,
            strength: self.strength,
            start: 0.0,
            end: 1.0,
        };
        Ok(Some((spec, bytes)))
    }
}

fn refused(error: &TemplateError) -> ApiError {
    ApiError::invalid("template_set", format!("cannot be followed: {error}"))
        .hint("GET /v1/templates lists all; leave templates out with use_templates false")
}
