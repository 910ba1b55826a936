//! How an operator says the director is to run: the options of `shunt run`.

use std::path::PathBuf;

use super::backend;

/// How the director runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// An interface to take frames from and send them by; name each one, at least one.
    #[arg(long = "interface", value_name = "IF", required = true)]
    pub interfaces: Vec<String>,
    /// How to get at the frames.
    #[arg(long, value_enum, default_value_t)]
    pub backend: backend::Choice,
    /// Cores for the workers, one worker each, such as 1,2. By default as many as there are queues, from the last core down, on the NUMA nodes of the interfaces first.
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pub cores: Vec<usize>,
    /// Never let workers sleep, and (AF_XDP) let them do the receiving work of their queues' interrupts: for cores that nothing else is to run on. Sets the interfaces'
    /// napi_defer_hard_irqs and gro_flush_timeout where they are 0, and puts them back at the end.
    #[arg(long)]
    pub busy_poll: bool,
    /// Keep the processors out of sleep that takes longer than this to wake from: the first packet after a rest comes sooner, and power is used for it. With 0 they never
    /// sleep, though workers do.
    #[arg(long, value_name = "MICROSECONDS")]
    pub wake_within: Option<u32>,
    /// Serve by the director itself, too: real servers may have its own addresses. Makes a device, shunt-home, that leads to the machine's own kernel, and rules of
    /// routing for what these servers send.
    #[arg(long)]
    pub local_servers: bool,
    /// The socket that ipvsadm talks to. [default: $SHUNT_SOCKET or /run/shunt.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Rules to begin with, in the format of ipvsadm -S.
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Connections that each worker has room for, of IPv4 and of IPv6. Memory is used as they come, about 100 bytes for each of IPv4 and 160 of IPv6; a third of it from
    /// the first service of a family on, so that no packet waits for it.
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1024..1 << 30))]
    pub connections: u32,
}
