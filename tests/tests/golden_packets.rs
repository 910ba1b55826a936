//! What comes out for each frame, byte for byte, against what a real kernel IPVS sent (`golden/packets.json`, `golden/tunnel-errors.json`).
//!
//! The bench plays the kernel's part only by rule: where the director passes a frame, the recorded outcome must be one that the kernel's own
//! stack makes (an answer on the same side, nothing, or plain routing).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use shunt::marks::Prefix;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::forward::reset;
use shunt_dataplane::packet::protocol::SCTP;
use shunt_dataplane::packet::tags::{QINQ, Tags, VLAN};
use shunt_dataplane::packet::{Extent, Packet, Parsed, parse};
use shunt_dataplane::port::frame::{CHUNK, HEADROOM};
use shunt_dataplane::service::PortId;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, HOME, SERVERS};
use shunt_tests::frames::{checksum, from_hex, to_hex};
use shunt_tests::recorded::{Case, Step};

/// Steps where shunt differs, and why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "tunnel-errors",
        "about a tunnel from elsewhere",
        "a packet that is not from the director was not put into a tunnel by it",
    ),
    (
        "tunnel-errors",
        "the inner ports quoted",
        "eight bytes of a transport header are the least that is read of any quote",
    ),
    (
        "two-services-turned",
        "",
        "a real server calls by its service that goes by calls, whatever other service it was added to since",
    ),
    ("settings-v4-bypass", "syn at its last hop", FROM_AFAR),
    ("settings-v4-bypass", "ack, no connection", FROM_AFAR),
    (
        "bypass-nowhere",
        "",
        "where no route leads no connection goes: the client is told as when there is no bypass",
    ),
];

/// Marked packets come to IPVS by a rule of routing, so their addresses are not the machine's own, and IPv4 of the kernel's says nothing from such.
const FROM_AFAR: &str = "the director answers for marked addresses, the kernel's IPv4 does not";

/// Errors about a tunnel's path. To the first of them IPVS answers with the MTU of the link, which it still has at hand, and tells of the path only when
/// the next packet comes; the director tells of it at once. The rest of the answer is the same.
const STALE: &[(&str, &str)] =
    &[("tun-ipip/ipv4/icmp", "frag needed about the tunnel"), ("tunnel-errors", "frag needed, MTU 1400")];

/// Whole cases that are for later or differ, and why.
const LATER: &[(&str, &str)] =
    &[("another port/fragments", "SCTP's CRC needs the whole datagram; drop.sctp_fragment counts its parts")];

#[test]
fn every_frame_leaves_as_ipvs_sent_it() {
    replay(Bench::default);
}

/// The same behind VLANs, QinQ towards the servers: tags on and off are all the difference.
#[test]
fn every_tagged_frame_leaves_as_ipvs_sent_it() {
    let tags = |tags: &[(u16, u16)]| {
        let on = |all: Tags, &(ethertype, id): &(u16, u16)| all.and(ethertype, id).expect("there is room");
        tags.iter().fold(Tags::default(), on)
    };
    let (clients, servers) = (tags(&[(VLAN, 100)]), tags(&[(QINQ, 200), (VLAN, 7)]));
    replay(|| Bench::default().with_tags([clients, servers]));
}

fn replay(new: impl Fn() -> Bench) {
    let files = [
        include_str!("../golden/packets.json"),
        include_str!("../golden/packets-more.json"),
        include_str!("../golden/packets-ftp.json"),
        include_str!("../golden/packets-marks.json"),
        include_str!("../golden/packets-settings.json"),
        include_str!("../golden/packets-sip.json"),
        include_str!("../golden/tunnel-errors.json"),
    ];
    let cases = files.map(|file| serde_json::from_str::<Vec<Case>>(file).expect("golden file"));
    let cases = cases.concat();
    let (mut steps, mut later) = (0, BTreeMap::<&str, Vec<&str>>::new());
    let mut wrong = Vec::new();
    for case in &cases {
        let mut bench = new();
        let reason = LATER.iter().find(|(name, _)| case.name.contains(name)).map(|(_, why)| *why);
        if let Some(reason) = reason.or_else(|| set_up(&mut bench, case)) {
            later.entry(reason).or_default().push(&case.name);
            continue;
        }
        if case.name.ends_with("/fragments") {
            if let Err(answer) = play_fragments(&mut bench, case) {
                wrong.push(format!("{}: {answer}", case.name));
            }
            steps += case.steps.len();
            continue;
        }
        for step in &case.steps {
            if let Err(answer) = play(&mut bench, &case.name, step) {
                wrong.push(format!("{}: {answer}", case.name));
            }
            steps += 1;
        }
    }
    for (why, names) in &later {
        println!("for later, {why}: {names:?}");
    }
    println!("{steps} steps played");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(steps > 200, "only {steps} steps were played");
}

