//! How near everything in a picture is, as grey: what depth ControlNets read. The network is
//! [`darkroom_models::depth`]; the picture has its values from black, farthest, to white, nearest.

use candle_core::{Device, Tensor};
use darkroom_models::depth::{DepthError, DepthEstimator};

use crate::Picture;

/// The depth of `picture`, as large as it, three equal channels.
///
/// # Errors
/// When the picture is too narrow for the network, or a tensor operation fails.
pub fn estimate(network: &DepthEstimator, picture: &Picture) -> Result<Picture, DepthError> {
    let pixels = Tensor::from_slice(picture.data(), (picture.height(), picture.width(), 3), &Device::Cpu)?;
    let depth: Vec<f32> = network.estimate(&pixels)?.flatten_all()?.to_vec1()?;
    Ok(picture.with_data(depth.into_iter().flat_map(|value| [value; 3]).collect()))
}
