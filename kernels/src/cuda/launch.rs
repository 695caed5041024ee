//! From candle tensors to arguments of kernels and back.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CudaDevice, DType, Device, Error, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaFunction, CudaSlice, DevicePtr, LaunchConfig};

/// A tensor whose elements lie one after another from an address that all of a kernel's accesses are aligned to. It
/// holds the memory; kernels take its [`address`](Self::address).
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    tensor: Tensor,
    address: u64,
}

/// Bytes of the widest access.
const ALIGNMENT: u64 = 16;

impl Dense {
    /// `x` itself, or a copy where it is not dense or begins between two aligned addresses.
    pub(crate) fn of(x: &Tensor) -> Result<Self> {
        let dense = Self::at(x.contiguous()?)?;
        if dense.address.is_multiple_of(ALIGNMENT) { Ok(dense) } else { Self::at(x.force_contiguous()?) }
    }

    /// `x` itself, to be changed in place: its elements lie one after another, but may begin anywhere.
    pub(crate) fn in_place(x: &Tensor) -> Result<Self> {
        if !x.is_contiguous() {
            bail!("{:?} cannot be changed in place: it is not contiguous", x.shape());
        }
        Self::at(x.clone())
    }

    /// A new tensor whose elements are not set: the kernel that takes it must write all of them.
    pub(crate) fn unset(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        // SAFETY: no reader comes before the kernel that writes: all work is in one stream.
        Self::at(unsafe { Tensor::empty(shape, dtype, device) }?)
    }

    fn at(tensor: Tensor) -> Result<Self> {
        let address = first_address(&tensor)?;
        Ok(Self { tensor, address })
    }

    /// Where the first element lies.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// The tensor.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The tensor, once a kernel that writes it was launched.
    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// Where the first element of `tensor` lies, whatever its strides are.
pub(crate) fn first_address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("a tensor of a CUDA device is needed here") };
    let stream = storage.device().cuda_stream();
    macro_rules! start {
        ($($kind:ident)*) => {
            match &storage.slice {
                $(CudaStorageSlice::$kind(slice) => start(slice, &stream),)*
                _ => bail!("{:?} is no type of elements here", tensor.dtype()),
            }
        };
    }
    let start = start!(U8 U32 I16 I32 I64 BF16 F16 F32 F64 F8E4M3);
    Ok(start + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

fn start<T>(slice: &CudaSlice<T>, stream: &cudarc::driver::CudaStream) -> u64 {
    // The guard would tell other streams when this use ends; there are none that share these tensors unasked.
    slice.device_ptr(stream).0
}

/// The CUDA device of a tensor.
pub(crate) fn device(x: &Tensor) -> Result<CudaDevice> {
    match x.device() {
        Device::Cuda(device) => Ok(device.clone()),
        _ => bail!("a tensor of a CUDA device is needed here"),
    }
}

/// What a kernel calls its element (`-DT=…`).
pub(crate) fn element(dtype: DType) -> Result<String> {
    match dtype {
        DType::F32 => Ok("T=float".into()),
        DType::F16 => Ok("T=f16".into()),
        DType::BF16 => Ok("T=bf16".into()),
        other => bail!("{other:?} is no type of activations"),
    }
}

/// Whether the paths here take activations like `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// As many blocks of `threads` as `items` need, in one dimension.
pub(crate) fn blocks(items: usize, threads: u32) -> Result<LaunchConfig> {
    let blocks = u32::try_from(items.div_ceil(threads as usize)).map_err(Error::wrap)?;
    Ok(grid((blocks.max(1), 1, 1), threads, 0))
}

/// Blocks of threads for `columns` items of each of `rows` rows: rows along the grid's first side, parts of one along its
/// second, so that a kernel finds its row without dividing.
pub(crate) fn rows(rows: usize, columns: usize) -> Result<LaunchConfig> {
    const MOST_THREADS: usize = 128;
    let threads = columns.next_multiple_of(32).min(MOST_THREADS);
    let number = |n: usize| u32::try_from(n).map_err(Error::wrap);
    Ok(grid((number(rows)?, number(columns.div_ceil(threads))?, 1), number(threads)?, 0))
}

/// A grid of blocks of `threads`, with `shared` bytes of shared memory each.
pub(crate) fn grid(blocks: (u32, u32, u32), threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: blocks, block_dim: (threads, 1, 1), shared_mem_bytes: shared }
}

/// Shared memory that a block gets without asking for more.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// Lets `function` be launched with `shared` bytes of shared memory.
pub(crate) fn allow_shared(function: &CudaFunction, shared: u32) -> Result<()> {
    use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX;
    if shared <= USUAL_SHARED_BYTES {
        return Ok(());
    }
    function.set_attribute(MAX, i32::try_from(shared).map_err(Error::wrap)?).map_err(Error::wrap)
}

/// Launches `$function` on `$device`'s stream with `$config` and the arguments that follow, in order: numbers by
/// value, [`Dense`] tensors by their `address()`.
macro_rules! launch {
    ($device:expr, $function:expr, $config:expr, $($argument:expr),+ $(,)?) => {{
        use cudarc::driver::PushKernelArg as _;
        let (stream, function) = ($device.cuda_stream(), $function);
        let mut launch = stream.launch_builder(&function);
        $crate::cuda::launch::push!(launch, $($argument),+);
        // SAFETY: the caller gives what the kernel's parameters are: their number, order and types, and memory of
        // the sizes that it is told.
        unsafe { launch.launch($config) }.map(|_| ()).map_err(candle_core::Error::wrap)
    }};
}
pub(crate) use launch;

/// Arguments that live until the launch.
macro_rules! push {
    ($launch:ident, $first:expr $(, $rest:expr)*) => {
        let argument = $first;
        $launch.arg(&argument);
        $crate::cuda::launch::push!($launch $(, $rest)*);
    };
    ($launch:ident) => {};
}
pub(crate) use push;

/// Copies `bytes` from one address to another in `stream`.
pub(crate) fn copy(from: u64, to: u64, bytes: usize, stream: &cudarc::driver::CudaStream) -> Result<()> {
    // SAFETY: the caller gives addresses of that many bytes, which live until the stream is done with them.
    unsafe { cudarc::driver::result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }
        .map_err(Error::wrap)
}
