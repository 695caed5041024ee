//! The kernels of `conv2d.cu`.

use candle_core::{CudaDevice, DType, Error, Result, Tensor, bail};
use cudarc::driver::{DeviceRepr, sys};

use super::super::compile::{Source, function};
use super::super::launch::{self, Dense, launch};
use super::{Prepared, Sizes};

const SOURCE: Source = Source { name: "conv2d", text: include_str!("../../../cuda/conv2d.cu") };

/// `Geometry` of `conv2d.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct KernelGeometry {
    height: i32,
    width: i32,
    channels: i32,
    out_height: i32,
    out_width: i32,
    out: i32,
    kernel_height: i32,
    kernel_width: i32,
    stride: i32,
    top: i32,
    left: i32,
    rows: i32,
    depth: i32,
    bias_rows: i32,
}

// SAFETY: plain numbers, laid out as in C.
unsafe impl DeviceRepr for KernelGeometry {}

impl KernelGeometry {
    fn of(problem: &Prepared) -> Result<Self> {
        let Sizes { geometry, .. } = problem.sizes;
        let sizes = problem.sizes;
        let int = |n: usize| i32::try_from(n).map_err(Error::wrap);
        // Rows of tiles beyond the last pixel are counted too, and rows of a doubled picture.
        for most in [sizes.rows() + MOST_TILE, sizes.depth() + MOST_TILE, 4 * sizes.height * sizes.width] {
            if i32::try_from(most).is_err() {
                bail!("conv2d: {sizes:?} is beyond what the kernel counts");
            }
        }
        Ok(Self {
            height: int(sizes.height)?,
            width: int(sizes.width)?,
            channels: int(sizes.channels)?,
            out_height: int(sizes.out_height)?,
            out_width: int(sizes.out_width)?,
            out: int(sizes.out)?,
            kernel_height: int(sizes.kernel_height)?,
            kernel_width: int(sizes.kernel_width)?,
            stride: int(geometry.stride)?,
            top: int(geometry.padding.top)?,
            left: int(geometry.padding.left)?,
            rows: int(sizes.rows())?,
            depth: int(sizes.depth())?,
            bias_rows: if problem.bias_per_sample() { int(sizes.batch)? } else { 1 },
        })
    }
}

/// What a block computes: pixels and channels, and how much of it each of its warps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    pixels: usize,
    channels: usize,
    warp_pixels: usize,
    warp_channels: usize,
}

/// For large problems: the most arithmetic for what is fetched.
const LARGE: Tile = Tile { pixels: 128, channels: 128, warp_pixels: 64, warp_channels: 64 };
/// For few output channels.
const NARROW: Tile = Tile { pixels: 128, channels: 32, warp_pixels: 32, warp_channels: 32 };
/// For problems that would leave processors without a large one.
const SMALL: Tile = Tile { pixels: 64, channels: 64, warp_pixels: 32, warp_channels: 32 };
/// Pixels or channels of the largest tile, with a slice of the depth to spare.
const MOST_TILE: usize = 256;

/// Terms of the sums that a stage in shared memory holds, and stages (`BK` and `STAGES` of `conv2d.cu`).
const STAGE_DEPTH: usize = 32;
const STAGES: usize = 4;

impl Tile {
    fn of(sizes: &Sizes, gathers: bool, processors: usize) -> Self {
        if gathers {
            return SMALL;
        }
        if sizes.out <= NARROW.channels {
            return NARROW;
        }
        if LARGE.blocks(sizes) >= processors { LARGE } else { SMALL }
    }

    fn blocks(&self, sizes: &Sizes) -> usize {
        sizes.rows().div_ceil(self.pixels) * sizes.out.div_ceil(self.channels)
    }

    fn threads(&self) -> usize {
        self.pixels / self.warp_pixels * (self.channels / self.warp_channels) * 32
    }

    /// Bytes: the stages, or what the sums pass through in the end.
    fn shared(&self) -> usize {
        let stages = STAGES * (self.pixels + self.channels) * STAGE_DEPTH * 2;
        let slabs = self.threads() / 32 * 16 * (self.warp_channels + 8) * 4;
        stages.max(slabs)
    }
}

/// By tensor cores, or in `f32`.
pub(super) fn convolve(problem: &Prepared) -> Result<Tensor> {
    let device = launch::device(problem.x.tensor())?;
    let geometry = KernelGeometry::of(problem)?;
    let sizes = &problem.sizes;
    let y = Dense::unset(sizes.output(), problem.dtype, problem.x.tensor().device())?;
    let plain = problem.products() == DType::F32;
    let gathers = !sizes.channels.is_multiple_of(if plain { 4 } else { 8 });
    let mut defines = vec![
        launch::element(problem.products())?,
        launch::element(problem.dtype)?.replace("T=", "U="),
        format!("GATHER={}", u8::from(gathers)),
        format!("UPSAMPLE={}", u8::from(sizes.upsampled)),
    ];
    let (name, blocks, threads, shared) = if plain {
        defines.push("PLAIN=1".into());
        let tile = Tile { pixels: 64, channels: 64, ..SMALL };
        ("convolve_plain", tile.blocks(sizes), 256, 2 * 16 * (64 + 4) * 4)
    } else {
        let tile = Tile::of(sizes, gathers, processors(&device)?);
        defines.extend([format!("BM={}", tile.pixels), format!("BN={}", tile.channels)]);
        defines.extend([format!("WM={}", tile.warp_pixels), format!("WN={}", tile.warp_channels)]);
        ("convolve", tile.blocks(sizes), tile.threads(), tile.shared())
    };
    let function = function(&device, SOURCE, &defines, name)?;
    let int = |n: usize| u32::try_from(n).map_err(Error::wrap);
    let config = launch::grid((int(blocks)?, 1, 1), int(threads)?, int(shared)?);
    launch::allow_shared(&function, config.shared_mem_bytes)?;
    let address = |tensor: &Option<Dense>| tensor.as_ref().map_or(0, Dense::address);
    launch!(
        device,
        function,
        config,
        problem.x.address(),
        problem.weight.address(),
        address(&problem.bias),
        address(&problem.residual),
        y.address(),
        geometry,
        problem.activation.code(),
    )?;
    Ok(y.into_tensor())
}

