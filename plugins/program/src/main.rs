//! `chatkeep-store`: the plugin of every store that Chatkeep ships.

fn main() {}
