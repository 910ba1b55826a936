//! The documents in docs/ are true: their examples are replayed.

mod json;
mod protocol;
mod sample;
