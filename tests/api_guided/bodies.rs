//! Whole bodies in poses: by name, by joints, by a picture; and poses that nobody can stand in.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::server::{Server, answer, refused, shared};
use crate::{BODIES, data_url, disc, distance, picture, png};

fn body(pose: &Value) -> Value {
    json!({
        "character_lora_id": "tinychan", "character_design": {"gender": "female", "hair_color": "blue"},
        "outfit_prompt": "red shirt", "art_style": "anime", "resolution": "64x96", "apply_detailing": false,
        "upscale_to_high_res": false, "pose_data": pose, "seed": 6,
    })
}

/// OpenPose's own JSON of a figure whose joints are `at` its numbers.
fn openpose(at: impl Fn(usize) -> f64) -> Value {
    let keypoints: Vec<f64> = (0..18).flat_map(|joint| [at(2 * joint), at(2 * joint + 1), 1.0]).collect();
    json!({"people": [{"pose_keypoints_2d": keypoints}], "canvas_width": 64, "canvas_height": 96})
}

async fn drawn(server: &Server, body: &Value) -> Value {
    server.completed(&server.submit(BODIES, body).await).await
}

#[tokio::test]
async fn each_source_of_a_pose_steers_the_picture_and_the_record_shows_by_what() {
    let server = shared(&[]);
    let poses = server.json("/v1/poses").await;
    let ids: Vec<&Value> = poses["poses"].as_array().unwrap().iter().map(|pose| &pose["id"]).collect();
    let preset = body(&json!({"source": "preset", "pose_id": ids[0]}));
    let (status, accepted) = answer(server.post(BODIES, &preset).await).await;
    assert_eq!((status, accepted["status"].as_str()), (200, Some("queued")), "{accepted}");
    let names: BTreeSet<&str> = accepted.as_object().unwrap().keys().map(String::as_str).collect();
    let fields = ["task_id", "status", "estimated_time_seconds", "webhook_url"];
    assert!(names.is_superset(&BTreeSet::from(fields)), "{accepted}");
    assert!(accepted["task_id"].as_str().unwrap().starts_with("fullbody_"), "{accepted}");

    let task = server.completed(accepted["task_id"].as_str().unwrap()).await;
    let image = &task["images"][0];
    assert_eq!((&task["kind"], &image["label"]), (&json!("full_body"), &json!("full_body")));
    assert_eq!((image["width"].as_u64(), image["height"].as_u64()), (Some(64), Some(96)));
    assert_eq!(image["loras"][0]["id"], "tinychan");
    assert_eq!(image["controls"][0]["id"], "tiny-canny");
    let prompt = image["prompt"].as_str().unwrap();
    for part in ["tinychan, ", "blue hair", "red shirt", "full body", "anime"] {
        assert!(prompt.contains(part), "'{part}' is not in {prompt}");
    }
    let first = picture(&server, &task, 0).await;
    let figure = data_url(&png(&disc(64, [0; 3], [255; 3])));
    for pose in [
        json!({"source": "preset", "pose_id": ids[ids.len() - 1]}),
        json!({"source": "custom_json", "pose_json": {"joints": {
            "nose": [0.5, 0.1], "neck": [0.5, 0.3], "right_shoulder": [0.2, 0.3], "left_shoulder": [0.8, 0.3],
        }}}),
        json!({"source": "custom_json", "pose_json": openpose(|number| (number as f64 * 37.0) % 64.0)}),
        json!({"source": "custom_3d", "pose_image": figure}),
    ] {
        let task = drawn(&server, &body(&pose)).await;
        let image = &task["images"][0];
        assert_eq!(image["controls"].as_array().unwrap().len(), 1, "{pose}: {image}");
        let other = picture(&server, &task, 0).await;
        assert!(distance(&first, &other) > 0.5, "{pose}: {}", distance(&first, &other));
    }
    let free = {
        let mut body = body(&Value::Null);
        body.as_object_mut().unwrap().remove("pose_data");
        drawn(&server, &body).await
    };
    assert_eq!(free["images"][0]["controls"], json!([]));
}

