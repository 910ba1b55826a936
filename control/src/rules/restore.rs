//! Rules from a file in the format of `ipvsadm -S`.
//!
//! Unlike `ipvsadm -R` this is a transaction: the first line that is wrong is reported and nothing is kept. Lines
//! that begin with `#`, after blanks, are comments.

use super::{Capabilities, Rules};
use crate::api::Request;
use crate::ipvsadm::{
    address::{Names, SystemNames},
    parse::{Command, parse},
    restore::split,
};

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
            rules.apply(&request).map_err(|refusal| {
                wrong((format!("`{}' is refused: {}", line.trim(), refusal.why), fitting(&request)))
            })?;
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
        Request::AddService(_) => "a new service that this director can serve",
        Request::AddLocal(..) => {
            "a new local address of a service defined above, which servers can answer to"
        }
        _ => "a new server, that this director can reach, of a service defined above",
    }
}
