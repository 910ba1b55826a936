//! A recorded transcript: commands with what they printed and how they ended, and what happened in between.

/// One thing in a transcript.
#[derive(Debug)]
pub enum Event {
    /// A command line of the shell.
    Command(Recorded),
    /// `@…`: traffic, time, or a start anew.
    Happening(String),
}

/// A command line and what came of it.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The line of the transcript.
    pub line: usize,
    /// What was typed.
    pub command: String,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
    /// How it ended.
    pub exit: i32,
}

pub fn read(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(command) = line.strip_prefix("$ ") {
            let recorded = Recorded { line: number, command: command.into(), ..Recorded::default() };
            events.push(Event::Command(recorded));
        } else if let Some(what) = line.strip_prefix('@') {
            events.push(Event::Happening(what.into()));
        } else if !line.starts_with('#') {
            let Some(Event::Command(last)) = events.last_mut() else {
                panic!("line {number}: output of nothing")
            };
            if let Some(out) = line.strip_prefix("  ") {
                last.stdout.push_str(out);
                last.stdout.push('\n');
            } else if let Some(complaint) = line.strip_prefix("! ") {
                last.stderr.push_str(complaint);
                last.stderr.push('\n');
            } else if let Some(code) = line.strip_prefix("[exit ").and_then(|l| l.strip_suffix(']')) {
                last.exit = code.parse().expect("an exit code is a number");
            } else {
                panic!("line {number} is of no known kind: {line:?}");
            }
        }
    }
    events
}
