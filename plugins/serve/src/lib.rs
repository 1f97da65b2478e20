//! The plugin's end of protocol 1 for stores written in Rust: serves any `Store` on a listening unix socket.
