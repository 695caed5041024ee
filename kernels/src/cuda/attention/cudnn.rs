//! cuDNN's attention: its one operation for all of it, where the library has it and an engine for the shape.
//!
//! The operation (`CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR`, cuDNN 9.13.1) takes queries, keys, values and results as
//! `[batch, heads, tokens, channels]` with any strides, the channels side by side, so that nothing is moved; the scale as a
//! number; and from 9.15 on how many queries and keys each row of the batch has. Causal masks need 9.21 and a graph of
//! their own: the kernels here do those.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{DType, Result, Tensor};

use super::lengths;
use super::operand::Rows;
use crate::AttentionMask;
use crate::cuda::cudnn::{self, Attribute, Code, Descriptor, Draft, Kind, Library, TensorSpec};
use crate::cuda::launch::{self, Dense};

/// The first version with the operation.
const FIRST: usize = 91_301;
/// The first whose operation takes lengths.
const FIRST_WITH_LENGTHS: usize = 91_500;
/// The widest head that any engine takes.
const WIDEST: usize = 256;

/// What the tensors of the graph are called.
mod uid {
    pub(super) const Q: i64 = 1;
    pub(super) const K: i64 = 2;
    pub(super) const V: i64 = 3;
    pub(super) const OUT: i64 = 4;
    pub(super) const SCALE: i64 = 5;
    pub(super) const QUERIES: i64 = 6;
    pub(super) const KEYS: i64 = 7;
}

/// All that a graph depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    dtype: DType,
    batch: i64,
    heads: i64,
    d: i64,
    queries: i64,
    keys: i64,
    /// From one row of the batch to the next, and from one token to the next, of q, k and v, in elements.
    strides: [(i64, i64); 3],
    /// Whether rows have lengths.
    lengths: bool,
}

impl Shape {
    /// The graph's name.
    fn key(&self) -> String {
        let Self { dtype, batch, heads, d, queries, keys, strides, lengths } = self;
        let strides = strides.map(|(row, token)| format!("{row}/{token}")).join(" ");
        let lengths = if *lengths { " lengths" } else { "" };
        format!("attention {dtype:?} b{batch} h{heads} d{d} q{queries} k{keys} strides {strides}{lengths}")
    }

    /// Whether a library of `version` has an operation for it.
    fn is_known_to(&self, version: usize) -> bool {
        version >= if self.lengths { FIRST_WITH_LENGTHS } else { FIRST }
    }

    /// The graph's tensors, in the order of [`uid`].
    fn tensors(&self) -> Vec<TensorSpec> {
        let element = if self.dtype == DType::F16 { Code::HALF } else { Code::BFLOAT16 };
        let sequence = |uid, tokens, (row, token)| {
            TensorSpec::new(uid, &[self.batch, self.heads, tokens, self.d], &[row, self.d, token, 1], element)
        };
        let inner = self.heads * self.d;
        let [q, k, v] = self.strides;
        let scale = TensorSpec {
            by_value: true,
            alignment: 4,
            ..TensorSpec::new(uid::SCALE, &[1, 1, 1, 1], &[1, 1, 1, 1], Code::FLOAT)
        };
        let count = |uid| TensorSpec {
            alignment: 4,
            ..TensorSpec::new(uid, &[self.batch, 1, 1, 1], &[1, 1, 1, 1], Code::INT32)
        };
        let mut tensors = vec![
            sequence(uid::Q, self.queries, q),
            sequence(uid::K, self.keys, k),
            sequence(uid::V, self.keys, v),
            sequence(uid::OUT, self.queries, (self.queries * inner, inner)),
            scale,
        ];
        if self.lengths {
            tensors.extend([count(uid::QUERIES), count(uid::KEYS)]);
        }
        tensors
    }

    fn operation(&self, library: &'static Library) -> cudnn::Result<Vec<Arc<Descriptor>>> {
        /// What the operation calls the tensors.
        const ROLES: [Attribute; 7] = [
            Attribute::OPERATION_SDPA_FWD_QDESC,
            Attribute::OPERATION_SDPA_FWD_KDESC,
            Attribute::OPERATION_SDPA_FWD_VDESC,
            Attribute::OPERATION_SDPA_FWD_ODESC,
            Attribute::OPERATION_SDPA_FWD_SCALEDESC,
            Attribute::OPERATION_SDPA_FWD_SEQ_LEN_QDESC,
            Attribute::OPERATION_SDPA_FWD_SEQ_LEN_KVDESC,
        ];
        let mut operation = Draft::new(library, Kind::OPERATION_SDPA_FWD)?;
        for (role, tensor) in ROLES.into_iter().zip(self.tensors()) {
            operation = operation.descriptors(role, &[tensor.descriptor(library)?])?;
        }
        Ok(vec![operation.finalized()?])
    }
}

