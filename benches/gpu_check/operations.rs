//! Every operation of `darkroom-kernels` at the shapes that SDXL has: a step of one picture of 1024² with guidance (two
//! rows), and the autoencoder's decoder.

use candle_core::{Result, Tensor};
use darkroom_kernels::{
    Activation, AttentionMask, Conv2dGeometry, Padding, Precision, activate, add_linear_to_rows, add_to_rows,
    attention, conv2d_at, geglu, group_norm, layer_norm, linear_at, upsample_nearest_2x,
};

use crate::fused;

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Activations or a matrix: in the type that is computed with.
    Computed,
    /// A bias, or a norm's scale or shift: always `f32`.
    Vector,
}

/// An input.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) shape: Vec<usize>,
    pub(crate) role: Role,
    /// Standard deviation of its values.
    pub(crate) deviation: f32,
}

impl Input {
    /// One of any shape that is always `f32`.
    pub(crate) fn exact(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), role: Role::Vector, deviation: 1.0 }
    }
}

pub(crate) type Run = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An operation at a shape.
pub(crate) struct Case {
    pub(crate) operation: &'static str,
    /// With the shape: `conv2d 2x128x128x320 -> 320, 3x3`.
    pub(crate) name: String,
    pub(crate) inputs: Vec<Input>,
    /// Products and sums of matrices and attention; 0 where memory alone counts.
    pub(crate) flops: f64,
    /// Whether it is checked in `f32` too, where the card has one shape of each operation to do.
    pub(crate) in_f32: bool,
    pub(crate) run: Run,
}

/// How large: all of it, or a little of it with the same structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) quick: bool,
}

impl Scale {
    /// Channels: multiples of 32 stay so.
    pub(crate) fn channels(self, c: usize) -> usize {
        if self.quick && c >= 32 { (c / 320).max(1) * 32 } else { c }
    }

    /// Rows, columns, heads, tokens.
    pub(crate) fn sides(self, n: usize) -> usize {
        if self.quick { (n / 16).max(n.min(3)) } else { n }
    }
}

pub(crate) fn computed(shape: &[usize], deviation: f32) -> Input {
    Input { shape: shape.to_vec(), role: Role::Computed, deviation }
}

pub(crate) fn vector(n: usize) -> Input {
    Input { shape: vec![n], role: Role::Vector, deviation: 1.0 }
}

/// All cases; the ones that matter most come first.
pub(crate) fn all(scale: Scale) -> Vec<Case> {
    let mut cases = Vec::new();
    matrices(scale, &mut cases);
    convolutions(scale, &mut cases);
    attentions(scale, &mut cases);
    norms(scale, &mut cases);
    pointwise(scale, &mut cases);
    additions(scale, &mut cases);
    cases.extend(fused::all(scale));
    cases
}

