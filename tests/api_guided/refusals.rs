//! What guides a picture and cannot be meant: each is refused before anything is drawn, names its field, and says what
//! to do.

use serde_json::{Value, json};

use crate::server::{answer, data, refused, shared, small};
use crate::{EXPRESSIONS, IMAGES, OUTFITS, STICKERS, data_url, disc, png};

fn square(side: u32) -> String {
    data_url(&png(&disc(side, [0; 3], [255; 3])))
}

fn with(mut body: Value, path: &str, value: &Value) -> Value {
    *body.pointer_mut(path).unwrap() = value.clone();
    body
}

fn pack() -> Value {
    json!({
        "character_lora_id": "tinychan", "expression_tags": ["sad"], "resolution": "64x64", "lora_strength": 1.0,
        "template_set": "default", "template_strength": 0.8, "loras": [{"id": "tinyvio", "strength": 0.5}],
    })
}

fn guided() -> Value {
    let mut body = small(1);
    body["loras"] = json!([{"id": "tinychan", "strength": 1.0, "text_strength": 1.0}]);
    body["controls"] =
        json!([{"id": "tiny-canny", "image": square(64), "strength": 1.0, "start": 0.0, "end": 1.0}]);
    body
}

fn outfit() -> Value {
    json!({
        "base_image_url": square(64), "new_outfit_prompt": "hat", "character_lora_id": "tinychan",
        "denoise_strength": 0.4, "mask": square(64), "resolution": "64x64",
    })
}

#[tokio::test]
async fn names_are_looked_up_and_never_paths() {
    let server = shared(&[]);
    let long = "x/".repeat(10_000);
    let tricks = [
        "../tinychan",
        "../../etc/passwd",
        "/etc/passwd",
        "./tinychan",
        "tinychan/../tinychan",
        "tinychan\0",
        "\0",
        "..",
        ".",
        "~",
        "C:\\tinychan",
        "%2e%2e%2ftinychan",
        "tinychan\n",
        long.as_str(),
    ];
    for (route, body, path, field) in [
        (EXPRESSIONS, pack(), "/character_lora_id", "character_lora_id"),
        (EXPRESSIONS, pack(), "/loras/0/id", "loras[0].id"),
        (EXPRESSIONS, pack(), "/template_set", "template_set"),
        (EXPRESSIONS, pack(), "/expression_tags/0", "expression_tags[0]"),
        (STICKERS, pack(), "/template_set", "template_set"),
        (OUTFITS, outfit(), "/character_lora_id", "character_lora_id"),
        (IMAGES, guided(), "/loras/0/id", "loras[0].id"),
        (IMAGES, guided(), "/controls/0/id", "controls[0].id"),
    ] {
        for trick in tricks {
            // Words around a name are cut off, as people paste them.
            if trick.ends_with('\n') && field != "controls[0].id" && !field.starts_with("loras") {
                continue;
            }
            let (status, answer) =
                answer(server.post(route, &with(body.clone(), path, &json!(trick))).await).await;
            let error = &answer["error"];
            let shown = trick.chars().take(40).collect::<String>();
            assert!([404, 422].contains(&status), "{route} {path} {shown:?}: {status} {answer}");
            assert_eq!(error["field"], field, "{shown:?}: {answer}");
            assert!(error["hint"].is_string(), "{shown:?}: it does not say what to do: {answer}");
            assert!(answer.to_string().len() < 2_000, "{path}: the answer repeats too much");
        }
    }
    for path in ["/loras/0/id", "/controls/0/id"] {
        let (status, answer) = answer(server.post(IMAGES, &with(guided(), path, &json!(""))).await).await;
        assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found")), "{answer}");
    }
    for path in [
        "/v1/templates/../../etc/passwd",
        "/v1/templates/%2e%2e/%2e%2e%2fetc%2fpasswd",
        "/v1/templates/default/..%2fshort%2fsad.png",
        "/v1/templates/default/%2fetc%2fpasswd",
        "/v1/templates/default/sad.png%00",
        "/v1/templates/default/none.png",
        "/v1/templates/none/sad.png",
        "/v1/templates/default/sad",
    ] {
        refused(server.get(path).await, 404, "not_found").await;
    }
}

#[tokio::test]
async fn numbers_out_of_range_name_their_field_and_the_range() {
    let server = shared(&[]);
    for (route, body, path, value, field) in [
        (EXPRESSIONS, pack(), "/lora_strength", json!(11), "lora_strength"),
        (EXPRESSIONS, pack(), "/lora_strength", json!("NaN"), "lora_strength"),
        (EXPRESSIONS, pack(), "/lora_strength", json!(-1e300), "lora_strength"),
        (EXPRESSIONS, pack(), "/template_strength", json!(-0.1), "template_strength"),
        (EXPRESSIONS, pack(), "/template_strength", json!(1e10), "template_strength"),
        (EXPRESSIONS, pack(), "/loras/0/strength", json!(99), "loras[0].strength"),
        (IMAGES, guided(), "/loras/0/strength", json!(-11), "loras[0].strength"),
        (IMAGES, guided(), "/loras/0/strength", json!("inf"), "loras[0].strength"),
        (IMAGES, guided(), "/loras/0/text_strength", json!(1e39), "loras[0].text_strength"),
        (IMAGES, guided(), "/controls/0/strength", json!(-1), "controls[0].strength"),
        (IMAGES, guided(), "/controls/0/strength", json!(null), ""),
        (IMAGES, guided(), "/controls/0/start", json!(1.0), "controls[0].start"),
        (IMAGES, guided(), "/controls/0/start", json!(-0.5), "controls[0].start"),
        (IMAGES, guided(), "/controls/0/end", json!(0.0), "controls[0].start"),
        (IMAGES, guided(), "/controls/0/end", json!(2), "controls[0].end"),
        (OUTFITS, outfit(), "/denoise_strength", json!(7), "denoise_strength"),
        (OUTFITS, outfit(), "/denoise_strength", json!(-0.1), "denoise_strength"),
        (OUTFITS, outfit(), "/denoise_strength", json!("NaN"), "denoise_strength"),
        (OUTFITS, outfit(), "/resolution", json!("64x"), "resolution"),
        (OUTFITS, outfit(), "/resolution", json!("64x-64"), "resolution"),
    ] {
        let (status, answer) = answer(server.post(route, &with(body, path, &value)).await).await;
        if field.is_empty() {
            assert_eq!(status, 200, "null is as if it were left out: {answer}");
            server.finished(answer["task_id"].as_str().unwrap()).await;
            continue;
        }
        assert_eq!((status, &answer["error"]["field"]), (422, &json!(field)), "{path} {value}: {answer}");
    }
    // JSON knows no NaN and no infinity, and none is made of what it cannot hold.
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        for (route, field, body) in
            [(EXPRESSIONS, "lora_strength", pack()), (OUTFITS, "denoise_strength", outfit())]
        {
            let text = with(body, &format!("/{field}"), &json!("#")).to_string().replace("\"#\"", number);
            let request =
                server.request(reqwest::Method::POST, route).header("content-type", "application/json");
            refused(request.body(text).send().await.unwrap(), 400, "malformed_request").await;
        }
    }
}

