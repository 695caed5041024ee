//! How one product is formed: cuBLASLt's descriptors of it, and the algorithm that its heuristic chooses.

use std::ffi::c_void;

use candle_core::{DType, Error, Result, bail};
use cudarc::cublaslt::{result, sys};
use sys::cublasLtMatmulPreferenceAttributes_t as Preference;

use super::Tuning;

/// `y[m, n] = x[m, k] · weight[n, k]ᵀ`, and what is added. Everything that an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Of both factors; [`DType::F8E4M3`] with scales.
    pub(super) factors: DType,
    /// Of the result and of the summand.
    pub(super) result: DType,
    /// Whether a number a column, in `bias_type`, is added.
    pub(super) bias: bool,
    /// The bias's type.
    pub(super) bias_type: DType,
    /// Whether the result is added to what a summand holds.
    pub(super) adds: bool,
    /// Bytes that the result and the summand are aligned to; the factors are to 16.
    pub(super) alignment: u32,
    /// What the factors are multiplied by.
    pub(super) scales: Scales,
    /// How the algorithm is chosen.
    pub(super) tuning: Tuning,
}

/// The `f32` numbers that 8-bit factors are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scales {
    /// None.
    None,
    /// One each.
    Tensor,
    /// One for each row of `x` and of the weight.
    Row,
}

// Attributes by number: those of scales are younger than the oldest toolkit that candle builds with, and which one this
// is built with is decided outside of this crate.
const TRANSA: u32 = 3;
const EPILOGUE: u32 = 7;
pub(super) const BIAS_POINTER: u32 = 8;
pub(super) const A_SCALE_POINTER: u32 = 17;
pub(super) const B_SCALE_POINTER: u32 = 18;
const FAST_ACCUMULATION: u32 = 25;
const BIAS_DATA_TYPE: u32 = 26;
const A_SCALE_MODE: u32 = 31;
const B_SCALE_MODE: u32 = 32;

const TRANSPOSED: i32 = 1;
const EPILOGUE_BIAS: u32 = 4;
/// `CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F`
const OUTER_VECTOR: i32 = 3;

unsafe extern "C" {
    /// cudarc's binding takes an enumeration of the toolkit's own version.
    fn cublasLtMatmulDescSetAttribute(
        operation: sys::cublasLtMatmulDesc_t,
        attribute: u32,
        value: *const c_void,
        bytes: usize,
    ) -> sys::cublasStatus_t;
}