/// Sets a case up, or says why it is for later.
fn set_up(bench: &mut Bench, case: &Case) -> Option<&'static str> {
    for (name, value) in &case.sysctl {
        // Conntrack is netfilter's; the director never uses it, so the setting makes no difference.
        if !name.ends_with(".conntrack") && bench.sysctl(name, *value).is_err() {
            return Some("the sysctl comes later");
        }
    }
    for line in &case.pre {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["ip", .., "mtu", mtu] => {
                let port = if words.contains(&"s0") { SERVERS } else { CLIENTS };
                bench.set_mtu(port, mtu.parse().expect("an MTU"));
            }
            ["ip", .., "route", "add", prefix, "via", gateway] => {
                let (address, length) = prefix.split_once('/').expect("a prefix");
                let to = Prefix {
                    address: address.parse().expect("an address"),
                    length: length.parse().expect("a length"),
                };
                bench.add_route(to, gateway.parse().expect("an address"));
            }
            // FTP is always read.
            ["modprobe", "ip_vs_ftp"] => {}
            _ => return Some("its preparation is not understood"),
        }
    }
    let refused = case.setup.iter().any(|line| bench.ipvsadm(line).0 != 0);
    refused.then_some("its setup is refused")
}

/// The kernel puts a datagram together and cuts it up again; the director sends each part on as it comes. So all parts are compared at the
/// end. In a tunnel the kernel cuts up the outer packet and the director the inner one: those are only counted.
fn play_fragments(bench: &mut Bench, case: &Case) -> Result<(), String> {
    let (mut sent, mut expected, mut inputs) = (Vec::new(), Vec::new(), 0);
    for step in &case.steps {
        if let Some(lines) = step.get("conns") {
            connections(bench, lines)?;
            continue;
        }
        let step: Step = serde_json::from_value(step.clone()).expect("a step");
        sent.extend(bench.frame_and_kept(side(&step.side), &from_hex(&step.input)));
        expected.extend(step.out.iter().map(|(s, frame)| (side(s), from_hex(frame))));
        inputs += 1;
    }
    if case.name.starts_with("tun-") {
        return if sent.len() == inputs {
            Ok(())
        } else {
            Err(format!("{} of {inputs} parts were sent", sent.len()))
        };
    }
    let canonical = |frames: Vec<(PortId, Vec<u8>)>| {
        let mut frames: Vec<_> =
            frames.into_iter().map(|(port, frame)| (port, without_fragment_id(frame))).collect();
        frames.sort();
        frames
    };
    let (sent, expected) = (canonical(sent), canonical(expected));
    let show = |frames: &[(PortId, Vec<u8>)]| -> Vec<String> {
        frames
            .iter()
            .map(|(port, frame)| format!("{port:?} {}", to_hex(&frame[..frame.len().min(80)])))
            .collect()
    };
    if sent == expected {
        Ok(())
    } else {
        Err(format!("sent {:#?}, not {:#?}", show(&sent), show(&expected)))
    }
}

/// The kernel gives IPv6 datagrams that it cuts up again another id.
fn without_fragment_id(mut frame: Vec<u8>) -> Vec<u8> {
    if is_v6(&frame) && frame[20] == 44 {
        frame[58..62].fill(0);
    }
    frame
}

