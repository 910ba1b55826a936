//! The daemon.

pub mod mirror;
