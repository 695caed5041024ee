//! Pointwise non-linearities, on their own and as the tail of other operations.

use candle_core::{Result, Tensor};

use crate::reference;

/// The non-linearities that SD-family networks use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)`, with the error function (not the tanh approximation)
    Gelu,
    /// `x · sigmoid(1.702 x)`, as in OpenAI's CLIP
    QuickGelu,
}

/// `activation` of every element of `x`, any shape.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    reference::activate(x, activation)
}
