//! The network: backbone, a neck that mixes three resolutions both ways, and a head on each.
//!
//! Layers are numbered as in the reference, `model.0` to `model.22`.

use candle_core::{DType, Tensor, bail};
use darkroom_kernels::upsample_nearest_2x;

use super::DetectorError;
use super::blocks::{C2f, Conv, Sppf};
use crate::weights::Weights;

/// Pixels between the cells of the three grids.
pub(super) const STRIDES: [usize; 3] = [8, 16, 32];
/// What the sides of the network's input are multiples of.
pub(super) const COARSEST_STRIDE: usize = 32;
/// Most classes; the largest public data set has 601.
const MAX_CLASSES: usize = 1000;
/// Most bins of a distance; all published networks have 16.
const MAX_BINS: usize = 64;

/// What the network says of `b` pictures: one row a cell, the finest grid first, each row by row.
#[derive(Debug, Clone)]
pub struct Predictions {
    /// `[b, cells, 4 · bins]`: logits of the distances to the left, top, right and bottom edge.
    pub distances: Tensor,
    /// `[b, cells, classes]`: logits of the classes.
    pub scores: Tensor,
}

#[derive(Debug, Clone)]
struct Branch([Conv; 3]);

impl Branch {
    /// Takes `0`, `1` and `2`.
    fn load(weights: &Weights, inputs: usize) -> Result<Self, DetectorError> {
        let first = Conv::load(&weights.scope(0), inputs, 3, 1)?;
        let second = Conv::load(&weights.scope(1), first.outputs, 3, 1)?;
        let last = Conv::load_plain(&weights.scope(2), second.outputs)?;
        Ok(Self([first, second, last]))
    }

    fn outputs(&self) -> usize {
        self.0[2].outputs
    }

    /// `[b, h, w, c] -> [b, h · w, outputs]`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut y = self.0[0].forward(x)?;
        y = self.0[1].forward(&y)?;
        self.0[2].forward(&y)?.flatten(1, 2)
    }
}

#[derive(Debug, Clone)]
struct Head {
    distances: Branch,
    scores: Branch,
}

/// All layers.
#[derive(Debug, Clone)]
pub(super) struct Network {
    /// 0 and 1, to a quarter of the resolution, and 2.
    stem: (Conv, Conv, C2f),
    /// 3 and 4, 5 and 6, 7 and 8: each halves the resolution.
    stages: [(Conv, C2f); 3],
    /// 9.
    pool: Sppf,
    /// 12 and 15: coarse to fine.
    up: [C2f; 2],
    /// 16 and 18, 19 and 21: fine to coarse.
    down: [(Conv, C2f); 2],
    /// 22.
    heads: [Head; 3],
    pub(super) bins: usize,
    pub(super) classes: usize,
}

impl Network {
    /// Takes everything in the file but the heads of other tasks.
    pub(super) fn load(weights: &Weights) -> Result<Self, DetectorError> {
        let model = weights.scope("model");
        check_family(&model)?;
        let layer = |number: usize| model.scope(number);
        let conv = |number, inputs| Conv::load(&layer(number), inputs, 3, 2);
        let c2f = |number, inputs, shortcut| C2f::load(&layer(number), inputs, shortcut);
        let first = conv(0, 3)?;
        let second = conv(1, first.outputs)?;
        let third = c2f(2, second.outputs, true)?;
        let stage = |number, inputs| -> Result<_, DetectorError> {
            let down = conv(number, inputs)?;
            let block = c2f(number + 1, down.outputs, true)?;
            Ok((down, block))
        };
        let p3 = stage(3, third.outputs)?;
        let p4 = stage(5, p3.1.outputs)?;
        let p5 = stage(7, p4.1.outputs)?;
        let pool = Sppf::load(&layer(9), p5.1.outputs)?;
        let up4 = c2f(12, pool.outputs + p4.1.outputs, false)?;
        let up3 = c2f(15, up4.outputs + p3.1.outputs, false)?;
        let join = |number, inputs, beside: usize| -> Result<_, DetectorError> {
            let down = conv(number, inputs)?;
            let block = c2f(number + 2, down.outputs + beside, false)?;
            Ok((down, block))
        };
        let down4 = join(16, up3.outputs, up4.outputs)?;
        let down5 = join(19, down4.1.outputs, pool.outputs)?;

        let head = |level: usize, inputs| -> Result<_, DetectorError> {
            let branch = |name: &str| Branch::load(&layer(22).scope(format_args!("{name}.{level}")), inputs);
            Ok(Head { distances: branch("cv2")?, scores: branch("cv3")? })
        };
        let heads = [head(0, up3.outputs)?, head(1, down4.1.outputs)?, head(2, down5.1.outputs)?];
        let bins = bins(&layer(22))?;
        let classes = heads[0].scores.outputs();
        let refuse = |reason| Err(DetectorError::Layout { file: weights.origin().to_owned(), reason });
        if let Some(head) = heads.iter().find(|head| head.distances.outputs() != 4 * bins) {
            return refuse(format!(
                "a head gives {} values a box, not {}",
                head.distances.outputs(),
                4 * bins
            ));
        }
        if heads.iter().any(|head| head.scores.outputs() != classes) || classes > MAX_CLASSES {
            return refuse(format!("its heads must have the same number of classes, at most {MAX_CLASSES}"));
        }
        Ok(Self {
            stem: (first, second, third),
            stages: [p3, p4, p5],
            pool,
            up: [up4, up3],
            down: [down4, down5],
            heads,
            bins,
            classes,
        })
    }

