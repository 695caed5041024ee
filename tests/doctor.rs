//! `darkroom doctor`: what it finds on any machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::darkroom;
use serde_json::Value;

#[test]
fn the_doctor_draws_a_test_picture_on_the_cpu() {
    let run = darkroom(["doctor", "--device", "cpu"]).worked();
    assert!(run.stdout.contains("Used: cpu\nTest picture: drawn ("), "{}", run.stdout);
}

#[test]
fn the_doctors_findings_come_as_json() {
    let run = darkroom(["doctor", "--json"]).worked();
    let findings: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(findings["built_with_cuda"], cfg!(feature = "cuda"));
    assert!(findings["cpu"]["threads"].as_u64().unwrap() > 0);
    assert!(findings["test"]["problem"].is_null());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_card_is_refused_where_cuda_is_not_built_in() {
    darkroom(["doctor", "--device", "cuda:0"]).refused(1, &["built without CUDA", "--device cpu"]);
    darkroom(["generate", "--prompt", "a", "--device", "cuda:0"])
        .refused(1, &["--features cuda", "--device auto"]);
    darkroom(["generate", "--prompt", "a", "--device", "gpu"]).refused(2, &["'gpu' is no device"]);
}
