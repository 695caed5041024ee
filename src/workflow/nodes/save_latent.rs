//! Latents into files and from them, in ComfyUI's layout of safetensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use serde_json::json;

use super::load_image::{check_file, digest, refused};
use super::save_image::{unsaved, with_metadata};
use crate::workflow::context::{Context, Inputs, NodeError, Outputs};
use crate::workflow::folders::FileType;
use crate::workflow::interface::{Interface, input_latent, link, string};
use crate::workflow::latent::Latent;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Largest file of latents that is read, bytes: a batch of 64 for pictures of 4096×4096.
const MAX_BYTES: u64 = 256 << 20;
/// Longest side of a latent, cells: a picture of 16384 pixels.
const MAX_SIDE: usize = 2048;
/// Channels of Qwen-Image's latents.
const CHANNELS_WITH_FRAMES: usize = 16;
/// Channels of the latents that Darkroom's models have.
const CHANNELS: [usize; 2] = [4, CHANNELS_WITH_FRAMES];
/// The samples, and what says that they are not scaled for the network.
const SAMPLES: &str = "latent_tensor";
const UNSCALED: &str = "latent_format_version_0";
/// What files without [`UNSCALED`] were scaled by.
const SCALE: f64 = 0.18215;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        with_metadata(
            Interface::new("SaveLatent", "_for_testing")
                .input(link("samples", Kind::LATENT))
                .input(string("filename_prefix").with("default", "latents/ComfyUI"))
                .output_node(),
        ),
        save_latent,
    );
    let node = registry.add(
        Interface::new("LoadLatent", "_for_testing").input(input_latent("latent")).output(Kind::LATENT),
        load_latent,
    );
    node.changed = Some(|inputs, context| Some(digest(inputs, context, "latent")));
    node.check = Some(("latent", |inputs, folders| check_file(inputs, folders, "latent", "latent")));
}

fn save_latent(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let prefix = inputs.string("filename_prefix")?;
    let bytes = encode(&latent.samples, context.metadata.chunks())?;
    let mut numbered = context
        .folders
        .numbered(FileType::Output, &prefix, 0, 0)
        .map_err(|error| NodeError::input("filename_prefix", format!("'{prefix}': {error}")))?;
    let saved = numbered.save(0, "latent", &bytes).map_err(|error| unsaved(&error))?;
    Ok(Outputs::default().showing(json!({ "latents": [saved.to_json()] })))
}

fn load_latent(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let name = inputs.string("latent")?;
    let bytes =
        context.folders.read_annotated(&name, MAX_BYTES).map_err(|error| refused("latent", &name, &error))?;
    let samples =
        decode(&bytes).map_err(|message| NodeError::input("latent", format!("'{name}': {message}")))?;
    Ok(Outputs::one(Value::Latent(Arc::new(Latent::new(samples)))))
}

fn encode(samples: &Tensor, texts: &[(String, String)]) -> Result<Vec<u8>, NodeError> {
    let values = samples.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let shape = shape_in_file(samples.dims(), &values);
    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    let failed = |error: safetensors::SafeTensorError| NodeError::Failed(format!("cannot save: {error}"));
    let view = |shape: &[usize], bytes| TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes);
    let tensors =
        [(SAMPLES, view(&shape, &bytes).map_err(failed)?), (UNSCALED, view(&[0], &[]).map_err(failed)?)];
    let mut metadata: HashMap<String, String> = texts.iter().cloned().collect();
    metadata.entry("prompt".to_owned()).or_default();
    safetensors::serialize(tensors, Some(metadata)).map_err(failed)
}

/// ComfyUI has `[batch, channels, 1, height, width]` of what Qwen-Image drew: its VAE is one of videos, and a picture has one
/// frame. An empty latent says only how large, and has no frames there either.
fn shape_in_file(shape: &[usize], values: &[f32]) -> Vec<usize> {
    match *shape {
        [batch, CHANNELS_WITH_FRAMES, height, width] if values.iter().any(|value| *value != 0.0) => {
            vec![batch, CHANNELS_WITH_FRAMES, 1, height, width]
        }
        _ => shape.to_vec(),
    }
}

fn decode(bytes: &[u8]) -> Result<Tensor, String> {
    let damaged = |error: &dyn std::fmt::Display| format!("it is no file of latents: {error}");
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(|error| damaged(&error))?;
    let view = file.tensor(SAMPLES).map_err(|error| damaged(&error))?;
    // Models of videos, of which Qwen-Image's autoencoder is one, have a frame's number before the rows.
    let (channels, height, width) = match view.shape() {
        [_, channels, height, width] | [_, channels, 1, height, width] => (channels, height, width),
        other => {
            return Err(format!(
                "its latents have the shape {other:?}, not [batch, channels, height, width]"
            ));
        }
    };
    if !CHANNELS.contains(channels) {
        let [first, second] = CHANNELS;
        return Err(format!(
            "its latents have {channels} channels; Darkroom's models have {first}, Qwen-Image {second}"
        ));
    }
    if view.data().is_empty() || *height > MAX_SIDE || *width > MAX_SIDE {
        return Err(format!("its latents have the shape {:?}; sides are 1 to {MAX_SIDE}", view.shape()));
    }
    let samples = tensor(&view).map_err(|error| damaged(&error))?;
    let samples = match samples.rank() {
        5 => samples.squeeze(2).map_err(|error| damaged(&error))?,
        _ => samples,
    };
    let is_unscaled = file.names().contains(&UNSCALED);
    let samples = if is_unscaled { Ok(samples) } else { samples.affine(1.0 / SCALE, 0.0) };
    samples.map_err(|error| damaged(&error))
}

