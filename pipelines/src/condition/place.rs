//! Conditions in their places in a latent: which part goes through the network, and how much each cell of it counts,
//! by the rules of ComfyUI's `process_conds` and `get_area_and_mult`.

use std::ops::RangeInclusive;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Area, Condition, MAX_CONDITIONS, refuse};
use crate::PipelineError;
use crate::conditioning::{self, Conditioning};
use crate::control::{ActiveControl, Control};
use crate::picture::Mask;
use crate::request::PIXELS_PER_CELL;
use crate::schedule::ModelSampling;

/// Cells over which a condition fades towards the picture around its area.
const FADE: usize = 8;
/// Least side of the area of a mask's bounds, in cells.
const LEAST_BOUNDS: usize = 8;

/// A rectangle of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cells {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) y: usize,
    pub(crate) x: usize,
}

impl Cells {
    /// In the latent's own cells; may still reach beyond it.
    fn of(area: Area, height: usize, width: usize) -> Self {
        match area {
            Area::Cells { height, width, y, x } => Self { height, width, y, x },
            Area::Shares { height: rows, width: columns, y, x } => {
                // Halves to even, as Python rounds; `as` cuts what is not finite.
                let cells = |share: f64, side: usize| (share * side as f64).round_ties_even() as usize;
                Self {
                    height: cells(rows, height).max(1),
                    width: cells(columns, width).max(1),
                    y: cells(y, height),
                    x: cells(x, width),
                }
            }
        }
    }

    /// The box around what a mask, as large as the latent, has that is not 0.
    fn around(mask: &Mask) -> Self {
        let width = mask.width();
        let cells = || (0..).zip(mask.data()).filter(|(_, value)| **value != 0.0).map(|(i, _)| i);
        let (rows, columns) = (|| cells().map(|i: usize| i / width), || cells().map(|i| i % width));
        match (rows().min(), rows().max(), columns().min(), columns().max()) {
            (Some(top), Some(bottom), Some(left), Some(right)) => Self {
                height: (bottom - top + 1).max(LEAST_BOUNDS),
                width: (right - left + 1).max(LEAST_BOUNDS),
                y: top,
                x: left,
            },
            // Nothing counts: as little as possible goes through the network.
            _ => Self { height: LEAST_BOUNDS, width: LEAST_BOUNDS, y: 0, x: 0 },
        }
    }

    fn contains(&self, other: &Self) -> bool {
        let end = |start: usize, length: usize| start.saturating_add(length);
        self.y <= other.y
            && self.x <= other.x
            && end(other.y, other.height) <= end(self.y, self.height)
            && end(other.x, other.width) <= end(self.x, self.width)
    }

    fn count(&self) -> usize {
        self.height.saturating_mul(self.width)
    }
}

/// A condition whose area and mask fit the latent.
#[derive(Clone)]
pub(super) struct Entry<'c> {
    text: &'c Conditioning,
    size_ids: Option<[f32; 6]>,
    cells: Option<Cells>,
    strength: f64,
    /// As large as the latent, with its strength.
    mask: Option<(Arc<Mask>, f64)>,
    sigmas: Option<RangeInclusive<f32>>,
    controls: &'c [Control],
    shares_controls: bool,
}

impl<'c> Entry<'c> {
    pub(super) fn new(condition: &'c Condition, height: usize, width: usize) -> Result<Self, PipelineError> {
        condition.validate()?;
        let mut cells = condition.area.map(|area| Cells::of(area, height, width));
        let mask = condition.mask.as_ref().map(|wanted| {
            let mask = wanted.mask.resized(width, height);
            if wanted.bounds {
                cells = Some(Cells::around(&mask));
            }
            (Arc::new(mask), wanted.strength)
        });
        Ok(Self {
            text: &condition.text,
            size_ids: condition.size_ids,
            cells,
            strength: condition.strength,
            mask,
            sigmas: condition.sigmas.clone(),
            controls: &condition.controls,
            shares_controls: condition.shares_controls,
        })
    }

