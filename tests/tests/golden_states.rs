//! State and expiry of each connection after each packet, and the server's counts, against what a real kernel IPVS listed
//! (`golden/states.json`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, Outcome, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, client_mac, flags, sctp, server_mac, tcp, udp};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    setup: Vec<String>,
    set: Option<Value>,
    sysctl: Vec<(String, u32)>,
    steps: Vec<Step>,
}

/// What happens, the connections listed afterwards, the servers' active and inactive counts.
type Step = (String, Vec<[String; 5]>, Vec<[u32; 2]>);

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    List(Vec<u32>),
}

/// What the kernel lists for some milliseconds more and shunt does not, and why: case, step, state.
const GOING: &[(&str, &str, &str)] = &[(
    "removed, expire_nodest_conn=1",
    "c:A -> client from 10.9.0.1 RST",
    // The connection has ended; then its own reset passes IPVS, which follows it on what is still in the table.
    "CLOSE",
)];

#[test]
fn every_connection_lives_and_ends_as_under_ipvs() {
    let files = [include_str!("../golden/states.json"), include_str!("../golden/states-random.json")];
    let cases = files.map(|file| serde_json::from_str::<Vec<Case>>(file).expect("golden file"));
    let cases = cases.concat();
    let (mut played, mut later) = (0, BTreeMap::<&str, Vec<&str>>::new());
    let mut wrong = Vec::new();
    for case in &cases {
        let mut bench = Bench::default();
        let is_set = case.sysctl.iter().all(|(name, value)| bench.sysctl(name, *value).is_ok());
        let refused = case.setup.iter().any(|line| bench.ipvsadm(line).0 != 0);
        let reason = if is_set { "its setup is refused: persistence, one-packet" } else { "sysctls" };
        if refused || !is_set {
            later.entry(reason).or_default().push(&case.name);
            continue;
        }
        if let Some(set) = &case.set {
            let line = match set {
                Value::Text(words) => words.clone(),
                Value::List(seconds) => seconds.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
            };
            let line = if line.contains("--set") { line } else { format!("--set {line}") };
            assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
        }
        played += 1;
        let protocol = Protocol::of(&case.setup[0]);
        for (n, (what, conns, counts)) in case.steps.iter().enumerate() {
            let going = GOING.iter().find(|(name, step, _)| case.name == *name && what == step);
            let conns: Vec<_> =
                conns.iter().filter(|conn| going.is_none_or(|(.., state)| conn[2] != *state)).collect();
            if let Err(answer) = step(&mut bench, protocol, what, &conns, counts) {
                wrong.push(format!("{} ({}): step {n}: {what}: {answer}", case.name, case.setup[1]));
                break;
            }
        }
    }
    println!("{played} cases played; for later: {later:?}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(played >= 48, "only {played} cases were played");
}

/// What a case's packets are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// That of the service that this line of ipvsadm adds.
    fn of(line: &str) -> Self {
        match line {
            line if line.contains("-u ") => Self::Udp,
            line if line.contains("--sctp-service ") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Tcp => 80,
            Self::Udp => 53,
            Self::Sctp => 5000,
        }
    }
}

