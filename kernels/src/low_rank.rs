//! Low-rank changes of a linear layer's output for some rows of a batch: how pictures with different LoRAs are drawn
//! by one network call (S-LoRA, Sheng et al. 2023; its grouped products are Punica's, Chen et al. 2023).

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use crate::{Precision, add_linear_to_rows, linear_at};

/// The change of some rows.
#[derive(Debug, Clone)]
pub struct LowRank<'a> {
    /// Which, along the first dimension.
    pub rows: Range<usize>,
    /// `[rank, in]`
    pub down: &'a Tensor,
    /// `[out, rank]`
    pub up: &'a Tensor,
    /// What the change is multiplied by.
    pub scale: f32,
}

/// `target[rows] += scale · (x[rows] · downᵀ) · upᵀ` for each of `groups`, in place, with products formed at `precision`;
/// `x: [b, .., in]`, `target: [b, .., out]`. Every handle on `target` sees the change. Groups are usually of different
/// rows; on a GPU those run in two launches, if their factors have the type of `target` with no conversion.
///
/// # Errors
/// When the shapes or types do not fit, a side is zero, or `target` is not contiguous.
pub fn add_low_rank_to_rows(
    target: &Tensor,
    x: &Tensor,
    groups: &[LowRank<'_>],
    precision: Precision,
) -> Result<()> {
    let (rows, width, depth) = match (target.dims(), x.dims()) {
        ([rows, sides @ .., width], [own_rows, own @ .., depth]) if rows == own_rows && sides == own => {
            (*rows, *width, *depth)
        }
        _ => bail!("add_low_rank_to_rows: {:?} is not made of {:?}", target.shape(), x.shape()),
    };
    for LowRank { rows: range, down, up, .. } in groups {
        let rank = up.dims2()?.1;
        let fits = range.start < range.end
            && range.end <= rows
            && down.dims() == [rank, depth]
            && up.dims() == [width, rank]
            && rank > 0;
        if !fits {
            bail!(
                "add_low_rank_to_rows: factors {:?} and {:?} for rows {range:?} do not fit {:?} and {:?}",
                down.shape(),
                up.shape(),
                x.shape(),
                target.shape()
            );
        }
    }
    if !target.is_contiguous() || target.elem_count() == 0 || depth == 0 {
        bail!("add_low_rank_to_rows: target {:?} is empty or not contiguous", target.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(target) && crate::cuda::matmul::low_rank::add(target, x, groups)? {
        return Ok(());
    }
    for LowRank { rows, down, up, scale } in groups {
        let inner = linear_at(&x.narrow(0, rows.start, rows.len())?, down, None, precision)?;
        let inner = if *scale == 1.0 { inner } else { inner.affine(f64::from(*scale), 0.0)? };
        add_linear_to_rows(target, rows.start, &inner, up, precision)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::add_to_rows;
    use crate::cpu::oracle::{random, worst};

    #[test]
    fn each_range_of_rows_gets_its_own_change() {
        let (target, x) = (random(&[5, 6, 40]), random(&[5, 6, 24]));
        let factors = [(4, 0..2, 1.0), (9, 3..4, 0.5)]
            .map(|(rank, rows, scale)| (random(&[rank, 24]), random(&[40, rank]), rows, scale));
        let expected = target.copy().unwrap();
        for (down, up, rows, scale) in &factors {
            let part = x.narrow(0, rows.start, rows.len()).unwrap();
            let change = linear_at(&part, &up.matmul(down).unwrap(), None, Precision::Full).unwrap();
            add_to_rows(&expected, rows.start, &change.affine(f64::from(*scale), 0.0).unwrap()).unwrap();
        }
        let groups = factors.each_ref().map(|(down, up, rows, scale)| LowRank {
            rows: rows.clone(),
            down,
            up,
            scale: *scale,
        });
        add_low_rank_to_rows(&target, &x, &groups, Precision::Full).unwrap();
        let error = worst(&target, &expected);
        assert!(error < 1e-5, "{error:e}");
    }

    #[test]
    fn factors_that_do_not_fit_are_refused() {
        let (target, x) = (random(&[3, 8]), random(&[3, 6]));
        let add = |rows: Range<usize>, down: &[usize], up: &[usize]| {
            let (down, up) = (random(down), random(up));
            let group = LowRank { rows, down: &down, up: &up, scale: 1.0 };
            add_low_rank_to_rows(&target, &x, &[group], Precision::Full)
        };
        assert!(add(1..3, &[2, 6], &[8, 2]).is_ok());
        assert!(add(1..4, &[2, 6], &[8, 2]).is_err());
        assert!(add(2..2, &[2, 6], &[8, 2]).is_err());
        assert!(add(0..1, &[2, 5], &[8, 2]).is_err());
        assert!(add(0..1, &[3, 6], &[8, 2]).is_err());
        assert!(add(0..1, &[2, 6], &[7, 2]).is_err());
    }
}