    /// `x: [b, h, w, 3]` in `0..=1`, sides multiples of 32.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Predictions> {
        let (b, h, w, channels) = x.dims4()?;
        if channels != 3 || b * h * w == 0 || h % COARSEST_STRIDE != 0 || w % COARSEST_STRIDE != 0 {
            bail!(
                "the detector takes [b, h, w, 3] with sides a multiple of {COARSEST_STRIDE}, not {:?}",
                x.dims()
            );
        }
        let beside = |x: &Tensor, y: &Tensor| Tensor::cat(&[x, y], 3);
        let stage = |(down, block): &(Conv, C2f), x: &Tensor| block.forward(&down.forward(x)?);
        let x = self.stem.1.forward(&self.stem.0.forward(x)?)?;
        let x = self.stem.2.forward(&x)?;
        let p3 = stage(&self.stages[0], &x)?;
        let p4 = stage(&self.stages[1], &p3)?;
        let p5 = self.pool.forward(&stage(&self.stages[2], &p4)?)?;
        let up4 = self.up[0].forward(&beside(&upsample_nearest_2x(&p5)?, &p4)?)?;
        let fine = self.up[1].forward(&beside(&upsample_nearest_2x(&up4)?, &p3)?)?;
        let (down, block) = &self.down[0];
        let middle = block.forward(&beside(&down.forward(&fine)?, &up4)?)?;
        let (down, block) = &self.down[1];
        let coarse = block.forward(&beside(&down.forward(&middle)?, &p5)?)?;
        let levels = [&fine, &middle, &coarse];
        let all = |branch: fn(&Head) -> &Branch| -> candle_core::Result<Tensor> {
            let rows: candle_core::Result<Vec<_>> =
                self.heads.iter().zip(levels).map(|(head, x)| branch(head).forward(x)).collect();
            Tensor::cat(&rows?, 1)
        };
        Ok(Predictions { distances: all(|head| &head.distances)?, scores: all(|head| &head.scores)? })
    }
}

/// Fails with a reason when this is no YOLOv8 detector, and says what it looks like instead.
fn check_family(model: &Weights) -> Result<(), DetectorError> {
    let has = |name: &str| model.contains(name);
    let reason = if has("22.cv2.0.0.conv.weight") && has("2.m.0.cv1.conv.weight") {
        return Ok(());
    } else if has("23.cv2.0.0.conv.weight") {
        "it looks like YOLO11 or later, which is not supported: use a YOLOv8 file, such as face_yolov8m"
    } else if model.names().is_empty() {
        "it has no tensor 'model.0.conv.weight': convert the .pt file with scripts/convert_yolo.py"
    } else {
        "its layer 22 is no detection head: use a YOLOv8 file, such as face_yolov8m"
    };
    Err(DetectorError::Layout { file: model.origin().to_owned(), reason: reason.into() })
}

/// How many bins a distance has. They are weighted by their number, which the file holds too.
fn bins(head: &Weights) -> Result<usize, DetectorError> {
    let shape = head.shape("dfl.conv.weight").unwrap_or_default();
    let bins = shape.get(1).copied().unwrap_or(1);
    let weight = head.take("dfl.conv.weight", &[1, bins, 1, 1])?;
    let found = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let in_order = found.iter().enumerate().all(|(number, value)| *value == number as f32);
    if !in_order || !(2..=MAX_BINS).contains(&bins) {
        return Err(DetectorError::Layout {
            file: head.origin().to_owned(),
            reason: format!("its dfl.conv.weight must be 0, 1, 2, … for 2 to {MAX_BINS} bins"),
        });
    }
    Ok(bins)
}