fn tensor(view: &TensorView<'_>) -> candle_core::Result<Tensor> {
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F16 => DType::F16,
        safetensors::Dtype::BF16 => DType::BF16,
        safetensors::Dtype::F64 => DType::F64,
        other => {
            candle_core::bail!("its latents are {other:?}, not floating-point numbers of 16, 32 or 64 bits")
        }
    };
    let data: Cow<'_, [u8]> = view.data().into();
    Tensor::from_raw_buffer(&data, dtype, view.shape(), &Device::Cpu)?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn latent() -> Tensor {
        Tensor::arange(0f32, 48.0, &Device::Cpu).unwrap().reshape((2, 4, 3, 2)).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn file(name: &str, dtype: safetensors::Dtype, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        safetensors::serialize([(name, view)], None).unwrap()
    }

    #[test]
    fn latents_come_back_and_carry_the_prompt() {
        let texts = [("prompt".to_owned(), "{}".to_owned()), ("workflow".to_owned(), "[1]".to_owned())];
        let bytes = encode(&latent(), &texts).unwrap();
        assert_eq!(values(&decode(&bytes).unwrap()), values(&latent()));
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        assert_eq!((&*metadata["prompt"], &*metadata["workflow"]), ("{}", "[1]"));
        assert_eq!(header.info("latent_format_version_0").unwrap().shape, [0]);
        assert_eq!(header.info("latent_tensor").unwrap().shape, [2, 4, 3, 2]);
    }

    #[test]
    fn what_qwen_image_drew_has_one_frame_in_a_file_and_comes_back_without() {
        let shape = |bytes: &[u8]| {
            let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
            header.info("latent_tensor").unwrap().shape.clone()
        };
        let drawn = Tensor::arange(0f32, 192.0, &Device::Cpu).unwrap().reshape((2, 16, 3, 2)).unwrap();
        let bytes = encode(&drawn, &[]).unwrap();
        assert_eq!(shape(&bytes), [2, 16, 1, 3, 2]);
        let back = decode(&bytes).unwrap();
        assert_eq!((back.dims(), values(&back)), (&[2, 16, 3, 2][..], values(&drawn)));

        let empty = encode(&drawn.zeros_like().unwrap(), &[]).unwrap();
        assert_eq!(shape(&empty), [2, 16, 3, 2]);
        assert_eq!(decode(&empty).unwrap().dims(), [2, 16, 3, 2]);
    }

    #[test]
    fn an_old_file_is_unscaled_when_it_is_read() {
        let bytes: Vec<u8> = values(&latent()).into_iter().flat_map(f32::to_le_bytes).collect();
        let old = file("latent_tensor", safetensors::Dtype::F32, &[2, 4, 3, 2], &bytes);
        let read = values(&decode(&old).unwrap());
        assert!((read[47] - 47.0 / 0.18215).abs() < 1e-3, "{}", read[47]);
    }

    #[test]
    fn halves_are_read_as_floats() {
        let bytes: Vec<u8> = [0x3c00u16; 4].into_iter().flat_map(u16::to_le_bytes).collect();
        let half = file("latent_tensor", safetensors::Dtype::F16, &[1, 4, 1, 1], &bytes);
        let read = decode(&half).unwrap();
        assert_eq!(read.dtype(), DType::F32);
        assert!((values(&read)[0] - 1.0 / 0.18215).abs() < 1e-4);
    }

    #[test]
    fn what_is_no_latent_is_refused_by_its_reason() {
        let reason = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert!(reason(b"").contains("no file of latents"));
        let f32 = safetensors::Dtype::F32;
        assert!(reason(&file("other", f32, &[1], &[0; 4])).contains("latent_tensor"));
        assert!(reason(&file("latent_tensor", f32, &[4, 1, 1], &[0; 16])).contains("[4, 1, 1]"));
        assert!(reason(&file("latent_tensor", f32, &[1, 12, 1, 1], &[0; 48])).contains("12 channels"));
        assert!(
            reason(&file("latent_tensor", f32, &[1, 16, 2, 1, 1], &[0; 128])).contains("[1, 16, 2, 1, 1]")
        );
        assert!(reason(&file("latent_tensor", f32, &[0, 4, 1, 1], &[])).contains("[0, 4, 1, 1]"));
        assert!(reason(&file("latent_tensor", f32, &[1, 4, 1, 4096], &[0; 65_536])).contains("4096"));
        let int = file("latent_tensor", safetensors::Dtype::I64, &[1, 4, 1, 1], &[0; 32]);
        assert!(reason(&int).contains("I64"), "{}", reason(&int));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&latent(), &[]).unwrap();
            for (index, value) in flips {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(length.index(bytes.len() + 1));
            let _ = decode(&bytes);
        }
    }
}
