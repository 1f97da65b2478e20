//! The Chatkeep user service.

fn main() {}
