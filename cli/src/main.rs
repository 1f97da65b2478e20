//! The chatkeep command.

fn main() {}
