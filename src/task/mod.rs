//! What a client asked for, in the words that every part of the server shares: tasks, the pictures they are made
//! of, and what happens to them. Plain data: no storage, no HTTP, no tensors. Sits below `store`, `engine`,
//! `service` and `http`.

mod event;
mod guide;
mod id;
mod spec;
mod state;

pub use event::{Change, Event, Preview};
pub use guide::{Background, ControlSpec, DetailPlaces, DetailSpec, LoraSpec, Preprocess};
pub use id::{ApiKeyId, BlobId, IdError, ImageId, TaskId};
pub use spec::{BankRef, ImageFormat, ImageSpec, Inpaint, SourceSpec};
pub use state::{
    DrawnImage, NewTask, Owner, Priority, Task, TaskError, TaskErrorKind, TaskKind, TaskStatus, Usage,
};
