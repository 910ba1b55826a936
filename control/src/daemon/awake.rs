//! How soon the processors wake.
//!
//! A processor without work sleeps, the deeper the longer it expects to have none, and needs up to some hundred microseconds to wake again. Who cannot wait so
//! long says so to the kernel (its PM QoS), for as long as a descriptor stays open: however the director ends, the processors sleep again.

use std::fs::{File, OpenOptions};
use std::io::Write as _;

use anyhow::Context as _;

/// Takes the microseconds as a native 32-bit integer (Documentation/power/pm_qos_interface.rst).
const LATENCY: &str = "/dev/cpu_dma_latency";

/// Keeps all processors from sleeping deeper than was asked for.
pub struct Awake(#[expect(dead_code, reason = "held, not used")] File);

impl Awake {
    /// No sleep from now on that takes more than `microseconds` to wake from; with 0 none at all.
    ///
    /// # Errors
    /// When the kernel takes no such wishes here, or not from this user.
    pub fn within(microseconds: u32) -> anyhow::Result<Self> {
        let wish = i32::try_from(microseconds).context("--wake-within: so many microseconds are no limit")?;
        let say = || {
            let mut file = OpenOptions::new().write(true).open(LATENCY)?;
            file.write_all(&wish.to_ne_bytes()).map(|()| file)
        };
        let told = say().with_context(|| {
            format!("--wake-within: cannot tell the kernel by {LATENCY} (a container may lack it); run as root on the machine itself, or leave the option out")
        });
        told.map(Self)
    }
}
