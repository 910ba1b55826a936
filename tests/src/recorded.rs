//! The cases of `golden/packets.json` and of the files in its format: what was done, and every frame that a real IPVS sent.

use serde::Deserialize;
use serde_json::Value;

/// A case.
#[derive(Clone, Deserialize)]
pub struct Case {
    /// What it is about.
    pub name: String,
    /// Lines of ipvsadm.
    pub setup: Vec<String>,
    /// Settings.
    pub sysctl: Vec<(String, u32)>,
    /// Lines that the recorder's shell ran first.
    pub pre: Vec<String>,
    /// [`Step`]s, and others that each reader knows.
    pub steps: Vec<Value>,
}

/// A frame that comes in.
#[derive(Deserialize)]
pub struct Step {
    /// What it is.
    pub note: String,
    /// The side that it comes from.
    pub side: String,
    /// The frame.
    #[serde(rename = "in")]
    pub input: String,
    /// What left: the side, the frame.
    pub out: Vec<(String, String)>,
}
