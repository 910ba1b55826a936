//! Rules that mark packets, as people write them: `mark add --destination 10.10.0.0/16 --mark 1`.
//!
//! The same words on the command line, in a file of rules and in a listing, which can so be read again.

use std::fmt;
use std::net::IpAddr;

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

use crate::api::Protocol;

/// What can be done about rules that mark packets.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Add a rule, behind all others.
    Add(MarkRule),
    /// Remove a rule.
    Delete(MarkRule),
    /// Show the rules, in their order, as a file of rules has them.
    List {
        /// As one JSON document (docs/json.md has its form).
        #[arg(long)]
        json: bool,
    },
}

/// A rule: the packets that it is about, and the mark that they get. The last rule that is about a packet decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct MarkRule {
    /// Where the packets go: an address, or ADDRESS/BITS
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub destination: Prefix,
    /// Where they come from [default: anywhere]
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub source: Option<Prefix>,
    /// tcp, udp or sctp [default: all three]
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    pub protocol: Option<Protocol>,
    /// Their destination port, or the first and the last: A-B [default: all]
    #[arg(long, value_name = "A-B", value_parser = ports)]
    pub ports: Option<Ports>,
    /// The interface that they come in by, its VLANs included [default: any of the director's]
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// The mark, such as 1 or 0x10; 0 takes away what a rule before has given
    #[arg(long, value_name = "N", value_parser = mark)]
    pub mark: u32,
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// One of them.
    pub address: IpAddr,
    /// How many leading bits they share.
    pub length: u8,
}

/// Ports from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A line of a file of rules.
#[derive(Parser)]
#[command(
    name = "mark",
    disable_help_flag = true,
    disable_help_subcommand = true,
    arg_required_else_help = false
)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

impl MarkRule {
    /// The rule on a line of these words, of which the first is `mark`.
    ///
    /// # Errors
    /// Says in a line what is wrong with it.
    pub fn of(words: &[String]) -> Result<MarkRule, String> {
        match Line::try_parse_from(words) {
            Ok(Line { command: Command::Add(rule) }) => Ok(rule),
            Ok(_) => Err(format!("`{}' is no rule", words.join(" "))),
            Err(error) => {
                let text = error.to_string();
                let what = text.split("\n\n").next().unwrap_or_default();
                let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
                Err(what.trim_start_matches("error: ").to_owned())
            }
        }
    }
}

impl fmt::Display for MarkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mark add --destination {}", self.destination)?;
        if let Some(source) = self.source {
            write!(f, " --source {source}")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, " --protocol {}", protocol.name())?;
        }
        match self.ports {
            Some(Ports { first, last }) if first == last => write!(f, " --ports {first}")?,
            Some(Ports { first, last }) => write!(f, " --ports {first}-{last}")?,
            None => {}
        }
        if let Some(interface) = &self.interface {
            write!(f, " --interface {interface}")?;
        }
        write!(f, " --mark {}", self.mark)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

fn prefix(text: &str) -> Result<Prefix, String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr =
        address.parse().map_err(|_| format!("an IPv4 or IPv6 address is expected, not {address:?}"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        Some(length) => length.parse().ok().filter(|length| *length <= most),
        None => Some(most),
    };
    let length = length.ok_or_else(|| format!("0 to {most} bits are expected behind the address"))?;
    // What lies beyond the prefix is forgotten, as iptables has it.
    let prefix = shunt_dataplane::service::Prefix::new(address, length);
    Ok(Prefix { address: prefix.map_or(address, |prefix| prefix.address()), length })
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.name() == text);
    known.ok_or_else(|| "tcp, udp or sctp is expected".to_owned())
}

fn ports(text: &str) -> Result<Ports, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("a port is expected, not {text:?}"));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err("the first port is behind the last one".to_owned());
    }
    Ok(Ports { first, last })
}

fn mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16),
        _ => text.parse(),
    };
    number.map_err(|_| "a number of 32 bits is expected; masks are not supported".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<MarkRule, String> {
        MarkRule::of(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_rule_is_listed_as_it_is_written() {
        for line in [
            "mark add --destination 10.10.0.0/16 --mark 1",
            "mark add --destination 2001:db8::/32 --source 2001:db8:1::/48 --mark 4294967295",
            "mark add --destination 10.9.0.1/32 --protocol tcp --ports 8000-8999 --interface eth0 --mark 7",
            "mark add --destination 0.0.0.0/0 --protocol sctp --ports 0-65535 --mark 0",
        ] {
            assert_eq!(of(line).map(|rule| rule.to_string()), Ok(line.to_owned()));
        }
        for (line, listed) in [
            (
                "mark add --mark 0x1F --destination 10.10.3.4/16",
                "mark add --destination 10.10.0.0/16 --mark 31",
            ),
            ("mark add --mark=1 --destination=10.9.0.1", "mark add --destination 10.9.0.1/32 --mark 1"),
            (
                "mark add --mark 1 --destination ::1 --ports 80",
                "mark add --destination ::1/128 --ports 80 --mark 1",
            ),
        ] {
            assert_eq!(of(line).map(|rule| rule.to_string()), Ok(listed.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        for (line, said) in [
            ("mark add --mark 1", "--destination <PREFIX>"),
            ("mark add --destination 10.0.0.0/33 --mark 1", "0 to 32 bits"),
            (
                "mark add --destination example.org --mark 1",
                "an IPv4 or IPv6 address is expected, not \"example.org\"",
            ),
            ("mark add --destination 10.0.0.1 --mark 1/2", "masks are not supported"),
            ("mark add --destination 10.0.0.1 --mark 4294967296", "32 bits"),
            ("mark add --destination 10.0.0.1 --mark 0x+1", "32 bits"),
            (
                "mark add --destination 10.0.0.1 --ports 90-80 --mark 1",
                "the first port is behind the last one",
            ),
            ("mark add --destination 10.0.0.1 --ports 65536 --mark 1", "a port is expected"),
            ("mark add --destination 10.0.0.1 --protocol icmp --mark 1", "tcp, udp or sctp"),
            ("mark add --destination 10.0.0.1 --mark 1 --jump", "--jump"),
            ("mark delete --destination 10.0.0.1 --mark 1", "is no rule"),
            ("mark list", "is no rule"),
            ("mark", "subcommand"),
        ] {
            let error = of(line).unwrap_err();
            assert!(error.contains(said) && !error.contains('\n'), "{line}: {error}");
        }
    }
}
