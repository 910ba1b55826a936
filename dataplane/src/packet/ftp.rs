//! The words of FTP that say where data goes (RFC 959, RFC 2428), as `ip_vs_ftp` reads them.
//!
//! ```text
//!   client: PASV, EPSV                                             the server will say where it listens
//!   server: 227 … (10,1,0,11,200,10), 229 … (|||51210|)            there
//!   client: PORT 10,0,0,2,7,208, EPRT |1|10.0.0.2|2000|            the server is to connect there
//! ```
//!
//! A line is read where a segment begins with it and has it whole, for in a dialogue each end sends its lines in segments of their own; PASV and EPSV are
//! found anywhere in a segment, as the kernel finds them. Numbers that do not fit are no numbers, and nothing listens at port 0.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use arrayvec::ArrayString;

use super::{Address, V4};

/// The longest place in an answer: six numbers of three digits.
const LONGEST: usize = 23;

/// A place as an answer has it.
pub type Place = ArrayString<LONGEST>;

/// How a client asks where it may connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// PASV, answered by 227 with an IPv4 address and a port.
    Passive,
    /// EPSV, answered by 229 with a port.
    Extended,
}

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<A> {
    /// PASV or EPSV.
    Listen(Mode),
    /// PORT or EPRT: the address and port that the server is to connect to.
    Connect(A, u16),
}

/// Where a server says that it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening<A> {
    /// Where the answer says so: bytes of its text, to be replaced by a [`Place`].
    pub at: Range<usize>,
    /// The address; `None` if it is left to be the control connection's own.
    pub address: Option<A>,
    /// The port.
    pub port: u16,
}

/// What a client says in a segment's text.
pub fn command<A: Address>(text: &[u8]) -> Option<Command<A>> {
    let listen = (0..text.len()).find_map(|at| listen::<A>(&text[at..]));
    listen.map(Command::Listen).or_else(|| connect(text))
}

fn listen<A: Address>(text: &[u8]) -> Option<Mode> {
    if is_v4::<A>() && begins(text, b"PASV\r\n") {
        return Some(Mode::Passive);
    }
    // With the family that is asked for, or none. "EPSV ALL" is a promise to use nothing else.
    let family = begins(text, b"EPSV ") && text.get(5) == Some(&family::<A>());
    (family || begins(text, b"EPSV\r")).then_some(Mode::Extended)
}

fn connect<A: Address>(text: &[u8]) -> Option<Command<A>> {
    let (address, port) = if is_v4::<A>() && begins(text, b"PORT") {
        let (place, _) = six_numbers(text, opened(text, b' ', true)?)?;
        place
    } else if begins(text, b"EPRT") {
        let (place, _) = delimited(text, opened(text, b' ', false)?, false)?;
        place
    } else {
        return None;
    };
    Some(Command::Connect(address?, port))
}

/// Where a server says that it listens, in a segment's text that answers such a question.
pub fn listening<A: Address>(asked: Mode, text: &[u8]) -> Option<Listening<A>> {
    let ((address, port), at) = match asked {
        Mode::Passive if is_v4::<A>() && text.starts_with(b"227 ") => {
            six_numbers(text, opened(text, b'(', true)?)?
        }
        Mode::Extended if text.starts_with(b"229 ") => delimited(text, opened(text, b'(', false)?, true)?,
        _ => return None,
    };
    Some(Listening { at, address, port })
}

/// A place as the answer to such a question has it.
pub fn place<A: Address>(asked: Mode, address: A, port: u16) -> Place {
    let mut place = Place::new();
    // Neither form is longer than the longest place, so that writing cannot fail.
    let _ = match (asked, address.into()) {
        (Mode::Passive, IpAddr::V4(address)) => {
            let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
            write!(place, "{a},{b},{c},{d},{high},{low}")
        }
        _ => write!(place, "|||{port}|"),
    };
    place
}

/// Where something begins that `opening` stands before, once or more often. A digit does without it, where it may.
fn opened(text: &[u8], opening: u8, may_be_digit: bool) -> Option<usize> {
    // All the words have four letters or three digits and a space.
    let (_, rest) = text.split_at_checked(4)?;
    let first = rest.iter().position(|b| *b == opening || may_be_digit && b.is_ascii_digit())?;
    let inside = rest[first..].iter().position(|b| *b != opening)?;
    Some(4 + first + inside)
}

