//! As much of a shell as the transcripts use: quotes, `;`, `&&`, `|`, `<`, `>`, and four small programs beside ipvsadm.

use std::collections::HashMap;

/// What a command line came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub exit: i32,
}

/// Runs a program that is not the shell's own: its words and its standard input.
pub trait Programs {
    fn run(&mut self, words: &[String], stdin: &str) -> Outcome;
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Operator(&'static str),
}

/// Runs a command line. Files it writes live in `files`.
pub fn run(line: &str, programs: &mut dyn Programs, files: &mut HashMap<String, String>) -> Outcome {
    let mut whole = Outcome::default();
    let tokens = tokens(line);
    let mut rest = tokens.as_slice();
    let mut skip = false;
    while !rest.is_empty() {
        let is_end = |t: &Token| matches!(t, Token::Operator(";" | "&&"));
        let end = rest.iter().position(is_end).unwrap_or(rest.len());
        if !skip {
            let outcome = pipeline(&rest[..end], programs, files);
            whole.stdout += &outcome.stdout;
            whole.stderr += &outcome.stderr;
            whole.exit = outcome.exit;
        }
        skip = rest.get(end) == Some(&Token::Operator("&&")) && whole.exit != 0;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    whole
}

fn pipeline(tokens: &[Token], programs: &mut dyn Programs, files: &mut HashMap<String, String>) -> Outcome {
    let mut passed = String::new();
    let mut stderr = String::new();
    let mut exit = 0;
    for part in tokens.split(|t| *t == Token::Operator("|")) {
        let mut words = Vec::new();
        let mut target = None;
        let mut part = part.iter();
        while let Some(token) = part.next() {
            match token {
                Token::Word(word) => words.push(word.clone()),
                Token::Operator(redirection) => {
                    let Some(Token::Word(file)) = part.next() else { panic!("{redirection} without a file") };
                    match *redirection {
                        "<" => passed = files.get(file).cloned().unwrap_or_default(),
                        _ => target = Some(file.clone()),
                    }
                }
            }
        }
        let outcome = program(&words, &passed, programs, files);
        stderr += &outcome.stderr;
        exit = outcome.exit;
        passed = match target {
            Some(file) => {
                files.insert(file, outcome.stdout);
                String::new()
            }
            None => outcome.stdout,
        };
    }
    Outcome { stdout: passed, stderr, exit }
}

fn program(
    words: &[String],
    stdin: &str,
    programs: &mut dyn Programs,
    files: &mut HashMap<String, String>,
) -> Outcome {
    let said = |stdout: String| Outcome { stdout, ..Outcome::default() };
    let spelled: Vec<&str> = words.iter().map(String::as_str).collect();
    match spelled[..] {
        ["sh", "-c", script] => run(script, programs, files),
        ["printf", "--", format] => said(unescape(format)),
        ["echo", ref rest @ ..] => said(rest.join(" ") + "\n"),
        ["head", "-1"] => said(stdin.lines().next().map(|l| format!("{l}\n")).unwrap_or_default()),
        ["cmp", a, b] => match (files[a].is_empty(), files[b].is_empty(), files[a] == files[b]) {
            (_, _, true) => said(String::new()),
            (false, true, _) => {
                let stderr = format!("cmp: EOF on {b} which is empty\n");
                Outcome { stderr, exit: 1, ..Outcome::default() }
            }
            _ => Outcome { stdout: format!("{a} {b} differ\n"), exit: 1, ..Outcome::default() },
        },
        _ => programs.run(words, stdin),
    }
}

fn unescape(format: &str) -> String {
    [("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"), ("\\v", "\x0b"), ("\\f", "\x0c")]
        .iter()
        .fold(format.to_string(), |text, (from, to)| text.replace(from, to))
}

fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let operator = match c {
            ';' => Some(";"),
            '|' => Some("|"),
            '<' => Some("<"),
            '>' => Some(">"),
            '&' if chars.next_if_eq(&'&').is_some() => Some("&&"),
            _ => None,
        };
        if operator.is_some() || c == ' ' {
            tokens.extend(word.take().map(Token::Word));
            tokens.extend(operator.map(Token::Operator));
        } else if c == '\'' || c == '"' {
            word.get_or_insert_default().extend(chars.by_ref().take_while(|q| *q != c));
        } else {
            word.get_or_insert_default().push(c);
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}
