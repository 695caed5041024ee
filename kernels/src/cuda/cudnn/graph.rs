//! From tensors and operations to a plan that runs.

use std::sync::Arc;

use super::descriptor::{CudnnError, Descriptor, Draft, Result, check};
use super::library::{Library, Opaque};
use super::names::{Attribute, Code, Kind, Type, note};

/// A tensor of a graph: an argument of its runs, or virtual, between two operations only.
#[derive(Debug, Clone)]
pub(crate) struct TensorSpec {
    /// What runs name it by; no two tensors of a graph share one.
    pub(crate) uid: i64,
    /// Sizes, in cuDNN's order: NCHW of pictures, KCRS of filters.
    pub(crate) dims: Vec<i64>,
    /// Elements from one to the next, of each dimension: these say the layout.
    pub(crate) strides: Vec<i64>,
    /// The element: [`Code::HALF`] and so on.
    pub(crate) element: Code,
    /// Never in memory.
    pub(crate) is_virtual: bool,
    /// One element, in the host's memory.
    pub(crate) by_value: bool,
    /// Bytes that its address is a multiple of.
    pub(crate) alignment: i64,
}

impl TensorSpec {
    /// A tensor in memory, at a multiple of 16 bytes.
    pub(crate) fn new(uid: i64, dims: &[i64], strides: &[i64], element: Code) -> Self {
        let (dims, strides) = (dims.to_vec(), strides.to_vec());
        Self { uid, dims, strides, element, is_virtual: false, by_value: false, alignment: 16 }
    }

    /// Between two operations only.
    pub(crate) fn virtual_one(mut self) -> Self {
        self.is_virtual = true;
        self
    }

    /// Its descriptor.
    pub(crate) fn descriptor(&self, library: &'static Library) -> Result<Arc<Descriptor>> {
        let draft = Draft::new(library, Kind::TENSOR)?
            .i64s(Attribute::TENSOR_UNIQUE_ID, &[self.uid])?
            .code(Attribute::TENSOR_DATA_TYPE, self.element)?
            .i64s(Attribute::TENSOR_BYTE_ALIGNMENT, &[self.alignment])?
            .i64s(Attribute::TENSOR_DIMENSIONS, &self.dims)?
            .i64s(Attribute::TENSOR_STRIDES, &self.strides)?
            .bool(Attribute::TENSOR_IS_VIRTUAL, self.is_virtual)?;
        let draft = if self.by_value { draft.bool(Attribute::TENSOR_IS_BY_VALUE, true)? } else { draft };
        draft.finalized()
    }
}

/// `y = mode(x, b)`, in `f32`.
pub(crate) fn pointwise(
    library: &'static Library,
    mode: Code,
    x: &Arc<Descriptor>,
    b: Option<&Arc<Descriptor>>,
    y: &Arc<Descriptor>,
) -> Result<Arc<Descriptor>> {
    let how = Draft::new(library, Kind::POINTWISE)?
        .code(Attribute::POINTWISE_MODE, mode)?
        .code(Attribute::POINTWISE_MATH_PREC, Code::FLOAT)?;
    let how = if mode == Code::SWISH_FWD { how.f64(Attribute::POINTWISE_SWISH_BETA, 1.0)? } else { how };
    let draft = Draft::new(library, Kind::OPERATION_POINTWISE)?
        .descriptors(Attribute::OPERATION_POINTWISE_PW_DESCRIPTOR, &[how.finalized()?])?
        .descriptors(Attribute::OPERATION_POINTWISE_XDESC, &[Arc::clone(x)])?
        .descriptors(Attribute::OPERATION_POINTWISE_YDESC, &[Arc::clone(y)])?;
    let draft = match b {
        Some(b) => draft.descriptors(Attribute::OPERATION_POINTWISE_BDESC, &[Arc::clone(b)])?,
        None => draft,
    };
    draft.finalized()
}

/// The most engine configurations that are tried of one list.
const MOST_CONFIGS: usize = 32;
/// The most numerical notes that an engine has.
const MOST_NOTES: usize = 16;
/// The largest plan that is kept, in bytes: those that were compiled at run time carry their machine code.
pub(crate) const MOST_PLAN_BYTES: usize = 32 << 20;

/// What engines may not do: sums in less than `f32`, or in another order each time.
const UNWANTED: [i32; 2] = [note::NONDETERMINISTIC, note::REDUCED_PRECISION_REDUCTION];