/// An address and a port, where an address may be missing.
type End<A> = (Option<A>, u16);

/// `10,1,0,11,200,10`: the four parts of an address and the two of a port. Something must follow, or the last number may not be whole.
fn six_numbers<A: Address>(text: &[u8], from: usize) -> Option<(End<A>, Range<usize>)> {
    let ([a, b, c, d, high, low], length) = numbers(&text[from..], b',')?;
    let to = from + length;
    let port = u16::from_be_bytes([high, low]);
    let address = A::of(Ipv4Addr::new(a, b, c, d).into());
    (to < text.len() && port != 0).then_some(((address, port), from..to))
}

/// `|1|10.0.0.2|2000|`, with any printable character for the bar: family, address and port. In an answer the first two may be missing.
fn delimited<A: Address>(text: &[u8], from: usize, may_lack_address: bool) -> Option<(End<A>, Range<usize>)> {
    let (bar, rest) = text[from..].split_first().filter(|(bar, _)| bar.is_ascii_graphic())?;
    let mut fields = rest.splitn(4, |b| b == bar);
    let (of, address, number) = (fields.next()?, fields.next()?, fields.next()?);
    // Behind the last bar.
    fields.next()?;
    let to = from + of.len() + address.len() + number.len() + 4;
    let address = match of {
        [] if may_lack_address && address.is_empty() => None,
        [of] if *of == family::<A>() => Some(written(address)?),
        _ => return None,
    };
    Some(((address, port(number)?), from..to))
}

/// An address as people write it.
fn written<A: Address>(text: &[u8]) -> Option<A> {
    if is_v4::<A>() {
        // Leading zeros do not make it octal.
        let (octets, length) = numbers::<4>(text, b'.')?;
        return A::of(Ipv4Addr::from(octets).into()).filter(|_| length == text.len());
    }
    let address: Ipv6Addr = std::str::from_utf8(text).ok()?.parse().ok()?;
    A::of(address.into())
}

