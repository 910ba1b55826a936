//! What the tests share: a director on the bench that the golden answers were recorded on, and frames for it; several
//! workers on a [`rig`], readers of frames that owe nothing to the data plane's ([`oracle`], and [`layers`] for both families), and the
//! [`harness`] that property tests and fuzzers drive both with, in [`ops`]; the [`targets`] are what is fuzzed.

pub mod bench;
pub mod both;
pub mod choices;
pub mod frames;
pub mod harness;
pub mod layers;
pub mod modes;
pub mod ops;
pub mod oracle;
pub mod recorded;
pub mod rig;
pub mod segment;
pub mod targets;
