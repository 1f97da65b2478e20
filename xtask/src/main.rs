//! Build, test and demonstrate Chatkeep.

fn main() {}
