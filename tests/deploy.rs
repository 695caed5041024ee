//! The files for operators fit the program: the dashboard its metrics, the example and the containers its settings,
//! the limits of systemd and Compose its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod metrics_names;

use std::collections::BTreeSet;

use darkroom::config::{Config, Field, Sources};
use metrics_names::METRICS;
use serde_json::Value;

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Every query of the dashboard: of its panels and of its variables.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        Value::Object(items) => {
            for (key, item) in items {
                match item.as_str() {
                    Some(text) if matches!(key.as_str(), "expr" | "query") => found.push(text.to_owned()),
                    _ => queries(item, found),
                }
            }
        }
        _ => {}
    }
}

fn dashboard_queries() -> Vec<String> {
    let mut found = Vec::new();
    queries(&serde_json::from_str(&file("deploy/grafana-dashboard.json")).unwrap(), &mut found);
    assert!(!found.is_empty());
    found
}

/// The names that begin with `darkroom_`.
fn names(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("darkroom_"))
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist_and_for_all_of_them() {
    let mut asked = BTreeSet::new();
    for query in dashboard_queries() {
        for name in names(&query) {
            let metric = METRICS.iter().find(|(known, histogram, _)| match name.strip_prefix(known) {
                Some("") => !histogram,
                Some("_bucket" | "_sum" | "_count") => *histogram,
                _ => false,
            });
            let (known, ..) = metric.unwrap_or_else(|| panic!("there is no metric {name}: {query}"));
            asked.insert(*known);
        }
    }
    for (known, ..) in METRICS {
        assert!(asked.contains(known), "no panel shows {known}");
    }
}

#[test]
fn the_dashboard_groups_by_labels_that_exist() {
    for query in dashboard_queries() {
        let labels: BTreeSet<&str> = names(&query)
            .filter_map(|name| METRICS.iter().find(|(known, ..)| name.starts_with(known)))
            .flat_map(|(.., labels)| labels.iter().copied())
            .collect();
        for group in query.split("by (").skip(1) {
            for label in group.split(')').next().unwrap().split(',').map(str::trim) {
                assert!(label == "le" || labels.contains(label), "no metric has {label}: {query}");
            }
        }
    }
}

#[test]
fn the_example_configuration_is_one() {
    let path = format!("{}/deploy/darkroom.toml", env!("CARGO_MANIFEST_DIR"));
    Sources { file: Some(path.into()), ..Sources::default() }.load().unwrap();
    // What is commented out works as well.
    let text = file("deploy/darkroom.toml");
    let settings =
        |line: &str| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).map(str::to_owned);
    let all: Vec<String> = text.lines().map(|line| settings(line).unwrap_or(line.to_owned())).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.toml");
    std::fs::write(&path, all.join("\n")).unwrap();
    let loaded = Sources { file: Some(path), ..Sources::default() }.load().unwrap();
    assert!(loaded.config.server.tls_cert.is_some());
}

#[test]
fn containers_and_units_set_variables_that_exist() {
    let known: BTreeSet<String> = Config::fields().map(Field::variable).collect();
    for name in ["Dockerfile", "compose.yaml", "deploy/darkroom.service"] {
        let text = file(name);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let variables: Vec<&str> = words.filter(|word| word.starts_with("DARKROOM_")).collect();
        assert!(!variables.is_empty(), "{name}");
        for variable in variables {
            assert!(known.contains(variable), "{name}: {variable} is no setting");
        }
    }
}

#[test]
fn nobody_kills_the_server_before_it_has_drained() {
    let drain = Config::default().server.drain_timeout;
    let seconds = |name: &str, key: &str| -> f64 {
        let text = file(name);
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        line.trim().trim_end_matches('s').parse().unwrap()
    };
    assert!(seconds("deploy/darkroom.service", "TimeoutStopSec=") > drain + 10.0);
    assert!(seconds("compose.yaml", "stop_grace_period:") > drain + 10.0);
}

#[test]
fn the_image_builds_with_a_compiler_that_is_new_enough() {
    let version = |text: &str| -> (u32, u32) {
        let (major, minor) = text.split_once('.').unwrap();
        (major.parse().unwrap(), minor.parse().unwrap())
    };
    let manifest: toml::Table = toml::from_str(&file("Cargo.toml")).unwrap();
    let needed = version(manifest["workspace"]["package"]["rust-version"].as_str().unwrap());
    let dockerfile = file("Dockerfile");
    let image = dockerfile.split_once("FROM rust:").unwrap().1.split_once('-').unwrap().0;
    assert!(version(image) >= needed, "{image}");
}
