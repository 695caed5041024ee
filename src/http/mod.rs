//! The server's outside: sockets and routes. Nothing here knows tensors.

pub mod listen;
