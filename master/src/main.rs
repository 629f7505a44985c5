//! Not yet.

mod gate;

fn main() {}
