//! docs/protocol.md is true: its dialogues are held with a director, there is one for every request and every answer, and its limits are the limits.

use std::collections::BTreeSet;

use serde_json::Value;
use shunt::api::{MAX_MESSAGE, Message, Request, Response, VERSION};
use shunt::ipvsadm::Backend;
use shunt::socket::{CLIENTS, DEFAULT_PATH, IDLE_TIME, LINES, MESSAGE_TIME, PATH_VARIABLE, REPLY_TIME};

use crate::sample::Director;

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");

/// The names that an enumeration takes, in its own words.
fn names<T: serde::de::DeserializeOwned>() -> BTreeSet<String> {
    let Err(error) = serde_json::from_str::<T>("\"?\"") else { panic!("? is no name") };
    let error = error.to_string();
    let (_, known) = error.split_once("expected one of ").expect("a list of names");
    let known = known.split(" at line").next().expect("what is before");
    known.split(", ").map(|name| name.trim_matches('`').to_owned()).collect()
}

/// The name of what a message is.
fn name(message: &Value) -> String {
    match message {
        Value::String(name) => name.clone(),
        Value::Object(object) => object.keys().next().expect("one name").clone(),
        other => panic!("{other} is no message"),
    }
}

#[test]
fn the_dialogues_of_the_document_are_held_as_it_says() {
    let mut director = Director::new();
    let (mut asked, mut answered) = (BTreeSet::new(), BTreeSet::new());
    let blocks = DOCUMENT.split("```text\n").skip(1).map(|rest| rest.split("```").next().expect("an end"));
    for dialogue in blocks.flat_map(|block| block.split("--> ").skip(1)) {
        let mut messages = dialogue.split("<-- ");
        let said = messages.next().expect("a request");
        let message: Value = serde_json::from_str(said).unwrap_or_else(|error| panic!("{said}: {error}"));
        let Message { version, request } = serde_json::from_str(said).expect("a known request");
        assert_eq!(version, VERSION);
        assert_eq!(serde_json::to_value(&request).expect("JSON"), message["request"], "{said}");
        asked.insert(name(&message["request"]));

        let expected: Vec<Value> = messages
            .map(|answer| serde_json::from_str(answer).unwrap_or_else(|error| panic!("{answer}: {error}")))
            .collect();
        let mut given = Vec::new();
        let heard = director.request(&request, &mut |response| {
            given.push(serde_json::to_value(response).expect("JSON"));
            Ok(())
        });
        heard.expect("nothing can fail");
        assert_eq!(given, expected, "{said}");
        answered.extend(given.iter().map(name));
    }
    assert_eq!(asked, names::<Request>());
    assert_eq!(answered, names::<Response>());
}

#[test]
fn the_limits_of_the_document_are_the_limits() {
    for (what, value) in [
        ("Version", VERSION.to_string()),
        ("Longest message", MAX_MESSAGE.to_string()),
        ("Time for a message", MESSAGE_TIME.as_secs().to_string()),
        ("Time between two requests", IDLE_TIME.as_secs().to_string()),
        ("Time for the reader", REPLY_TIME.as_secs().to_string()),
        ("Connections", CLIENTS.to_string()),
        ("Entries in a message", LINES.to_string()),
    ] {
        let row = format!("| {what} | {value}");
        assert!(DOCUMENT.contains(&row), "{row}");
    }
    assert!(
        DOCUMENT.contains(&format!("`{DEFAULT_PATH}`")) && DOCUMENT.contains(&format!("`{PATH_VARIABLE}`"))
    );
}
