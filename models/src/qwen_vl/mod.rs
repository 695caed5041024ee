//! Qwen2.5-VL's language model as a text encoder (transformers' `Qwen2_5_VLTextModel`).
