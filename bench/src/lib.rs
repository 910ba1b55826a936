//! The lab: topologies, traffic and the comparison of forwarding modes.
