//! Diffusion networks and their weights. No sampling here, and no devices chosen: a network is built from
//! [`weights::Weights`] on the device these name, and maps tensors to tensors through `darkroom-kernels`.

pub mod weights;
