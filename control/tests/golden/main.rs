//! The recorded transcripts of the real ipvsadm, replayed line by line: every byte of both streams and every exit code.
//!
//! What is not compared, by rule, and counted:
//! - `cat /proc/net/…`: not ipvsadm. Not run.
//! - The order of the rows of `-Lnc`: the kernel's is that of its hash table. The rows are compared as a set.
//! - The order of services under `--nosort` in all but `cli.txt`, recorded on machines whose hash has another seed:
//!   the services, each with its servers in order, are compared as a set. In `cli.txt` the order is compared.
//!
//! Beyond what is recorded, a real ipvsadm can be asked: [`oracle`].

mod director;
mod names;
mod oracle;
mod shell;
mod transcript;

use std::collections::HashMap;

use director::Director;
use shell::{Outcome, Programs};
use shunt::ipvsadm;
use transcript::Event;

/// ipvsadm and its two scripts, on a director.
struct Tool {
    names: names::Recorded,
    director: Director,
}

impl Programs for Tool {
    fn run(&mut self, words: &[String], stdin: &str) -> Outcome {
        let (program, args) = words.split_first().expect("a command has a program");
        let is_known = program.rsplit('/').next().is_some_and(|name| name.starts_with("ipvsadm"));
        assert!(is_known, "{program} is not to be replayed");
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit = ipvsadm::main_with(
            &self.names,
            program,
            args,
            &mut self.director,
            &mut stdin.as_bytes(),
            &mut stdout,
            &mut stderr,
        );
        let text = |bytes| String::from_utf8(bytes).expect("the tool prints text");
        Outcome { stdout: text(stdout), stderr: text(stderr), exit }
    }
}

/// How the lines of a transcript fared.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    exact: usize,
    rows_as_a_set: usize,
    services_as_a_set: usize,
    skipped: usize,
}

fn replay(text: &str, same_hash: bool) -> Tally {
    let mut tool = Tool { names: names::Recorded::new(), director: Director::new() };
    let mut files = HashMap::new();
    let mut tally = Tally::default();
    let mut wrong = Vec::new();
    for event in transcript::read(text) {
        let recorded = match event {
            Event::Happening(what) => {
                tool.director.happen(&what);
                continue;
            }
            Event::Command(recorded) if recorded.command.starts_with("cat ") => {
                tally.skipped += 1;
                continue;
            }
            Event::Command(recorded) => recorded,
        };

        let command = &recorded.command;
        let mut answered = shell::run(command, &mut tool, &mut files);
        let mut expected = Outcome { stdout: recorded.stdout, stderr: recorded.stderr, exit: recorded.exit };
        if command.contains("-Lnc") {
            tally.rows_as_a_set += 1;
            for side in [&mut answered, &mut expected] {
                sort_blocks(&mut side.stdout, |_| true);
            }
        } else if command.contains("--nosort") && !same_hash {
            tally.services_as_a_set += 1;
            for side in [&mut answered, &mut expected] {
                sort_blocks(&mut side.stdout, |row| !row.starts_with("  ->"));
            }
        } else {
            tally.exact += 1;
        }
        if answered != expected {
            wrong.push(format!(
                "line {}: $ {command}\nrecorded: {expected:#?}\nanswered: {answered:#?}",
                recorded.line
            ));
        }
    }
    assert!(wrong.is_empty(), "{} lines differ\n{}", wrong.len(), wrong.join("\n\n"));
    tally
}

/// Sorts the blocks of lines that begin where `begins` says so.
fn sort_blocks(text: &mut String, begins: impl Fn(&str) -> bool) {
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines() {
        match blocks.last_mut() {
            Some(block) if !begins(line) => *block += &format!("{line}\n"),
            _ => blocks.push(format!("{line}\n")),
        }
    }
    blocks.sort();
    *text = blocks.concat();
}

#[test]
fn the_recorded_commands_are_answered_to_the_byte() {
    let tally = replay(include_str!("../../../tests/golden/cli.txt"), true);
    assert_eq!(tally, Tally { exact: 322, rows_as_a_set: 9, services_as_a_set: 0, skipped: 10 });
}

#[test]
fn the_forms_of_the_grammar_are_answered_to_the_byte() {
    let tally = replay(include_str!("../../../tests/golden/cli-grammar.txt"), false);
    assert_eq!(tally, Tally { exact: 359, rows_as_a_set: 2, services_as_a_set: 6, skipped: 0 });
}

#[test]
fn a_sample_of_random_lines_is_answered_to_the_byte() {
    let tally = replay(include_str!("../../../tests/golden/cli-random.txt"), false);
    assert_eq!(tally, Tally { exact: 482, rows_as_a_set: 0, services_as_a_set: 24, skipped: 0 });
}

#[test]
fn random_lines_are_answered_to_the_byte_as_now() {
    let Some(transcript) = oracle::transcript() else {
        println!("skip: IPVS_ORACLE names no kernel to ask");
        return;
    };
    println!("{:?}", replay(&transcript, false));
}
