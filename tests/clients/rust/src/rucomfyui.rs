//! Crate rucomfyui: typed nodes, an event stream over a WebSocket, and most other routes.
//!
//! Its `system_stats` needs a number where ComfyUI says `null`, the index of the device `cpu`, so it works with servers
//! that have a GPU alone.

use std::error::Error;
use std::fs;

use futures_util::StreamExt as _;
use rucomfyui::models::ModelCategory;
use rucomfyui::nodes::all::{
    CLIPTextEncode, CheckpointLoaderSimple, EmptyLatentImage, KSampler, LoadImage, SaveImage, VAEDecode,
    VAEEncode,
};
use rucomfyui::upload::UploadType;
use rucomfyui::{Client, Event, Workflow, WorkflowGraph, WorkflowNodeId};

fn workflow(seed: u64, image: Option<&str>) -> (Workflow, WorkflowNodeId) {
    let graph = WorkflowGraph::new();
    let model = graph.add(CheckpointLoaderSimple::new("tiny-sdxl.safetensors"));
    let saved = graph.add(SaveImage::new(
        graph.add(VAEDecode {
            vae: model.vae,
            samples: graph.add(KSampler {
                model: model.model,
                seed,
                steps: 4,
                cfg: 5.0,
                sampler_name: "euler",
                scheduler: "normal",
                positive: graph.add(CLIPTextEncode::new("1girl, silver hair", model.clip)),
                negative: graph.add(CLIPTextEncode::new("lowres", model.clip)),
                latent_image: match image {
                    Some(image) => {
                        graph.add(VAEEncode::new(graph.add(LoadImage::new(image)).image, model.vae))
                    }
                    None => graph.add(EmptyLatentImage { width: 128, height: 128, batch_size: 1 }),
                },
                denoise: if image.is_some() { 0.6 } else { 1.0 },
            }),
        }),
        "clients/rucomfyui",
    ));
    (graph.into_workflow(), saved)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::new(std::env::args().nth(1).ok_or("no address")?);
    let seed = fs::read_to_string("seed")?.parse()?;

    let (graph, saved) = workflow(seed, None);
    let mut execution = client.execute(&graph).await?;
    let prompt_id = execution.prompt_id().to_owned();
    let (mut steps, mut previews, mut pictures, mut completed) = (Vec::new(), 0, Vec::new(), false);
    while let Some(event) = execution.next().await {
        match event? {
            Event::Progress { value, max: 4, .. } => steps.push(value),
            Event::Preview { image, .. } => {
                assert_eq!(image.data[..2], [0xff, 0xd8], "a JPEG");
                previews += 1;
            }
            Event::Executed { node, output, .. } if node == saved => pictures = output.images,
            Event::Error { message, .. } => return Err(message.into()),
            Event::Completed { .. } => completed = true,
            _ => {}
        }
    }
    assert!(completed && steps.last() == Some(&4), "{steps:?}");
    // It asks for previews in `extra_data.preview_method`.
    assert!(previews > 0, "no previews");
    fs::write("txt2img.png", pictures.first().ok_or("no picture")?)?;
    println!("did txt2img with typed nodes, progress and previews");

    let uploaded = client.upload_image("ru.png", fs::read("drawing.png")?, UploadType::Input, true).await?;
    assert_eq!((uploaded.name.as_str(), uploaded.upload_type), ("ru.png", UploadType::Input));
    let (graph, saved) = workflow(seed, Some("ru.png"));
    let outputs = client.execute(&graph).await?.outputs().await?;
    fs::write("img2img.png", &outputs[&saved].images[0])?;
    // All of it from the cache.
    let outputs = client.execute(&graph).await?.outputs().await?;
    assert_eq!(outputs[&saved].images.len(), 1);
    println!("did upload, img2img, a cached run");

    let objects = client.get_object_info().await?;
    assert!(objects.contains_key("KSampler"));
    let sampler = client.get_object_for_name("KSampler").await?;
    let inputs: Vec<&str> = sampler.required_inputs().map(|(name, _)| name).collect();
    assert_eq!(inputs[..3], ["model", "seed", "steps"]);
    assert!(client.get_model_categories().await?.contains(&ModelCategory::Checkpoints));
    assert_eq!(client.get_models(ModelCategory::Checkpoints).await?, ["tiny-sdxl.safetensors"]);
    println!("did object_info, models");

    assert!(client.get_history_for_prompt(&prompt_id).await?.data[&prompt_id].status.completed);
    assert_eq!(client.get_history(1).await?.data.len(), 1);
    client.delete_from_history(vec![prompt_id.clone()]).await?;
    assert!(client.get_history_for_prompt(&prompt_id).await?.data.is_empty());
    let queue = client.get_queue().await?;
    assert!(queue.running.is_empty() && queue.pending.is_empty());
    client.clear_queue().await?;
    client.delete_from_queue(vec![prompt_id]).await?;
    client.interrupt().await?; // sends `null`; that ComfyUI answers 500 to it is not looked at
    client.free(true, true).await?;
    println!("did history, queue, interrupt, free");
    Ok(())
}
