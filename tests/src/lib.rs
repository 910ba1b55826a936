//! What the tests share: a director on the bench that the golden answers were recorded on, and frames for it.

pub mod bench;
pub mod frames;