/// What a plan is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    /// The card of a handle.
    Handle(Opaque),
    /// A card that need not be there: its `DEVICEPROP`. The plan cannot run.
    #[allow(dead_code, reason = "tests ask what cuDNN takes where there is no card")]
    Properties(&'a Arc<Descriptor>),
}

impl Target<'_> {
    fn of_graph(self, draft: Draft) -> Result<Draft> {
        match self {
            Self::Handle(raw) => draft.handle(Attribute::OPERATIONGRAPH_HANDLE, raw),
            Self::Properties(_) => Ok(draft),
        }
    }

    fn of_heuristics(self, draft: Draft) -> Result<Draft> {
        match self {
            // Those of the graph's handle.
            Self::Handle(_) => Ok(draft),
            Self::Properties(card) => {
                draft.descriptors(Attribute::ENGINEHEUR_DEVICEPROP, &[Arc::clone(card)])
            }
        }
    }

    fn of_plan(self, draft: Draft) -> Result<Draft> {
        match self {
            Self::Handle(raw) => draft.handle(Attribute::EXECUTION_PLAN_HANDLE, raw),
            Self::Properties(card) => {
                draft.descriptors(Attribute::EXECUTION_PLAN_DEVICEPROP, &[Arc::clone(card)])
            }
        }
    }
}

/// A graph that an engine was found for.
#[derive(Debug)]
pub(crate) struct Plan {
    descriptor: Arc<Descriptor>,
    workspace: usize,
}