#[tokio::test]
async fn a_pose_that_is_none_is_refused_at_its_place_and_an_odd_one_is_drawn() {
    let server = shared(&[]);
    let joints = |nose: Value| json!({"joints": {"nose": nose, "neck": [0.5, 0.3]}});
    let deep = (0..100).fold(json!(0), |inner, _| json!([inner]));
    let crowd = vec![json!({"pose_keypoints_2d": vec![0.5; 54]}); 5_000];
    for pose in [
        joints(json!(["NaN", 0.5])),
        joints(json!(["inf", 0.5])),
        joints(json!([null, 0.5])),
        joints(json!([true, 0.5])),
        joints(json!([0.5])),
        joints(json!([[0.5], 0.5])),
        joints(json!("here")),
        joints(json!([0.5, 0.5, 0.5, 0.5, 0.5])),
        json!({"joints": {}}),
        json!({"joints": {"tail": [0.5, 0.5]}}),
        json!({"joints": []}),
        json!({"people": []}),
        json!({"people": [{}]}),
        json!({"people": [{"pose_keypoints_2d": [1, 2]}], "canvas_width": 64, "canvas_height": 96}),
        json!({"people": [{"pose_keypoints_2d": vec![1; 3_000]}], "canvas_width": 64, "canvas_height": 96}),
        json!({"people": crowd, "canvas_width": 64, "canvas_height": 96}),
        json!([]),
        json!({}),
        json!("standing"),
        json!(7),
        deep,
    ] {
        let request = body(&json!({"source": "custom_json", "pose_json": pose}));
        let error = refused(server.post(BODIES, &request).await, 422, "invalid_value").await;
        assert_eq!(error["field"], "pose_data.pose_json", "{pose}: {error}");
        assert!(error["hint"].is_string() && error.to_string().len() < 2_000, "{error}");
    }
    for number in ["NaN", "-Infinity", "1e999"] {
        let text = body(&json!({"source": "custom_json", "pose_json": joints(json!(["#", 0.5]))}));
        let text = text.to_string().replace("\"#\"", number);
        let request =
            server.request(reqwest::Method::POST, BODIES).header("content-type", "application/json");
        refused(request.body(text).send().await.unwrap(), 400, "malformed_request").await;
    }
    // Numbers, if not a place where anybody stands: drawn or refused, and never a defect.
    for pose in [
        joints(json!([1e30, -1e30])),
        joints(json!([-3.0, 0.5])),
        joints(json!([f64::MAX, f64::MIN_POSITIVE])),
        openpose(|_| 32.0),
        openpose(|number| if number.is_multiple_of(2) { 1e15 } else { -1e15 }),
        openpose(|_| 0.0),
    ] {
        let request = body(&json!({"source": "custom_json", "pose_json": pose}));
        let (status, answer) = answer(server.post(BODIES, &request).await).await;
        match status {
            200 => drop(server.completed(answer["task_id"].as_str().unwrap()).await),
            _ => assert_eq!(
                (status, &answer["error"]["field"]),
                (422, &json!("pose_data.pose_json")),
                "{answer}"
            ),
        }
    }
    for (pose, status, field) in [
        (json!({"source": "preset", "pose_id": "../standing"}), 404, "pose_data.pose_id"),
        (json!({"source": "preset", "pose_id": "/etc/passwd"}), 404, "pose_data.pose_id"),
        (json!({"source": "preset", "pose_id": "\0"}), 404, "pose_data.pose_id"),
        (json!({"source": "preset", "pose_id": ""}), 404, "pose_data.pose_id"),
        (json!({"source": "preset", "pose_id": "x/".repeat(10_000)}), 404, "pose_data.pose_id"),
        (json!({"source": "custom_json", "pose_id": "standing", "pose_json": {}}), 422, "pose_data.pose_id"),
        (
            json!({"source": "custom_3d", "pose_image": "http://127.0.0.1:9/a.png"}),
            422,
            "pose_data.pose_image",
        ),
        (json!({"source": "dance"}), 422, "pose_data.source"),
        (json!({}), 422, "pose_data.source"),
    ] {
        let (got, answer) = answer(server.post(BODIES, &body(&pose)).await).await;
        let error = &answer["error"];
        assert_eq!((got, error["field"].as_str()), (status, Some(field)), "{answer}");
        assert!(answer.to_string().len() < 2_000, "the answer repeats too much");
    }
    for path in ["/v1/poses/..%2f..%2fetc%2fpasswd", "/v1/poses/none.png", "/v1/poses/%00.png"] {
        refused(server.get(path).await, 404, "not_found").await;
    }
}
