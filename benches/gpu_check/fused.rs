//! Operations that take the work of several passes, at the shapes that SDXL has: more of [`crate::operations`].

use std::cell::RefCell;

use candle_core::{Device, Result, Tensor, TensorId};
use darkroom_kernels::{
    Activation, Conv2dGeometry, Fp8Weight, LowRank, Padding, Precision, add, add_layer_norm,
    add_low_rank_to_rows, add_row_shift, concat_channels, conv2d_add, conv2d_upsampled_2x,
    group_norm_shifted, linear_add, linear_fp8, sampling, sinusoid, to_rgb8,
};

use crate::operations::{Case, Input, Run, Scale, computed, dims, vector};

/// All cases.
pub(crate) fn all(scale: Scale) -> Vec<Case> {
    let mut cases = Vec::new();
    products(scale, &mut cases);
    convolutions(scale, &mut cases);
    norms(scale, &mut cases);
    joins(scale, &mut cases);
    sampler(scale, &mut cases);
    cases
}

fn case(operation: &'static str, name: String, inputs: Vec<Input>, flops: f64, run: Run) -> Case {
    Case { operation, name, inputs, flops, in_f32: true, run }
}

fn products(scale: Scale, cases: &mut Vec<Case>) {
    for (tokens, inner, out) in [(4096, 2560, 640), (1024, 5120, 1280), (1024, 1280, 1280)] {
        let (n, inner, out) = (scale.sides(tokens), scale.channels(inner), scale.channels(out));
        let flops = 2.0 * (2 * n * inner * out) as f64;
        let inputs = vec![
            computed(&[2, n, inner], 1.0),
            computed(&[out, inner], 1.0 / (inner as f32).sqrt()),
            vector(out),
            computed(&[2, n, out], 1.0),
        ];
        let name = format!("{} -> {out} and a residual", dims(&[2, n, inner]));
        cases.push(case(
            "linear_add",
            format!("linear_add {name}"),
            inputs.clone(),
            flops,
            Box::new(|x| linear_add(&x[0], &x[1], Some(&x[2]), Some(&x[3]), Precision::Full)),
        ));
        // The CPU multiplies the same codes: what is compared is the product, not what rounding to 8 bits costs.
        let rounded: RefCell<Vec<(TensorId, Fp8Weight)>> = RefCell::default();
        cases.push(case(
            "linear_fp8",
            format!("linear_fp8 {name}"),
            inputs,
            flops,
            Box::new(move |x| {
                // Rounded once, as a network's weights are, and not anew each time that is measured.
                let mut rounded = rounded.borrow_mut();
                let at = match rounded.iter().position(|(weight, _)| *weight == x[1].id()) {
                    Some(at) => at,
                    None => {
                        rounded.push((x[1].id(), Fp8Weight::quantize(&x[1])?));
                        rounded.len() - 1
                    }
                };
                linear_fp8(&x[0], &rounded[at].1, Some(&x[2]), Some(&x[3]))
            }),
        ));
    }
    for (tokens, inner, out, rank) in [(4096, 640, 640, 16), (1024, 1280, 10240, 16), (1024, 1280, 1280, 64)]
    {
        let (n, inner, out) = (scale.sides(tokens), scale.channels(inner), scale.channels(out));
        let inputs = vec![
            computed(&[4, n, out], 1.0),
            computed(&[4, n, inner], 1.0),
            computed(&[rank, inner], 1.0 / (inner as f32).sqrt()),
            computed(&[out, rank], 1.0 / (rank as f32).sqrt()),
            computed(&[rank, inner], 1.0 / (inner as f32).sqrt()),
            computed(&[out, rank], 1.0 / (rank as f32).sqrt()),
        ];
        cases.push(case(
            "add_low_rank",
            format!("add_low_rank_to_rows {} -> {out}, rank {rank}, two sets", dims(&[4, n, inner])),
            inputs,
            2.0 * (4 * n * rank * (inner + out)) as f64,
            Box::new(|x| {
                let target = x[0].copy()?;
                let group = |rows, down, up, scale| LowRank { rows, down, up, scale };
                let groups = [group(0..2, &x[2], &x[3], 1.0), group(2..4, &x[4], &x[5], 0.5)];
                add_low_rank_to_rows(&target, &x[1], &groups, Precision::Full)?;
                Ok(target)
            }),
        ));
    }
}

fn convolutions(scale: Scale, cases: &mut Vec<Case>) {
    let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
    for (b, side, channels) in [(2, 128, 320), (2, 64, 640), (2, 32, 1280), (1, 512, 256)] {
        let (side, c) = (scale.sides(side), scale.channels(channels));
        let shape = [b, side, side, c];
        let flops = 2.0 * (b * side * side * c * 9 * c) as f64;
        let operands = |residual: Option<[usize; 4]>| {
            let weight = computed(&[c, 3, 3, c], 1.0 / (9.0 * c as f32).sqrt());
            let mut inputs = vec![computed(&shape, 1.0), weight, vector(c)];
            inputs.extend(residual.map(|shape| computed(&shape, 1.0)));
            inputs
        };
        for (what, residual) in [("residual", shape), ("shift", [b, 1, 1, c])] {
            cases.push(case(
                "conv2d_add",
                format!("conv2d_add {} -> {c} and a {what}", dims(&shape)),
                operands(Some(residual)),
                flops,
                Box::new(move |x| conv2d_add(&x[0], &x[1], Some(&x[2]), &x[3], geometry, Precision::Full)),
            ));
        }
        if side < scale.sides(128) || b == 1 {
            cases.push(case(
                "conv2d_upsampled",
                format!("conv2d_upsampled_2x {} -> {c}", dims(&shape)),
                operands(None),
                4.0 * flops,
                Box::new(move |x| conv2d_upsampled_2x(&x[0], &x[1], Some(&x[2]), geometry, Precision::Full)),
            ));
        }
    }
}