impl Plan {
    /// Finds the best engine for the operations whose plan needs at most `workspace` bytes beside its arguments.
    pub(crate) fn search(
        library: &'static Library,
        target: Target<'_>,
        operations: &[Arc<Descriptor>],
        workspace: usize,
        name: &str,
    ) -> Result<Self> {
        let graph = target
            .of_graph(Draft::new(library, Kind::OPERATIONGRAPH)?)?
            .descriptors(Attribute::OPERATIONGRAPH_OPS, operations)?
            .finalized()?;
        let mut why = String::from("none was offered");
        for mode in [Code::HEURISTICS_A, Code::HEURISTICS_FALLBACK] {
            let configs = match configurations(library, target, &graph, mode) {
                Ok(configs) => configs,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            for config in configs {
                if let Some(unwanted) = unwanted_note(&config) {
                    why = format!("an engine has numerical note {unwanted}");
                    continue;
                }
                match Self::of(library, target, &config) {
                    Ok(plan) if plan.workspace <= workspace => return Ok(plan),
                    Ok(plan) => why = format!("an engine wants {} bytes of workspace", plan.workspace),
                    Err(error) => why = error.to_string(),
                }
            }
        }
        Err(CudnnError::NoEngine { graph: name.to_owned(), why })
    }

    fn of(library: &'static Library, target: Target<'_>, config: &Arc<Descriptor>) -> Result<Self> {
        let draft = target.of_plan(Draft::new(library, Kind::EXECUTION_PLAN)?)?;
        Self::finalized(draft.descriptors(Attribute::EXECUTION_PLAN_ENGINE_CONFIG, &[Arc::clone(config)])?)
    }

    /// A plan that [`Self::json`] gave, of the same library and card.
    pub(crate) fn from_json(library: &'static Library, target: Target<'_>, json: &[u8]) -> Result<Self> {
        let draft = target.of_plan(Draft::new(library, Kind::EXECUTION_PLAN)?)?;
        Self::finalized(draft.chars(Attribute::EXECUTION_PLAN_JSON_REPRESENTATION, json)?)
    }

    fn finalized(draft: Draft) -> Result<Self> {
        let descriptor = draft.finalized()?;
        let workspace = descriptor.i64(Attribute::EXECUTION_PLAN_WORKSPACE_SIZE)?;
        Ok(Self { descriptor, workspace: usize::try_from(workspace).unwrap_or(usize::MAX) })
    }

    /// The plan as text, to be kept; `None` if it is too large for that.
    pub(crate) fn json(&self) -> Result<Option<Vec<u8>>> {
        self.descriptor.chars(Attribute::EXECUTION_PLAN_JSON_REPRESENTATION, MOST_PLAN_BYTES)
    }

    /// Bytes of memory that a run needs beside its arguments.
    pub(crate) fn workspace(&self) -> usize {
        self.workspace
    }

    /// Starts a run on the handle's stream.
    ///
    /// # Safety
    /// `arguments` are all tensors of the graph that are not virtual, by uid, each an address of memory of its size
    /// and alignment; `workspace` is the address of [`Self::workspace`] bytes. All of them stay until the run ends.
    pub(crate) unsafe fn run(
        &self,
        library: &'static Library,
        handle: Opaque,
        arguments: &[(i64, u64)],
        workspace: u64,
    ) -> Result<()> {
        let (uids, addresses): (Vec<i64>, Vec<u64>) = arguments.iter().copied().unzip();
        let pack = Draft::new(library, Kind::VARIANT_PACK)?
            .addresses(Attribute::VARIANT_PACK_DATA_POINTERS, &addresses)?
            .i64s(Attribute::VARIANT_PACK_UNIQUE_IDS, &uids)?
            .addresses(Attribute::VARIANT_PACK_WORKSPACE, &[workspace])?
            .finalized()?;
        // SAFETY: handle, plan and pack are alive; the caller's promise covers the addresses.
        let status = unsafe { (library.execute)(handle, self.descriptor.raw(), pack.raw()) };
        check(library, status, || "running a plan".into())
    }
}

/// What cuDNN would run the graph with, best first.
fn configurations(
    library: &'static Library,
    target: Target<'_>,
    graph: &Arc<Descriptor>,
    mode: Code,
) -> Result<Vec<Arc<Descriptor>>> {
    let heuristics = Draft::new(library, Kind::ENGINEHEUR)?
        .descriptors(Attribute::ENGINEHEUR_OPERATION_GRAPH, &[Arc::clone(graph)])?
        .code(Attribute::ENGINEHEUR_MODE, mode)?;
    let heuristics = target.of_heuristics(heuristics)?.finalized()?;
    let count = heuristics.count(Attribute::ENGINEHEUR_RESULTS, Type::BACKEND_DESCRIPTOR)?.min(MOST_CONFIGS);
    heuristics.descriptors(Attribute::ENGINEHEUR_RESULTS, Kind::ENGINECFG, count)
}

/// A note that speaks against an engine. What cannot be asked speaks for nothing.
fn unwanted_note(config: &Descriptor) -> Option<i32> {
    let engine = config.descriptors(Attribute::ENGINECFG_ENGINE, Kind::ENGINE, 1).ok()?;
    let notes =
        engine.first()?.codes(Attribute::ENGINE_NUMERICAL_NOTE, Type::NUMERICAL_NOTE, MOST_NOTES).ok()?;
    notes.into_iter().find(|note| UNWANTED.contains(note))
}

#[cfg(test)]
pub(crate) mod without_a_card {
    //! What cuDNN takes on an H100, asked where there may be none: cuDNN 9.8 and later need only its properties.

    use super::*;

    /// Of an H100 SXM, as a `DEVICEPROP` gives them.
    const H100: &str = r#"{"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
        "deviceVer": 900, "driverVer": 13000, "regsPerBlock": 65536, "multiProcessorCount": 132, "warpSize": 32,
        "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "l2CacheSize": 52428800,
        "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
        "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "pciDeviceId": 0, "maxCtasPerSM": 32,
        "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "isTccDriver": 0, "supportCoopLaunch": 1,
        "cudaDeviceId": 0, "totalGlobalMem": 85000000000, "deviceName": "NVIDIA H100 80GB HBM3"}"#;

    /// A library that can be asked, and the card; `None`, with a word of it, where there is none.
    #[allow(clippy::print_stderr, reason = "a test says what it skips")]
    pub(crate) fn h100() -> Option<(&'static Library, Arc<Descriptor>)> {
        let library = match Library::get() {
            Ok(library) if library.version() >= 90_800 => library,
            Ok(library) => {
                eprintln!("not tested: cuDNN {} cannot be asked without a card", library.version());
                return None;
            }
            Err(why) => {
                eprintln!("not tested: {why}");
                return None;
            }
        };
        let draft = Draft::new(library, Kind::DEVICEPROP).unwrap();
        let draft = draft.chars(Attribute::DEVICEPROP_JSON_REPRESENTATION, H100.as_bytes()).unwrap();
        Some((library, draft.finalized().unwrap()))
    }
}