    /// The part of the latent that goes through the network; `None`: all of it.
    pub(super) fn part(&self, height: usize, width: usize) -> Result<Option<Cells>, PipelineError> {
        let Some(Cells { height: rows, width: columns, y, x }) = self.cells else { return Ok(None) };
        let (rows, columns) = (rows.min(height.saturating_sub(y)), columns.min(width.saturating_sub(x)));
        if rows == 0 || columns == 0 {
            return Err(refuse(format!(
                "an area that begins at row {y} and column {x} has nothing of a latent of {height} rows and {width} \
                 columns: move it, or draw a larger picture"
            )));
        }
        Ok(Some(Cells { height: rows, width: columns, y, x }))
    }

    /// What each cell of its part counts, row by row.
    fn weights(&self, part: Option<Cells>, height: usize, width: usize) -> Vec<f32> {
        let whole = Cells { height, width, y: 0, x: 0 };
        let Cells { height: rows, width: columns, y, x } = part.unwrap_or(whole);
        let strength = self.strength as f32;
        if let Some((mask, mask_strength)) = &self.mask {
            let lines = mask.data().chunks_exact(width).skip(y).take(rows);
            let values = lines.flat_map(|line| &line[x..x + columns]);
            return values.map(|value| value * *mask_strength as f32 * strength).collect();
        }
        let mut weights = vec![strength; rows * columns];
        if part.is_some() {
            let (top, bottom) = (fades(rows, y != 0), fades(rows, y + rows < height));
            let (left, right) = (fades(columns, x != 0), fades(columns, x + columns < width));
            for (i, line) in weights.chunks_exact_mut(columns).enumerate() {
                for (j, weight) in line.iter_mut().enumerate() {
                    // In the order in which ComfyUI multiplies.
                    *weight *= fade(top, i);
                    *weight *= fade(bottom, rows - 1 - i);
                    *weight *= fade(left, j);
                    *weight *= fade(right, columns - 1 - j);
                }
            }
        }
        weights
    }
}

/// Over how many cells an edge fades.
fn fades(side: usize, inner: bool) -> usize {
    if inner { FADE.min(side / 4) } else { 0 }
}

/// The factor of a cell, `distance` cells from an edge that fades over `cells`.
fn fade(cells: usize, distance: usize) -> f32 {
    if distance < cells { (1.0 / cells as f64 * (distance + 1) as f64) as f32 } else { 1.0 }
}

/// A condition in its place in a sample.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) text: Conditioning,
    pub(crate) size_ids: Option<[f32; 6]>,
    /// The part of the latent that goes through the network; `None`: all of it.
    pub(crate) part: Option<Cells>,
    /// What each cell of the part counts, `[1, h, w]`; `None`: 1.
    pub(crate) weights: Option<Tensor>,
    pub(crate) sigmas: Option<RangeInclusive<f32>>,
    pub(crate) controls: Vec<ActiveControl>,
}

impl Placed {
    /// One that counts everywhere, always, and fully.
    pub(crate) fn everywhere(
        text: Conditioning,
        size_ids: Option<[f32; 6]>,
        controls: Vec<ActiveControl>,
    ) -> Self {
        Self { text, size_ids, part: None, weights: None, sigmas: None, controls }
    }

    pub(crate) fn acts_at(&self, sigma: f32) -> bool {
        self.sigmas.as_ref().is_none_or(|sigmas| sigmas.contains(&sigma))
    }
}

/// The latent that conditions are placed in.
pub(crate) struct Frame<'a> {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) device: &'a Device,
    pub(crate) sampling: &'a ModelSampling,
    /// Whether the network takes a pooled vector and size ids.
    pub(crate) sized: bool,
}

/// Both sides of guidance.
pub(crate) struct Sides {
    pub(crate) positive: Vec<Placed>,
    pub(crate) negative: Option<Vec<Placed>>,
}