#[tokio::test]
async fn too_many_of_anything_is_refused_with_the_limit() {
    let server = shared(&[]);
    let entry = |body: &Value, list: &str| body[list][0].clone();
    let many = |body: Value, list: &str, count: usize| {
        let entries = vec![entry(&body, list); count];
        with(body, &format!("/{list}"), &json!(entries))
    };
    let mut boxes = small(1);
    boxes["detail"] = json!({"boxes": vec![[0.1, 0.1, 0.5, 0.5]; 33]});
    for (route, body, field, limit) in [
        (IMAGES, many(guided(), "loras", 9), "loras", "8"),
        (IMAGES, many(guided(), "controls", 5), "controls", "4"),
        (IMAGES, boxes, "detail.boxes", "32"),
        // The character's own LoRA counts too.
        (EXPRESSIONS, many(pack(), "loras", 8), "loras", "8"),
        (EXPRESSIONS, many(pack(), "expression_tags", 25), "expression_tags", "24"),
    ] {
        let error = refused(server.post(route, &body).await, 422, "invalid_value").await;
        assert_eq!(error["field"], field, "{error}");
        assert!(error["message"].as_str().unwrap().contains(limit), "{error}");
    }
    let (status, answer) = answer(server.post(IMAGES, &many(guided(), "controls", 4)).await).await;
    assert_eq!(status, 200, "{answer}");
    let task = server.completed(answer["task_id"].as_str().unwrap()).await;
    assert_eq!(task["images"][0]["controls"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_mask_of_another_size_is_told_both_sizes_and_a_private_address_is_not_asked() {
    let server = shared(&[]);
    let body = with(outfit(), "/mask", &json!(square(32)));
    let error = refused(server.post(OUTFITS, &body).await, 422, "invalid_value").await;
    let message = error["message"].as_str().unwrap();
    assert_eq!(error["field"], "mask");
    assert!(message.contains("32x32") && message.contains("64x64"), "{message}");
    assert!(error["hint"].as_str().unwrap().contains("as large as the picture"), "{error}");
    for field in ["base_image_url", "mask"] {
        for url in [
            "http://127.0.0.1:9/a.png",
            "http://localhost/a.png",
            "http://[::1]/a.png",
            "http://10.0.0.1/a.png",
            "http://169.254.169.254/latest/meta-data",
            "https://0.0.0.0/a.png",
            "file:///etc/passwd",
        ] {
            let body = with(outfit(), &format!("/{field}"), &json!(url));
            let error = refused(server.post(OUTFITS, &body).await, 422, "invalid_value").await;
            assert_eq!(error["field"], field, "{url}: {error}");
        }
    }
    let body = with(guided(), "/controls/0/image", &json!("http://192.168.0.1/a.png"));
    let error = refused(server.post(IMAGES, &body).await, 422, "invalid_value").await;
    assert_eq!(error["field"], "controls[0].image");
}

#[tokio::test]
async fn a_template_that_is_missing_or_no_picture_is_refused_by_name() {
    let (folder, templates) = (data(), data());
    let set = templates.path().join("mine");
    std::fs::create_dir(&set).unwrap();
    std::fs::write(set.join("sad.png"), png(&disc(64, [255; 3], [0; 3]))).unwrap();
    std::fs::write(set.join("angry.png"), b"no picture").unwrap();
    let flags = [std::ffi::OsStr::new("--template-dir"), templates.path().as_os_str()];
    let server = crate::server::Server::start(folder.path(), flags);
    let body = |set: &str, tag: &str| {
        let body = with(pack(), "/template_set", &json!(set));
        with(body, "/expression_tags/0", &json!(tag))
    };
    let task = server.completed(&server.submit(EXPRESSIONS, &body("mine", "sad")).await).await;
    assert_eq!(task["images"][0]["controls"][0]["id"], "tiny-canny");
    for (set, tag, told) in [("mine", "wink", "'wink'"), ("mine", "angry", ""), ("yours", "sad", "'yours'")] {
        let error = refused(server.post(EXPRESSIONS, &body(set, tag)).await, 422, "invalid_value").await;
        assert_eq!(error["field"], "template_set", "{error}");
        assert!(error["message"].as_str().unwrap().contains(told) && error["hint"].is_string(), "{error}");
        assert!(!error.to_string().contains(templates.path().to_str().unwrap()), "{error}");
    }
}