fn play(bench: &mut Bench, case: &str, step: &Value) -> Result<(), String> {
    if let Some(lines) = step.get("conns") {
        return connections(bench, lines);
    }
    if let Some(lines) = step.get("stats") {
        return statistics(bench, lines);
    }
    if let Some(seconds) = step.get("wait") {
        bench.wait(Duration::from_secs(seconds.as_u64().expect("seconds")));
        return Ok(());
    }
    if let Some(line) = step.get("cmd") {
        let (code, _, error) = bench.ipvsadm(line.as_str().expect("a line"));
        return if code == 0 { Ok(()) } else { Err(format!("{line}: {error}")) };
    }
    let step: Step = serde_json::from_value(step.clone()).expect("a step");
    let side = side(&step.side);
    let input = from_hex(&step.input);
    let expected: Vec<(PortId, Vec<u8>)> =
        step.out.iter().map(|(s, f)| (self::side(s), from_hex(f))).collect();
    let mut outcome = bench.frame(side, &input);
    if outcome.verdict == Verdict::Drop(Reason::RateLimited) {
        // The recorder's bench had no limit on ICMP.
        bench.wait(Duration::from_secs(1));
        outcome = bench.frame(side, &input);
    }
    if let [(HOME, segment)] = &outcome.sent[..] {
        // A real server that is the director itself; nobody listens there.
        outcome = bench.frame(HOME, &reset(segment));
    }
    if DIFFERENCES.iter().any(|(c, note, _)| case.contains(c) && step.note.contains(note)) {
        return Ok(());
    }
    let explain = |what: &str| {
        let show = |(port, frame): &(PortId, Vec<u8>)| format!("    by {port:?}: {}", to_hex(frame));
        let expected: Vec<String> = expected.iter().map(show).collect();
        let sent: Vec<String> = outcome.sent.iter().map(show).collect();
        format!(
            "{}: {what} ({:?})\n  expected\n{}\n  sent\n{}",
            step.note,
            outcome.verdict,
            expected.join("\n"),
            sent.join("\n")
        )
    };
    match outcome.verdict {
        Verdict::Pass if is_the_kernels(side, &input, &expected) => Ok(()),
        Verdict::Pass => Err(explain("passed, but it was the director's")),
        Verdict::Drop(_) if expected.is_empty() => Ok(()),
        // IPVS lets the kernel ask for the neighbour; the frame is gone either way while nobody answers.
        Verdict::Wait(..) if expected.is_empty() => Ok(()),
        Verdict::Forward(_) | Verdict::Reply(_) => {
            let own = matches!(outcome.verdict, Verdict::Reply(_));
            let ports =
                |frames: &[(PortId, Vec<u8>)]| frames.iter().map(|(port, _)| *port).collect::<Vec<_>>();
            if ports(&outcome.sent) != ports(&expected) {
                return Err(explain("another way"));
            }
            for ((_, sent), (_, frame)) in outcome.sent.iter().zip(&expected) {
                if has_sound_icmp(&input) && !has_sound_icmp(sent) {
                    return Err(explain("the ICMP checksum is wrong"));
                }
                if outcome.sent.len() == 1 && !has_sound_gue(sent) {
                    return Err(explain("the outer UDP checksum is wrong"));
                }
                let is_stale = STALE.iter().any(|(c, note)| case.contains(c) && step.note.contains(note));
                let canonical = |frame| match is_stale {
                    true => without_mtu(canonical(frame, own)),
                    false => canonical(frame, own),
                };
                if canonical(sent) != canonical(frame) {
                    return Err(explain("another frame"));
                }
            }
            Ok(())
        }
        _ => Err(explain("not sent")),
    }
}

/// What the kernel says to a segment that nobody waits for.
fn reset(segment: &[u8]) -> Vec<u8> {
    let mut chunk = [0; CHUNK];
    chunk[HEADROOM..HEADROOM + segment.len()].copy_from_slice(segment);
    let mut extent = Extent::new(HEADROOM, segment.len(), HOME);
    let mut packet = Packet::new(&mut chunk, &mut extent);
    let Ok(Parsed::V4(meta)) = parse(packet.data()) else { panic!("no packet of IPv4: {}", to_hex(segment)) };
    reset::answer(&mut packet, &meta);
    packet.data().to_vec()
}

/// Whether the kernel alone explains an outcome: an answer to the sender, silence, or routing.
fn is_the_kernels(side: PortId, input: &[u8], expected: &[(PortId, Vec<u8>)]) -> bool {
    let addresses = if is_v6(input) { 22..54 } else { 26..34 };
    expected.iter().all(|(port, frame)| {
        let routed = frame.len() <= input.len() && frame[addresses.clone()] == input[addresses.clone()];
        *port == side || routed
    })
}

