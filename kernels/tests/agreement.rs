//! The public functions equal their plain candle references on random shapes, weights and masks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use candle_core::{DType, Device, Result, Tensor};
use darkroom_kernels::{
    Activation, AttentionMask, Conv2dGeometry, Padding, activate, add, add_layer_norm, add_row_shift,
    attention, concat_channels, conv2d, geglu, group_norm, group_norm_shifted, layer_norm, linear, reference,
    sampling, sinusoid, to_rgb8, upsample_nearest_2x,
};
use proptest::prelude::*;
use support::random;

/// Largest difference allowed, as a part of the largest reference value: both sides round in `f32`, in
/// different orders, over sums of up to a few thousand terms.
const TOLERANCE: f64 = 1e-5;

/// The same for 3×3 convolutions of stride 1 with enough channels for Winograd's F(4×4, 3×3), whose transforms
/// cancel larger numbers: 8·10⁻⁶ was seen.
const WINOGRAD_TOLERANCE: f64 = 3e-5;

/// The same numbers, laid out so that no dimension is contiguous.
fn strided(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    let wide = Tensor::cat(&[x, &x.affine(3.0, 1.0).unwrap()], last).unwrap();
    let turned = wide.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap();
    turned.narrow(last, 0, x.dim(last).unwrap()).unwrap()
}

fn maybe_strided(x: Tensor, stride: bool) -> Tensor {
    if stride && x.rank() > 1 { strided(&x) } else { x }
}

fn assert_close(fast: &Result<Tensor>, slow: &Result<Tensor>) {
    assert_within(TOLERANCE, fast, slow);
}

fn assert_within(tolerance: f64, fast: &Result<Tensor>, slow: &Result<Tensor>) {
    let (fast, slow) = (fast.as_ref().unwrap(), slow.as_ref().unwrap());
    assert_eq!(fast.dims(), slow.dims());
    let fast: Vec<f32> = fast.flatten_all().unwrap().to_vec1().unwrap();
    let slow: Vec<f32> = slow.flatten_all().unwrap().to_vec1().unwrap();
    let scale = slow.iter().fold(1e-3f64, |m, x| m.max(f64::from(x.abs())));
    for (i, (a, b)) in fast.iter().zip(&slow).enumerate() {
        let error = (f64::from(*a) - f64::from(*b)).abs() / scale;
        assert!(error <= tolerance, "element {i}: {a} against {b}, relative error {error:e}");
    }
}

fn stored() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

fn size(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1..=most, Just(most), Just(16), Just(32)]
}

