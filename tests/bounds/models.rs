//! Model files that are broken: a request with one is told what is wrong, and other models go on.

use std::path::Path;

use serde_json::{Value, json};

use crate::refusal;
use crate::server::{Server, data, small};

/// The built-in model's file.
fn whole() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-sdxl.safetensors")).unwrap()
}

/// A safetensors file with this header and so many bytes of tensors.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let whole = whole();
    let one = |shape: &str, end: usize| {
        format!(r#"{{"conv_in.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    vec![
        ("empty", Vec::new()),
        ("garbage", b"this is not a model".repeat(1000)),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("header-cut", whole[..100].to_vec()),
        ("endless-header", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("huge-header", [&(1_u64 << 40).to_le_bytes()[..], b"{}"].concat()),
        ("not-json", with_header("{not json}", 0)),
        ("beyond-the-end", with_header(&one("[1000000]", 4_000_000), 16)),
        ("huge-shape", with_header(&one("[4294967295,4294967295,4294967295]", 16), 16)),
        ("something-else", with_header(&one("[4]", 16), 16)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_model_file_is_named_in_words_and_other_models_go_on() {
    let (data, models) = (data(), data());
    let folder = models.path().join("checkpoints");
    std::fs::create_dir(&folder).unwrap();
    for (name, bytes) in broken() {
        std::fs::write(folder.join(name).with_extension("safetensors"), bytes).unwrap();
    }
    std::fs::write(folder.join("good.safetensors"), whole()).unwrap();
    let server = Server::start(data.path(), ["--models-dir".as_ref(), models.path().as_os_str()]);
    let others = server.submit("/v1/images", &small(1)).await;
    for (name, _) in broken() {
        let mut body = small(2);
        body["model"] = name.into();
        let (status, error) = refusal(server.post("/v1/images", &body).await).await;
        assert!([409, 422].contains(&status), "{name}: {status} {error}");
        let message = error["message"].as_str().unwrap();
        println!("{name}: {message}");
        assert!(message.contains(name), "{name}: {message}");
        let load =
            server.request(reqwest::Method::POST, &format!("/v1/models/{name}/load")).send().await.unwrap();
        let (status, error) = refusal(load).await;
        assert!([409, 422].contains(&status), "loading {name}: {status} {error}");
    }
    let good = json!({"prompt": "1girl", "width": 64, "height": 64, "steps": 1, "model": "good"});
    server.completed(&server.submit("/v1/images", &good).await).await;
    server.completed(&others).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_weights_are_no_numbers_fails_its_task_and_harms_no_other() {
    let (data, models) = (data(), data());
    let mut bytes = whole();
    let start = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
    let floats = header.iter().filter(|(name, tensor)| {
        name.starts_with("model.diffusion_model.")
            && tensor["dtype"].as_str().is_some_and(|dtype| dtype.contains('F'))
    });
    let mut spoilt = 0;
    for (_, tensor) in floats {
        let offset = |place: usize| start + tensor["data_offsets"][place].as_u64().unwrap() as usize;
        bytes[offset(0)..offset(1)].fill(0xff);
        spoilt += 1;
    }
    assert!(spoilt > 0, "the model has no floats");
    std::fs::write(models.path().join("nan.safetensors"), bytes).unwrap();
    let server = Server::start(data.path(), ["--models-dir".as_ref(), models.path().as_os_str()]);
    let mut body = small(1);
    body["model"] = "nan".into();
    let (ill, well) =
        (server.submit("/v1/images", &body).await, server.submit("/v1/images", &small(1)).await);
    let state: Value = server.finished(&ill).await;
    assert_eq!((&state["status"], &state["error"]["type"]), (&json!("failed"), &json!("model_unavailable")));
    let message = state["error"]["message"].as_str().unwrap();
    assert!(message.contains("nan.safetensors") && message.contains("NaN"), "{message}");
    server.completed(&well).await;
}
