//! All that touches a packet.
//!
//! The rooms, in the order a packet walks through them: [`port`] (NIC queues), [`worker`] (the poll loop),
//! [`packet`] (parsing and checksums), [`director`] (the life of a packet), [`conn`] (the connection table),
//! [`sched`] (the choice of a real server), [`forward`] (the ways out). [`service`] is what control publishes,
//! [`steer`] keeps the kernel's hands off the director's frames, [`stats`] counts, [`profile`] takes times.
//!
//! Nothing here is async, logs, or knows how it is configured.

pub mod conn;
pub mod director;
pub mod forward;
pub mod packet;
pub mod port;
pub mod profile;
pub mod sched;
pub mod service;
pub mod stats;
pub mod steer;
pub mod worker;
