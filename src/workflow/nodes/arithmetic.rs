//! Whole numbers as Python makes them of fractions.

use crate::workflow::NodeError;

/// Python's `round`, halves to the even side, of a size; what does not fit any size is refused.
pub(super) fn round(value: f64) -> Result<usize, NodeError> {
    whole(value.round_ties_even())
}

/// Python's `int`, cut towards 0, of a size.
pub(super) fn whole(value: f64) -> Result<usize, NodeError> {
    if value.is_nan() || value <= -1.0 || value >= f64::from(u32::MAX) {
        return Err(NodeError::Failed(format!("the result would have a side of {value} pixels")));
    }
    Ok(value as usize)
}

/// The places of a sequence of `length` that Python's `[start:end]` takes; negative ones count from its end.
pub(super) fn slice(start: i128, end: i128, length: usize) -> std::ops::Range<usize> {
    let length = length as i128;
    let place = |at: i128| (if at < 0 { at.saturating_add(length) } else { at }).clamp(0, length) as usize;
    let (start, end) = (place(start), place(end));
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_the_even_side() {
        assert_eq!([0.5, 1.5, 2.5].map(|value| round(value).unwrap()), [0, 2, 2]);
        assert!(round(f64::NAN).is_err() && round(f64::INFINITY).is_err() && round(-3.0).is_err());
    }

    #[test]
    fn slices_are_pythons() {
        let text = "abcdef";
        for (start, end, expected) in
            [(0, 3, "abc"), (-2, 6, "ef"), (4, 2, ""), (-99, 99, text), (2, -1, "cde"), (9, 12, "")]
        {
            assert_eq!(&text[slice(start, end, text.len())], expected);
        }
        assert_eq!(slice(i128::MIN, i128::MAX, 4), 0..4);
    }
}
