//! Sparse tables: a convention of ours, so that small models do not carry token tables that are nearly all
//! zeros (49,408 rows, of which a model trained on few words uses a hundred).
//!
//! The tensor `X` of shape `[rows, width]` is stored as
//!
//! - `X.sparse_rows`: I64 `[n]`, the numbers of the rows that are not zero, strictly increasing;
//! - `X.sparse_values`: f32, f16 or bf16 `[n, width]`, those rows;
//! - a metadata entry `darkroom.sparse.X` = `"rows,width"` (`"49408,64"`), the full shape.
//!
//! A [`WeightFile`](super::WeightFile) shows them as one tensor `X` and expands it when it is read.
//! `scripts/sparse_table.py` writes them.

use std::ops::Range;

use super::header::{Header, Storage, StoredType, TensorInfo, quoted};

/// Largest expanded table, in bytes: OpenCLIP bigG's in f32 has 253 million. A small file cannot ask for more.
pub const MAX_EXPANDED_BYTES: usize = 256 << 20;

const METADATA_PREFIX: &str = "darkroom.sparse.";
/// Bytes of one row number.
pub(super) const ROW_BYTES: usize = 8;

/// Replaces the pairs of `header` by the tables that they stand for. `data` is the file's data section.
pub(super) fn fold(header: &mut Header, data: &[u8]) -> Result<(), String> {
    let entries: Vec<(String, String)> = header
        .metadata
        .iter()
        .filter_map(|(key, shape)| Some((key.strip_prefix(METADATA_PREFIX)?.to_owned(), shape.clone())))
        .collect();
    for (name, shape) in entries {
        let info = table(header, &name, &shape, data)
            .map_err(|reason| format!("sparse table {}: {reason}", quoted(&name)))?;
        header.tensors.remove(&rows_name(&name));
        header.tensors.remove(&values_name(&name));
        header.metadata.remove(&format!("{METADATA_PREFIX}{name}"));
        header.tensors.insert(name, info);
    }
    Ok(())
}

fn rows_name(name: &str) -> String {
    format!("{name}.sparse_rows")
}

fn values_name(name: &str) -> String {
    format!("{name}.sparse_values")
}

fn table(header: &Header, name: &str, shape: &str, data: &[u8]) -> Result<TensorInfo, String> {
    if header.tensors.contains_key(name) {
        return Err("it is stored whole as well".into());
    }
    let (total, width) = shape
        .split_once(',')
        .and_then(|(rows, width)| Some((rows.trim().parse().ok()?, width.trim().parse().ok()?)))
        .ok_or("its metadata entry must be \"rows,width\"")?;
    let shape: [usize; 2] = [total, width];
    let (rows_info, rows) = dense(header, &rows_name(name))?;
    let (values_info, values) = dense(header, &values_name(name))?;
    if rows_info.dtype != StoredType::I64 || rows_info.shape.len() != 1 {
        return Err("sparse_rows must be an I64 list".into());
    }
    if !matches!(values_info.dtype, StoredType::F32 | StoredType::F16 | StoredType::BF16) {
        return Err(format!("sparse_values must be f32, f16 or bf16, not {}", values_info.dtype));
    }
    let count = rows_info.shape.iter().product::<usize>();
    if values_info.shape != [count, width] {
        return Err(format!("sparse_values must have shape [{count}, {width}], not {:?}", values_info.shape));
    }
    let bytes = total.checked_mul(width).and_then(|n| n.checked_mul(values_info.dtype.bits() / 8));
    if bytes.is_none_or(|bytes| bytes > MAX_EXPANDED_BYTES) {
        return Err(format!("shape {shape:?} is larger than the limit of {MAX_EXPANDED_BYTES} bytes"));
    }
    let mut next = 0;
    for row in row_numbers(data, &rows) {
        match usize::try_from(row).ok().filter(|row| (next..total).contains(row)) {
            Some(row) => next = row + 1,
            None => {
                return Err(format!("row number {row} is out of order, repeated or not below {total}"));
            }
        }
    }
    Ok(TensorInfo {
        dtype: values_info.dtype,
        shape: shape.to_vec(),
        storage: Storage::SparseRows { rows, values },
    })
}

fn dense<'a>(header: &'a Header, name: &str) -> Result<(&'a TensorInfo, Range<usize>), String> {
    match header.tensors.get(name) {
        Some(info @ TensorInfo { storage: Storage::Dense(range), .. }) => Ok((info, range.clone())),
        _ => Err(format!("tensor {} is missing", quoted(name))),
    }
}

/// The row numbers stored at `range` of `data`.
pub(super) fn row_numbers<'a>(data: &'a [u8], range: &Range<usize>) -> impl Iterator<Item = i64> + 'a {
    let bytes = data.get(range.clone()).unwrap_or_default();
    bytes.as_chunks::<ROW_BYTES>().0.iter().map(|bytes| i64::from_le_bytes(*bytes))
}
