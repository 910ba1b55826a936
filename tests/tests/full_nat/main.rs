//! FullNAT on the bench, packet by packet: what golden files cannot know, as no kernel does it.
//!
//! ```text
//!   toa       the client's address as a TCP option
//!   proxy     the client's address as a PROXY header, and the numbers of everything behind it
//!   pools     local ports
//!   identity  whatever a client sends, it gets back what the server makes of it, as if nobody were between them
//! ```

mod identity;
mod pools;
mod proxy;
mod toa;
