//! Rules from a file in the format of `ipvsadm -S`.
//!
//! Besides, it has the rules that mark packets, in lines as `shunt mark list` prints them.
//!
//! Unlike `ipvsadm -R` this is a transaction: the first line that is wrong is reported and nothing is kept. Lines
//! that begin with `#`, after blanks, are comments.

use std::fmt;

use super::{Capabilities, Rules};
use crate::api::{Request, ServerKey, ServiceKey};
use crate::ipvsadm::{
    address::{Names, SystemNames},
    parse::{Command, parse},
    restore::split,
};
use crate::marks::MarkRule;

/// Why rules were not restored, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}; expected {expected}")]
pub struct RestoreError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
    /// What would have been right.
    pub expected: String,
}

impl RestoreError {
    /// That a server is refused for what shows only when all lines are read; `None` if no line adds it.
    pub fn of_server(
        text: &str,
        service: &ServiceKey,
        server: &ServerKey,
        why: &dyn fmt::Display,
    ) -> Option<RestoreError> {
        let names = SystemNames::default();
        (1..).zip(text.lines()).find_map(|(number, line)| match request(line, &names) {
            Ok(Some(request)) if adds(&request, service, server) => {
                Some(RestoreError::refused(number, line, &request, why))
            }
            _ => None,
        })
    }

    fn refused(number: usize, line: &str, request: &Request, why: &dyn fmt::Display) -> RestoreError {
        let why = format!("`{}' is refused: {why}", line.trim());
        RestoreError { line: number, why, expected: fitting(request).to_owned() }
    }
}

fn adds(request: &Request, service: &ServiceKey, server: &ServerKey) -> bool {
    matches!(request, Request::AddServer(to, added) if to == service && added.key == *server)
}

pub(super) fn restore(capabilities: Capabilities, text: &str) -> Result<Rules, RestoreError> {
    let names = SystemNames::default();
    let mut rules = Rules::new(capabilities);
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |(why, expected): (String, &str)| RestoreError {
            line: number,
            why,
            expected: expected.to_string(),
        };
        if let Some(request) = request(line, &names).map_err(wrong)? {
            rules
                .apply(&request)
                .map_err(|refusal| RestoreError::refused(number, line, &request, &refusal.why))?;
        }
    }
    Ok(rules)
}

/// The request on a line, if there is one.
fn request(line: &str, names: &dyn Names) -> Result<Option<Request>, (String, &'static str)> {
    const A_RULE: &str = "a rule as `ipvsadm -S' writes it, such as `-A -t 192.0.2.1:80 -s rr' \
                          or `-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m'";
    let words = split(line);
    if words.is_empty() || line.trim_start().starts_with('#') {
        return Ok(None);
    }
    if words[0] == "mark" {
        const A_MARK: &str = "a rule as `shunt mark list' prints it, such as `mark add --destination 192.0.2.0/24 --ports 80-90 --mark 1'";
        return MarkRule::of(&words).map(|rule| Some(Request::AddMark(rule))).map_err(|why| (why, A_MARK));
    }
    match parse("ipvsadm", &words, names) {
        Ok(Command::Ask(
            request @ (Request::AddService(_) | Request::AddServer(..) | Request::AddLocal(..)),
        )) => Ok(Some(request)),
        Ok(_) => Err((format!("`{}' is no rule", line.trim()), A_RULE)),
        Err(failure) if failure.text.starts_with("Try ") => {
            Err((format!("`{}' is no rule", line.trim()), A_RULE))
        }
        Err(failure) => Err((failure.text.trim_end().to_string(), A_RULE)),
    }
}

/// What the rules before a refused one, or the director, would have to be like.
fn fitting(request: &Request) -> &'static str {
    match request {
        Request::AddMark(_) => "a new rule for marks, about an interface of this director if about any",
        Request::AddService(_) => "a new service that this director can serve",
        Request::AddLocal(..) => {
            "a new local address of a service defined above, which servers can answer to"
        }
        _ => "a new server, that this director can reach, of a service defined above",
    }
}