/// What is computed.
pub(super) struct Operation(pub(super) sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(compute: sys::cublasComputeType_t) -> Result<Self> {
        let made = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F);
        made.map(Self).map_err(Error::wrap)
    }

    /// Sets one attribute; `V` is the type that it has in cuBLASLt's reference.
    pub(super) fn set<V: Copy>(&self, attribute: u32, value: &V) -> Result<()> {
        let from: *const V = value;
        // SAFETY: the descriptor lives, and the value has as many bytes as it is said to have.
        let status =
            unsafe { cublasLtMatmulDescSetAttribute(self.0, attribute, from.cast(), size_of::<V>()) };
        status.result().map_err(|error| Error::msg(format!("cuBLASLt: attribute {attribute}: {error}")))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// How a matrix lies.
pub(super) struct Matrix(pub(super) sys::cublasLtMatrixLayout_t);

impl Matrix {
    /// cuBLASLt counts down columns: what is `[columns, rows]` row by row is `rows × columns` to it.
    fn new(dtype: DType, columns: usize, rows: usize) -> Result<Self> {
        let made = result::create_matrix_layout(data_type(dtype)?, rows as u64, columns as u64, rows as i64);
        made.map(Self).map_err(Error::wrap)
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm may need.
struct Preferences(sys::cublasLtMatmulPreference_t);

impl Preferences {
    fn set<V: Copy>(&self, attribute: Preference, value: V) -> Result<()> {
        let from = &raw const value;
        // SAFETY: the descriptor lives, and the value has as many bytes as it is said to have.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, from.cast(), size_of::<V>()) }
            .map_err(Error::wrap)
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// Descriptors and algorithm.
pub(super) struct Plan {
    pub(super) operation: Operation,
    pub(super) weight: Matrix,
    pub(super) x: Matrix,
    pub(super) y: Matrix,
    pub(super) algorithm: Algorithm,
}

/// One of cuBLASLt's ways to form a product.
#[derive(Clone, Copy)]
pub(super) struct Algorithm {
    pub(super) algorithm: sys::cublasLtMatmulAlgo_t,
    /// Bytes that it wants beside the operands.
    pub(super) workspace: usize,
}

/// Algorithms that the heuristic is asked for where they are timed.
const CANDIDATES: usize = 6;

impl Plan {
    /// The plan of the heuristic's first choice, and its further ones. `None`: it has nothing.
    pub(super) fn find(
        handle: sys::cublasLtHandle_t,
        problem: &Problem,
        workspace: usize,
    ) -> Result<Option<(Self, Vec<Algorithm>)>> {
        let &Problem { m, n, k, factors, result, .. } = problem;
        // Sums in f32, and products of f32 numbers without rounding them to TF32.
        let operation = Operation::new(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F)?;
        operation.set(TRANSA, &TRANSPOSED)?;
        if problem.bias {
            operation.set(EPILOGUE, &EPILOGUE_BIAS)?;
            operation.set(BIAS_DATA_TYPE, &data_type(problem.bias_type)?)?;
        }
        if problem.scales != Scales::None {
            // Tensor cores keep sums of 8-bit products to about 14 bits on their own and add those up in f32 where this
            // is not set, at a third of the speed's cost. The factors have 4 bits.
            operation.set(FAST_ACCUMULATION, &1i8)?;
        }
        if problem.scales == Scales::Row {
            let known =
                operation.set(A_SCALE_MODE, &OUTER_VECTOR).and(operation.set(B_SCALE_MODE, &OUTER_VECTOR));
            if known.is_err() {
                return Ok(None);
            }
        }
        let (weight, x, y) =
            (Matrix::new(factors, n, k)?, Matrix::new(factors, m, k)?, Matrix::new(result, m, n)?);
        let preferences = Preferences(result::create_matmul_pref().map_err(Error::wrap)?);
        preferences.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace)?;
        if !problem.tuning.split_k {
            // No sum over k is shared between blocks, so none is put together in an order that m decides.
            preferences.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 0u32)?;
        }
        preferences.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 16u32)?;
        preferences.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 16u32)?;
        preferences.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.alignment)?;
        preferences.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.alignment)?;
        let asked = if problem.tuning.timed { CANDIDATES } else { 1 };
        let mut found = Vec::<sys::cublasLtMatmulHeuristicResult_t>::with_capacity(CANDIDATES);
        let mut count = 0;
        // SAFETY: everything lives, and there is room for as many answers as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                operation.0,
                weight.0,
                x.0,
                y.0,
                y.0,
                preferences.0,
                asked as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        use sys::cublasStatus_t::{
            CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED, CUBLAS_STATUS_SUCCESS,
        };
        match status {
            CUBLAS_STATUS_SUCCESS => {}
            // What it does not take at all, it says in either of these ways.
            CUBLAS_STATUS_NOT_SUPPORTED | CUBLAS_STATUS_INVALID_VALUE => return Ok(None),
            other => bail!("cuBLASLt chooses no algorithm for {problem:?}: {other:?}"),
        }
        // SAFETY: so many were written.
        unsafe { found.set_len(usize::try_from(count).unwrap_or(0).min(asked)) };
        let usable = |found: &sys::cublasLtMatmulHeuristicResult_t| {
            found.state == CUBLAS_STATUS_SUCCESS && found.workspaceSize <= workspace
        };
        let mut algorithms = found
            .into_iter()
            .filter(usable)
            .map(|found| Algorithm { algorithm: found.algo, workspace: found.workspaceSize });
        let Some(algorithm) = algorithms.next() else { return Ok(None) };
        Ok(Some((Self { operation, weight, x, y, algorithm }, algorithms.collect())))
    }
}

/// cuBLASLt's name of a type.
fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::F16 => Ok(sys::cudaDataType_t::CUDA_R_16F),
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F8E4M3 => Ok(sys::cudaDataType_t::CUDA_R_8F_E4M3),
        other => bail!("matrix products are not formed in {other:?}"),
    }
}
