//! Every request that the server itself makes: webhooks, and source pictures by URL. Clients choose those
//! addresses, so each is checked to be public, at every redirect and at the very moment of connecting. Sits below
//! `service` and `http`; knows neither the store nor any route.

pub mod address;
mod client;
mod error;
mod lookup;
mod secret;
pub mod signature;
#[cfg(test)]
mod test_server;
pub mod webhooks;

pub use client::Client;
pub(crate) use client::innermost;
pub use error::OutboundError;
pub use lookup::{Lookup, LookupFuture, SystemLookup};
pub use secret::{Secret, SecretError, load_or_create_link_secret, load_or_create_secret};
