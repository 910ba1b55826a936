//! The `shunt` binary. All it does is in the library, so that the lab and the tests can run the very same.

use std::process::ExitCode;

fn main() -> ExitCode {
    shunt::cli::main_with(std::env::args_os().collect())
}
