//! The `shunt-lab` binary.

fn main() {}
