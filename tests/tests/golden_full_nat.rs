//! FullNAT against what a real kernel IPVS did by NAT (`golden/packets.json`): the same packets, but for one rule.
//!
//! *On the servers' side nobody from the clients' side appears: a client's end is the director's own there.* So the recorded frames of that side are
//! readdressed, those that come and those that must leave; on the clients' side not a byte may differ. Checksums are summed over whole
//! packets: right ones must be right, wrong ones wrong by as much. Beside the director by FullNAT one by NAT plays the same case: after
//! every step both must list the same connections, states and times, and the same counters. There is no step in which FullNAT differs by more.
//!
//! What FullNAT tells servers of clients is switched off here; it has tests of its own.

use std::collections::HashMap;
use std::net::IpAddr;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::service::PortId;
use shunt_tests::bench::{Bench, CLIENTS, LOCALS6, SERVERS};
use shunt_tests::frames::{from_hex, to_hex};
use shunt_tests::layers::{End, Layers, together};
use shunt_tests::ops::LOCALS;
use shunt_tests::recorded::{Case, Step};

/// A case under way.
struct Play {
    nat: Bench,
    full: Bench,
    /// The director's own end of each client's connection, by protocol.
    locals: HashMap<(u8, End), End>,
}

/// Frames with the port they came or leave by.
type Frames = Vec<(PortId, Vec<u8>)>;

#[test]
fn what_ipvs_does_by_nat_is_done_by_full_nat_with_the_client_hidden() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../golden/packets.json")).expect("golden file");
    let both_families = |case: &&Case| {
        let mut parts = case.name.split('/');
        matches!(parts.next(), Some("nat" | "nat-port")) && matches!(parts.next(), Some("ipv4" | "ipv6"))
    };
    let (mut played, mut steps, mut wrong) = (0, 0, Vec::new());
    for case in cases.iter().filter(both_families) {
        let mut play = Play::new(case);
        let told = match case.name.ends_with("/fragments") {
            true => play.fragments(case).map_err(|why| vec![why]),
            false => play.steps(case),
        };
        if let Err(told) = told {
            wrong.extend(told.into_iter().map(|why| format!("{}: {why}", case.name)));
        }
        played += 1;
        steps += case.steps.len();
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(played >= 15 && steps > 180, "only {steps} steps of {played} cases were played");
}

impl Play {
    fn new(case: &Case) -> Self {
        let mut play = Self { nat: Bench::default(), full: Bench::default(), locals: HashMap::new() };
        for line in &case.pre {
            let mtu = line.strip_prefix("ip link set s0 mtu ").expect("a preparation that is known");
            for bench in [&mut play.nat, &mut play.full] {
                bench.set_mtu(SERVERS, mtu.parse().expect("an MTU"));
            }
        }
        for line in &case.setup {
            must_succeed(&mut play.nat, line);
            let Some(service) = line.strip_prefix("-A ") else {
                must_succeed(&mut play.full, &line.replace("-m", "--fullnat"));
                continue;
            };
            must_succeed(&mut play.full, &format!("{line} --toa disable"));
            let key = service.split(" -s ").next().expect("protocol and address");
            let local = local_of(!key.contains('['));
            must_succeed(&mut play.full, &format!("-P {key} -z {local}"));
        }
        play
    }