pub(crate) fn dims(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// `x · weightᵀ + bias`.
pub(crate) fn linear(shape: &[usize], out: usize, bias: bool) -> Case {
    let inner = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().product::<usize>() / inner.max(1);
    let mut inputs = vec![computed(shape, 1.0), computed(&[out, inner], 1.0 / (inner as f32).sqrt())];
    if bias {
        inputs.push(vector(out));
    }
    Case {
        operation: "linear",
        name: format!("linear {} -> {out}{}", dims(shape), if bias { "" } else { ", no bias" }),
        inputs,
        flops: 2.0 * rows as f64 * inner as f64 * out as f64,
        in_f32: (rows, inner, out) == (2048, 1280, 1280),
        run: Box::new(|x| linear_at(&x[0], &x[1], x.get(2), Precision::Full)),
    }
}

fn matrices(scale: Scale, cases: &mut Vec<Case>) {
    for (tokens, inner, out, bias) in [
        (4096, 640, 640, false),
        (4096, 640, 640, true),
        (4096, 640, 5120, true),
        (4096, 2560, 640, true),
        (1024, 1280, 1280, false),
        (1024, 1280, 1280, true),
        (1024, 1280, 10240, true),
        (1024, 5120, 1280, true),
        (77, 2048, 640, false),
        (77, 2048, 1280, false),
    ] {
        let shape = [2, scale.sides(tokens), scale.channels(inner)];
        cases.push(linear(&shape, scale.channels(out), bias));
    }
    cases.push(linear(&[2, scale.channels(2816)], scale.channels(1280), true));
    // Sixteen pictures: what a full batch has.
    cases.push(linear(&[32, scale.sides(1024), scale.channels(1280)], scale.channels(10240), true));
}

/// A square convolution.
pub(crate) fn convolution(shape: [usize; 4], out: usize, kernel: usize, stride: usize) -> Case {
    let [b, h, w, inner] = shape;
    let geometry = Conv2dGeometry { stride, padding: Padding::all(kernel / 2) };
    let taps = kernel * kernel * inner;
    let positions = b * h.div_ceil(stride) * w.div_ceil(stride);
    let step = if stride == 1 { String::new() } else { format!(", stride {stride}") };
    Case {
        operation: "conv2d",
        name: format!("conv2d {} -> {out}, {kernel}x{kernel}{step}", dims(&shape)),
        inputs: vec![
            computed(&shape, 1.0),
            computed(&[out, kernel, kernel, inner], 1.0 / (taps as f32).sqrt()),
            vector(out),
        ],
        flops: 2.0 * positions as f64 * taps as f64 * out as f64,
        in_f32: (h, inner, out) == (64, 640, 640),
        run: Box::new(move |x| conv2d_at(&x[0], &x[1], x.get(2), geometry, Precision::Full)),
    }
}

fn convolutions(scale: Scale, cases: &mut Vec<Case>) {
    for (b, side, inner, out, kernel, stride) in [
        (2, 128, 320, 320, 3, 1),
        (2, 64, 640, 640, 3, 1),
        (2, 32, 1280, 1280, 3, 1),
        (2, 128, 4, 320, 3, 1),
        (2, 128, 960, 320, 3, 1),
        (2, 128, 640, 320, 3, 1),
        (2, 128, 960, 320, 1, 1),
        (2, 64, 320, 640, 3, 1),
        (2, 64, 1920, 640, 3, 1),
        (2, 64, 1280, 640, 3, 1),
        (2, 32, 640, 1280, 3, 1),
        (2, 32, 2560, 1280, 3, 1),
        (2, 32, 1920, 1280, 3, 1),
        (2, 128, 320, 320, 3, 2),
        (2, 64, 640, 640, 3, 2),
        (2, 128, 320, 4, 3, 1),
        (1, 128, 512, 512, 3, 1),
        (1, 256, 512, 512, 3, 1),
        (1, 512, 256, 256, 3, 1),
        (1, 1024, 128, 128, 3, 1),
        (1, 1024, 128, 3, 3, 1),
        (1, 1024, 3, 16, 3, 1),
    ] {
        let side = scale.sides(side);
        cases.push(convolution([b, side, side, scale.channels(inner)], scale.channels(out), kernel, stride));
    }
    // The autoencoder's way down pads on two sides only.
    let side = scale.sides(512);
    let c = scale.channels(128);
    let padding = Padding { top: 0, left: 0, bottom: 1, right: 1 };
    let mut uneven = convolution([1, side, side, c], c, 3, 2);
    uneven.name.push_str(", padded below and right");
    uneven.run = Box::new(move |x| {
        conv2d_at(&x[0], &x[1], x.get(2), Conv2dGeometry { stride: 2, padding }, Precision::Full)
    });
    cases.push(uneven);
}

/// Softmax attention.
pub(crate) fn attend(
    b: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    mask: AttentionMask,
) -> Case {
    let inner = heads * d;
    let masked = match &mask {
        AttentionMask::None => "",
        AttentionMask::Causal => ", causal",
        AttentionMask::KeyLengths(_) => ", masked",
    };
    Case {
        operation: "attention",
        name: format!("attention {b}x{queries} on {keys}, {heads} heads of {d}{masked}"),
        inputs: vec![
            computed(&[b, queries, inner], 1.0),
            computed(&[b, keys, inner], 1.0),
            computed(&[b, keys, inner], 1.0),
        ],
        flops: 4.0 * b as f64 * queries as f64 * keys as f64 * inner as f64,
        in_f32: (queries, keys, d) == (1024, 1024, 64),
        run: Box::new(move |x| attention(&x[0], &x[1], &x[2], heads, &mask)),
    }
}

fn attentions(scale: Scale, cases: &mut Vec<Case>) {
    for (b, queries, keys, heads, d) in [
        (2, 4096, 4096, 10, 64),
        (2, 1024, 1024, 20, 64),
        (2, 4096, 77, 10, 64),
        (2, 1024, 77, 20, 64),
        (2, 9216, 9216, 10, 64),
        (1, 16384, 16384, 1, 512),
        (2, 4096, 4096, 8, 40),
        (2, 1024, 1024, 8, 80),
        (2, 256, 256, 8, 160),
    ] {
        let (queries, keys) = (scale.sides(queries), scale.sides(keys));
        cases.push(attend(b, queries, keys, scale.sides(heads), d, AttentionMask::None));
    }
    let (queries, keys) = (scale.sides(1024), scale.sides(308));
    let lengths = vec![keys, keys / 4, 1, keys - 1];
    cases.push(attend(4, queries, keys, scale.sides(20), 64, AttentionMask::KeyLengths(lengths)));
    cases.push(attend(4, 77, 77, scale.sides(20), 64, AttentionMask::Causal));
}

fn norms(scale: Scale, cases: &mut Vec<Case>) {
    for (b, side, channels, activation) in [
        (2, 128, 320, Activation::Silu),
        (2, 64, 640, Activation::Silu),
        (2, 32, 1280, Activation::Silu),
        (2, 64, 640, Activation::Identity),
        (2, 128, 960, Activation::Silu),
        (2, 32, 2560, Activation::Silu),
        (1, 1024, 128, Activation::Silu),
        (1, 512, 256, Activation::Silu),
    ] {
        let (side, c) = (scale.sides(side), scale.channels(channels));
        let shape = [b, side, side, c];
        let tail = if activation == Activation::Silu { ", SiLU" } else { "" };
        cases.push(Case {
            operation: "group_norm",
            name: format!("group_norm {}{tail}", dims(&shape)),
            inputs: vec![computed(&shape, 2.0), vector(c), vector(c)],
            flops: 0.0,
            in_f32: side == 64 && tail.is_empty(),
            run: Box::new(move |x| group_norm(&x[0], 32, &x[1], &x[2], 1e-5, activation)),
        });
    }
    for (tokens, channels) in [(4096, 640), (1024, 1280), (77, 768)] {
        let shape = [2, scale.sides(tokens), scale.channels(channels)];
        let c = shape[2];
        cases.push(Case {
            operation: "layer_norm",
            name: format!("layer_norm {}", dims(&shape)),
            inputs: vec![computed(&shape, 2.0), vector(c), vector(c)],
            flops: 0.0,
            in_f32: tokens == 1024,
            run: Box::new(|x| layer_norm(&x[0], &x[1], &x[2], 1e-5)),
        });
    }
}

fn pointwise(scale: Scale, cases: &mut Vec<Case>) {
    let mut push = |operation: &'static str, name: String, shape: &[usize], in_f32, run: Run| {
        let inputs = vec![computed(shape, 1.5)];
        cases.push(Case { operation, name, inputs, flops: 0.0, in_f32, run });
    };
    for (tokens, channels) in [(4096, 2560), (1024, 5120)] {
        let shape = [2, scale.sides(tokens), 2 * scale.channels(channels)];
        push("geglu", format!("geglu {}", dims(&shape)), &shape, tokens == 1024, Box::new(|x| geglu(&x[0])));
    }
    for (name, activation) in
        [("SiLU", Activation::Silu), ("GELU", Activation::Gelu), ("quick GELU", Activation::QuickGelu)]
    {
        let shape = [2, scale.sides(1024), scale.channels(5120)];
        let run = Box::new(move |x: &[Tensor]| activate(&x[0], activation));
        push("activate", format!("{name} {}", dims(&shape)), &shape, true, run);
    }
    for (side, channels) in [(32, 1280), (64, 640)] {
        let (side, c) = (scale.sides(side), scale.channels(channels));
        let shape = [2, side, side, c];
        let run = Box::new(|x: &[Tensor]| upsample_nearest_2x(&x[0]));
        push("upsample", format!("upsample {}", dims(&shape)), &shape, side == 64, run);
    }
}

