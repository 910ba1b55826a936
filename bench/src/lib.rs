//! The lab: network namespaces wired into a small data centre, real traffic, and the comparison of forwarding
//! modes.
//!
//! ```text
//!  privilege ─▶ namespace ─▶ topology (netlink, offload) ─▶ director ─▶ traffic ─▶ lab ─▶ report
//! ```
//!
//! Everything below [`traffic`] is also what the end-to-end tests stand on: a [`topology::Topology`] gives
//! them a client, a director and two real servers, each in its own namespace, and [`director::Director`] runs
//! the real binary in the middle. Nothing here needs an external program, and nothing survives the process:
//! namespaces are anonymous, children are tied to the thread that started them, sockets live on a tmpfs that
//! only the namespace sees.

#![forbid(unsafe_code)]

pub mod core;
pub mod director;
pub mod interrupt;
pub mod lab;
pub mod machine;
pub mod namespace;
pub mod netlink;
pub mod offload;
pub mod peers;
pub mod privilege;
pub mod report;
pub mod stand;
pub mod topology;
pub mod traffic;
