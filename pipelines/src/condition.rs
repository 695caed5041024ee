//! A prompt as one of several: where in the picture, when in the run and how much it counts (ComfyUI's
//! `CONDITIONING` entries).
//!
//! Here is what a caller says. [`place`] puts it in its place in a latent, and [`crate::guidance`] weighs what the
//! network made of each.

mod place;

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::PipelineError;
use crate::conditioning::Conditioning;
use crate::control::Control;
use crate::picture::Mask;
use place::Entry;
pub(crate) use place::{Cells, Frame, Placed, Sides};

/// Most conditions of one side of guidance: each is a row of the network's batch.
pub const MAX_CONDITIONS: usize = 64;

/// A prompt, and where, when and how much it counts.
#[derive(Debug, Clone)]
pub struct Condition {
    /// The encoded prompt.
    pub text: Conditioning,
    /// SDXL's `[height, width, crop_top, crop_left, target_height, target_width]` in pixels; `None`: the whole
    /// latent's own size without a cut.
    pub size_ids: Option<[f32; 6]>,
    /// Where it counts; `None`: everywhere. Only this part goes through the network.
    pub area: Option<Area>,
    /// How much it counts beside others.
    pub strength: f64,
    /// Where it counts, softly.
    pub mask: Option<ConditionMask>,
    /// Noise levels at which it counts, both ends included ([`crate::schedule::ModelSampling::percent_to_sigma`]); `None`: all.
    pub sigmas: Option<RangeInclusive<f32>>,
    /// ControlNets, in the order of their chain. The hint of each is embedded at [`Condition::size`].
    pub controls: Vec<Control>,
    /// Whether its ControlNets also steer the negative prompts that have none (`ControlNetApply`).
    pub shares_controls: bool,
}

/// A rectangle of a latent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Area {
    /// In cells.
    Cells {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// First row.
        y: usize,
        /// First column.
        x: usize,
    },
    /// In shares of the picture, 0 to 1.
    Shares {
        /// Rows.
        height: f64,
        /// Columns.
        width: f64,
        /// First row.
        y: f64,
        /// First column.
        x: f64,
    },
}

/// Where a condition counts, softly.
#[derive(Debug, Clone)]
pub struct ConditionMask {
    /// 1 where it counts; resized to the latent.
    pub mask: Arc<Mask>,
    /// What its values are multiplied by.
    pub strength: f64,
    /// Whether only the box around what is not 0 goes through the network; takes the place of the area.
    pub bounds: bool,
}

impl Condition {
    /// A prompt that counts everywhere and always.
    pub fn new(text: Conditioning) -> Self {
        Self {
            text,
            size_ids: None,
            area: None,
            strength: 1.0,
            mask: None,
            sigmas: None,
            controls: Vec::new(),
            shares_controls: false,
        }
    }

    /// Rows and columns of the part of a latent of `height × width` cells that goes through the network for it: what
    /// its ControlNets' pictures are scaled to, eight pixels a cell. ComfyUI scales the whole picture to the area; it
    /// does not cut the area's part out of it.
    ///
    /// # Errors
    /// Its area is not within the latent, or a number of it is out of range.
    pub fn size(&self, height: usize, width: usize) -> Result<(usize, usize), PipelineError> {
        let part = Entry::new(self, height, width)?.part(height, width)?;
        Ok(part.map_or((height, width), |part| (part.height, part.width)))
    }

    fn validate(&self) -> Result<(), PipelineError> {
        if !self.strength.is_finite() || self.mask.as_ref().is_some_and(|mask| !mask.strength.is_finite()) {
            return Err(refuse("strength must be a number".into()));
        }
        let shares = |share: f64| (0.0..=1.0).contains(&share);
        if let Some(Area::Shares { height, width, y, x }) = self.area
            && ![height, width, y, x].into_iter().all(shares)
        {
            return Err(refuse("an area's shares must be 0 to 1".into()));
        }
        self.controls.iter().try_for_each(Control::validate)
    }
}

fn refuse(message: String) -> PipelineError {
    PipelineError::Request { field: "conditions", message }
}
