//! Pictures that begin as pictures: other outfits, stickers, and everything at once in `/v1/images`.

use serde_json::{Value, json};

use crate::server::{Server, answer, shared};
use crate::{IMAGES, OUTFITS, STICKERS, data_url, decoded, disc, distance, distance_where, picture, png};

/// A character of the built-in model, as a file.
async fn base(server: &Server) -> Vec<u8> {
    let body =
        json!({"prompt": "1girl, blonde hair, smile", "width": 64, "height": 64, "steps": 12, "seed": 4});
    let task = server.completed(&server.submit(IMAGES, &body).await).await;
    server.picture(&task, 0).await
}

async fn outfit(server: &Server, base: &[u8], changes: Value) -> Value {
    let mut body = json!({
        "base_image_url": data_url(base), "new_outfit_prompt": "red shirt", "character_lora_id": "tinychan", "seed": 3,
    });
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let (status, accepted) = answer(server.post(OUTFITS, &body).await).await;
    assert_eq!((status, accepted["status"].as_str()), (200, Some("queued")), "{accepted}");
    assert!(accepted.get("warnings").is_none(), "{accepted}");
    let id = accepted["task_id"].as_str().unwrap();
    assert!(id.starts_with("outfit_"), "{id}");
    server.completed(id).await
}

#[tokio::test]
async fn an_outfit_changes_as_much_as_it_is_asked_to() {
    let server = shared(&[]);
    let file = base(&server).await;
    let old = decoded(&file);
    let mut changed = Vec::new();
    for denoise in [0.0, 0.4, 1.0] {
        let task = outfit(&server, &file, json!({"denoise_strength": denoise})).await;
        let image = &task["images"][0];
        assert_eq!((&image["denoise"], &image["from_image"]), (&json!(denoise), &json!(true)), "{image}");
        assert_eq!(image["prompt"], "tinychan, red shirt");
        changed.push(distance(&picture(&server, &task, 0).await, &old));
    }
    assert!(changed[0] < 8.0, "nothing was to change but for the way through the latent: {changed:?}");
    assert!(changed[0] < changed[1] && changed[1] < changed[2], "{changed:?}");
}

#[tokio::test]
async fn a_pose_is_kept_by_the_pictures_own_edges_unless_it_may_go() {
    let server = shared(&[]);
    let file = base(&server).await;
    let strong = |preserve: Value| {
        let mut changes = json!({"denoise_strength": 0.9});
        if !preserve.is_null() {
            changes["preserve_pose"] = preserve;
        }
        changes
    };
    let kept = outfit(&server, &file, strong(json!(true))).await;
    let control = json!([{"id": "tiny-canny", "preprocess": "opencv_canny", "strength": 0.8, "start": 0.0, "end": 1.0}]);
    assert_eq!(kept["images"][0]["controls"], control);
    let silent = outfit(&server, &file, strong(Value::Null)).await;
    assert_eq!(silent["images"][0]["controls"], control, "a pose is kept where nothing is said");
    let free = outfit(&server, &file, strong(json!(false))).await;
    assert_eq!(free["images"][0]["controls"], json!([]));
    let (kept, free) = (picture(&server, &kept, 0).await, picture(&server, &free, 0).await);
    assert!(distance(&kept, &free) > 1.0, "{}", distance(&kept, &free));
}

#[tokio::test]
async fn a_mask_says_where_the_outfit_is() {
    let server = shared(&[]);
    let file = base(&server).await;
    let lower = image::RgbImage::from_fn(64, 64, |_, y| image::Rgb([if y >= 32 { 255 } else { 0 }; 3]));
    let mask = json!({"mask": data_url(&png(&lower)), "denoise_strength": 1.0, "preserve_pose": false});
    let task = outfit(&server, &file, mask).await;
    let (old, new) = (decoded(&file), picture(&server, &task, 0).await);
    // Latent cells of the border and the decoder's view are left out.
    let upper = distance_where(&new, &old, |_, y| y < 16);
    let lower = distance_where(&new, &old, |_, y| y >= 32);
    assert!(lower > 2.0 * upper, "{lower} where it is redrawn, {upper} where it is kept");
}

/// What a picture becomes whose background is keyed out, drawn over hardly at all.
async fn keyed(server: &Server, source: &image::RgbImage) -> (Value, image::DynamicImage) {
    let body = json!({
        "prompt": "1girl", "width": 64, "height": 64, "steps": 20, "seed": 1, "denoise": 0.05,
        "init_image": data_url(&png(source)), "background": "key",
    });
    let task = server.completed(&server.submit(IMAGES, &body).await).await;
    let file = server.picture(&task, 0).await;
    (task["images"][0].clone(), image::load_from_memory(&file).unwrap())
}

