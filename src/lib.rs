//! Darkroom's own crate: what stands between a person or a client and the pipelines. Pictures in files, the
//! command line, packs of expressions. No networks and no samplers here; those live in `darkroom-pipelines` and
//! below.

pub mod catalog;
pub mod cli;
pub mod comfy;
pub mod config;
pub mod contact_sheet;
pub mod embedded;
pub mod engine;
pub mod expressions;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod outbound;
pub mod pack_json;
pub mod picture;
pub mod server;
pub mod service;
pub mod store;
pub mod task;
pub mod templates;
pub mod workflow;
