//! End to end: the real `shunt` binary in the lab's data centre, driven by its own commands, judged by what real clients see.
//!
//! ```text
//!   ground       what every test stands on: the binary, a topology, requests, listings, counters
//!   forwarding   traffic: NAT and DR, both backends, one worker and two
//!   tunnels      every way to forward, of both families
//!   full_nat     nginx asked by curl, and told of it
//!   fragments    datagrams larger than the wire
//!   ftp          a real server and a real client, every way to make a data connection
//!   sctp         an association by hand, the kernel's own, and the settings that concern it
//!   persistence  clients that come back
//!   profile      where a worker's time goes, while packets pass
//!   path_mtu     a path through a tunnel that is narrower than its first link
//!   hops         what a traceroute to a service shows
//!   bystanders   what is not the director's stays the kernel's
//!   listings     long ones, and what they cost
//!   rules        changes under load, rules from a file, the tools people know
//!   refusals     what cannot be started says why and leaves nothing
//!   lifecycle    ready, SIGTERM, SIGKILL, and the state of the machine afterwards
//!   local_servers  real servers on the director itself
//!   network      the kernel's network changes while the director runs
//!   ipv6         what IPv6 has of its own
//!   hostile      frames nobody should send
//!   unprivileged in a user namespace
//!   marks        services of firewall marks: networks and port ranges, rules that change
//!   vlans        clients and servers behind VLANs
//!   bridges      an interface that is none of hardware, above others
//!   wire         what goes over a cable, for tests that look
//! ```
//!
//! Every test makes namespaces of its own, which end with it. Where they are refused it says `skip:` and passes; over AF_XDP that
//! is the case in a user namespace.

mod bridges;
mod bystanders;
mod forwarding;
mod fragments;
mod ftp;
mod full_nat;
mod ground;
mod hops;
mod hostile;
mod ipv6;
mod lifecycle;
mod listings;
mod local_servers;
mod marks;
mod network;
mod path_mtu;
mod persistence;
mod profile;
mod refusals;
mod rules;
mod sctp;
mod tunnels;
mod unprivileged;
mod vlans;
mod wire;