/// So many numbers of a byte each, and the length of their text.
fn numbers<const N: usize>(text: &[u8], separator: u8) -> Option<([u8; N], usize)> {
    let (mut numbers, mut at) = ([0; N], 0);
    for (n, number) in numbers.iter_mut().enumerate() {
        if n > 0 {
            text.get(at).filter(|b| **b == separator)?;
            at += 1;
        }
        let digits = text[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        *number = decimal(&text[at..at + digits])?.try_into().ok()?;
        at += digits;
    }
    Some((numbers, at))
}

/// A port.
fn port(text: &[u8]) -> Option<u16> {
    decimal(text).filter(|port| *port != 0)
}

/// A number of nothing but digits, one at least.
fn decimal(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u16, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Whether a text begins with a word, in capitals or not.
fn begins(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

/// The family's number in RFC 2428.
fn family<A: Address>() -> u8 {
    if is_v4::<A>() { b'1' } else { b'2' }
}

fn is_v4<A: Address>() -> bool {
    A::ETHERTYPE == V4::ETHERTYPE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::V6;

    const CLIENT: V4 = V4(0x0a00_0002);
    const SERVER: V4 = V4(0x0a01_000b);

    fn v6(address: &str) -> V6 {
        address.parse::<Ipv6Addr>().unwrap().into()
    }

    /// What the kernel made of each command, seen from the outside: whether it looked for an answer, or expected a connection.
    #[test]
    fn commands_as_the_kernel_read_them() {
        let listen = |mode| Some(Command::<V4>::Listen(mode));
        for (text, meant) in [
            ("PASV\r\n", listen(Mode::Passive)),
            ("pasv\r\n", listen(Mode::Passive)),
            ("XPASV\r\n", listen(Mode::Passive)),
            ("NOOP\r\nPASV\r\n", listen(Mode::Passive)),
            ("PASV \r\n", None),
            ("PASV\n", None),
            ("PA", None),
            ("EPSV\r\n", listen(Mode::Extended)),
            ("epsv\r\n", listen(Mode::Extended)),
            ("NOOP\r\nEPSV\r\n", listen(Mode::Extended)),
            ("EPSV 1\r\n", listen(Mode::Extended)),
            ("EPSV 2\r\n", None),
            ("EPSV ALL\r\n", None),
            ("EPSV\n", None),
            ("PORT 10,0,0,2,7,208\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("port 10,0,0,2,7,208\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("PORT 10,0,0,3,7,208\r\n", Some(Command::Connect(V4(0x0a00_0003), 2000))),
            ("PORT 10,0,0,2,0,80\r\n", Some(Command::Connect(CLIENT, 80))),
            ("PORT  10,0,0,2,7,208\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("PORT10,0,0,2,7,208\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("PORT 10,0,0,2,7,208", None),
            ("PORT 10,0,0,2,7\r\n", None),
            ("PORT x10,0,0,2,7,208\r\n", None),
            ("NOOP\r\nPORT 10,0,0,2,7,208\r\n", None),
            ("EPRT |1|10.0.0.2|2000|\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("eprt !1!10.0.0.2!2000!\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("EPRT  |1|10.0.0.2|2000|\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("EPRT |1|010.0.0.2|2000|\r\n", Some(Command::Connect(CLIENT, 2000))),
            ("EPRT |2|10.0.0.2|2000|\r\n", None),
            ("EPRT |||2000|\r\n", None),
            ("EPRT |1|10.0.0.2|2000\r\n", None),
            ("EPRT |1|10.0.0|2000|\r\n", None),
            ("EPRT |1|10.0.0.2|0|\r\n", None),
        ] {
            assert_eq!(command::<V4>(text.as_bytes()), meant, "{text:?}");
        }
        for (text, meant) in [
            ("EPSV\r\n", Some(Command::Listen(Mode::Extended))),
            ("EPSV 2\r\n", Some(Command::Listen(Mode::Extended))),
            ("EPSV 1\r\n", None),
            ("PASV\r\n", None),
            ("PORT 10,0,0,2,7,208\r\n", None),
            ("EPRT |2|2001:db8:a::2|2000|\r\n", Some(Command::Connect(v6("2001:db8:a::2"), 2000))),
            ("EPRT |2|2001:DB8:A:0::2|2000|\r\n", Some(Command::Connect(v6("2001:db8:a::2"), 2000))),
            ("EPRT |2|::ffff:10.0.0.2|2000|\r\n", Some(Command::Connect(v6("::ffff:10.0.0.2"), 2000))),
            ("EPRT |2|fe80::2%eth0|2000|\r\n", None),
            ("EPRT |1|10.0.0.2|2000|\r\n", None),
        ] {
            assert_eq!(command::<V6>(text.as_bytes()), meant, "{text:?}");
        }
    }

    /// The same of answers: the text that the kernel sent on for each, the virtual address in the place of the server's.
    #[test]
    fn answers_as_the_kernel_rewrote_them() {
        let rewritten = |asked, text: &str| {
            let found = listening::<V4>(asked, text.as_bytes())?;
            let mut text = text.to_owned();
            text.replace_range(found.at, &place(asked, V4(0x0a09_0001), found.port));
            Some((found.address, text))
        };
        for (asked, text, address, expected) in [
            (
                Mode::Passive,
                "227 Entering Passive Mode (10,1,0,11,200,10).\r\n",
                Some(SERVER),
                "227 Entering Passive Mode (10,9,0,1,200,10).\r\n",
            ),
            (Mode::Passive, "227 =10,1,0,11,200,10\r\n", Some(SERVER), "227 =10,9,0,1,200,10\r\n"),
            (
                Mode::Passive,
                "227 Entering Passive Mode 10,1,0,11,200,10\r\n",
                Some(SERVER),
                "227 Entering Passive Mode 10,9,0,1,200,10\r\n",
            ),
            (Mode::Passive, "227 (10,1,0,11,200,10,5)\r\n", Some(SERVER), "227 (10,9,0,1,200,10,5)\r\n"),
            (Mode::Passive, "227 (010,001,000,011,200,010)\r\n", Some(SERVER), "227 (10,9,0,1,200,10)\r\n"),
            (Mode::Passive, "227 ((10,1,0,11,200,10)\r\n", Some(SERVER), "227 ((10,9,0,1,200,10)\r\n"),
            (Mode::Passive, "227 (10,1,0,11,200,10)", Some(SERVER), "227 (10,9,0,1,200,10)"),
            (
                Mode::Extended,
                "229 Entering Extended Passive Mode (|||51210|)\r\n",
                None,
                "229 Entering Extended Passive Mode (|||51210|)\r\n",
            ),
            (Mode::Extended, "229 x (|1|10.1.0.11|51210|)\r\n", Some(SERVER), "229 x (|||51210|)\r\n"),
            (Mode::Extended, "229 x (!!!51210!)\r\n", None, "229 x (|||51210|)\r\n"),
            (Mode::Extended, "229 x (|||051210|)\r\n", None, "229 x (|||51210|)\r\n"),
        ] {
            assert_eq!(rewritten(asked, text), Some((address, expected.to_owned())), "{text:?}");
        }
        for (asked, text) in [
            (Mode::Passive, "227 (10,1,0,11,200)\r\n"),
            (Mode::Passive, "227 (266,1,0,11,200,10)\r\n"),
            (Mode::Passive, "227 ( 10,1,0,11,200,10)\r\n"),
            (Mode::Passive, "227 2 (10,1,0,11,200,10)\r\n"),
            (Mode::Passive, "227 (10,1,0,11,200,10"),
            (Mode::Passive, "227 (10, 1,0,11,200,10)\r\n"),
            (Mode::Passive, "227(10,1,0,11,200,10)\r\n"),
            (Mode::Passive, "227-Entering\r\n227 (10,1,0,11,200,10)\r\n"),
            (Mode::Passive, "200 x\r\n227 (10,1,0,11,200,10)\r\n"),
            (Mode::Passive, "227 Entering Passive Mode (10,1"),
            (Mode::Passive, "229 x (|||51210|)\r\n"),
            (Mode::Extended, "229 x |||51210|\r\n"),
            (Mode::Extended, "229 x (|||0|)\r\n"),
            (Mode::Extended, "229 x (|||70000|)\r\n"),
            (Mode::Extended, "227 Entering Passive Mode (10,1,0,11,200,10).\r\n"),
        ] {
            assert_eq!(rewritten(asked, text), None, "{text:?}");
        }
    }

    proptest! {
        /// Words and numbers in any order, so that what follows a right beginning is tried too.
        #[test]
        fn any_text_is_read_within_its_bounds(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(vec!["PASV\r\n", "EPSV ", "PORT ", "EPRT ", "227 ", "229 ", "(", "|", "1", "2", ",", ".", "10,1,0,11", "|||", "\r\n"])
                        .prop_map(|word| word.as_bytes().to_vec()),
                    any::<u16>().prop_map(|number| number.to_string().into_bytes()),
                    prop::collection::vec(any::<u8>(), 0..4),
                ],
                0..12,
            ),
        ) {
            let text = pieces.concat();
            let _ = (command::<V4>(&text), command::<V6>(&text));
            for asked in [Mode::Passive, Mode::Extended] {
                if let Some(found) = listening::<V4>(asked, &text) {
                    prop_assert!(found.at.start >= 4 && found.at.start < found.at.end && found.at.end <= text.len());
                }
                if let Some(found) = listening::<V6>(asked, &text) {
                    prop_assert!(found.at.start >= 4 && found.at.start < found.at.end && found.at.end <= text.len());
                }
            }
        }

        #[test]
        fn a_place_is_read_as_it_was_written(address: u32, port in 1u16.., v6: u128) {
            let answer = |code, place: &str| format!("{code} x ({place}).\r\n");
            let passive = answer(227, &place(Mode::Passive, V4(address), port));
            let found = listening::<V4>(Mode::Passive, passive.as_bytes()).unwrap();
            prop_assert_eq!((found.address, found.port), (Some(V4(address)), port));
            let extended = answer(229, &place(Mode::Extended, V6(v6), port));
            let found = listening::<V6>(Mode::Extended, extended.as_bytes()).unwrap();
            prop_assert_eq!((found.address, found.port), (None, port));
            let full = answer(229, &format!("|2|{}|{port}|", Ipv6Addr::from(v6)));
            let found = listening::<V6>(Mode::Extended, full.as_bytes()).unwrap();
            prop_assert_eq!((found.address, found.port), (Some(V6(v6)), port));
        }
    }
}