/// In-place sums: each run begins with a copy of the target, which counts in its time.
fn additions(scale: Scale, cases: &mut Vec<Case>) {
    let (side, c) = (scale.sides(64), scale.channels(640));
    let (target, source) = ([4, side, side, c], [2, side, side, c]);
    cases.push(Case {
        operation: "add_to_rows",
        name: format!("add_to_rows {} into {}", dims(&source), dims(&target)),
        inputs: vec![computed(&target, 1.0), computed(&source, 1.0)],
        flops: 0.0,
        in_f32: true,
        run: Box::new(|x| {
            let target = x[0].copy()?;
            add_to_rows(&target, 1, &x[1])?;
            Ok(target)
        }),
    });
    for (tokens, channels, out) in [(4096, 16, 640), (1024, 16, 1280), (1024, 64, 10240)] {
        let (n, out) = (scale.sides(tokens), scale.channels(out));
        let (target, source, weight) = ([4, n, out], [2, n, channels], [out, channels]);
        cases.push(Case {
            operation: "add_linear_to_rows",
            name: format!("add_linear_to_rows {} into {}", dims(&source), dims(&target)),
            inputs: vec![
                computed(&target, 1.0),
                computed(&source, 1.0),
                computed(&weight, 1.0 / (channels as f32).sqrt()),
            ],
            flops: 2.0 * (2 * n * channels * out) as f64,
            in_f32: tokens == 1024,
            run: Box::new(|x| {
                let target = x[0].copy()?;
                add_linear_to_rows(&target, 1, &x[1], &x[2], Precision::Full)?;
                Ok(target)
            }),
        });
    }
}
