//! The folders that workflows read and write: `input`, `output`, `temp`, and those of models. Names come from
//! prompts; none becomes a path before it has been checked here.

use std::path::PathBuf;

/// Which of the three folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// What is loaded.
    Input,
    /// What is kept.
    Output,
    /// What is only shown.
    Temp,
}

/// Where they are.
#[derive(Debug, Clone)]
pub struct Folders {
    /// What is loaded.
    pub input: PathBuf,
    /// What is kept.
    pub output: PathBuf,
    /// What is only shown.
    pub temp: PathBuf,
    /// Workflows and settings of the front end.
    pub user: PathBuf,
    /// Models, laid out as ComfyUI's.
    pub models: Option<PathBuf>,
}