#[tokio::test]
async fn a_flat_background_becomes_transparent_and_one_that_is_not_flat_stays_with_a_warning() {
    let server = shared(&[]);
    let (image, file) = keyed(&server, &disc(64, [40, 200, 60], [230, 150, 40])).await;
    assert!(image.get("warnings").is_none(), "{image}");
    assert!(file.color().has_alpha());
    let file = file.to_rgba8();
    let (corner, middle) = (file.get_pixel(2, 2)[3], file.get_pixel(32, 32)[3]);
    assert_eq!((corner, middle), (0, 255), "transparent around, opaque within");

    let checks = image::RgbImage::from_fn(64, 64, |x, y| {
        image::Rgb(if (x / 16 + y / 16) % 2 == 0 { [230, 40, 40] } else { [40, 60, 230] })
    });
    let (image, file) = keyed(&server, &checks).await;
    let warning = image["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("the background stays: "), "{warning}");
    assert!(!file.color().has_alpha(), "{image}");
}

#[tokio::test]
async fn stickers_are_transparent_or_say_why_not() {
    let server = shared(&[]);
    let body = json!({
        "character_lora_id": "tinychan", "character_prompt": "1girl, upper body", "seed": 11,
        "expression_tags": ["smile_gentle", "sad", "angry", "wink"], "resolution": "128x128", "use_templates": false,
    });
    let (_, accepted) = answer(server.post(STICKERS, &body).await).await;
    assert_eq!(accepted["expression_count"], 4, "{accepted}");
    let task = server.completed(accepted["task_id"].as_str().unwrap()).await;
    let mut cut_out = 0;
    for (index, image) in task["images"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&image["background"], &image["loras"][0]["id"]), (&json!("key"), &json!("tinychan")));
        let file = image::load_from_memory(&server.picture(&task, index).await).unwrap();
        let warned = image.get("warnings").is_some();
        assert_ne!(file.color().has_alpha(), warned, "{image}");
        if !warned {
            let alpha: Vec<u8> = file.to_rgba8().pixels().map(|pixel| pixel[3]).collect();
            assert!(alpha.contains(&0) && alpha.contains(&255), "{image}");
            cut_out += 1;
        }
    }
    assert!(cut_out > 0, "none was cut out: {task}");
    // The bank keeps the warnings too.
    let again = server.completed(&server.submit(STICKERS, &body).await).await;
    for index in 0..4 {
        assert_eq!(again["images"][index]["cached"], true);
        assert_eq!(again["images"][index]["warnings"], task["images"][index]["warnings"]);
    }
}

#[tokio::test]
async fn a_picture_takes_loras_controls_details_and_a_background_at_once() {
    let server = shared(&[]);
    let edges = data_url(&png(&disc(64, [0; 3], [255; 3])));
    let plain = json!({
        "prompt": "1girl, simple background, green background", "width": 64, "height": 64, "steps": 8, "seed": 5,
    });
    let mut guided = plain.clone();
    guided["loras"] =
        json!([{"id": "tinychan", "strength": 0.8}, {"id": "tinyvio", "strength": 0.5, "text_strength": 0}]);
    guided["controls"] = json!([
        {"id": "tiny-canny", "image": edges, "strength": 0.6, "start": 0.1, "end": 0.9, "preprocess": "none"},
        {"type": "canny", "image": edges, "strength": 0.3, "low": 0.1, "high": 0.2},
    ]);
    let whole = server.completed(&server.submit(IMAGES, &guided).await).await;
    let image = &whole["images"][0];
    assert_eq!(
        image["loras"],
        json!([
            {"id": "tinychan", "strength": 0.8, "text_strength": 0.8},
            {"id": "tinyvio", "strength": 0.5, "text_strength": 0.0},
        ])
    );
    assert_eq!(
        image["controls"],
        json!([
            {"id": "tiny-canny", "preprocess": "none", "strength": 0.6, "start": 0.1, "end": 0.9},
            {"id": "tiny-canny", "preprocess": "canny", "strength": 0.3, "start": 0.0, "end": 1.0},
        ])
    );
    assert_eq!((&image["detailed"], &image["background"]), (&json!(false), &json!("keep")));

    // A box in the lower right: what is drawn once more lies there, and the rest is as without it.
    let mut detailed = guided.clone();
    detailed["detail"] =
        json!({"boxes": [[0.6, 0.6, 0.9, 0.9]], "denoise": 0.9, "size": 64, "crop_factor": 1, "feather": 0});
    detailed["background"] = "key".into();
    let detailed = server.completed(&server.submit(IMAGES, &detailed).await).await;
    let image = &detailed["images"][0];
    assert_eq!((&image["detailed"], &image["background"]), (&json!(true), &json!("key")), "{image}");
    let mut only = guided.clone();
    only["detail"] =
        json!({"boxes": [[0.6, 0.6, 0.9, 0.9]], "denoise": 0.9, "size": 64, "crop_factor": 1, "feather": 0});
    let only = server.completed(&server.submit(IMAGES, &only).await).await;
    let (before, after) = (picture(&server, &whole, 0).await, picture(&server, &only, 0).await);
    let outside = distance_where(&after, &before, |x, y| x < 24 || y < 24);
    let inside = distance_where(&after, &before, |x, y| (40..56).contains(&x) && (40..56).contains(&y));
    assert!(inside > 1.0 && outside < 0.1, "{inside} in the box, {outside} outside");
    let bare = server.completed(&server.submit(IMAGES, &plain).await).await;
    assert!(distance(&before, &picture(&server, &bare, 0).await) > 3.0);
}