    fn steps(&mut self, case: &Case) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        for step in &case.steps {
            let Ok(step) = serde_json::from_value::<Step>(step.clone()) else { continue };
            if let Err(why) = self.step(&step) {
                wrong.push(format!("{}: {why}", step.note));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let (side, input) = (side(&step.side), from_hex(&step.input));
        let by_nat = self.nat.frame(side, &input);
        let input = self.beyond(side, &input);
        let outcome = self.full.frame(side, &input);
        self.same_books()?;
        let same = std::mem::discriminant(&by_nat.verdict) == std::mem::discriminant(&outcome.verdict);
        if !same {
            return Err(format!("{:?}, by NAT {:?}", outcome.verdict, by_nat.verdict));
        }
        if outcome.verdict == Verdict::Pass {
            return Ok(());
        }
        self.learn(&input, &outcome.sent)?;
        let expected = self.expected(&step.out);
        let own = matches!(outcome.verdict, Verdict::Reply(_));
        compare(&expected, &outcome.sent, own).and_then(|()| sums(&[input], &outcome.sent, own)).map_err(
            |why| {
                let show = |frames: &Frames| -> Vec<String> {
                    frames.iter().map(|(port, frame)| format!("    by {port:?}: {}", to_hex(frame))).collect()
                };
                let (expected, sent) = (show(&expected).join("\n"), show(&outcome.sent).join("\n"));
                format!("{why}\n  expected\n{expected}\n  sent\n{sent}")
            },
        )
    }

    /// The kernel puts a datagram together and cuts it up again; the director sends each part on as it comes. So all parts are compared at
    /// the end, and summed up a datagram at a time.
    fn fragments(&mut self, case: &Case) -> Result<(), String> {
        let (mut inputs, mut sent, mut recorded) = (Vec::new(), Frames::new(), Vec::new());
        for step in &case.steps {
            let Ok(step) = serde_json::from_value::<Step>(step.clone()) else { continue };
            let (side, input) = (side(&step.side), from_hex(&step.input));
            self.nat.frame_and_kept(side, &input);
            let input = self.beyond(side, &input);
            let leaving = self.full.frame_and_kept(side, &input);
            self.learn(&input, &leaving)?;
            sent.extend(leaving);
            recorded.extend(step.out);
            inputs.push(input);
        }
        self.same_books()?;
        let by_id = |frame: &[u8]| Layers::of(frame).fragment.map(|(id, offset, _)| (id, offset));
        let mut expected = self.expected(&recorded);
        // The kernel gives IPv6 datagrams that it cuts up again another id, so there the order is all there is to go by.
        if Layers::of(&inputs[0]).destination(&inputs[0]).0.is_ipv4() {
            sent.sort_by_key(|(_, frame)| by_id(frame));
            expected.sort_by_key(|(_, frame)| by_id(frame));
        }
        compare(&expected, &sent, false)?;
        let mut datagrams: HashMap<u32, (Vec<Vec<u8>>, Frames)> = HashMap::new();
        let id = |frame: &[u8]| Layers::of(frame).fragment.map(|(id, ..)| id).ok_or("a fragment became none");
        for input in inputs {
            datagrams.entry(id(&input)?).or_default().0.push(input);
        }
        for (port, frame) in sent {
            datagrams.entry(id(&frame)?).or_default().1.push((port, frame));
        }
        datagrams.into_values().try_for_each(|(inputs, sent)| sums(&inputs, &sent, false))
    }

    /// Learns the director's end of a new connection from what is sent for a client's packet. It must be one that the director may take.
    fn learn(&mut self, input: &[u8], sent: &Frames) -> Result<(), String> {
        let before = Layers::of(input);
        let client = before.source(input);
        if !before.has_ports() || !is_client(client.0) || self.locals.contains_key(&(before.protocol, client))
        {
            return Ok(());
        }
        let to_server = sent.iter().find(|(port, frame)| *port == SERVERS && Layers::of(frame).has_ports());
        let Some((_, frame)) = to_server else { return Ok(()) };
        let local = Layers::of(frame).source(frame);
        must(local.0 == local_of(client.0.is_ipv4()) && local.1 >= 1024, "not a local address and port")?;
        must(!self.locals.values().any(|known| *known == local), "a local port for two connections")?;
        self.locals.insert((before.protocol, client), local);
        Ok(())
    }

    /// What was recorded, with the client hidden on the servers' side.
    fn expected(&self, recorded: &[(String, String)]) -> Frames {
        let hidden = |(name, frame): &(String, String)| {
            let side = side(name);
            (side, self.beyond(side, &from_hex(frame)))
        };
        recorded.iter().map(hidden).collect()
    }

    /// A frame as it is on its side. One that names a client without a connection stays as it is.
    fn beyond(&self, side: PortId, frame: &[u8]) -> Vec<u8> {
        let mut hidden = frame.to_vec();
        let layers = Layers::of(frame);
        if side == CLIENTS {
            return hidden;
        }
        let was_right = layers.residue(frame) == 0;
        let packets = [Some(layers), layers.quoted(frame).filter(|_| layers.is_icmp())];
        for packet in packets.into_iter().flatten() {
            let local = |end: End| {
                let known = match packet.has_ports() {
                    true => self.locals.get(&(packet.protocol, end)).copied(),
                    false => Some((local_of(end.0.is_ipv4()), 0)),
                };
                if is_client(end.0) { known.map(Some) } else { Some(None) }
            };
            let ends = (local(packet.source(frame)), local(packet.destination(frame)));
            let (Some(source), Some(destination)) = ends else { return frame.to_vec() };
            packet.readdress(&mut hidden, source, destination);
        }
        if layers.is_icmp() && was_right {
            layers.mend(&mut hidden);
        }
        hidden
    }

    /// Connections and counters must be those of NAT.
    fn same_books(&mut self) -> Result<(), String> {
        let (nat, full) = (self.nat.connections(), self.full.connections());
        if nat != full {
            return Err(format!("connections {full:?}, by NAT {nat:?}"));
        }
        let [nat, full] = [&mut self.nat, &mut self.full].map(|bench| bench.ipvsadm("-Ln --stats"));
        if nat == full { Ok(()) } else { Err(format!("{}\nby NAT\n{}", full.1, nat.1)) }
    }
}

/// Holds frames against what they must be, but for checksums and for what the director is free to choose in packets of its own.
fn compare(expected: &Frames, sent: &Frames, own: bool) -> Result<(), String> {
    let plain = |frames: &Frames| -> Frames {
        frames.iter().map(|(port, frame)| (*port, canonical(frame, own))).collect()
    };
    if plain(expected) == plain(sent) { Ok(()) } else { Err("another frame".to_owned()) }
}

/// A frame without checksums, the id or flow label of a packet of the director's own, and the id of an IPv6 fragment.
fn canonical(frame: &[u8], own: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let layers = Layers::of(&frame);
    let is_v6 = frame[12] == 0x86;
    if let Some(quoted) = layers.quoted(&frame).filter(|_| layers.is_icmp()) {
        quoted.without_checksums(&mut frame);
    }
    layers.without_checksums(&mut frame);
    match (own, is_v6) {
        (true, true) => {
            frame[15] &= 0xf0;
            frame[16..18].fill(0);
        }
        (true, false) => frame[18..20].fill(0),
        (false, true) if layers.fragment.is_some() => frame[58..62].fill(0),
        _ => {}
    }
    frame
}

/// Sums everything up: what was right must be right, what was wrong wrong by as much. The inputs are the parts of one packet, and so are
/// the frames that are sent.
fn sums(inputs: &[Vec<u8>], sent: &Frames, own: bool) -> Result<(), String> {
    let sent: Vec<Vec<u8>> = sent.iter().map(|(_, frame)| frame.clone()).collect();
    if sent.is_empty() {
        return Ok(());
    }
    must(sent.iter().all(|frame| Layers::of(frame).header_is_right(frame)), "an IP header's checksum")?;
    let (was_part, before, after) = (inputs.len() > 1, together(inputs.to_vec()), together(sent));
    let (old, new) = (Layers::of(&before), Layers::of(&after));
    if own || new.is_icmp() {
        must(new.residue(&after) == 0, "the checksum of an answer, or of an error passed on")?;
        let quotes = old.quoted(&before).zip(new.quoted(&after)).filter(|_| !own && old.is_icmp());
        return quotes.map_or(Ok(()), |(quoted_before, quoted_after)| {
            must(
                quoted_before.header_is_right(&before) == quoted_after.header_is_right(&after),
                "the quoted IP header's checksum",
            )?;
            let same = quoted_before.residue(&before) == quoted_after.residue(&after);
            must(same || quoted_before.end - quoted_before.transport < 20, "the quoted checksum")
        });
    }
    if old.has_none(&before) {
        return match was_part {
            true => must(new.has_none(&after), "a fragmented datagram without checksum has none"),
            false => must(!new.has_none(&after) && new.residue(&after) == 0, "a checksum is filled in"),
        };
    }
    must(!new.has_none(&after), "a checksum became none")?;
    must(new.residue(&after) == old.residue(&before), "the checksum's error changed")
}

fn must_succeed(bench: &mut Bench, line: &str) {
    assert_eq!(bench.ipvsadm(line), (0, String::new(), String::new()), "{line}");
}

fn must(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn local_of(is_v4: bool) -> IpAddr {
    if is_v4 { LOCALS[0].into() } else { LOCALS6[0].into() }
}

/// Whether an address is of the clients' network.
fn is_client(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == [10, 0],
        IpAddr::V6(address) => address.segments()[..3] == [0x2001, 0xdb8, 0xa],
    }
}

fn side(name: &str) -> PortId {
    if name == "cl" { CLIENTS } else { SERVERS }
}
