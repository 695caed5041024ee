//! Crate comfyui-client: strict types for what comes over the WebSocket; what does not fit them it calls unknown.

use std::error::Error;
use std::fs;

use comfyui_client::meta::{ComfyEvent, Event, FileInfo};
use comfyui_client::{ClientBuilder, ComfyUIClient, EventStream};
use futures_util::StreamExt as _;
use serde_json::Value;

/// Kinds of messages that are newer than the crate.
const NEWER: [&str; 1] = ["progress_state"];

/// Runs a workflow; its picture, and the steps that were heard.
async fn run(
    client: &ComfyUIClient,
    stream: &mut EventStream,
    workflow: &Value,
) -> Result<(Vec<u8>, Vec<i64>), Box<dyn Error>> {
    let prompt = client.post_prompt(workflow).await?;
    assert!(prompt.node_errors.is_empty());
    let (mut picture, mut steps, mut started) = (None, Vec::new(), false);
    while let Some(event) = stream.next().await {
        let Event::Comfy(event) = event? else { return Err("the socket was lost".into()) };
        match event {
            ComfyEvent::ExecutionStart { data } => started = data.prompt_id == prompt.prompt_id,
            ComfyEvent::Progress { data } => steps.push(data.value.to_string().parse()?),
            ComfyEvent::Executed { data } => {
                let images = data.output.and_then(|output| output.images).ok_or("no images")?;
                picture = Some(client.get_view(&images[0]).await?.to_vec());
            }
            ComfyEvent::ExecutionSuccess { data } => {
                assert!(started && data.prompt_id == prompt.prompt_id);
                break;
            }
            ComfyEvent::ExecutionError { data } => return Err(format!("{data:?}").into()),
            ComfyEvent::Unknown(message) => {
                let kind = message["type"].as_str().unwrap_or_default();
                assert!(NEWER.contains(&kind), "does not fit the crate's types: {message}");
            }
            _ => {}
        }
    }
    let history = client.get_history(&prompt.prompt_id).await?.ok_or("no history")?;
    assert_eq!(history.outputs["9"].images.as_ref().map(Vec::len), Some(1));
    Ok((picture.ok_or("no picture")?, steps))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("no address")?;
    let (client, mut stream) = ClientBuilder::new(address.as_str()).build().await?;

    let workflow: Value = serde_json::from_str(&fs::read_to_string("txt2img.json")?)?;
    let (picture, steps) = run(&client, &mut stream, &workflow).await?;
    assert_eq!(steps.last(), Some(&4));
    fs::write("txt2img.png", picture)?;
    println!("did txt2img, with progress, history");

    let info = FileInfo { filename: "crate.png".into(), subfolder: "crates".into(), r#type: "input".into() };
    let uploaded = client.upload_image(fs::read("drawing.png")?, &info, true).await?;
    assert_eq!(uploaded, info);
    assert_eq!(client.get_view(&uploaded).await?, fs::read("drawing.png")?);
    let mut workflow: Value = serde_json::from_str(&fs::read_to_string("img2img.json")?)?;
    workflow["10"]["inputs"]["image"] = "crates/crate.png".into();
    fs::write("img2img.png", run(&client, &mut stream, &workflow).await?.0)?;
    println!("did upload, view, img2img");

    assert_eq!(client.get_prompt().await?.exec_info.queue_remaining, 0);
    workflow["3"]["inputs"]["steps"] = 0.into();
    let refused = client.post_prompt(&workflow).await.err().ok_or("0 steps were accepted")?;
    assert!(refused.to_string().contains("400") || format!("{refused:?}").contains("400"), "{refused:?}");
    println!("did queue, refusal of 0 steps");
    Ok(())
}
