//! How many threads share a row that is normalised while it stays in their registers.

/// The most elements of a row that one thread holds.
const MOST_OF_THREAD: usize = 48;
/// Lanes of a warp.
const WARP: usize = 32;
/// Threads of a block of rows of up to [`NARROWER`] elements, and of wider ones. Warps with rows of their own are as many
/// to a block as the narrower one has.
const NARROW: usize = 128;
const WIDE: usize = 256;
const NARROWER: usize = 4096;
/// The widest row that any block holds.
const WIDEST: usize = WIDE * MOST_OF_THREAD;

/// Of rows of one width. It depends on nothing else: a row is the same whatever comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowThreads {
    /// Threads of a row.
    pub(crate) lanes: usize,
    /// Packs of each.
    pub(crate) packs: usize,
    /// Threads of a block.
    pub(crate) block: usize,
}

impl RowThreads {
    /// Those of rows of `width` elements in packs of `pack`, which divides it. `None`: too wide.
    pub(crate) fn of(width: usize, pack: usize) -> Option<Self> {
        let packs = width / pack;
        let lanes = match width {
            0 => return None,
            _ if width <= WARP * MOST_OF_THREAD => packs.next_power_of_two().min(WARP),
            _ if width <= NARROWER => NARROW,
            _ if width <= WIDEST => WIDE,
            _ => return None,
        };
        Some(Self { lanes, packs: packs.div_ceil(lanes), block: lanes.max(NARROW) })
    }

    /// Blocks of `rows` rows.
    pub(crate) fn blocks(self, rows: usize) -> usize {
        rows.div_ceil(self.block / self.lanes)
    }

    /// Bytes of shared memory of a block: a float a warp.
    pub(crate) fn shared(self) -> usize {
        self.block / WARP * size_of::<f32>()
    }

    /// What the kernels call it.
    pub(crate) fn defines(self) -> [String; 2] {
        [format!("LANES={}", self.lanes), format!("PACKS={}", self.packs)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_of_a_row_has_a_place_in_registers_that_suffice() {
        for width in 1..=WIDEST {
            for pack in [1, 2, 4, 8] {
                if width % pack == 0 {
                    let RowThreads { lanes, packs, block } = RowThreads::of(width, pack).unwrap();
                    assert!(lanes * packs * pack >= width, "{width} in packs of {pack}");
                    assert!(packs * pack <= MOST_OF_THREAD, "{width} in packs of {pack}");
                    assert!(
                        block % lanes == 0 && (lanes <= WARP || lanes == block) && lanes.is_power_of_two()
                    );
                }
            }
        }
        assert_eq!(RowThreads::of(WIDEST + 8, 8), None);
        assert_eq!(RowThreads::of(0, 1), None);
    }

    #[test]
    fn rows_of_the_networks_have_few_idle_threads() {
        // Heads of 128, and widths of the transformer, of the text encoder and of the autoencoder.
        let of = |width| RowThreads::of(width, 8).map(|it| (it.lanes, it.packs)).unwrap();
        assert_eq!(of(128), (16, 1));
        assert_eq!(of(3072), (128, 3));
        assert_eq!(of(3584), (128, 4));
        assert_eq!(of(96), (16, 1));
        assert_eq!(of(384), (32, 2));
    }
}