/// Attention by cuDNN; `None` if it does not take it, or once failed to run it. Shapes were checked by the caller.
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
) -> Result<Option<Tensor>> {
    let Ok(library) = Library::get() else { return Ok(None) };
    let (batch, queries, inner) = q.dims3()?;
    let (keys, d) = (k.dim(1)?, inner / heads);
    let lengths = match mask {
        AttentionMask::None => None,
        AttentionMask::KeyLengths(lengths) => Some(lengths.as_slice()),
        AttentionMask::Causal => return Ok(None),
    };
    if !matches!(q.dtype(), DType::F16 | DType::BF16) || !d.is_multiple_of(8) || d > WIDEST {
        return Ok(None);
    }
    let rows = [Rows::of(q)?, Rows::of(k)?, Rows::of(v)?];
    // A row that stands for several has no place among cuDNN's strides.
    if rows.iter().any(|rows| !rows.is_aligned() || rows.batch_stride * rows.token_stride == 0) {
        return Ok(None);
    }
    let number = |x: usize| i64::try_from(x).map_err(candle_core::Error::wrap);
    let [of_q, of_k, of_v] = rows.each_ref().map(|rows| (rows.batch_stride as i64, rows.token_stride as i64));
    let shape = Shape {
        dtype: q.dtype(),
        batch: number(batch)?,
        heads: number(heads)?,
        d: number(d)?,
        queries: number(queries)?,
        keys: number(keys)?,
        strides: [of_q, of_k, of_v],
        lengths: lengths.is_some(),
    };
    let key = shape.key();
    if !shape.is_known_to(library.version()) || failed().contains(&key) {
        return Ok(None);
    }
    let device = launch::device(q)?;
    let Some(plan) = cudnn::plan(&device, &key, |library| shape.operation(library)) else { return Ok(None) };
    // Read by the host when the run is started, and only then.
    let scale = 1.0 / (d as f32).sqrt();
    let out = Dense::unset(q.shape(), q.dtype(), q.device())?;
    let [q, k, v] = rows.each_ref().map(|rows| rows.address);
    let mut arguments = vec![
        (uid::Q, q),
        (uid::K, k),
        (uid::V, v),
        (uid::OUT, out.address()),
        (uid::SCALE, (&raw const scale).addr() as u64),
    ];
    if let Some(lengths) = lengths {
        let Some(of_keys) = lengths::address(&device, lengths)? else { return Ok(None) };
        let Some(of_queries) = lengths::address(&device, &vec![queries; batch])? else { return Ok(None) };
        arguments.extend([(uid::QUERIES, of_queries), (uid::KEYS, of_keys)]);
    }
    // SAFETY: all tensors of the graph, with the shapes and strides that it was made for; `Rows` are aligned to 16 bytes.
    match unsafe { cudnn::run(&device, &plan, &arguments) } {
        Ok(()) => Ok(Some(out.into_tensor())),
        Err(why) => {
            cudnn::note_failure(&key, &why);
            failed().insert(key);
            Ok(None)
        }
    }
}

/// Graphs that were planned and did not run.
fn failed() -> std::sync::MutexGuard<'static, HashSet<String>> {
    static FAILED: OnceLock<Mutex<HashSet<String>>> = OnceLock::new();
    FAILED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Self-attention of SDXL at 1024², as a view of a fused projection.
    fn fused() -> Shape {
        Shape {
            dtype: DType::BF16,
            batch: 2,
            heads: 10,
            d: 64,
            queries: 4096,
            keys: 4096,
            strides: [(4096 * 1920, 1920); 3],
            lengths: false,
        }
    }

    #[test]
    fn tensors_are_heads_of_tokens_where_they_lie() {
        let tensors = fused().tensors();
        let uids: Vec<i64> = tensors.iter().map(|tensor| tensor.uid).collect();
        assert_eq!(uids, [uid::Q, uid::K, uid::V, uid::OUT, uid::SCALE]);
        for tensor in &tensors[..4] {
            assert_eq!(tensor.dims, [2, 10, 4096, 64]);
        }
        assert_eq!(tensors[0].strides, [4096 * 1920, 64, 1920, 1]);
        assert_eq!(tensors[3].strides, [4096 * 640, 64, 640, 1]);
        assert!(tensors[4].by_value && tensors[..4].iter().all(|tensor| !tensor.by_value));
    }

    #[test]
    fn keys_of_other_lengths_and_strides_have_graphs_of_their_own() {
        let crossed =
            Shape { keys: 77, strides: [(4096 * 640, 640), (77 * 640, 640), (77 * 640, 640)], ..fused() };
        let padded = Shape { lengths: true, ..crossed.clone() };
        assert_eq!(padded.tensors().len(), 7);
        assert_eq!(padded.tensors()[6].dims, [2, 1, 1, 1]);
        assert_eq!(padded.tensors()[1].dims, [2, 10, 77, 64]);
        let keys = [fused().key(), crossed.key(), padded.key(), Shape { dtype: DType::F16, ..fused() }.key()];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 4, "{keys:?}");
        assert_eq!(
            keys[2],
            "attention BF16 b2 h10 d64 q4096 k77 strides 2621440/640 49280/640 49280/640 lengths"
        );
    }

    #[test]
    fn lengths_need_a_newer_library() {
        let padded = Shape { lengths: true, ..fused() };
        assert!(!fused().is_known_to(91_200) && fused().is_known_to(91_400) && !padded.is_known_to(91_400));
        assert!(padded.is_known_to(91_900));
    }
}
