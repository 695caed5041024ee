//! A convolution layer with its weight in the stored type, channels-last from the moment it is read.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use darkroom_kernels::{
    Conv2dGeometry, Padding, Precision, add_linear_to_rows, conv2d_add, conv2d_at, conv2d_upsampled_2x,
    upsample_nearest_2x,
};

use crate::adapter::{Adapters, Factors};
use crate::weights::{Weights, WeightsError};

/// A square convolution with bias over `[b, h, w, inputs]`.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    name: Arc<str>,
    weight: Tensor,
    bias: Tensor,
    geometry: Conv2dGeometry,
    precision: Precision,
}

impl Conv2d {
    /// A convolution that keeps the picture's size; takes `weight: [outputs, inputs, kernel, kernel]` (`kernel`
    /// odd) and `bias: [outputs]`.
    pub(crate) fn load(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> Result<Self, WeightsError> {
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(kernel / 2) };
        Self::load_with(weights, inputs, outputs, kernel, geometry)
    }

    /// A convolution with its own stride and padding.
    pub(crate) fn load_with(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        geometry: Conv2dGeometry,
    ) -> Result<Self, WeightsError> {
        let weight = weights.take_conv("weight", [outputs, inputs, kernel, kernel])?;
        Ok(Self {
            name: weights.layer(),
            weight,
            bias: weights.take("bias", &[outputs])?.to_dtype(DType::F32)?,
            geometry,
            precision: weights.precision(),
        })
    }

    /// What a causal convolution over frames, `weight: [outputs, inputs, kernel, kernel, kernel]`, does to a single
    /// picture, whose size it keeps: before the first frame there are zeros, so only the last of the kernel counts.
    pub(crate) fn load_causal(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> Result<Self, WeightsError> {
        let weight = weights.take_conv3d_last("weight", [outputs, inputs, kernel, kernel, kernel])?;
        Ok(Self {
            name: weights.layer(),
            weight,
            bias: weights.take("bias", &[outputs])?.to_dtype(DType::F32)?,
            geometry: Conv2dGeometry { stride: 1, padding: Padding::all(kernel / 2) },
            precision: weights.precision(),
        })
    }

    /// `[b, h, w, inputs] -> [b, h', w', outputs]`.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        let (geometry, precision) = (self.geometry, self.precision);
        let y = conv2d_at(x, &self.weight, Some(&self.bias), geometry, precision)?;
        self.adapted(x, y, None, adapters)
    }

    /// The same plus `residual`, `[b, h', w', outputs]`.
    pub(crate) fn forward_add(
        &self,
        x: &Tensor,
        residual: &Tensor,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let (geometry, precision) = (self.geometry, self.precision);
        let y = conv2d_add(x, &self.weight, Some(&self.bias), residual, geometry, precision)?;
        self.adapted(x, y, Some(residual), adapters)
    }

    /// The convolution of `x` with height and width doubled by repeating pixels.
    pub(crate) fn forward_upsampled(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        if adapters.change(&self.name) {
            return self.forward(&upsample_nearest_2x(x)?, adapters);
        }
        conv2d_upsampled_2x(x, &self.weight, Some(&self.bias), self.geometry, self.precision)
    }

    fn adapted(
        &self,
        x: &Tensor,
        y: Tensor,
        residual: Option<&Tensor>,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let (geometry, precision) = (self.geometry, self.precision);
        adapters.apply(
            &self.name,
            x,
            y,
            residual,
            |x, weight, bias| {
                let (weight, bias) = (weight.unwrap_or(&self.weight), bias.unwrap_or(&self.bias));
                conv2d_at(x, weight, Some(bias), geometry, precision)
            },
            |y, factors| {
                factors.iter().try_for_each(|Factors { rows, down, up }| {
                    let part = x.narrow(0, rows.start, rows.len())?;
                    let low = conv2d_at(&part, down, None, geometry, precision)?;
                    add_linear_to_rows(y, rows.start, &low, up, precision)
                })
            },
        )
    }
}
