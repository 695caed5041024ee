//! `/v1/images`, `/v1/images/batch`, `/v1/images/{id}` and `/v1/tasks`, asked of the real program with the built-in
//! model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;
mod server;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use darkroom::picture::read_text_chunks;
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use program::{difference, draw, largest_difference};
use reqwest::Method;
use reqwest::header::{HeaderMap, RANGE};
use serde_json::{Value, json};
use server::{Server, answer, data, long, refused, shared, small};
use tempfile::TempDir;

/// The same request drawn in another batch may differ by rounding: at most so many 8-bit levels.
const BATCH_LEVELS: u8 = 1;

/// `small(seed)` with other fields.
#[allow(clippy::needless_pass_by_value, reason = "calls read as the JSON that they send")]
fn with(seed: u64, more: Value) -> Value {
    let (Value::Object(mut body), Value::Object(more)) = (small(seed), more) else {
        panic!("not objects");
    };
    body.extend(more);
    Value::Object(body)
}

/// The finished task of a request.
async fn drawn(server: &Server, body: &Value) -> Value {
    let id = server.submit("/v1/images", body).await;
    server.completed(&id).await
}

async fn picture(server: &Server, body: &Value) -> RgbImage {
    let bytes = server.picture(&drawn(server, body).await, 0).await;
    image::load_from_memory(&bytes).unwrap().into_rgb8()
}

fn png(picture: &RgbImage) -> String {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    STANDARD.encode(bytes.into_inner())
}

