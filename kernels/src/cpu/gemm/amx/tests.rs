//! Products against sums of the same rounded numbers, for every shape the driver cuts differently.

use half::bf16;

use super::super::{Dense, Problem};
use super::{available, multiply};

/// Part of the sum of absolute terms: `f32` sums of up to 6000 terms, in another order than the oracle's.
const TOLERANCE: f64 = 1e-5;

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn products_are_those_of_rounded_numbers() {
    if !available() {
        return;
    }
    // Every remainder, and more than one slice of rows, of columns and of depth.
    for (m, n, depth) in [
        (1, 1, 1),
        (16, 16, 32),
        (17, 33, 31),
        (33, 15, 65),
        (70, 90, 1100),
        (2051, 5, 40),
        (5, 2570, 33),
        (40, 35, 5990),
    ] {
        let (a, w, bias) = (random(1, m * depth), random(2, n * depth), random(3, n));
        let mut c = vec![f32::NAN; m * n];
        let problem = Problem {
            m,
            n,
            depth,
            a: Dense { elements: &a, width: depth },
            w: Dense { elements: &w, width: depth },
            bias: Some(&bias),
            accumulate: false,
        };
        // SAFETY: AMX is available and the slices are as large as the problem says.
        unsafe { multiply(&problem, c.as_mut_ptr()) };
        let rounded = |x: &f32| f64::from(bf16::from_f32(*x).to_f32());
        let (a, w): (Vec<f64>, Vec<f64>) = (a.iter().map(rounded).collect(), w.iter().map(rounded).collect());
        for (i, got) in c.iter().enumerate() {
            let (row, col) = (i / n, i % n);
            let pairs = a[row * depth..][..depth].iter().zip(&w[col * depth..][..depth]);
            let (mut sum, mut size) = (f64::from(bias[col]), f64::from(bias[col].abs()));
            for (x, y) in pairs {
                sum += x * y;
                size += (x * y).abs();
            }
            let error = (f64::from(*got) - sum).abs() / size;
            assert!(error <= TOLERANCE, "{m}x{n}x{depth} at {row}, {col}: {got} against {sum}");
        }
    }
}