/// A frame without what may differ: the id or flow label of packets the director makes itself, and, in a translated ICMP error, the
/// quoted transport checksum that the kernel leaves stale.
fn canonical(frame: &[u8], own: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let header = if is_v6(&frame) { 40 } else { 20 };
    let message = 14 + header;
    // The outer id of a tunnelled packet that may be cut up, and the source port that GUE spreads flows by.
    let is_later_part = !is_v6(&frame) && u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff != 0;
    if !is_v6(&frame) && (is_wrapped(&frame) || is_later_part) && frame[20] & 0x40 == 0 {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    if is_gue(&frame) {
        let has_checksum = frame[message + 6..message + 8] != [0, 0];
        frame[message..message + 2].fill(0);
        frame[message + 6..message + 8].fill(u8::from(has_checksum));
    }
    if own && is_v6(&frame) {
        frame[15] &= 0xf0;
        frame[16..18].fill(0);
    } else if own {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    } else if is_icmp(&frame) && frame.len() >= message + 8 + header + 8 {
        frame[message + 2..message + 4].fill(0);
        let quoted = message + 8 + header;
        let protocol = frame[message + 8 + if is_v6(&frame) { 6 } else { 9 }];
        let at = quoted + if protocol == 6 { 16 } else { 6 };
        if protocol != SCTP && frame.len() >= at + 2 {
            frame[at..at + 2].fill(0);
        }
    }
    frame
}

/// An ICMPv4 error without the MTU that it tells of, and without its checksum.
fn without_mtu(mut frame: Vec<u8>) -> Vec<u8> {
    frame[36..38].fill(0);
    frame[40..42].fill(0);
    frame
}

fn is_v6(frame: &[u8]) -> bool {
    frame[12] == 0x86
}

/// The frame's protocol, addresses (both together) and what follows the IP header.
fn layers(frame: &[u8]) -> (u8, &[u8], &[u8]) {
    if is_v6(frame) {
        (frame[20], &frame[22..54], &frame[54..])
    } else {
        (frame[23], &frame[26..34], &frame[34..])
    }
}

fn is_gue(frame: &[u8]) -> bool {
    let (protocol, _, datagram) = layers(frame);
    protocol == 17 && datagram[2..4] == 6080u16.to_be_bytes()
}

fn is_wrapped(frame: &[u8]) -> bool {
    matches!(layers(frame).0, 4 | 41 | 47) || is_gue(frame)
}

/// Whether the outer UDP checksum is right, if there is one.
fn has_sound_gue(frame: &[u8]) -> bool {
    let (protocol, addresses, datagram) = layers(frame);
    if !is_gue(frame) || datagram[6..8] == [0, 0] {
        return true;
    }
    let length = (datagram.len() as u32).to_be_bytes();
    checksum(&[addresses, &length, &[0, 0, 0, protocol], datagram].concat()) == 0
}

fn is_icmp(frame: &[u8]) -> bool {
    if is_v6(frame) { frame[20] == 58 } else { frame[23] == 1 }
}

fn has_sound_icmp(frame: &[u8]) -> bool {
    if !is_icmp(frame) {
        return true;
    }
    if !is_v6(frame) {
        return checksum(&frame[34..]) == 0;
    }
    let message = &frame[54..];
    let pseudo = [&frame[22..54], &(message.len() as u32).to_be_bytes(), &[0, 0, 0, 58], message].concat();
    checksum(&pseudo) == 0
}

fn side(name: &str) -> PortId {
    if name == "cl" { CLIENTS } else { SERVERS }
}

fn connections(bench: &Bench, expected: &Value) -> Result<(), String> {
    let mut expected: Vec<(String, u32)> = strings(expected)
        .iter()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (minutes, seconds) = words[1].split_once(':').expect("mm:ss");
            let left =
                minutes.parse::<u32>().expect("minutes") * 60 + seconds.parse::<u32>().expect("seconds");
            let rest = [&words[..1], &words[2..]].concat().join(" ");
            (rest, left)
        })
        .collect();
    let mut listed: Vec<(String, u32)> = bench
        .connections()
        .into_iter()
        .map(|(protocol, left, state, client, service, server)| {
            (format!("{protocol} {state} {client} {service} {server}"), left)
        })
        .collect();
    expected.sort();
    listed.sort();
    let alike = expected.len() == listed.len()
        && expected.iter().zip(&listed).all(|(e, l)| e.0 == l.0 && e.1.abs_diff(l.1) <= 1);
    if alike { Ok(()) } else { Err(format!("connections {listed:?}, not {expected:?}")) }
}

fn statistics(bench: &mut Bench, expected: &Value) -> Result<(), String> {
    let expected = strings(expected);
    let (_, listing, _) = bench.ipvsadm("-Ln --stats");
    let listed: Vec<&str> = listing.lines().skip(3).collect();
    if listed == expected {
        Ok(())
    } else {
        Err(format!("statistics\n{listing}\nnot\n{}", expected.join("\n")))
    }
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|line| line.as_str().expect("a line")).collect()
}
