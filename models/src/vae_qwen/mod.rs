//! Qwen-Image's autoencoder (diffusers' `AutoencoderKLQwenImage`), for single frames.