#[test]
fn wide_3x3_convolutions_equal_their_reference() {
    for (side, channels, out) in [(16, 1280, 320), (17, 640, 64), (33, 320, 96), (6, 960, 64)] {
        let x = random(side as u64, &[2, side, side, channels]);
        let weight = random(7, &[out, 3, 3, channels]).to_dtype(DType::F16).unwrap();
        let bias = random(8, &[out]);
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
        assert_within(
            WINOGRAD_TOLERANCE,
            &conv2d(&x, &weight, Some(&bias), geometry),
            &reference::conv2d(&x, &weight, Some(&bias), geometry),
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn linear_equals_its_reference(
        seed: u64, rows in size(90), inner in size(700), out in size(140), batched: bool,
        bias: bool, stride: bool, dtype in stored(),
    ) {
        let shape: &[usize] = if batched { &[2, rows, inner] } else { &[rows, inner] };
        let x = maybe_strided(random(seed, shape), stride);
        let weight = maybe_strided(random(seed ^ 1, &[out, inner]), stride).to_dtype(dtype).unwrap();
        let bias = bias.then(|| random(seed ^ 2, &[out]).to_dtype(dtype).unwrap());
        assert_close(
            &linear(&x, &weight, bias.as_ref()),
            &reference::linear(&x, &weight, bias.as_ref()),
        );
    }

    #[test]
    fn conv2d_equals_its_reference(
        seed: u64, batch in 1usize..3, h in 1usize..20, w in 1usize..20, channels in size(70),
        out in size(70), kernel in prop_oneof![Just((1, 1)), Just((3, 3)), Just((2, 5))],
        step in 1usize..3, pads in [0usize..3, 0usize..3, 0usize..3, 0usize..3],
        bias: bool, stride: bool, dtype in stored(),
    ) {
        let padding = Padding { top: pads[0], left: pads[1], bottom: pads[2], right: pads[3] };
        prop_assume!(kernel.0 <= h + pads[0] + pads[2] && kernel.1 <= w + pads[1] + pads[3]);
        let geometry = Conv2dGeometry { stride: step, padding };
        let x = maybe_strided(random(seed, &[batch, h, w, channels]), stride);
        let weight = maybe_strided(random(seed ^ 1, &[out, kernel.0, kernel.1, channels]), stride);
        let weight = weight.to_dtype(dtype).unwrap();
        let bias = bias.then(|| random(seed ^ 2, &[out]).to_dtype(dtype).unwrap());
        let winograd = kernel == (3, 3) && step == 1 && channels.min(out) >= 32;
        assert_within(
            if winograd { WINOGRAD_TOLERANCE } else { TOLERANCE },
            &conv2d(&x, &weight, bias.as_ref(), geometry),
            &reference::conv2d(&x, &weight, bias.as_ref(), geometry),
        );
    }

    #[test]
    fn attention_equals_its_reference(
        seed: u64, batch in 1usize..3, queries in size(150), keys in size(300), heads in 1usize..4,
        d in size(80), masking in 0usize..3, stride: bool,
    ) {
        let mask = match masking {
            0 => AttentionMask::None,
            1 => AttentionMask::Causal,
            _ => AttentionMask::KeyLengths((0..batch).map(|b| 1 + (seed as usize ^ (b * 7)) % keys).collect()),
        };
        let q = maybe_strided(random(seed, &[batch, queries, heads * d]), stride);
        let k = maybe_strided(random(seed ^ 1, &[batch, keys, heads * d]), stride);
        let v = maybe_strided(random(seed ^ 2, &[batch, keys, heads * d]), stride);
        assert_close(
            &attention(&q, &k, &v, heads, &mask),
            &reference::attention(&q, &k, &v, heads, &mask),
        );
    }

    #[test]
    fn group_norm_equals_its_reference(
        seed: u64, batch in 1usize..3, h in 1usize..24, w in 1usize..24,
        groups in 1usize..6, width in 1usize..24, offset in -20f64..20.0, stride: bool,
        silu: bool, dtype in stored(),
    ) {
        let channels = groups * width;
        let x = random(seed, &[batch, h, w, channels]).affine(1.0, offset).unwrap();
        let x = maybe_strided(x, stride);
        let weight = random(seed ^ 1, &[channels]).to_dtype(dtype).unwrap();
        let bias = random(seed ^ 2, &[channels]).to_dtype(dtype).unwrap();
        let activation = if silu { Activation::Silu } else { Activation::Identity };
        // A group of one element is all rounding error around a huge 1/√eps: no oracle there.
        prop_assume!(h * w * width >= 4);
        assert_close(
            &group_norm(&x, groups, &weight, &bias, 1e-3, activation),
            &reference::group_norm(&x, groups, &weight, &bias, 1e-3, activation),
        );
    }

    #[test]
    fn a_shifted_group_norm_equals_its_reference(
        seed: u64, batch in 1usize..3, positions in 4usize..80, groups in 1usize..6, width in 1usize..24,
        stride: bool, silu: bool,
    ) {
        let channels = groups * width;
        let x = maybe_strided(random(seed, &[batch, positions, channels]), stride);
        let shift = maybe_strided(random(seed ^ 3, &[batch, channels]), stride);
        let (weight, bias) = (random(seed ^ 1, &[channels]), random(seed ^ 2, &[channels]));
        let activation = if silu { Activation::Silu } else { Activation::Identity };
        assert_close(
            &group_norm_shifted(&x, &shift, groups, &weight, &bias, 1e-3, activation),
            &reference::group_norm_shifted(&x, &shift, groups, &weight, &bias, 1e-3, activation),
        );
    }

    #[test]
    fn a_sum_and_its_layer_norm_equal_their_reference(
        seed: u64, rows in size(60), width in size(700), stride: bool,
    ) {
        let x = maybe_strided(random(seed, &[rows, width]), stride);
        let residual = maybe_strided(random(seed ^ 3, &[rows, width]), stride);
        let (weight, bias) = (random(seed ^ 1, &[width]), random(seed ^ 2, &[width]));
        let (sum, normed) = add_layer_norm(&x, &residual, &weight, &bias, 1e-5).unwrap();
        let plain = (&x + &residual).unwrap();
        assert_close(&Ok(normed), &reference::layer_norm(&plain, &weight, &bias, 1e-5));
        assert_close(&Ok(sum), &Ok(plain));
    }

    #[test]
    fn sums_shifts_and_joins_are_what_their_elements_say(
        seed: u64, rows in 1usize..4, positions in 1usize..9, c in size(40), more in size(40), stride: bool,
    ) {
        let x = maybe_strided(random(seed, &[rows, positions, c]), stride);
        let y = maybe_strided(random(seed ^ 1, &[rows, positions, c]), stride);
        let other = maybe_strided(random(seed ^ 2, &[rows, positions, more]), stride);
        let shift = maybe_strided(random(seed ^ 3, &[rows, c]), stride);
        let at = |t: &Tensor| t.to_vec3::<f32>().unwrap();
        let (sum, shifted) = (at(&add(&x, &y).unwrap()), at(&add_row_shift(&x, &shift).unwrap()));
        let joined = at(&concat_channels(&x, &other).unwrap());
        let (x, y, other, shift) = (at(&x), at(&y), at(&other), shift.to_vec2::<f32>().unwrap());
        for row in 0..rows {
            for position in 0..positions {
                let join = [x[row][position].as_slice(), &other[row][position]].concat();
                prop_assert_eq!(&joined[row][position], &join);
                for i in 0..c {
                    let here = x[row][position][i];
                    prop_assert_eq!(sum[row][position][i], here + y[row][position][i]);
                    prop_assert_eq!(shifted[row][position][i], here + shift[row][i]);
                }
            }
        }
    }

    #[test]
    fn arithmetic_of_sampling_is_that_of_its_formulas_to_the_bit(
        seed: u64, n in 1usize..5, c in 1usize..5, h in 1usize..7, w in 1usize..7, scale in -3f64..9.0,
    ) {
        let latents: Vec<Tensor> = (0..n as u64).map(|i| random(seed ^ i, &[c, h, w])).collect();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let factor = scale as f32;
        let other = random(seed ^ 50, &[c, h, w]);

        let guided = flat(&sampling::guide(&latents[0], &other, scale).unwrap());
        let summed = sampling::linear_combination(&[(&latents[0], 1.0), (&other, -scale), (&latents[n - 1], 0.5)]);
        let summed = flat(&summed.unwrap());
        let (one, two, last) = (flat(&latents[0]), flat(&other), flat(&latents[n - 1]));
        for i in 0..one.len() {
            prop_assert_eq!(guided[i], two[i] + (one[i] - two[i]) * factor);
            prop_assert_eq!(summed[i], one[i] - two[i] * factor + last[i] * 0.5);
        }

        let scaled: Vec<_> = latents.iter().map(|latent| (latent, scale)).collect();
        let batch = sampling::scale_latents(&scaled, DType::F32).unwrap();
        prop_assert_eq!(batch.dims(), [n, h, w, c]);
        let output = random(seed ^ 60, &[n, h, w, c]);
        let rows: Vec<_> = latents.iter().map(|latent| (latent, 1.0, -scale)).collect();
        let denoised = sampling::denoised_latents(&output, &rows).unwrap();
        for (row, latent) in latents.iter().enumerate() {
            let planar = |t: &Tensor| flat(&t.get(row).unwrap().permute((2, 0, 1)).unwrap());
            let (batch, output, denoised) = (planar(&batch), planar(&output), flat(&denoised[row]));
            for (i, latent) in flat(latent).into_iter().enumerate() {
                prop_assert_eq!(batch[i], latent * factor);
                prop_assert_eq!(denoised[i], latent - output[i] * factor);
            }
        }
    }

    #[test]
    fn layer_norm_equals_its_reference(
        seed: u64, rows in size(60), width in size(700), stride: bool, dtype in stored(),
    ) {
        let x = maybe_strided(random(seed, &[rows, width]), stride);
        let weight = random(seed ^ 1, &[width]).to_dtype(dtype).unwrap();
        let bias = random(seed ^ 2, &[width]).to_dtype(dtype).unwrap();
        assert_close(
            &layer_norm(&x, &weight, &bias, 1e-5),
            &reference::layer_norm(&x, &weight, &bias, 1e-5),
        );
    }

    #[test]
    fn pointwise_operations_equal_their_references(seed: u64, rows in size(30), width in size(90), stride: bool) {
        let x = maybe_strided(random(seed, &[rows, 2 * width]).affine(4.0, 0.0).unwrap(), stride);
        assert_close(&geglu(&x), &reference::geglu(&x));
        use Activation::{Gelu, GeluTanh, Identity, QuickGelu, Silu};
        for activation in [Identity, Silu, Gelu, QuickGelu, GeluTanh] {
            assert_close(&activate(&x, activation), &reference::activate(&x, activation));
        }
    }

    #[test]
    fn upsampling_equals_its_reference(
        seed: u64, batch in 1usize..3, h in 1usize..9, w in 1usize..9, c in size(40), stride: bool,
    ) {
        let x = maybe_strided(random(seed, &[batch, h, w, c]), stride);
        assert_close(&upsample_nearest_2x(&x), &reference::upsample_nearest_2x(&x));
    }
}

#[test]
fn a_factor_of_nothing_leaves_its_side_out() {
    let (latent, output) = (random(1, &[4, 2, 3]), random(2, &[1, 2, 3, 4]));
    let infinite = (&latent * f64::INFINITY).unwrap();
    let only = sampling::denoised_latents(&output, &[(&infinite, 0.0, 1.0)]).unwrap();
    let expected = output.get(0).unwrap().permute((2, 0, 1)).unwrap();
    assert_eq!(only[0].to_vec3::<f32>().unwrap(), expected.to_vec3::<f32>().unwrap());
}

#[test]
fn a_sinusoid_begins_with_the_number_itself_and_slows_down() {
    let numbers = Tensor::from_slice(&[0f32, 500.0], 2, &Device::Cpu).unwrap();
    let embedded = sinusoid(&numbers, 8).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(embedded[0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    for (i, frequency) in [1.0f32, 0.1, 0.01, 0.001].into_iter().enumerate() {
        assert!((embedded[1][i] - (500.0 * frequency).cos()).abs() < 1e-4, "{i}");
        assert!((embedded[1][4 + i] - (500.0 * frequency).sin()).abs() < 1e-4, "{i}");
    }
}

#[test]
fn bytes_are_cut_off_and_no_number_is_black() {
    let values = [-1f32, 1.0, 0.0, 0.999, -7.0, 7.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let x = Tensor::from_slice(&values, (1, 3, 3), &Device::Cpu).unwrap();
    let bytes = to_rgb8(&x).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
    assert_eq!(bytes, [0, 255, 127, 254, 0, 255, 0, 255, 0]);
}
