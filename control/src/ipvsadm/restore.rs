//! `-R`: commands from the standard input, one a line.
//!
//! Each line is a command line of its own. Blanks separate words and there is no quoting; the word `ipvsadm` is
//! skipped wherever it stands; there are no comments. Lines take effect one by one: a refusal is printed and the next
//! line is read, wrong usage ends the whole restore, and the exit code is that of the last line carried out.

use std::io::{BufRead, Read};

use super::{Tool, failure::Failure, parse::Command};

/// The longest line in bytes: room for a line of every option with the longest names there are. What is longer is
/// refused, so that a file without line ends does not fill the memory.
const MAX_LINE: u64 = 64 * 1024;

/// The words of a line.
pub fn split(line: &str) -> Vec<String> {
    line.split([' ', '\t', '\n', '\r'])
        .filter(|word| !word.is_empty() && *word != "ipvsadm")
        .map(str::to_string)
        .collect()
}

/// Reads and carries out lines; those that begin with one of `skipped` are left out.
pub(super) fn run(tool: &mut Tool<'_>, skipped: Option<u8>) -> Result<i32, Failure> {
    let mut code = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut *tool.stdin).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(code);
        }
        if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
            return Err(Failure::usage(format!("a line has more than {MAX_LINE} bytes")));
        }
        if skipped.is_some_and(|mark| line.first() == Some(&mark)) {
            continue;
        }
        let words = split(&String::from_utf8_lossy(&line));
        if words.is_empty() {
            continue;
        }

        let command = tool.parse(&words);
        let ends = matches!(command, Ok(Command::Help | Command::Version));
        let outcome = match command {
            Ok(Command::Restore) => Err(Failure::try_help(tool.program)),
            Ok(command) => tool.carry_out(command),
            Err(failure) => Err(failure),
        };
        code = match outcome {
            Ok(code) if ends => return Ok(code),
            Ok(code) => code,
            Err(failure) if failure.ends_restore => return Err(failure),
            Err(failure) => {
                tool.complain(&failure);
                failure.code
            }
        };
    }
}
