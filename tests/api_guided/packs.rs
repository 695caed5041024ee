//! Expression packs with a LoRA and templates: what gateways read of them, the expression bank, and one step batch for
//! all.

use std::collections::BTreeSet;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::server::{PATIENCE, Server, answer, create_key, data, shared};
use crate::{EXPRESSIONS, batches_over, distance, metric, picture};

fn pack(tags: &[&str]) -> Value {
    json!({
        "character_lora_id": "tinychan", "expression_tags": tags, "character_prompt": "1girl",
        "resolution": "64x64", "seed": 7, "priority": "priority",
    })
}

fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Everything that the socket says of a task, to its end.
async fn heard(server: &Server, task: &str, key: &str, previews: bool) -> Vec<Value> {
    let address = format!("{}/v1/tasks/ws", server.url.replacen("http", "ws", 1));
    let (mut socket, _) = connect_async(address).await.unwrap();
    let mut subscribe =
        json!({"action": "subscribe", "task_id": task, "auth_token": format!("Bearer {key}")});
    if previews {
        subscribe["previews"] = true.into();
    }
    socket.send(Message::text(subscribe.to_string())).await.unwrap();
    let mut heard: Vec<Value> = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => heard.push(serde_json::from_str(&text).unwrap()),
            Message::Ping(_) | Message::Pong(_) => continue,
            other => panic!("not a text: {other:?}"),
        }
        let last = heard.last().unwrap();
        if last["status"] != "queued" && last["status"] != "processing" && last.get("image_url").is_none() {
            return heard;
        }
    }
}

#[tokio::test]
async fn a_guided_pack_is_told_in_the_gateways_fields_from_order_to_picture() {
    let folder = data();
    let key = create_key(folder.path(), "gateway", &[]);
    let server = Server::start(folder.path(), [""; 0]).with_key(&key);
    let tags = ["neutral_resting", "smile_gentle", "smirk_confident"];
    let (status, accepted) = answer(server.post(EXPRESSIONS, &pack(&tags)).await).await;
    assert_eq!(status, 200, "{accepted}");
    let fields = ["task_id", "status", "estimated_time_seconds", "webhook_url", "expression_count"];
    assert_eq!(names(&accepted), BTreeSet::from(fields));
    assert_eq!((&accepted["status"], &accepted["expression_count"]), (&json!("queued"), &json!(3)));
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("expr_"), "{id}");

    let heard = heard(&server, id, &key, false).await;
    for told in &heard {
        assert_eq!(told["task_id"], id, "{told}");
        assert!((0.0..=1.0).contains(&told["progress"].as_f64().unwrap()), "{told}");
        assert!(told.get("current_step").is_some(), "{told}");
    }
    assert_eq!(heard.last().unwrap()["status"], "completed");
    let told: BTreeSet<&str> = heard.iter().filter_map(|told| told["image_url"].as_str()).collect();

    let task = server.completed(id).await;
    let urls = |list: &str| -> BTreeSet<String> {
        let images = task[list].as_array().unwrap();
        images.iter().map(|image| image["url"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(told, urls("images").iter().map(String::as_str).collect());
    assert_eq!(urls("images_completed"), urls("images"));
    let record =
        ["task_id", "status", "progress", "current_step", "images_completed", "images", "eta_seconds"];
    assert!(names(&task).is_superset(&BTreeSet::from(record)) && task.get("error").is_none(), "{task}");
    assert_eq!((task["progress"].as_f64(), &task["kind"]), (Some(1.0), &json!("expressions")));
    let lora = json!([{"id": "tinychan", "strength": 1.0, "text_strength": 1.0}]);
    let control = json!([{"id": "tiny-canny", "preprocess": "opencv_canny", "strength": 0.8, "start": 0.0, "end": 1.0}]);
    for (index, image) in task["images"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&image["index"], &image["label"]), (&json!(index), &json!(tags[index])));
        assert_eq!((&image["seed"], &image["cached"]), (&json!(7), &json!(false)), "{image}");
        assert_eq!((&image["loras"], &image["controls"]), (&lora, &control), "{image}");
        let prompt = image["prompt"].as_str().unwrap();
        assert!(prompt.starts_with("tinychan, 1girl, "), "{prompt}");
    }
    assert_eq!(task["prompt"], task["images"][0]["prompt"], "the record shows the final prompt");
}

