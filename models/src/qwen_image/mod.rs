//! Qwen-Image's denoiser: a dual-stream diffusion transformer (diffusers' `QwenImageTransformer2DModel`).
