//! Crate comfyui-rs: builds text-to-image workflows, waits over a WebSocket that it opens after it has sent them, and
//! polls when it came too late.

use std::error::Error;
use std::fs;
use std::time::Duration;

use comfyui_rs::{ComfyClient, GenerationOutcome, Txt2ImgRequest};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

async fn picture(client: &ComfyClient, outcome: GenerationOutcome) -> Result<Vec<u8>, Box<dyn Error>> {
    match outcome {
        GenerationOutcome::Completed { images } => {
            Ok(client.image(images.first().ok_or("no picture")?).await?)
        }
        other => Err(format!("{other:?}").into()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("no address")?;
    let client = ComfyClient::new(address).with_client_id("comfyui-rs-script");
    let seed = fs::read_to_string("seed")?.parse()?;
    assert!(client.health().await?);
    assert_eq!(client.checkpoints().await?, ["tiny-sdxl.safetensors"]);
    assert!(client.samplers().await?.iter().any(|name| name == "euler"));
    assert!(client.schedulers().await?.iter().any(|name| name == "normal"));
    println!("did queue, object_info");

    // Many steps, so that some are left when its socket is there.
    let (workflow, _) = Txt2ImgRequest::new("1girl, silver hair", "tiny-sdxl.safetensors")
        .negative("lowres")
        .size(128, 128)
        .steps(60)
        .cfg_scale(5.0)
        .sampler("euler")
        .scheduler("normal")
        .seed(seed)
        .filename_prefix("clients/comfyui-rs")
        .build();
    let prompt_id = client.queue_prompt(&workflow).await?;
    let mut last = 0;
    let outcome = client
        .wait_for_completion_ws(&prompt_id, PATIENCE, |progress| {
            assert_eq!(progress.total_steps, 60);
            last = progress.current_step;
        })
        .await?;
    assert_eq!(last, 60, "the last step that was heard");
    fs::write("txt2img.png", picture(&client, outcome).await?)?;
    println!("did txt2img, with progress");

    let name = client.upload_image(&fs::read("drawing.png")?, "comfyui-rs.png", true).await?;
    let mut workflow: Value = serde_json::from_str(&fs::read_to_string("img2img.json")?)?;
    workflow["10"]["inputs"]["image"] = name.into();
    let prompt_id = client.queue_prompt(&workflow).await?;
    let outcome = client.wait_for_completion(&prompt_id, PATIENCE).await?;
    fs::write("img2img.png", picture(&client, outcome).await?)?;
    println!("did upload, img2img by polling");

    assert!(client.history(&prompt_id).await?.ok_or("no history")?.completed);
    client.interrupt().await?;
    client.free_memory(true).await?;
    let queue = client.queue_status().await?;
    assert_eq!((queue.running, queue.pending), (0, 0));
    println!("did history, interrupt, free");
    Ok(())
}
