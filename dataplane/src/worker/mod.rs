//! The poll loop.

pub mod ring;
