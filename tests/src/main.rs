//! End-to-end tests of Chatkeep and their writer.

fn main() {}
