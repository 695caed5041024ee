//! The autoencoder between pictures and latents.

mod config;

pub use config::VaeConfig;
