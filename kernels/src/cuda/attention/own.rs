//! Own kernels: which of them takes a shape, and how they are launched.

use candle_core::{CudaDevice, DType, Error, Result, Tensor, bail};
use cudarc::driver::DeviceRepr;
use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;

use super::operand::Rows;
use crate::AttentionMask;
use crate::cuda::compile::{Source, function};
use crate::cuda::launch::{self, Dense, launch};

const NARROW: Source = Source { name: "attention", text: include_str!("../../../cuda/attention.cu") };
const WIDE: Source = Source { name: "attention_wide", text: include_str!("../../../cuda/attention_wide.cu") };
const PLAIN: Source =
    Source { name: "attention_plain", text: include_str!("../../../cuda/attention_plain.cu") };

/// A kernel, compiled for one size of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// Tensor cores; each warp has queries of its own, 16 `tiles` times.
    Narrow { warps: usize, tiles: usize },
    /// Tensor cores; a block's warps share `rows` queries, and `keys` are in shared memory at a time.
    Wide { rows: usize, keys: usize },
    /// No tensor cores: any type, any alignment.
    Plain,
}

/// Channels of a head that [`Kernel::Narrow`] has registers for.
const WIDEST_NARROW: usize = 160;

/// Channels of a head that the others have registers for.
const WIDEST: usize = 512;

/// Up to how many queries smaller blocks are taken, so that there are enough of them. It depends on nothing else of
/// the shape, and both give the same bits.
const FEW_QUERIES: usize = 512;

/// What a card has.
#[derive(Debug, Clone, Copy)]
struct Card {
    /// Asynchronous copies and tiles of bf16: from compute capability 8.0 on.
    tensor_cores: bool,
    /// Bytes of shared memory that a block can have.
    shared: usize,
}

impl Card {
    fn of(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let (major, _) = context.compute_capability().map_err(Error::wrap)?;
        let shared =
            context.attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN).map_err(Error::wrap)?;
        Ok(Self { tensor_cores: major >= 8, shared: usize::try_from(shared).unwrap_or_default() })
    }
}

impl Kernel {
    /// The fastest that takes heads of `d` channels; none takes more than [`WIDEST`].
    fn choose(card: Card, dtype: DType, d: usize, queries: usize) -> Option<Self> {
        if d > WIDEST {
            return None;
        }
        if dtype == DType::F32 || !d.is_multiple_of(8) || !card.tensor_cores {
            return Some(Self::Plain);
        }
        let few = queries <= FEW_QUERIES;
        let candidates = match d {
            1..=64 => vec![Self::Narrow { warps: 4, tiles: if few { 1 } else { 2 } }],
            65..=WIDEST_NARROW => vec![Self::Narrow { warps: if few { 4 } else { 8 }, tiles: 1 }],
            _ if d.is_multiple_of(128) => vec![(64, 64), (64, 32), (32, 32)]
                .into_iter()
                .map(|(rows, keys)| Self::Wide { rows, keys })
                .collect(),
            _ => vec![],
        };
        let fits = |kernel: &Self| kernel.shared_bytes(d) <= card.shared;
        Some(candidates.into_iter().find(fits).unwrap_or(Self::Plain))
    }

    fn source(self) -> Source {
        match self {
            Self::Narrow { .. } => NARROW,
            Self::Wide { .. } => WIDE,
            Self::Plain => PLAIN,
        }
    }

    fn defines(self, dtype: DType, d: usize) -> Result<Vec<String>> {
        let mut defines = vec![launch::element(dtype)?, format!("HEAD={d}")];
        match self {
            Self::Narrow { warps, tiles } => {
                defines.extend([format!("WARPS={warps}"), format!("TILES={tiles}")]);
            }
            Self::Wide { rows, keys } => defines.extend([format!("ROWS={rows}"), format!("KEYS={keys}")]),
            Self::Plain => {}
        }
        Ok(defines)
    }

    /// Queries of a block.
    fn rows(self) -> usize {
        match self {
            Self::Narrow { warps, tiles } => warps * tiles * 16,
            Self::Wide { rows, .. } => rows,
            Self::Plain => 64,
        }
    }

    fn threads(self) -> usize {
        match self {
            Self::Narrow { warps, .. } => warps * 32,
            Self::Wide { rows, .. } => rows * 4,
            Self::Plain => 256,
        }
    }

    /// What a block has in shared memory; the kernels' sources say what lies there.
    fn shared_bytes(self, d: usize) -> usize {
        match self {
            // Two tiles of 64 keys and of as many values, each row 16 bytes longer than it need be.
            Self::Narrow { .. } => 4 * 64 * (d.next_multiple_of(16) + 8) * 2,
            // Queries, keys and values; weights; two maxima and a factor a row.
            Self::Wide { rows, keys } => (rows + 2 * keys) * d * 2 + rows * (keys + 8) * 2 + 3 * rows * 4,
            // A slice of queries and of keys, each row 4 bytes longer than it need be; weights likewise.
            Self::Plain => (2 * 64 * 33 + 64 * 65) * 4,
        }
    }
}

