//! Noise levels that depend on the picture's size, as diffusers' `QwenImagePipeline` and its scheduler have them
//! (`FlowMatchEulerDiscreteScheduler` with dynamic shifting, exponential, stretched to a terminal noise level).

use super::{MAX_STEPS, ScheduleError};

/// Tokens between which the shift grows, and what it is at either end.
const TOKENS: [f64; 2] = [256.0, 8192.0];
const SHIFTS: [f64; 2] = [0.5, 0.9];
/// The last noise level before 0.
const TERMINAL: f32 = 0.02;

/// The exponent by which noise levels of a picture of so many tokens (patches of 16 by 16 pixels) are moved up.
pub(crate) fn dynamic_shift(tokens: usize) -> f64 {
    let slope = (SHIFTS[1] - SHIFTS[0]) / (TOKENS[1] - TOKENS[0]);
    tokens as f64 * slope + (SHIFTS[0] - slope * TOKENS[0])
}

/// The noise levels of `steps` steps with the exponent `mu`, 0 behind them. With a `denoise` below 1 they are the last of
/// them.
///
/// # Errors
/// When the steps or `denoise` are out of range.
pub(crate) fn dynamic_flow_sigmas(steps: usize, denoise: f64, mu: f64) -> Result<Vec<f32>, ScheduleError> {
    if steps == 0 || steps > MAX_STEPS {
        return Err(ScheduleError::Steps(steps));
    }
    if !(denoise > 0.0 && denoise <= 1.0) {
        return Err(ScheduleError::Denoise(denoise));
    }
    let (first, last) = (1.0f64, 1.0 / steps as f64);
    let even = |i: usize| match steps {
        1 => first,
        steps => first + (last - first) * i as f64 / (steps - 1) as f64,
    };
    let factor = mu.exp() as f32;
    let mut sigmas: Vec<f32> = (0..steps)
        .map(|i| {
            let t = even(i) as f32;
            factor / (factor + (1.0 / t - 1.0))
        })
        .collect();
    // One step alone begins from noise and has nothing to be stretched.
    if let Some(end) = sigmas.last().copied().filter(|end| *end < 1.0) {
        let scale = (1.0 - end) / (1.0 - TERMINAL);
        sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
    }
    let kept = (steps as f64 * denoise).min(steps as f64);
    let start = (steps as f64 - kept) as usize;
    let mut sigmas = sigmas.split_off(start.min(steps - 1));
    sigmas.push(0.0);
    Ok(sigmas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shift_grows_with_the_picture() {
        // diffusers' calculate_shift(4096, 256, 8192, 0.5, 0.9).
        assert!((dynamic_shift(4096) - 0.693_548_387_096_774_2).abs() < 1e-12);
        assert!((dynamic_shift(256) - 0.5).abs() < 1e-12 && (dynamic_shift(8192) - 0.9).abs() < 1e-12);
    }

    #[test]
    fn levels_fall_from_noise_to_the_terminal_one_and_then_to_nothing() {
        for steps in [2, 4, 50] {
            let sigmas = dynamic_flow_sigmas(steps, 1.0, dynamic_shift(4096)).unwrap();
            assert_eq!((sigmas.len(), sigmas[0], sigmas[steps]), (steps + 1, 1.0, 0.0));
            assert!((sigmas[steps - 1] - TERMINAL).abs() < 1e-6, "{sigmas:?}");
            assert!(sigmas.is_sorted_by(|a, b| a > b), "{sigmas:?}");
        }
        assert_eq!(dynamic_flow_sigmas(1, 1.0, 0.7).unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn part_of_a_run_is_its_end() {
        let whole = dynamic_flow_sigmas(10, 1.0, 0.7).unwrap();
        assert_eq!(dynamic_flow_sigmas(10, 0.35, 0.7).unwrap(), whole[6..]);
        assert!(dynamic_flow_sigmas(10, 0.0, 0.7).is_err() && dynamic_flow_sigmas(0, 1.0, 0.7).is_err());
    }
}
