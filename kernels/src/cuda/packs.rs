//! How wide kernels read and write: packs of elements that straddle no row and no part of one.

use candle_core::{DType, Result};

use super::launch;

/// Bytes of the widest pack.
const WIDEST: usize = 16;

/// Elements of the widest pack that divides all of `lengths`.
pub(crate) fn width(dtype: DType, lengths: &[usize]) -> usize {
    let mut width = WIDEST / dtype.size_in_bytes();
    while !lengths.iter().all(|length| length.is_multiple_of(width)) {
        width /= 2;
    }
    width
}

/// What a kernel calls its element and its pack (`T`, `N`).
pub(crate) fn defines(dtype: DType, width: usize) -> Result<Vec<String>> {
    Ok(vec![launch::element(dtype)?, format!("N={width}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_divides_every_length() {
        assert_eq!(width(DType::BF16, &[320, 640]), 8);
        assert_eq!(width(DType::F32, &[320]), 4);
        assert_eq!(width(DType::F16, &[320, 12]), 4);
        assert_eq!(width(DType::BF16, &[8, 6]), 2);
        assert_eq!(width(DType::F32, &[7]), 1);
        assert_eq!(width(DType::F32, &[]), 4);
    }
}