#[tokio::test]
async fn a_lora_and_a_template_each_change_what_is_drawn() {
    let server = shared(&[]);
    let draw = async |body: Value| {
        let task = server.completed(&server.submit(EXPRESSIONS, &body).await).await;
        assert!(task["images"][0]["warnings"].is_null(), "{task}");
        picture(&server, &task, 0).await
    };
    let guided = draw(pack(&["smile_gentle"])).await;
    let mut bare = pack(&["smile_gentle"]);
    bare.as_object_mut().unwrap().remove("character_lora_id");
    bare["character_prompt"] = "tinychan, 1girl".into();
    let without_lora = draw(bare).await;
    let mut free = pack(&["smile_gentle"]);
    free["use_templates"] = false.into();
    let without_template = draw(free).await;
    let mut off = pack(&["smile_gentle"]);
    off["lora_strength"] = 0.into();
    let turned_off = draw(off).await;
    assert!(distance(&guided, &without_lora) > 3.0, "{}", distance(&guided, &without_lora));
    assert!(distance(&guided, &without_template) > 3.0, "{}", distance(&guided, &without_template));
    let rest = distance(&turned_off, &without_lora);
    assert!(rest < 0.1, "a LoRA of strength 0 changes nothing, and this is {rest}");
}

#[tokio::test]
async fn the_bank_knows_a_guided_pack_by_its_lora_its_strength_and_its_template() {
    let folder = data();
    let server = Server::start(folder.path(), [""; 0]);
    let body = pack(&["sad", "wink"]);
    let first = server.completed(&server.submit(EXPRESSIONS, &body).await).await;
    let steps = metric(&server, "darkroom_step_batch_size_sum").await;
    let (_, again) = answer(server.post(EXPRESSIONS, &body).await).await;
    assert_eq!((&again["status"], &again["estimated_time_seconds"]), (&json!("completed"), &json!(0)));
    let again = server.completed(again["task_id"].as_str().unwrap()).await;
    for index in [0, 1] {
        assert_eq!(again["images"][index]["cached"], true);
        assert_eq!(again["images"][index]["loras"], first["images"][index]["loras"]);
        assert_eq!(server.picture(&again, index).await, server.picture(&first, index).await);
    }
    assert_eq!(metric(&server, "darkroom_step_batch_size_sum").await, steps, "a hit touched the device");
    for (field, value) in [
        ("lora_strength", json!(0.7)),
        ("template_strength", json!(0.5)),
        ("template_set", json!("short")),
        ("use_templates", json!(false)),
        ("loras", json!([{"id": "tinyvio", "strength": 0.5}])),
        ("character_lora_id", json!("tinyvio")),
    ] {
        let mut other = body.clone();
        other[field] = value;
        let task = server.completed(&server.submit(EXPRESSIONS, &other).await).await;
        for index in [0, 1] {
            assert_eq!(task["images"][index]["cached"], false, "another {field} is another picture");
        }
        let (mine, theirs) = (picture(&server, &task, 0).await, picture(&server, &first, 0).await);
        assert!(distance(&mine, &theirs) > 0.2, "{field}: {}", distance(&mine, &theirs));
    }
    let task = server.completed(&server.submit(EXPRESSIONS, &body).await).await;
    assert_eq!(task["images"][0]["cached"], true, "the first is still known");
}

#[tokio::test]
async fn twenty_expressions_of_two_characters_are_one_step_batch_that_can_be_watched() {
    let folder = data();
    let key = create_key(folder.path(), "gateway", &[]);
    let flags = ["--max-batch", "20", "--engine-previews-per-second", "50"];
    let server = Server::start(folder.path(), flags).with_key(&key);
    let all = server.json("/v1/expressions").await;
    let tags: Vec<&str> =
        all["expressions"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    let one = server.submit(EXPRESSIONS, &pack(&tags[..10])).await;
    let mut other = pack(&tags[..10]);
    other["character_lora_id"] = "tinyvio".into();
    let other = server.submit(EXPRESSIONS, &other).await;
    let heard = heard(&server, &one, &key, true).await;
    let watched: BTreeSet<u64> = heard
        .iter()
        .filter(|told| told["preview"].as_str().is_some_and(|p| p.starts_with("data:image/jpeg;base64,")))
        .map(|told| told["index"].as_u64().unwrap())
        .collect();
    assert!(watched.len() > 1, "{watched:?}");
    for task in [&one, &other] {
        assert_eq!(server.completed(task).await["images"].as_array().unwrap().len(), 10);
    }
    assert!(batches_over(&server, "16.0").await > 0.0, "they were never one batch");
}

#[tokio::test]
async fn a_pack_of_twenty_expressions_of_one_character_is_one_step_batch() {
    let folder = data();
    let server = Server::start(folder.path(), ["--max-batch", "20"]);
    let all = server.json("/v1/expressions").await;
    let tags: Vec<&str> = all["expressions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .take(20)
        .collect();
    let task = server.completed(&server.submit(EXPRESSIONS, &pack(&tags)).await).await;
    let labels: Vec<&str> =
        task["images"].as_array().unwrap().iter().map(|image| image["label"].as_str().unwrap()).collect();
    assert_eq!(labels, tags);
    assert!(batches_over(&server, "16.0").await > 0.0, "they were never one batch");
}