impl Frame<'_> {
    /// Puts conditions in their places. Each area of one side gets its counterpart on the other, and the positive
    /// side's shared ControlNets go to the negative one.
    pub(crate) fn place(
        &self,
        positive: &[Condition],
        negative: Option<&[Condition]>,
    ) -> Result<Sides, PipelineError> {
        let mut positive = self.entries(positive)?;
        let mut negative = negative.map(|negative| self.entries(negative)).transpose()?;
        if let Some(negative) = &mut negative {
            add_counterparts(negative, &positive);
            add_counterparts(&mut positive, negative);
            share_controls(&positive, negative)?;
        }
        let place = |entries: Vec<Entry<'_>>| entries.iter().map(|entry| self.placed(entry)).collect();
        Ok(Sides { positive: place(positive)?, negative: negative.map(place).transpose()? })
    }

    fn entries<'c>(&self, conditions: &'c [Condition]) -> Result<Vec<Entry<'c>>, PipelineError> {
        if conditions.len() > MAX_CONDITIONS {
            return Err(refuse(format!("are {}, but {MAX_CONDITIONS} is the most", conditions.len())));
        }
        conditions.iter().map(|condition| Entry::new(condition, self.height, self.width)).collect()
    }

    fn placed(&self, entry: &Entry<'_>) -> Result<Placed, PipelineError> {
        let (height, width) = (self.height, self.width);
        let part = entry.part(height, width)?;
        let (rows, columns) = part.map_or((height, width), |part| (part.height, part.width));
        let weights = entry.weights(part, height, width);
        let weights = if weights.iter().all(|weight| *weight == 1.0) {
            None
        } else {
            Some(Tensor::from_vec(weights, (1, rows, columns), self.device)?)
        };
        let to_device = |tensor: &Tensor| tensor.to_device(self.device);
        let own_size = || conditioning::size_ids(width * PIXELS_PER_CELL, height * PIXELS_PER_CELL);
        let text = Conditioning {
            context: to_device(&entry.text.context)?,
            pooled: entry.text.pooled.as_ref().filter(|_| self.sized).map(to_device).transpose()?,
        };
        let controls = entry.controls.iter().map(|control| {
            let (hint_rows, hint_columns, _) = control.hint.dims3()?;
            if (hint_rows, hint_columns) != (rows, columns) {
                return Err(refuse(format!(
                    "with a ControlNet's picture for {hint_rows} rows and {hint_columns} columns of a latent, where \
                     there are {rows} and {columns}"
                )));
            }
            Ok(ActiveControl { control: control.clone(), sigmas: control.sigmas(self.sampling) })
        });
        Ok(Placed {
            text,
            size_ids: self.sized.then(|| entry.size_ids.unwrap_or_else(own_size)),
            part: part.filter(|part| (part.height, part.width) != (height, width)),
            weights,
            sigmas: entry.sigmas.clone(),
            controls: controls.collect::<Result<_, _>>()?,
        })
    }
}

/// Gives each area of `others` its counterpart among `own`: what counts there, with the prompt that is closest around
/// it (ComfyUI's `create_cond_with_same_area_if_none`).
fn add_counterparts<'c>(own: &mut Vec<Entry<'c>>, others: &[Entry<'c>]) {
    for other in others {
        let Some(cells) = other.cells else { continue };
        let mut closest: Option<&Entry<'c>> = None;
        for entry in own.iter() {
            let closer = match (entry.cells, closest.map(|entry| entry.cells)) {
                (Some(around), None | Some(None)) => around.contains(&cells),
                (Some(around), Some(Some(known))) => {
                    around.contains(&cells) && known.count() > around.count()
                }
                (None, known) => known.is_none(),
            };
            if closer {
                closest = Some(entry);
            }
        }
        if let Some(closest) = closest.filter(|entry| entry.cells != Some(cells)) {
            let (text, size_ids) = (closest.text, closest.size_ids);
            own.push(Entry { text, size_ids, ..other.clone() });
        }
    }
}

/// Gives the ControlNets of positive conditions that share them to the negative ones, unless one of these has its own
/// (ComfyUI's `apply_empty_x_to_equal_area`).
fn share_controls<'c>(positive: &[Entry<'c>], negative: &mut [Entry<'c>]) -> Result<(), PipelineError> {
    let whole = |entry: &&Entry<'c>| entry.cells.is_none();
    let shared: Vec<&'c [Control]> = positive
        .iter()
        .filter(whole)
        .filter(|entry| entry.shares_controls && !entry.controls.is_empty())
        .map(|entry| entry.controls)
        .collect();
    if shared.is_empty() || negative.iter().filter(whole).any(|entry| !entry.controls.is_empty()) {
        return Ok(());
    }
    let takers: Vec<usize> = (0..negative.len()).filter(|i| negative[*i].cells.is_none()).collect();
    if takers.is_empty() {
        return Err(refuse("share a ControlNet with negative ones, but all of these have areas".into()));
    }
    // The last of several wins, as in ComfyUI.
    for (i, controls) in shared.into_iter().enumerate() {
        negative[takers[i % takers.len()]].controls = controls;
    }
    Ok(())
}
