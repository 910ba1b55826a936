//! Command lines, carried out on rules in memory. The body is [`shunt_tests::targets::ipvsadm`], which `cargo test` runs too.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shunt_tests::targets::ipvsadm(bytes));
