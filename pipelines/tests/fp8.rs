//! Linear layers in 8 bits, as the CPU imitates them: what they cost, and that nothing else changes.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "support/guided.rs"]
mod guided;

use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use darkroom_models::{ComputeType, Computed};
use darkroom_pipelines::{ImageRequest, Picture, Rounding};
use guided::{Model, draw, psnr, relative_error, request};

/// A picture is at least so close to the one without rounding, decibels; 34 was seen, and 13.6 between two seeds. The
/// same bound holds for a picture in company against the same alone: where sums differ in their last bit, a code falls to
/// the other side and the network does the rest, until both have rounding errors of their own (27 seen).
const CLOSE: f64 = 22.0;
/// The same with a LoRA, which makes more of what is rounded; 20.5 seen.
const CLOSE_WITH_LORA: f64 = 16.0;

fn fp8() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(&Device::Cpu, ComputeType::Fp8))
}

fn full() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(&Device::Cpu, ComputeType::Full))
}

/// In many steps, as pictures are drawn: few of them make much of rounding.
fn calm(seed: u64) -> ImageRequest {
    ImageRequest {
        sampler: "euler".parse().unwrap(),
        scheduler: "normal".parse().unwrap(),
        ..request("1girl, smile", seed, 10)
    }
}

fn picture(model: &Model, latent: &Tensor) -> Picture {
    model.pipeline.decode(&[latent]).unwrap().remove(0)
}

#[test]
fn pictures_are_near_the_exact_ones_and_say_what_they_are() {
    assert_eq!(fp8().pipeline.computed(), Computed::Fp8);
    let requests = [calm(1), calm(2)];
    let (rounded, exact) = (fp8().draw(&requests), full().draw(&requests));
    let seeds = psnr(&picture(full(), &exact[0]), &picture(full(), &exact[1]));
    for (rounded, exact) in rounded.iter().zip(&exact) {
        let psnr = psnr(&picture(fp8(), rounded), &picture(full(), exact));
        println!("{psnr:.1} dB; two seeds {seeds:.1} dB");
        assert!(psnr >= CLOSE, "{psnr:.1} dB");
        assert!(psnr < 60.0, "nothing was rounded");
    }
}

#[test]
fn batch_mates_cost_a_picture_no_more_than_rounding_does() {
    let requests = [calm(1), calm(2), ImageRequest { prompt: "1boy, angry".into(), ..calm(3) }];
    let together = fp8().draw(&requests);
    for (request, together) in requests.iter().zip(&together) {
        let alone = fp8().draw(std::slice::from_ref(request)).remove(0);
        let psnr = psnr(&picture(fp8(), together), &picture(fp8(), &alone));
        println!("{:.1e}, {psnr:.1} dB", relative_error(together, &alone));
        assert!(psnr >= CLOSE, "{psnr:.1} dB");
    }
}

#[test]
fn weights_take_half_of_what_they_take_in_sixteen_bits() {
    let (rounded, exact) = (fp8().pipeline.unet_weights(), full().pipeline.unet_weights());
    let bytes = |name: &str| (rounded.get(name).unwrap().bytes(), exact.get(name).unwrap().bytes());
    let (eight, sixteen) = bytes("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight");
    assert!(eight < sixteen * 6 / 10, "{eight} of {sixteen}");
    let (convolution, as_before) = bytes("down_blocks.0.resnets.0.conv1.weight");
    assert_eq!(convolution, as_before);
}

#[test]
fn loras_are_merged_into_what_the_file_has_and_rounded_once() {
    let set = fp8().set(&[("tinychan", 1.0, 1.0)]);
    let request = ImageRequest { loras: Some(set.clone()), ..calm(3) };
    let merged = fp8().pipeline.with_merged(&set, Rounding::ToStored).unwrap();
    let exact = ImageRequest { loras: Some(full().set(&[("tinychan", 1.0, 1.0)])), ..calm(3) };
    let exact = picture(full(), &full().draw(&[exact]).remove(0));
    for latent in [draw(&merged, std::slice::from_ref(&request)).remove(0), fp8().draw(&[request]).remove(0)]
    {
        let psnr = psnr(&picture(fp8(), &latent), &exact);
        println!("{psnr:.1} dB");
        assert!(psnr >= CLOSE_WITH_LORA, "{psnr:.1} dB");
    }
    // What the LoRA did not change is shared, and the base is as it was.
    let (before, after) = (fp8().draw(&[calm(4)]).remove(0), {
        drop(merged);
        fp8().draw(&[calm(4)]).remove(0)
    });
    assert_eq!(relative_error(&after, &before), 0.0);
}
