//! Splits a command line into options, their values and words left over, as popt does it.
//!
//! popt differs from `getopt` in four ways scripts depend on: options and other words mix freely; a short option's
//! value may follow an `=` (`-p=50`); an optional value is taken from the next word unless that begins with `-`; and
//! an error names the whole word it stands in, `-Lnq` rather than `q`. Long options cannot be abbreviated.

use super::options::{Takes, WORDS, Word};

/// A command line being read.
#[derive(Debug)]
pub struct Words<'a> {
    words: &'a [String],
    /// Words consumed.
    at: usize,
    /// The rest of a bundle of short options.
    bundle: &'a str,
    /// A `--` was seen.
    only_left_over: bool,
    left_over: Vec<&'a str>,
}

/// One option with its value.
#[derive(Debug)]
pub struct Found<'a> {
    /// What was found.
    pub word: &'static Word,
    /// Its value, if it has one.
    pub value: Option<&'a str>,
}

impl<'a> Words<'a> {
    /// A command line without its program.
    pub fn new(words: &'a [String]) -> Words<'a> {
        Words { words, at: 0, bundle: "", only_left_over: false, left_over: Vec::new() }
    }

    /// The next option, or what is wrong with it.
    pub fn next_option(&mut self) -> Option<Result<Found<'a>, String>> {
        if self.bundle.is_empty() {
            let word = self.next_dashed()?;
            match word.strip_prefix("--") {
                Some(long) => return Some(self.long(long)),
                None => self.bundle = &word[1..],
            }
        }
        Some(self.short())
    }

    /// The words that are no options and no values. Complete once [`Words::next_option`] gave `None`.
    pub fn left_over(&self) -> &[&'a str] {
        &self.left_over
    }

    /// The word consumed last; messages name it.
    pub fn last_word(&self) -> &'a str {
        self.at.checked_sub(1).map_or("", |last| self.words[last].as_str())
    }

    fn next_word(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    /// Skips to the next word that begins with a dash, laying the others aside. A lone `-` is none of them.
    fn next_dashed(&mut self) -> Option<&'a str> {
        loop {
            let word = self.next_word()?;
            if self.only_left_over || word == "-" || !word.starts_with('-') {
                self.left_over.push(word);
            } else if word == "--" {
                self.only_left_over = true;
            } else {
                return Some(word);
            }
        }
    }

    fn long(&mut self, spelled: &'a str) -> Result<Found<'a>, String> {
        let (name, joined) = match spelled.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (spelled, None),
        };
        let word = WORDS.iter().find(|w| w.long == name).ok_or_else(|| self.error("unknown option"))?;
        if word.takes == Takes::Nothing && joined.is_some() {
            return Err(self.error("option does not take an argument"));
        }
        self.with_value(word, joined)
    }

    fn short(&mut self) -> Result<Found<'a>, String> {
        let mut rest = self.bundle.chars();
        let letter = rest.next();
        let word = WORDS.iter().find(|w| w.short.is_some() && w.short == letter);
        let word = word.ok_or_else(|| self.error("unknown option"))?;
        self.bundle = rest.as_str();
        if word.takes == Takes::Nothing || self.bundle.is_empty() {
            return self.with_value(word, None);
        }

        // The rest of the bundle is this option's value.
        let value = std::mem::take(&mut self.bundle);
        self.with_value(word, Some(value.strip_prefix('=').unwrap_or(value)))
    }

    fn with_value(&mut self, word: &'static Word, joined: Option<&'a str>) -> Result<Found<'a>, String> {
        let value = match (word.takes, joined) {
            (Takes::Nothing, _) => None,
            (_, Some(value)) => Some(value),
            (Takes::Value(_), None) => {
                let value = self.next_word();
                Some(value.ok_or_else(|| self.error("missing argument"))?)
            }
            (Takes::Perhaps(_), None) => match self.words.get(self.at) {
                Some(next) if !next.starts_with('-') => self.next_word(),
                _ => None,
            },
        };
        Ok(Found { word, value })
    }

    fn error(&self, what: &str) -> String {
        format!("{}: {what}", self.last_word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (Vec<Result<String, String>>, Vec<String>) {
        let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
        let mut reader = Words::new(&words);
        let mut found = Vec::new();
        while let Some(option) = reader.next_option() {
            let failed = option.is_err();
            found.push(option.map(|f| format!("{}={}", f.word.long, f.value.unwrap_or("-"))));
            if failed {
                break;
            }
        }
        (found, reader.left_over().iter().map(|w| w.to_string()).collect())
    }

    #[test]
    fn bundles_joined_values_and_words_between_are_told_apart() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("-Ln", &["list=-", "numeric=-"], &[]),
            ("-At vip:80", &["add-service=-", "tcp-service=vip:80"], &[]),
            ("-tvip -t=vip", &["tcp-service=vip", "tcp-service=vip"], &[]),
            ("-p -n", &["persistent=-", "numeric=-"], &[]),
            ("-p 5 -p=6 -p7", &["persistent=5", "persistent=6", "persistent=7"], &[]),
            ("--persistent=5 --weight -1", &["persistent=5", "weight=-1"], &[]),
            ("a -n b - -- -c", &["numeric=-"], &["a", "b", "-", "-c"]),
        ];
        for (line, options, left) in cases {
            let (found, left_over) = read(line);
            assert_eq!(found.into_iter().map(Result::unwrap).collect::<Vec<_>>(), *options, "{line}");
            assert_eq!(left_over, *left, "{line}");
        }
    }

    #[test]
    fn errors_name_the_whole_word() {
        for (line, error) in [
            ("-Lnq", "-Lnq: unknown option"),
            ("--bogus", "--bogus: unknown option"),
            ("--numer", "--numer: unknown option"),
            ("-A -t", "-t: missing argument"),
            ("--numeric=1", "--numeric=1: option does not take an argument"),
        ] {
            assert_eq!(read(line).0.pop(), Some(Err(error.to_string())), "{line}");
        }
    }
}