fn norms(scale: Scale, cases: &mut Vec<Case>) {
    for (side, channels) in [(128, 320), (64, 640), (32, 1280)] {
        let (side, c) = (scale.sides(side), scale.channels(channels));
        let shape = [2, side, side, c];
        cases.push(case(
            "group_norm_shift",
            format!("group_norm_shifted {}, SiLU", dims(&shape)),
            vec![computed(&shape, 2.0), computed(&[2, c], 1.0), vector(c), vector(c)],
            0.0,
            Box::new(|x| group_norm_shifted(&x[0], &x[1], 32, &x[2], &x[3], 1e-5, Activation::Silu)),
        ));
    }
    for (tokens, channels) in [(4096, 640), (1024, 1280)] {
        let shape = [2, scale.sides(tokens), scale.channels(channels)];
        let c = shape[2];
        for (part, take) in [("sum", true), ("normed", false)] {
            cases.push(case(
                "add_layer_norm",
                format!("add_layer_norm {}, {part}", dims(&shape)),
                vec![computed(&shape, 2.0), computed(&shape, 1.0), vector(c), vector(c)],
                0.0,
                Box::new(move |x| {
                    let (sum, normed) = add_layer_norm(&x[0], &x[1], &x[2], &x[3], 1e-5)?;
                    Ok(if take { sum } else { normed })
                }),
            ));
        }
    }
}

fn joins(scale: Scale, cases: &mut Vec<Case>) {
    let (side, c) = (scale.sides(64), scale.channels(640));
    let shape = [2, side, side, c];
    let two = || vec![computed(&shape, 1.0), computed(&shape, 1.0)];
    let name = |operation: &str| format!("{operation} {}", dims(&shape));
    cases.push(case("add", name("add"), two(), 0.0, Box::new(|x| add(&x[0], &x[1]))));
    cases.push(case(
        "concat_channels",
        name("concat_channels"),
        two(),
        0.0,
        Box::new(|x| concat_channels(&x[0], &x[1])),
    ));
    cases.push(case(
        "add_row_shift",
        name("add_row_shift"),
        vec![computed(&shape, 1.0), computed(&[2, c], 1.0)],
        0.0,
        Box::new(|x| add_row_shift(&x[0], &x[1])),
    ));
    let side = scale.sides(1024);
    cases.push(case(
        "to_rgb8",
        format!("to_rgb8 1x{side}x{side}x3"),
        vec![computed(&[1, side, side, 3], 0.7)],
        0.0,
        Box::new(|x| to_rgb8(&x[0])),
    ));
}

/// Latents stay in `f32`: those are vectors here, whatever networks compute in.
fn sampler(scale: Scale, cases: &mut Vec<Case>) {
    let cells = scale.sides(128);
    let latent = |deviation| Input { deviation, ..Input::exact(&[4, cells, cells]) };
    let name = |operation: &str| format!("{operation} 4x{cells}x{cells}");
    let mut push = |operation: &'static str, inputs, run: Run| {
        cases.push(case(operation, name(operation), inputs, 0.0, run));
    };
    push("guide", vec![latent(1.0), latent(1.0)], Box::new(|x| sampling::guide(&x[0], &x[1], 7.5)));
    push(
        "linear_combination",
        (0..5).map(|_| latent(1.0)).collect(),
        Box::new(|x| {
            let factors = [1.0, -0.5, 0.25, 2.0, -1.0];
            sampling::linear_combination(&x.iter().zip(factors).collect::<Vec<_>>())
        }),
    );
    push(
        "scale_latents",
        vec![latent(10.0), latent(10.0), computed(&[1], 1.0)],
        // The last one says in what type.
        Box::new(|x| sampling::scale_latents(&[(&x[0], 0.1), (&x[1], 0.3)], x[2].dtype())),
    );
    push(
        "denoised_latents",
        vec![latent(10.0), latent(10.0), computed(&[2, cells, cells, 4], 1.0)],
        Box::new(|x| {
            let rows = sampling::denoised_latents(&x[2], &[(&x[0], 1.0, -3.0), (&x[1], 1.0, -0.5)])?;
            Tensor::stack(&rows, 0)
        }),
    );
    let mut numbers = Input::exact(&[32]);
    numbers.deviation = 300.0;
    cases.push(case(
        "sinusoid",
        "sinusoid 32 -> 320".into(),
        vec![numbers],
        0.0,
        Box::new(|x| sinusoid(&x[0], 320)),
    ));
}

/// Whether these can be tried: 8-bit products are of some cards only.
pub(crate) fn runs_on(case: &Case, device: &Device) -> Result<bool> {
    Ok(case.operation != "linear_fp8" || !device.is_cuda() || darkroom_kernels::supports_fp8(device)?)
}