fn step(
    bench: &mut Bench,
    protocol: Protocol,
    what: &str,
    conns: &[&[String; 5]],
    counts: &[[u32; 2]],
) -> Result<(), String> {
    if let Some(seconds) = what.strip_prefix("wait ") {
        bench.wait(Duration::from_secs_f64(seconds.parse().expect("seconds")));
    } else if what.starts_with('-') {
        let (code, _, error) = bench.ipvsadm(what);
        if code != 0 {
            return Err(error);
        }
    } else {
        let (packet, to) = what.split_once(" -> ").expect("a packet and where it goes");
        let went = send(bench, protocol, packet);
        // With no service left the kernel does what it does for any segment: its stack resets the client's, it routes the server's.
        let kernels = went == "the kernel"
            && matches!(
                to,
                "client from 10.9.0.1 RST" | "client from 10.1.0.11" | "client from 10.1.0.11 RST"
            );
        // The recorder's bench had no limit on ICMP, and an error to the server is all that comes to it from there.
        let limited = went == "limited" && (to.contains("icmp") || to == "10.1.0.11");
        if went != to && !kernels && !limited {
            return Err(format!("went to {went}"));
        }
    }

    let mut listed: Vec<[String; 5]> = Vec::new();
    for (protocol, left, state, client, _, server) in bench.connections() {
        listed.push([protocol, left.to_string(), state, client, server]);
    }
    // The kernel may keep an entry whose time is over for a moment; shunt need not.
    let over = |c: &&&[String; 5]| c[1] == "00:00" && !listed.iter().any(|l| l[2..] == c[2..]);
    let lingering = conns.iter().filter(over).count();
    let mut expected: Vec<&[String; 5]> = conns.iter().filter(|c| !over(c)).copied().collect();
    let by_name = |c: &[String; 5]| (c[0].clone(), c[2..].to_vec());
    expected.sort_by_key(|c| by_name(c));
    listed.sort_by_key(by_name);
    let alike = expected.len() == listed.len()
        && expected.iter().zip(&listed).all(|(e, l)| {
            let (minutes, seconds) = e[1].split_once(':').expect("mm:ss");
            let left =
                minutes.parse::<u32>().expect("minutes") * 60 + seconds.parse::<u32>().expect("seconds");
            e[0] == l[0] && e[2..] == l[2..] && left.abs_diff(l[1].parse().expect("seconds")) <= 1
        });
    if !alike {
        return Err(format!("connections {listed:?}, not {conns:?}"));
    }
    let loads: Vec<[u32; 2]> =
        bench.loads().into_iter().map(|(_, _, active, inactive)| [active, inactive]).collect();
    if lingering == 0 && loads != counts {
        return Err(format!("counts {loads:?}, not {counts:?}"));
    }
    Ok(())
}

/// Sends `c:FLAGS` or `s:FLAGS`, for SCTP `c:CHUNK` or `c:CHUNK+CHUNK` by their numbers; says where it went in the words of the file.
fn send(bench: &mut Bench, protocol: Protocol, packet: &str) -> String {
    let (who, letters) = packet.split_once(':').expect("who:what");
    let port = protocol.port();
    let (client, vip, server) = ((CLIENT, 1000), (VIP, port), (SERVER, port));
    let (from, macs, ends) = match who {
        "c" => (CLIENTS, (client_mac(CLIENT), C0), (client, vip)),
        _ => (SERVERS, (server_mac(SERVER), S0), (server, client)),
    };
    let frame = match protocol {
        Protocol::Tcp => tcp(macs, ends.0, ends.1, flags(letters)),
        Protocol::Udp => udp(macs, ends.0, ends.1),
        Protocol::Sctp => {
            let chunk = |number: &str| (number.parse().expect("a chunk's number"), &[0; 16][..]);
            sctp(macs, ends.0, ends.1, &letters.split('+').map(chunk).collect::<Vec<_>>())
        }
    };
    describe(&bench.frame(from, &frame))
}

fn describe(outcome: &Outcome) -> String {
    let Some((port, frame)) = outcome.sent.last() else {
        return match outcome.verdict {
            Verdict::Pass => "the kernel".to_owned(),
            Verdict::Drop(Reason::RateLimited) => "limited".to_owned(),
            _ => "nothing".to_owned(),
        };
    };
    let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let (source, destination) = (address(26), address(30));
    match (*port, frame[23]) {
        (SERVERS, _) if destination == VIP => format!("rs {:02x}", frame[5]),
        (SERVERS, 4) => format!("{destination} ipip"),
        (SERVERS, _) => destination.to_string(),
        (_, 1) => format!("client from {source} icmp {}/{}", frame[34], frame[35]),
        (_, 6) if frame[47] & 0x04 != 0 => format!("client from {source} RST"),
        _ => format!("client from {source}"),
    }
}