/// How many batch rows have their lengths in the arguments of a launch.
const LENGTHS: usize = 64;

/// `KeyLengths` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct KeyLengths([i32; LENGTHS]);

// SAFETY: as the kernels have it: numbers one after another.
unsafe impl DeviceRepr for KeyLengths {}

/// Attention by the kernels here; `None` if a head is wider than they take. Shapes were checked by the caller.
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
) -> Result<Option<Tensor>> {
    let device = launch::device(q)?;
    let (batch, queries, inner) = q.dims3()?;
    let (dtype, d) = (q.dtype(), inner / heads);
    let Some(kernel) = Kernel::choose(Card::of(&device)?, dtype, d, queries) else { return Ok(None) };
    let (keys, rows) = (k.dim(1)?, [Rows::of(q)?, Rows::of(k)?, Rows::of(v)?]);
    let out = Dense::unset(q.shape(), dtype, q.device())?;
    let function = function(&device, kernel.source(), &kernel.defines(dtype, d)?, "attend")?;
    let shared = u32::try_from(kernel.shared_bytes(d)).map_err(Error::wrap)?;
    launch::allow_shared(&function, shared)?;

    let number = |x: usize| i32::try_from(x).map_err(Error::wrap);
    let count = |x: usize| u32::try_from(x).map_err(Error::wrap);
    let lengths = match mask {
        AttentionMask::KeyLengths(lengths) => Some(lengths.as_slice()),
        _ => None,
    };
    // Without lengths, what the grid has room for.
    let at_once = if lengths.is_some() { LENGTHS } else { usize::from(u16::MAX) };
    if heads > usize::from(u16::MAX) {
        bail!("attention: {heads} heads are more than a grid has room for");
    }
    for first in (0..batch).step_by(at_once) {
        let here = at_once.min(batch - first);
        let mut of_rows = KeyLengths([0; LENGTHS]);
        for (to, &length) in of_rows.0.iter_mut().zip(lengths.into_iter().flatten().skip(first)) {
            *to = number(length)?;
        }
        let blocks = (count(queries.div_ceil(kernel.rows()))?, count(heads)?, count(here)?);
        let result = out.address() + (first * queries * inner * dtype.size_in_bytes()) as u64;
        let [q, k, v] = &rows;
        launch!(
            device,
            function.clone(),
            launch::grid(blocks, count(kernel.threads())?, shared),
            q.row(first),
            k.row(first),
            v.row(first),
            result,
            q.batch_stride as i64,
            k.batch_stride as i64,
            v.batch_stride as i64,
            number(q.token_stride)?,
            number(k.token_stride)?,
            number(v.token_stride)?,
            number(queries)?,
            number(keys)?,
            std::f32::consts::LOG2_E / (d as f32).sqrt(),
            i32::from(*mask == AttentionMask::Causal),
            i32::from(lengths.is_some()),
            of_rows,
        )?;
    }
    Ok(Some(out.into_tensor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Card = Card { tensor_cores: true, shared: 232_448 };
    const A100: Card = Card { tensor_cores: true, shared: 166_912 };
    const RTX_4090: Card = Card { tensor_cores: true, shared: 101_376 };
    const TURING: Card = Card { tensor_cores: false, shared: 65_536 };

    #[test]
    fn every_card_has_a_kernel_that_fits_its_shared_memory() {
        for card in [H100, A100, RTX_4090, TURING] {
            for d in 1..=WIDEST {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let kernel = Kernel::choose(card, dtype, d, 4096).unwrap();
                    assert!(kernel.shared_bytes(d) <= card.shared, "{card:?} {d} {dtype:?} {kernel:?}");
                }
            }
        }
    }

    #[test]
    fn heads_of_the_networks_are_taken_by_tensor_cores() {
        for card in [H100, A100, RTX_4090] {
            for d in [40, 64, 80, 96, 128, 160] {
                let kernel = Kernel::choose(card, DType::BF16, d, 1024).unwrap();
                assert!(matches!(kernel, Kernel::Narrow { .. }), "{card:?} {d}: {kernel:?}");
            }
        }
        let of_vae = |card| Kernel::choose(card, DType::BF16, 512, 16384).unwrap();
        assert_eq!(of_vae(H100), Kernel::Wide { rows: 64, keys: 64 });
        assert_eq!(of_vae(A100), Kernel::Wide { rows: 64, keys: 32 });
        assert_eq!(of_vae(RTX_4090), Kernel::Wide { rows: 32, keys: 32 });
        assert_eq!(Kernel::choose(H100, DType::BF16, 513, 1), None);
    }
}
