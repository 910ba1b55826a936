//! All of shunt that talks to people and to the rest of the machine: the daemon, ipvsadm, the netlink mirror.
//! Builds snapshots for the data plane; never touches a frame.

#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod daemon;
pub mod drain;
pub mod ipvsadm;
pub mod json;
pub mod marks;
pub mod pages;
pub mod profile;
pub mod publisher;
pub mod rules;
pub mod socket;
pub mod time;
