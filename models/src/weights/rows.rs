//! A table of which few rows are looked up at a time: token embeddings, the largest tensor of a language model. Held, or
//! left in its file where weights are streamed. Between the weight views and the networks.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::copy::Order;
use super::header::Storage;
use super::{Stored, StoredType, Transform, WeightsError};

/// `[rows, width]`, in its stored type.
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    /// In memory.
    Held(Tensor),
    /// In its file.
    Streamed(Stored),
}

impl Rows {
    /// Whether single rows of `stored` can be read.
    pub(super) fn can_stream(stored: &Stored) -> bool {
        stored.transform == Transform::None
            && stored.file.info(&stored.name).is_ok_and(|info| {
                matches!(info.storage, Storage::Dense(_))
                    && matches!(info.dtype, StoredType::F32 | StoredType::F16 | StoredType::BF16)
            })
    }

    /// The rows `ids`, `[ids, width]` on `device`.
    ///
    /// # Errors
    /// When one is beyond the table, or holds NaN or infinity.
    pub(crate) fn select(&self, ids: &[u32], device: &Device) -> candle_core::Result<Tensor> {
        let stored = match self {
            Self::Held(table) => {
                let ids = Tensor::from_slice(ids, ids.len(), table.device())?;
                return table.index_select(&ids, 0);
            }
            Self::Streamed(stored) => stored,
        };
        // Each row once, in the order of the file.
        let mut places: BTreeMap<u32, u32> = ids.iter().map(|&id| (id, 0)).collect();
        let mut rows = Vec::with_capacity(places.len());
        for (index, (&id, place)) in places.iter_mut().enumerate() {
            *place = index as u32;
            rows.push(read(stored, id as usize).map_err(candle_core::Error::wrap)?);
        }
        let order: Vec<u32> = ids.iter().filter_map(|id| places.get(id).copied()).collect();
        let order = Tensor::from_vec(order, ids.len(), &Device::Cpu)?;
        Tensor::cat(&rows, 0)?.index_select(&order, 0)?.to_device(device)
    }
}

fn read(stored: &Stored, row: usize) -> Result<Tensor, WeightsError> {
    let info = stored.file.info(&stored.name)?;
    match info.shape.as_slice() {
        &[rows, width] if row < rows => {
            let place = Some(row..row + 1);
            stored.file.read(&stored.name, info, place, Order::Stored, &[1, width], &Device::Cpu)
        }
        shape => Err(WeightsError::Shape {
            file: stored.file.name().to_owned(),
            name: stored.name.clone(),
            found: shape.to_vec(),
            expected: vec![row + 1],
        }),
    }
}
