//! Frames, edits and time into one or two directors. The body is [`shunt_tests::targets::director`], which `cargo test` runs too.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shunt_tests::targets::director(bytes));
