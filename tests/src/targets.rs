//! The fuzz targets' bodies. They live here so that `cargo test` replays the corpus with the stable compiler.

use std::net::{IpAddr, Ipv4Addr};

use shunt::api::{MAX_MESSAGE, Message, Protocol, Response, ServiceConfig, ServiceKey, VERSION};
use shunt::ipvsadm::address::Names;
use shunt::rules::{Capabilities, Rules};

use crate::bench::VIP;
use crate::harness::Play;
use crate::modes::Modes;
use crate::ops::Op;
use crate::rig::Rig;

/// Fuzz target: frames, edits and time into directors. The first byte chooses how many there are.
pub fn director(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut play = Play::new(1 + usize::from(first & 1));
    for op in Op::read_all(rest) {
        play.step(&op);
    }
    play.end();
}

/// Fuzz target: frames of both families into a director with services of every mode.
pub fn modes(bytes: &[u8]) {
    Modes::run(bytes);
}

/// Fuzz target: lines of JSON, each a message to the daemon, applied to rules that are published to a director.
pub fn request(bytes: &[u8]) {
    let mut everything = Rules::new(Capabilities::everything());
    let mut rig = Rig::new(1);
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let Ok(message) = serde_json::from_slice::<Message>(line) else { continue };
        let again = serde_json::to_vec(&message).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<Message>(&again).expect("and read again"), message);
        if message.version != VERSION {
            continue;
        }
        let before = everything.entries(None).expect("all are there");
        if let Err(refusal) = everything.apply(&message.request) {
            assert_eq!(everything.entries(None).expect("all are there"), before, "refused, yet changed");
            fits(&refusal.into());
        }
        shunt::socket::services(everything.entries(None).expect("all are there"))
            .chain(shunt::socket::locals(everything.locals(None).expect("all are there")))
            .for_each(|page| fits(&page));
        // Errors are refusals of what the director cannot do.
        let _ = rig.apply(&message.request);
        assert_eq!(rig.connections().count(), 0);
    }
    for listing in ["-L", "-G"] {
        let (code, listed, _) = tool(&mut everything, &[listing, "-n", "--json"].map(str::to_owned), "");
        assert_eq!(code, 0);
        let listed: Result<serde_json::Value, _> = serde_json::from_str(&listed);
        assert!(listed.is_ok(), "{listing} --json is none");
    }
}

fn fits(response: &Response) {
    let length = serde_json::to_vec(response).expect("an answer can be written").len();
    assert!(length <= MAX_MESSAGE, "an answer of {length} bytes");
}

/// Names that never ask the system.
struct Nobody;

impl Names for Nobody {
    fn host(&self, name: &str) -> Option<Ipv4Addr> {
        (name == "vip").then_some(VIP)
    }

    fn service(&self, name: &str, _: Protocol) -> Option<u16> {
        (name == "http").then_some(80)
    }

    fn host_name(&self, _: IpAddr) -> Option<String> {
        None
    }

    fn service_name(&self, _: u16, _: Protocol) -> Option<String> {
        None
    }
}

/// Fuzz target: lines of words, each a command line of `ipvsadm`, on rules in memory; at the end the rules are saved
/// and restored.
pub fn ipvsadm(bytes: &[u8]) {
    let mut rules = Rules::new(Capabilities::everything());
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines().take(64);
    while let Some(line) = lines.next() {
        // A tab ends a word, so that words can have blanks, and be empty.
        let words: Vec<String> = match line.contains('\t') {
            true => line.split('\t').map(str::to_owned).collect(),
            false => line.split_whitespace().map(str::to_owned).collect(),
        };
        let stdin = lines.clone().collect::<Vec<_>>().join("\n");
        let before = rules.entries(None).expect("all are there");
        let (code, stdout, stderr) = tool(&mut rules, &words, &stdin);
        assert!((0..=255).contains(&code), "exit code {code}");
        let restores = words.first().is_some_and(|word| word.starts_with("-R") || word == "--restore");
        if code != 0 && !restores {
            assert_eq!(rules.entries(None).expect("all are there"), before, "{line:?} failed, yet changed");
            assert!(!stderr.is_empty(), "{line:?} failed silently");
            assert!(stdout.is_empty() || stdout.contains("-->"), "{line:?} failed, yet printed {stdout}");
        }
    }
    // Two habits of the original write what it refuses to read, and so do we: a mark above 2³¹ comes out negative, and
    // flag 3 of `sh` and `mh`, alone, without its name.
    let odd = |config: &ServiceConfig| match config.key {
        ServiceKey::Mark { mark, .. } if mark > i32::MAX as u32 => true,
        _ => config.flags == 4 && matches!(config.scheduler.as_str(), "sh" | "mh"),
    };
    if rules.services().any(|service| odd(&service.config)) {
        return;
    }
    let save = ["-S".to_owned(), "-n".to_owned()];
    let (code, saved, _) = tool(&mut rules, &save, "");
    assert_eq!(code, 0);
    let mut restored = Rules::new(Capabilities::everything());
    let (code, _, stderr) = tool(&mut restored, &["-R".to_owned()], &saved);
    assert_eq!((code, stderr.as_str()), (0, ""), "cannot be restored:\n{saved}");
    assert_eq!(tool(&mut restored, &save, "").1, saved);
}

fn tool(rules: &mut Rules, words: &[String], stdin: &str) -> (i32, String, String) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut stdin = stdin.as_bytes();
    let code =
        shunt::ipvsadm::main_with(&Nobody, "ipvsadm", words, rules, &mut stdin, &mut stdout, &mut stderr);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (code, text(&stdout), text(&stderr))
}
