//! Frames of both families into a director with services of every mode. The body is [`shunt_tests::targets::modes`], which `cargo test` runs too.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shunt_tests::targets::modes(bytes));
