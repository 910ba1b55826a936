//! Messages of the daemon's socket, applied to rules and published. The body is [`shunt_tests::targets::request`], which `cargo test` runs too.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shunt_tests::targets::request(bytes));