/// Adds bias and residual to the bare sums in `y` and activates them, in place. `y`'s channels are whole vectors.
pub(super) fn finish(problem: &Prepared, y: Dense) -> Result<Tensor> {
    let device = launch::device(y.tensor())?;
    let geometry = KernelGeometry::of(problem)?;
    let out = launch::element(problem.dtype)?;
    let defines =
        [out.clone(), out.replace("T=", "U="), "FINISH=1".into(), "GATHER=0".into(), "UPSAMPLE=0".into()];
    let function = function(&device, SOURCE, &defines, "finish")?;
    let config = launch::blocks(y.tensor().elem_count() / 8, 256)?;
    let address = |tensor: &Option<Dense>| tensor.as_ref().map_or(0, Dense::address);
    let (bias, residual) = (address(&problem.bias), address(&problem.residual));
    launch!(device, function, config, bias, residual, y.address(), geometry, problem.activation.code())?;
    Ok(y.into_tensor())
}

/// How many multiprocessors the card has.
fn processors(device: &CudaDevice) -> Result<usize> {
    use sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT;
    let count = device.cuda_stream().context().attribute(COUNT).map_err(Error::wrap)?;
    Ok(usize::try_from(count).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conv2dGeometry, Padding};

    fn sizes(batch: usize, side: usize, channels: usize, out: usize) -> Sizes {
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
        Sizes {
            batch,
            height: side,
            width: side,
            channels,
            out_height: side,
            out_width: side,
            out,
            kernel_height: 3,
            kernel_width: 3,
            geometry,
            upsampled: false,
        }
    }

    #[test]
    fn a_tile_leaves_no_processor_without_work_where_a_smaller_one_gives_it_some() {
        assert_eq!(Tile::of(&sizes(2, 128, 320, 320), false, 132), LARGE);
        assert_eq!(Tile::of(&sizes(2, 16, 1280, 1280), false, 132), SMALL);
        assert_eq!(Tile::of(&sizes(2, 128, 320, 4), false, 132), NARROW);
        assert_eq!(Tile::of(&sizes(2, 128, 4, 320), true, 132), SMALL);
    }

    #[test]
    fn every_tile_fits_a_block() {
        for tile in [LARGE, NARROW, SMALL] {
            // Each thread fetches whole rows' chunks, and the stages fit the smallest card's 99 KB.
            let rows_at_once = tile.threads() / (STAGE_DEPTH / 8);
            assert!(
                tile.pixels.is_multiple_of(rows_at_once) && tile.channels.is_multiple_of(rows_at_once),
                "{tile:?}"
            );
            assert!(tile.shared() <= 99 << 10, "{tile:?}");
        }
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "a test says what it skips")]
    fn what_follows_bare_sums_in_a_pass_of_its_own_is_what_follows_them_at_once() {
        use super::super::Problem;
        use crate::cpu::oracle::random;
        use crate::device::{self, DeviceName};
        let device = match device::open(DeviceName::Cuda(0)) {
            Ok((device, _)) => device,
            Err(why) => return eprintln!("not tested: {why}"),
        };
        for (dtype, error) in [(DType::BF16, 1e-2), (DType::F16, 2e-3)] {
            let there =
                |dims: &[usize], dtype| random(dims).to_dtype(dtype).unwrap().to_device(&device).unwrap();
            let (x, weight) = (there(&[2, 9, 7, 16], dtype), there(&[40, 3, 3, 16], dtype));
            let residual = there(&[2, 9, 7, 40], dtype);
            let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
            // One bias for all samples, and one for each.
            for bias in [there(&[40], DType::F32), there(&[2, 40], DType::F32)] {
                let bare = Problem::new(&x, &weight, None, geometry);
                let bare = convolve(&Prepared::of(&bare).unwrap()).unwrap();
                let whole = Problem {
                    residual: Some(&residual),
                    activation: crate::Activation::Silu,
                    ..Problem::new(&x, &weight, Some(&bias), geometry)
                };
                let whole = Prepared::of(&whole).unwrap();
                let once = convolve(&whole).unwrap();
                let twice = finish(&whole, Dense::of(&bare).unwrap()).unwrap();
                let host = |t: &Tensor| {
                    t.to_dtype(DType::F32).unwrap().to_device(&candle_core::Device::Cpu).unwrap()
                };
                let (once, twice) = (host(&once), host(&twice));
                let norm =
                    |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let apart = norm(&(&once - &twice).unwrap()) / norm(&once);
                assert!(apart <= error, "{dtype:?}, bias {:?}: {apart:e}", bias.shape());
            }
        }
    }
}
