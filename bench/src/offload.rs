//! Segmentation and checksum offloads, switched off.
//!
//! A veth hands a frame over as its sender left it: with offloads on, that is a TCP segment of up to 64 KiB whose checksum
//! covers only the pseudo header, to be finished by hardware that is not there. In the lab every *sending* end has its
//! offloads off, so that only true frames travel.

use anyhow::{Context, Result};
use shunt_dataplane::port::ethtool::{Ethtool, Offload};

/// Switches the offloads of an interface in the calling thread's namespace off, as `ethtool -K IF tx off tso off gso off gro
/// off` does.
pub fn switch_off(interface: &str) -> Result<()> {
    let ethtool = Ethtool::open(interface).with_context(|| format!("opening {interface}"))?;
    for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::Gro] {
        ethtool
            .set_offload(offload, false)
            .with_context(|| format!("switching {offload} of {interface} off"))?;
    }
    Ok(())
}

/// Switches GRO of an interface in the calling thread's namespace on. A veth then has a receive queue with a poll of its own, and takes
/// frames without a socket buffer.
pub fn give_a_queue(interface: &str) -> Result<()> {
    let ethtool = Ethtool::open(interface).with_context(|| format!("opening {interface}"))?;
    ethtool.set_offload(Offload::Gro, true).with_context(|| format!("switching GRO of {interface} on"))
}
