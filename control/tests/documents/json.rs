//! docs/json.md is true: what it types is typed, what it shows comes out, and its tables have every member of that and no others.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
};

use serde_json::Value;
use shunt::{
    api::{Protocol, Request},
    ipvsadm::{self, address::Names},
    json,
    marks::MarkRule,
};

use crate::sample::{Director, profile, status};

const DOCUMENT: &str = include_str!("../../../docs/json.md");

struct Known;

impl Names for Known {
    fn host(&self, _: &str) -> Option<Ipv4Addr> {
        None
    }

    fn service(&self, _: &str, _: Protocol) -> Option<u16> {
        None
    }

    fn host_name(&self, address: IpAddr) -> Option<String> {
        (address == IpAddr::from([10, 9, 0, 1])).then(|| "www.example.net".into())
    }

    fn service_name(&self, port: u16, _: Protocol) -> Option<String> {
        [(80, "http"), (8080, "http-alt")].iter().find(|(known, _)| *known == port).map(|(_, n)| (*n).into())
    }
}

/// What a command of the document prints.
fn output(director: &mut Director, command: &str) -> String {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    let (program, arguments) = words.split_first().expect("a command has a program");
    let mut out = Vec::new();
    match (program.as_str(), command) {
        ("ipvsadm", _) => {
            let mut complaints = Vec::new();
            let code = ipvsadm::main_with(
                &Known,
                program,
                arguments,
                director,
                &mut io::empty(),
                &mut out,
                &mut complaints,
            );
            assert_eq!((code, String::from_utf8_lossy(&complaints)), (0, "".into()), "{command}");
        }
        (_, "shunt status --json") => {
            json::document(&mut out, "status", &json::Condition::from(status())).expect("memory takes it");
        }
        (_, "shunt status --profile --json") => {
            let taken = [json::Taken::new(0, &profile())];
            json::document(&mut out, "profile", &taken).expect("memory takes it");
        }
        (_, "shunt mark list --json") => {
            let rules: Vec<_> = director.0.marks().iter().map(json::Mark::from).collect();
            json::document(&mut out, "marks", &rules).expect("memory takes it");
        }
        (_, "shunt sysctl --json") => {
            let listed = director.0.listed_sysctls(Some("expire_nodest_conn")).expect("there is one");
            let listed = json::settings(&listed, "net.ipv4.vs.");
            json::document(&mut out, "sysctls", &listed).expect("memory takes it");
        }
        _ => {
            let rule = MarkRule::of(arguments).expect("a rule");
            director.0.apply(&Request::AddMark(rule)).expect("it is accepted");
        }
    }
    String::from_utf8(out).expect("text")
}

fn members(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                // Counters and settings are known by names of their own.
                if !name.contains('.') {
                    into.insert(name.clone());
                }
                members(value, into);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| members(entry, into)),
        _ => {}
    }
}

#[test]
fn what_the_document_types_comes_out_as_it_shows() {
    let mut director = Director::new();
    let mut shown = BTreeSet::new();
    let blocks = DOCUMENT.split("```console\n").skip(1).map(|rest| rest.split("```").next().expect("an end"));
    for dialogue in blocks.flat_map(|block| block.split("$ ").skip(1)) {
        let (command, expected) = dialogue.split_once('\n').expect("a line");
        let printed = output(&mut director, command);
        if expected.is_empty() {
            assert_eq!(printed, "", "{command}");
            continue;
        }
        let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(read(&printed), read(expected), "{command}");
        members(&read(&printed), &mut shown);
    }
    assert!(shown.len() > 60, "the document's examples were not found");

    let tables = DOCUMENT.lines().filter(|line| line.starts_with("| `"));
    let cells = tables.flat_map(|line| line.split('|').nth(1)).flat_map(|cell| cell.split(','));
    let mut told: BTreeSet<String> = cells.map(|name| name.trim().trim_matches('`').to_owned()).collect();
    told.insert("schema".into());
    assert_eq!(told, shown);
}

#[test]
fn a_listing_has_a_line_for_each_entry_and_what_is_refused_prints_none() {
    let mut director = Director::new();
    assert_eq!(output(&mut director, "ipvsadm -L --json"), "{\"schema\":1,\"services\":[\n]}\n");
    output(&mut director, "ipvsadm -A -t 10.9.0.1:80 -s rr");
    output(&mut director, "ipvsadm -A -t 10.9.0.1:81 -s rr");
    for line in ["ipvsadm -L --json", "ipvsadm -L --json --nosort", "ipvsadm -L --json --stats --exact"] {
        let listed = output(&mut director, line);
        assert_eq!(listed.lines().count(), 4, "{listed}");
        assert!(serde_json::from_str::<Value>(&listed).is_ok(), "{listed}");
    }
    let words = ["-L", "-t", "10.9.0.9:80", "--json"].map(str::to_owned);
    let (mut out, mut complaints) = (Vec::new(), Vec::new());
    let stdin = &mut io::empty();
    let code = ipvsadm::main("ipvsadm", &words, &mut director, stdin, &mut out, &mut complaints);
    assert_eq!((code, out.as_slice(), complaints.as_slice()), (1, &b""[..], &b"No such service\n"[..]));
}
