//! What control publishes to the workers: immutable snapshots.
//!
//! A `Snapshot` has two halves that change for different reasons: `Services` when an operator edits the rules,
//! `Network` when the kernel's routes, addresses or neighbours change. Either half is shared with the previous snapshot when it
//! did not change, so an edit costs what it touches.
//!
//! Identifiers are stable: a [`ServiceId`] or [`DestId`] means the same object in every snapshot that has it, so
//! a worker's connections, counters and scheduler state survive any number of edits.

/// Counts snapshots. A worker that has reached an epoch has forgotten everything older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// The index of an interface in the director's list, the same in every worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u8);

/// The index of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u8);

/// A virtual service, for as long as it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// A real server of one service ("dest" in the kernel's words), also while it is removed and connections remain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestId(pub u32);

/// Transport protocols a service can have, by their IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp = 6,
    /// User Datagram Protocol.
    Udp = 17,
    /// Stream Control Transmission Protocol.
    Sctp = 132,
}