#[tokio::test]
async fn a_prompt_alone_is_drawn_as_suits_the_model() {
    let server = shared(&[]);
    let response = server.post("/v1/images", &json!({"prompt": "1girl, blonde hair"})).await;
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    assert!(!response.headers().contains_key("idempotency-replayed"));
    let (status, task) = answer(response).await;
    let id = task["task_id"].as_str().unwrap();
    assert_eq!((status, location), (200, format!("/v1/tasks/{id}")));
    assert!(id.starts_with("img_"), "{id}");
    assert_eq!((task["kind"].as_str(), task["priority"].as_str()), (Some("images"), Some("standard")));
    assert_eq!((task["image_count"].as_u64(), task.get("images")), (Some(1), None));

    let models = server.json("/v1/models").await;
    let model = models["data"].as_array().unwrap().iter().find(|model| model["is_default"] == true).unwrap();
    let task = server.completed(id).await;
    let image = &task["images"][0];
    for name in ["width", "height", "steps", "cfg", "sampler", "scheduler"] {
        assert_eq!(image[name], model["defaults"][name], "{name}: {image}");
    }
    assert_eq!((&image["model"], image["format"].as_str()), (&model["id"], Some("png")));
    let done = (task["progress"].as_f64(), task["eta_seconds"].as_f64(), task["queue_position"].as_u64());
    assert_eq!(done, (Some(1.0), None, None), "{task}");
    assert_eq!(task["usage"]["steps"], image["steps"]);
    assert_eq!(task["usage"]["pixels"], image["width"].as_u64().unwrap() * image["height"].as_u64().unwrap());
    assert!(task["usage"]["device_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(task["images_completed"], json!([{"url": image["url"], "index": 0}]));
    let times: Vec<&str> =
        ["created_at", "started_at", "finished_at"].iter().map(|name| task[name].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[tokio::test]
async fn every_field_reaches_the_picture() {
    let server = shared(&[]);
    let fields = json!({
        "prompt": "1girl, black hair", "negative_prompt": "hat", "model": "tiny-sdxl", "width": 72, "height": 64,
        "steps": 3, "cfg": 2.5, "sampler": "euler_ancestral", "scheduler": "normal", "seed": 9_007_199_254_740_993_u64,
        "count": 1, "clip_skip": 2, "denoise": 1, "format": "png", "metadata": true, "priority": "urgent",
        "init_image": null, "mask": null, "webhook_url": null,
    });
    let task = drawn(&server, &fields).await;
    let image = &task["images"][0];
    for name in [
        "prompt",
        "negative_prompt",
        "model",
        "width",
        "height",
        "steps",
        "cfg",
        "sampler",
        "scheduler",
        "seed",
        "format",
    ] {
        assert_eq!(image[name], fields[name], "{name}");
    }
    assert_eq!(task["priority"], "urgent");
    let bytes = server.picture(&task, 0).await;
    assert_eq!(image["bytes"], bytes.len());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.png");
    std::fs::write(&path, &bytes).unwrap();
    let text = &read_text_chunks(&path).unwrap()[0].text;
    for part in [
        "1girl, black hair\nNegative prompt: hat\n",
        "Steps: 3, Sampler: Euler a, Schedule type: Normal, CFG scale: 2.5, Seed: 9007199254740993, Size: 72x64",
    ] {
        assert!(text.contains(part), "'{part}' is not in {text}");
    }
}

#[tokio::test]
async fn what_was_given_up_for_speed_is_told_and_the_configuration_decides_where_requests_do_not() {
    let folder = data();
    let server = Server::start(folder.path(), ["--speed-guidance-end", "0.5"]);
    let step_cache = json!({"cache_interval": 3});
    let both = json!({"guidance_interval": {"start": 0.0, "end": 0.5}, "step_cache": {"cache_interval": 3}});
    let exact = json!({"guidance_interval": {"start": 0.0, "end": 1.0}});
    for (fields, told, written) in [
        (
            json!({}),
            json!({"guidance_interval": {"start": 0.0, "end": 0.5}}),
            Some(", Guidance interval: 0-0.5, Version"),
        ),
        (
            json!({"speed": {"step_cache": step_cache}}),
            both,
            Some(", Guidance interval: 0-0.5, DeepCache interval: 3, Version"),
        ),
        (json!({"speed": exact}), Value::Null, None),
    ] {
        let task = drawn(&server, &with(1, fields)).await;
        assert_eq!(task["images"][0]["speed"], told);
        let bytes = server.picture(&task, 0).await;
        let path = folder.path().join("a.png");
        std::fs::write(&path, &bytes).unwrap();
        let text = &read_text_chunks(&path).unwrap()[0].text;
        match written {
            Some(part) => assert!(text.contains(part), "'{part}' is not in {text}"),
            None => assert!(!text.contains("interval"), "{text}"),
        }
    }
    for (speed, field) in [
        (json!({"guidance_interval": {"start": 0.9, "end": 0.1}}), "speed.guidance_interval"),
        (json!({"step_cache": {"cache_interval": 0}}), "speed.step_cache.cache_interval"),
        (json!({"step_cache": {"cache_interval": 1.5}}), "speed.step_cache.cache_interval"),
        (json!({"guidance": 1}), "speed.guidance"),
        (
            json!({"step_cache": {"cache_interval": 2, "cache_branch_id": 64}}),
            "speed.step_cache.cache_branch_id",
        ),
    ] {
        let response = server.post("/v1/images", &with(1, json!({"speed": speed}))).await;
        assert_eq!(response.status(), 422);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["field"], field);
    }
    // What only the model can refuse fails the task, in words.
    let deep = with(1, json!({"speed": {"step_cache": {"cache_interval": 2, "cache_branch_id": 63}}}));
    let task: Value = server.post("/v1/images?wait=true", &deep).await.json().await.unwrap();
    assert_eq!(task["status"], "failed");
    assert!(task["error"]["message"].as_str().unwrap().contains("cache_branch_id"), "{task}");
}

#[tokio::test]
async fn the_file_names_the_loras_and_controlnets_that_it_was_drawn_with() {
    let server = shared(&[]);
    let template =
        RgbImage::from_fn(64, 64, |x, y| Rgb([if (x / 16 + y / 16) % 2 == 0 { 30 } else { 220 }; 3]));
    let guides = json!({
        "loras": [{"id": "tinychan", "strength": 0.8}, {"id": "tinyvio", "strength": 0.5, "text_strength": 0}],
        "controls": [{
            "id": "tiny-canny", "image": png(&template), "preprocess": "opencv_canny", "strength": 0.75, "end": 0.5,
        }],
        "background": "key",
    });
    let task = drawn(&server, &with(3, guides)).await;
    let bytes = server.picture(&task, 0).await;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.png");
    std::fs::write(&path, &bytes).unwrap();
    let chunks = read_text_chunks(&path).unwrap();
    for part in [
        " <lora:tinychan:0.8> <lora:tinyvio:0:0.5>\n",
        "ControlNet 0: \"Module: canny, Model: tiny-canny, Weight: 0.75, Resize Mode: Crop and Resize, \
         Threshold A: 100, Threshold B: 200, Guidance Start: 0, Guidance End: 0.5, Pixel Perfect: True, ",
    ] {
        assert!(chunks[0].text.contains(part), "'{part}' is not in {}", chunks[0].text);
    }
    // A background that stayed is not said to be gone.
    let keyed = image::load_from_memory(&bytes).unwrap().color().has_alpha();
    assert_eq!(chunks[0].text.contains(", Background: keyed out, "), keyed);
    let workflow: Value = serde_json::from_str(&chunks[1].text).unwrap();
    let nodes: Vec<&Value> = workflow.as_object().unwrap().values().collect();
    let input = |class: &str, name: &str| {
        let nodes = nodes.iter().filter(|node| node["class_type"] == class);
        nodes.map(|node| node["inputs"][name].clone()).collect::<Vec<_>>()
    };
    assert_eq!(input("LoraLoader", "lora_name"), ["tinychan.safetensors", "tinyvio.safetensors"]);
    assert_eq!(input("ControlNetLoader", "control_net_name"), ["tiny-canny.safetensors"]);
}

#[tokio::test]
async fn a_picture_is_the_one_that_the_command_line_draws_and_its_file_is_always_the_same() {
    // One at a time, so that nothing is rounded otherwise.
    let folder = data();
    let server = Server::start(folder.path(), ["--max-batch", "1"]);
    let body = with(1, json!({"metadata": false}));
    let first = server.picture(&drawn(&server, &body).await, 0).await;
    assert_eq!(first, server.picture(&drawn(&server, &body).await, 0).await);
    let drawn_here = image::load_from_memory(&first).unwrap().into_rgb8();
    let out = TempDir::new().unwrap();
    assert_eq!(drawn_here, draw(out.path(), &[]).picture());
    for (flags, fields) in [
        (vec!["--seed", "2"], json!({"seed": 2})),
        (vec!["--negative", "1girl"], json!({"negative_prompt": "1girl"})),
        (vec!["--cfg", "2", "--sampler", "dpmpp_sde"], json!({"cfg": 2, "sampler": "dpmpp_sde"})),
        (vec!["--scheduler", "normal", "--clip-skip", "1"], json!({"scheduler": "normal", "clip_skip": 1})),
        (vec!["--guidance-interval", "0-0.5"], json!({"speed": {"guidance_interval": {"end": 0.5}}})),
        (
            vec!["--cache-interval", "2", "--cache-branch-id", "1"],
            json!({"speed": {"step_cache": {"cache_interval": 2, "cache_branch_id": 1}}}),
        ),
    ] {
        let served = picture(&server, &with(1, fields)).await;
        assert_eq!(served, draw(out.path(), &flags).picture(), "{flags:?}");
        assert_ne!(served, drawn_here, "{flags:?}");
    }
}

#[tokio::test]
async fn pictures_of_one_request_count_their_seeds_up_and_are_those_drawn_alone() {
    let server = shared(&[]);
    let task = drawn(&server, &with(41, json!({"count": 3}))).await;
    let images = task["images"].as_array().unwrap();
    let seeds: Vec<u64> = images.iter().map(|image| image["seed"].as_u64().unwrap()).collect();
    let places: Vec<u64> = images.iter().map(|image| image["index"].as_u64().unwrap()).collect();
    assert_eq!((seeds, places), (vec![41, 42, 43], vec![0, 1, 2]));
    let second = image::load_from_memory(&server.picture(&task, 1).await).unwrap().into_rgb8();
    let alone = picture(&server, &small(42)).await;
    assert!(largest_difference(&second, &alone) <= BATCH_LEVELS);
    assert_eq!(task["usage"]["steps"], 6);
}

#[tokio::test]
async fn waiting_answers_with_the_result() {
    let server = shared(&[]);
    for query in ["?wait=true", "?wait", "?wait=1"] {
        let (status, task) = answer(server.post(&format!("/v1/images{query}"), &small(5)).await).await;
        assert_eq!((status, task["status"].as_str()), (200, Some("completed")), "{query}: {task}");
        assert!(server.picture(&task, 0).await.starts_with(b"\x89PNG"));
    }
    let body = with(1, json!({"cancel_on_disconnect": true}));
    let error = refused(server.post("/v1/images", &body).await, 422, "invalid_value").await;
    assert_eq!(error["field"], "cancel_on_disconnect");
}

#[tokio::test]
async fn every_format_is_what_it_says_and_carries_the_settings_unless_told_not_to() {
    let server = shared(&[]);
    let prompt = b"blonde hair";
    let wide: Vec<u8> = prompt.iter().flat_map(|byte| [*byte, 0]).collect();
    let wide_big: Vec<u8> = prompt.iter().flat_map(|byte| [0, *byte]).collect();
    let carries = |bytes: &[u8]| {
        [&prompt[..], &wide, &wide_big].iter().any(|text| bytes.windows(text.len()).any(|part| part == *text))
    };
    let mut sizes = Vec::new();
    for (fields, mime, format) in [
        (json!({"format": "png"}), "image/png", ImageFormat::Png),
        (json!({"format": "webp"}), "image/webp", ImageFormat::WebP),
        (json!({"format": "webp", "quality": 30}), "image/webp", ImageFormat::WebP),
        (json!({"format": "jpeg"}), "image/jpeg", ImageFormat::Jpeg),
        (json!({"format": "jpeg", "quality": 30}), "image/jpeg", ImageFormat::Jpeg),
    ] {
        for metadata in [true, false] {
            let mut body = with(7, fields.clone());
            body["metadata"] = metadata.into();
            let task = drawn(&server, &body).await;
            let response = server.get(task["images"][0]["url"].as_str().unwrap()).await;
            assert_eq!(response.headers()["content-type"], mime);
            let bytes = response.bytes().await.unwrap();
            assert_eq!(image::guess_format(&bytes).unwrap(), format);
            assert_eq!(image::load_from_memory(&bytes).unwrap().into_rgb8().dimensions(), (64, 64));
            assert_eq!(carries(&bytes), metadata, "{body}");
            if !metadata {
                sizes.push(bytes.len());
            }
        }
    }
    assert!(sizes[2] < sizes[1] && sizes[4] < sizes[3], "a lower quality saves nothing: {sizes:?}");
    let lossless = [json!({"format": "png"}), json!({"format": "webp"})];
    let [png, webp] = lossless.map(|fields| with(7, fields));
    assert!(
        largest_difference(&picture(&server, &png).await, &picture(&server, &webp).await) <= BATCH_LEVELS
    );
}

#[tokio::test]
async fn a_picture_to_start_from_comes_as_base64_or_as_a_data_url_and_less_denoise_changes_less() {
    let server = shared(&[]);
    let source = picture(&server, &with(3, json!({"steps": 6}))).await;
    let (plain, url) = (png(&source), format!("data:image/png;base64,{}", png(&source)));
    let from = |image: &str, denoise: f64| {
        let fields =
            json!({"init_image": image, "denoise": denoise, "steps": 4, "prompt": "1girl, black hair"});
        with(4, fields)
    };
    let task = drawn(&server, &from(&plain, 0.5)).await;
    let image = &task["images"][0];
    assert_eq!((image["from_image"].as_bool(), image["denoise"].as_f64()), (Some(true), Some(0.5)));
    let by_base64 = image::load_from_memory(&server.picture(&task, 0).await).unwrap().into_rgb8();
    let by_url = picture(&server, &from(&url, 0.5)).await;
    assert!(largest_difference(&by_base64, &by_url) <= BATCH_LEVELS);
    let mut changes = Vec::new();
    for denoise in [0.3, 0.6, 1.0] {
        let changed = picture(&server, &from(&plain, denoise)).await;
        changes.push(difference(&source, &changed, |_, _| true));
    }
    assert!(changes.is_sorted() && changes[0] < changes[2], "{changes:?}");
    let mut sized = from(&plain, 0.5);
    sized.as_object_mut().unwrap().remove("height");
    sized["width"] = 96.into();
    assert_eq!(picture(&server, &sized).await.dimensions(), (96, 96), "one side keeps the proportions");
}

#[tokio::test]
async fn inpainting_repaints_the_white_part_and_keeps_the_black_part() {
    let server = shared(&[]);
    let source = picture(&server, &with(3, json!({"steps": 6, "width": 128, "height": 128}))).await;
    let mask = GrayImage::from_fn(128, 128, |x, _| Luma([if x < 64 { 255 } else { 0 }]));
    let mask = png(&image::DynamicImage::ImageLuma8(mask).into_rgb8());
    for mode in
        [json!({}), json!({"inpaint_mode": "noise_mask"}), json!({"inpaint_mode": "fill", "grow_mask": 0})]
    {
        let mut body = with(
            4,
            json!({
                "init_image": png(&source), "mask": mask, "steps": 4, "width": 128, "height": 128,
                "prompt": "black background",
            }),
        );
        body.as_object_mut().unwrap().extend(mode.as_object().unwrap().clone());
        let changed = picture(&server, &body).await;
        // Away from the seam: the autoencoder sees some pixels beyond it.
        let repainted = difference(&source, &changed, |x, _| x < 48);
        let kept = difference(&source, &changed, |x, _| x >= 80);
        assert!(repainted > 2.0 * kept && kept < 15.0, "{mode}: {repainted} {kept}");
    }
}

#[tokio::test]
async fn sources_that_are_none_are_refused_by_their_field() {
    let server = shared(&[]);
    let source = png(&RgbImage::new(64, 64));
    for (fields, field) in [
        (json!({"init_image": "%%%"}), "init_image"),
        (json!({"init_image": STANDARD.encode("no picture")}), "init_image"),
        (json!({"init_image": "http://127.0.0.1:9/a.png"}), "init_image"),
        (json!({"init_image": "file:///etc/passwd"}), "init_image"),
        (json!({"init_image": source, "mask": ""}), "mask"),
        (json!({"mask": source}), "mask"),
        (json!({"init_image": source, "inpaint_mode": "fill"}), "mask"),
        (json!({"init_image": source, "grow_mask": 3}), "grow_mask"),
        (json!({"init_image": source, "denoise": 1.5}), "denoise"),
        (json!({"denoise": 0.5}), "denoise"),
    ] {
        let response = server.post("/v1/images", &with(1, fields.clone())).await;
        let error = refused(response, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{fields}");
    }
}

#[tokio::test]
async fn a_batch_is_accepted_whole_or_not_at_all() {
    let folder = data();
    let server = Server::start(folder.path(), ["--limits-max-batch-requests", "3"]);
    let requests = json!({"requests": [small(1), with(2, json!({"count": 2})), small(3)]});
    let (status, batch) = answer(server.post("/v1/images/batch", &requests).await).await;
    assert_eq!((status, batch["total_count"].as_u64()), (200, Some(3)), "{batch}");
    for (task, (count, seed)) in batch["tasks"].as_array().unwrap().iter().zip([(1, 1), (2, 2), (1, 3)]) {
        assert_eq!(task["image_count"], count);
        let task = server.completed(task["task_id"].as_str().unwrap()).await;
        assert_eq!(task["images"][0]["seed"], seed);
    }
    let bad = json!({"requests": [small(1), with(2, json!({"width": 7})), small(3)]});
    for (body, field) in [
        (bad, "requests[1].width"),
        (json!({"requests": [small(1), with(2, json!({"sampler": "eulr"}))]}), "requests[1].sampler"),
        (json!({"requests": [small(1), with(2, json!({"mask": "x"}))]}), "requests[1].mask"),
        (json!({"requests": [with(1, json!({"hight": 64}))]}), "requests[0].hight"),
        (json!({"requests": []}), "requests"),
        (json!({"requests": [small(1), small(2), small(3), small(4)]}), "requests"),
        (json!({}), "requests"),
    ] {
        let error = refused(server.post("/v1/images/batch", &body).await, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{error}");
    }
    let all = server.json("/v1/tasks").await;
    assert_eq!(all["tasks"].as_array().unwrap().len(), 3, "a refused batch left tasks: {all}");
}

#[tokio::test]
async fn a_picture_is_sent_whole_in_part_and_not_at_all_when_it_is_known() {
    let server = shared(&[]);
    let task = drawn(&server, &small(11)).await;
    let url = task["images"][0]["url"].as_str().unwrap();
    let get = |name: &'static str, value: String| server.request(Method::GET, url).header(name, value).send();
    let whole = server.get(url).await;
    let headers: HeaderMap = whole.headers().clone();
    let etag = headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(
        (whole.status(), &headers["accept-ranges"]),
        (reqwest::StatusCode::OK, &"bytes".parse().unwrap())
    );
    assert!(headers["cache-control"].to_str().unwrap().contains("immutable"));
    let bytes = whole.bytes().await.unwrap();
    let length = bytes.len();

    for (range, part) in
        [("bytes=0-9", 0..10), ("bytes=-10", length - 10..length), ("bytes=100-", 100..length)]
    {
        let response = get(RANGE.as_str(), range.into()).await.unwrap();
        assert_eq!(response.status(), 206, "{range}");
        let expected = format!("bytes {}-{}/{length}", part.start, part.end - 1);
        assert_eq!(response.headers()["content-range"], expected);
        assert_eq!(response.bytes().await.unwrap(), bytes[part]);
    }
    let response = get("range", format!("bytes={length}-")).await.unwrap();
    assert_eq!(response.headers()["content-range"], format!("bytes */{length}"));
    refused(response, 416, "range_not_satisfiable").await;

    let known = get("if-none-match", etag.clone()).await.unwrap();
    assert_eq!((known.status().as_u16(), known.headers()["etag"].to_str().unwrap()), (304, etag.as_str()));
    assert!(known.bytes().await.unwrap().is_empty());
    assert_eq!(get("if-none-match", "\"other\"".into()).await.unwrap().status(), 200);

    let small = server.get(&format!("{url}?width=16")).await;
    assert_ne!(small.headers()["etag"].to_str().unwrap(), etag);
    let thumbnail = image::load_from_memory(&small.bytes().await.unwrap()).unwrap();
    assert_eq!((thumbnail.width(), thumbnail.height()), (16, 16));
    let larger = server.get(&format!("{url}?width=2048")).await.bytes().await.unwrap();
    assert_eq!(larger, bytes, "a thumbnail is never larger than its picture");
    let saved = server.get(&format!("{url}?download=true")).await;
    let name = saved.headers()["content-disposition"].to_str().unwrap();
    assert!(name.starts_with("attachment; filename=\"") && name.ends_with(".png\""), "{name}");

    let head = server.request(Method::HEAD, url).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), head.headers()["content-length"].to_str().unwrap()),
        (200, &*length.to_string())
    );
    for wrong in ["15", "2049"] {
        let response = server.get(&format!("{url}?width={wrong}")).await;
        assert_eq!(refused(response, 422, "invalid_value").await["field"], "width");
    }
    for unknown in
        [format!("{url}0"), "/v1/images/018f0000000070008000000000000000".into(), "/v1/images/x".into()]
    {
        refused(server.get(&unknown).await, 404, "not_found").await;
    }
}

#[tokio::test]
async fn a_task_is_taken_back_once_and_a_finished_one_never() {
    let server = shared(&[]);
    let id = server.submit("/v1/images", &long(1)).await;
    let (status, task) = answer(server.delete(&format!("/v1/tasks/{id}")).await).await;
    assert_eq!((status, task["status"].as_str()), (200, Some("cancelled")), "{task}");
    assert_eq!(task["images"], json!([]));
    assert_eq!(server.finished(&id).await["status"], "cancelled");
    refused(server.delete(&format!("/v1/tasks/{id}")).await, 409, "conflict").await;
    let done = drawn(&server, &small(1)).await;
    let done = format!("/v1/tasks/{}", done["task_id"].as_str().unwrap());
    refused(server.delete(&done).await, 409, "conflict").await;
    assert_eq!(server.json(&done).await["status"], "completed");
    for unknown in ["/v1/tasks/x", "/v1/tasks/img_00000000000000000000000000000000"] {
        refused(server.delete(unknown).await, 404, "not_found").await;
        refused(server.get(unknown).await, 404, "not_found").await;
    }
}

#[tokio::test]
async fn tasks_are_listed_newest_first_a_page_at_a_time() {
    let folder = data();
    let server = Server::start(folder.path(), [""; 0]);
    let mut ids = Vec::new();
    for seed in 0..5 {
        ids.push(server.submit("/v1/images", &small(seed)).await);
    }
    for id in &ids {
        server.completed(id).await;
    }
    let cancelled = server.submit("/v1/images", &long(1)).await;
    server.delete(&format!("/v1/tasks/{cancelled}")).await;
    ids.push(cancelled.clone());
    ids.reverse();

    let (mut listed, mut pages, mut path) = (Vec::new(), Vec::new(), "/v1/tasks?limit=4".to_owned());
    loop {
        let page = server.json(&path).await;
        let tasks = page["tasks"].as_array().unwrap();
        pages.push(tasks.len());
        listed.extend(tasks.iter().map(|task| task["task_id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/tasks?limit=4&cursor={cursor}");
    }
    assert_eq!((listed, pages), (ids, vec![4, 2]));
    let page = server.json("/v1/tasks?status=cancelled").await;
    assert_eq!(page["tasks"].as_array().unwrap().len(), 1);
    assert_eq!(
        (page["tasks"][0]["task_id"].as_str(), &page["next_cursor"]),
        (Some(&*cancelled), &Value::Null)
    );
    assert_eq!(server.json("/v1/tasks?status=failed").await["tasks"], json!([]));
    for (query, field) in
        [("limit=0", "limit"), ("limit=201", "limit"), ("status=done", "status"), ("cursor=x", "cursor")]
    {
        let response = server.get(&format!("/v1/tasks?{query}")).await;
        assert_eq!(refused(response, 422, "invalid_value").await["field"], field);
    }
    refused(server.get("/v1/tasks?limit=many").await, 400, "malformed_request").await;
}

#[tokio::test]
async fn a_repeated_request_is_the_same_task_and_its_key_fits_no_other() {
    let server = shared(&[]);
    let ask = |path: &'static str, key: &'static str, body: Value| {
        let request = server.request(Method::POST, path).header("idempotency-key", key).json(&body);
        async move {
            let response = request.send().await.unwrap();
            let replayed = response.headers().contains_key("idempotency-replayed");
            (replayed, response)
        }
    };
    let (replayed, first) = ask("/v1/images", "one", small(1)).await;
    let (_, first) = answer(first).await;
    assert!(!replayed);
    for path in ["/v1/images", "/v1/images"] {
        let (replayed, again) = ask(path, "one", small(1)).await;
        let (status, again) = answer(again).await;
        assert_eq!((status, replayed, &again["task_id"]), (200, true, &first["task_id"]));
    }
    let (_, other) = ask("/v1/images", "two", small(1)).await;
    assert_ne!(answer(other).await.1["task_id"], first["task_id"]);
    let (_, conflict) = ask("/v1/images", "one", small(2)).await;
    refused(conflict, 409, "idempotency_conflict").await;
    let (_, elsewhere) = ask("/v1/images/batch", "three", json!({"requests": [small(1), small(2)]})).await;
    let (_, batch) = answer(elsewhere).await;
    let (replayed, again) = ask("/v1/images/batch", "three", json!({"requests": [small(1), small(2)]})).await;
    let (_, again) = answer(again).await;
    assert!(replayed);
    for place in [0, 1] {
        assert_eq!(again["tasks"][place]["task_id"], batch["tasks"][place]["task_id"]);
    }
    let (_, conflict) = ask("/v1/images/batch", "three", json!({"requests": [small(1), small(3)]})).await;
    refused(conflict, 409, "idempotency_conflict").await;
}
