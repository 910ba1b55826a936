//! The tool's manual page, and what shells complete, from the tables of [`options`](super::options).

use std::io::{self, Write};

use clap::{Arg, ArgAction, Command, ValueHint};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{
    fullnat, help,
    options::{COMMANDS, Grammar, Means, Opt, TUNNELS, Takes, Verb, WORDS, Word},
    parse::SCHED_FLAGS,
};
use crate::daemon;

/// The tool as the writers of pages and completions see it. It is not what reads the command line.
pub fn command() -> Command {
    let mut command = Command::new("ipvsadm")
        .about("administer a Linux Virtual Server")
        .disable_help_flag(true)
        .disable_version_flag(true);
    for (place, word) in WORDS.iter().enumerate() {
        let is_other_letter = place > 0 && WORDS[place - 1].long == word.long;
        command = match (is_other_letter, word.short) {
            (true, Some(letter)) => command.mut_arg(word.long, |arg| arg.visible_short_alias(letter)),
            _ => command.arg(argument(word).display_order(place)),
        };
    }
    command
}

fn argument(word: &Word) -> Arg {
    let arg = Arg::new(word.long)
        .long(word.long)
        .short(word.short)
        .help(word.help)
        .help_heading(heading(word.means));
    match word.takes {
        Takes::Nothing => arg.action(ArgAction::SetTrue),
        Takes::Value(name) => valued(arg, word.means, name),
        Takes::Perhaps(name) => valued(arg, word.means, name).num_args(0..=1),
    }
}

fn valued(arg: Arg, means: Means, name: &'static str) -> Arg {
    match values(means) {
        values if values.is_empty() => arg.value_name(name).value_hint(ValueHint::Other),
        values => arg.value_name(name).value_parser(values),
    }
}

/// The values an option can have, where they can be counted.
fn values(means: Means) -> Vec<&'static str> {
    match means {
        Means::Command(Verb::StartDaemon | Verb::StopDaemon) => vec!["master", "backup"],
        Means::Option(Opt::Scheduler) => daemon::capabilities().schedulers.to_vec(),
        Means::Option(Opt::Engine) => daemon::capabilities().engines.to_vec(),
        Means::Option(Opt::SchedFlags) => SCHED_FLAGS.iter().map(|(name, ..)| *name).collect(),
        Means::Option(Opt::TunType) => TUNNELS.iter().map(|tunnel| tunnel.name).collect(),
        Means::Option(Opt::Toa) => vec!["enable", "disable"],
        Means::Option(Opt::ProxyProtocol) => vec!["v1", "v2", "disable"],
        _ => Vec::new(),
    }
}

/// The room of the page that a word stands in: that of the first command to take it.
fn heading(means: Means) -> &'static str {
    let rooms = [
        (Verb::AddService, "Options of virtual services"),
        (Verb::AddServer, "Options of real servers"),
        (Verb::AddLocal, "Options of local addresses"),
        (Verb::StartDaemon, "Options of synchronisation"),
    ];
    match means {
        Means::Command(_) => "Commands",
        Means::Service(_) | Means::Mark | Means::Ipv6 => "Virtual services",
        Means::Forward(_) => "Options of real servers",
        Means::Option(option) => {
            let mut rooms = rooms.iter().filter(|(verb, _)| grammar(*verb).is_some_and(|g| g.takes(option)));
            rooms.next().map_or("Options of listings", |(_, room)| room)
        }
        Means::Sort => "Options of listings",
    }
}

fn grammar(verb: Verb) -> Option<&'static Grammar> {
    COMMANDS.iter().find(|(known, _)| *known == verb).map(|(_, grammar)| grammar)
}

/// Writes the manual page, in roff.
///
/// # Errors
/// When it cannot be written.
pub fn page(out: &mut dyn Write) -> io::Result<()> {
    let command = command().override_usage(synopsis()).mut_args(with_values_in_a_line);
    let man = Man::new(command).title("IPVSADM").section(SECTION).source(SOURCE).manual(MANUAL);
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    let mut roff = Roff::new();
    section(&mut roff, "DESCRIPTION", DESCRIPTION);
    roff.to_writer(out)?;
    man.render_options_section(out)?;

    let mut roff = Roff::new();
    section(&mut roff, "WHAT GOES WITH WHAT", GOES_WITH);
    let commands = COMMANDS.iter().map(|(_, grammar)| (grammar, "command"));
    for (grammar, kind) in commands.chain(TUNNELS.iter().map(|grammar| (grammar, "tunnel type"))) {
        item(&mut roff, &format!("{} ({kind})", grammar.name), &goes_with(grammar));
    }
    section(&mut roff, "EXIT STATUS", &[]);
    for (code, meaning) in EXIT_CODES {
        item(&mut roff, code, meaning);
    }
    section(&mut roff, "FILES", &[]);
    item(&mut roff, "/run/shunt.sock", "The director's socket. SHUNT_SOCKET names another.");
    section(&mut roff, "EXAMPLE", &[]);
    roff.control("nf", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    section(&mut roff, "SEE ALSO", &["shunt(8), shunt-run(8), shunt-mark(8), shunt-drain(8)"]);
    roff.to_writer(out)
}

/// The forms of the help, and those beyond it.
fn synopsis() -> String {
    let forms = help::USAGE.lines().chain(fullnat::HELP.lines());
    let forms = forms.map(str::trim_start).filter(|line| line.starts_with("ipvsadm "));
    forms.collect::<Vec<_>>().join("\n")
}

/// Possible values as a sentence. As a list they would fill the page.
fn with_values_in_a_line(arg: Arg) -> Arg {
    let values = arg.get_possible_values();
    if values.is_empty() {
        return arg;
    }
    let values: Vec<_> = values.iter().map(|value| value.get_name()).collect();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = format!("{help}; one of {}", values.join(", "));
    arg.help(help).hide_possible_values(true)
}

/// What a command or a type of tunnel takes, in a sentence.
fn goes_with(grammar: &Grammar) -> String {
    let told = |how: &str, options: &[Opt]| match options {
        [] => String::new(),
        _ => format!("{how} {}. ", options.iter().map(|o| o.name()).collect::<Vec<_>>().join(", ")),
    };
    let text = told("Needs", grammar.needs)
        + &told("May have", grammar.may)
        + &told("May have one of", grammar.one_of);
    if text.is_empty() { "No options.".to_owned() } else { text.trim_end().to_owned() }
}

fn section(roff: &mut Roff, title: &str, paragraphs: &[&str]) {
    roff.control("SH", [title]);
    for (place, text) in paragraphs.iter().enumerate() {
        if place > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*text)]);
    }
}

fn item(roff: &mut Roff, title: &str, text: &str) {
    roff.control("TP", []).text([bold(title)]).text([roman(text)]);
}

/// Tools for administrators.
pub const SECTION: &str = "8";
/// What the pages tell of.
pub const SOURCE: &str = concat!("shunt ", env!("CARGO_PKG_VERSION"));
/// What the pages belong to.
pub const MANUAL: &str = "Linux Virtual Server";

const DESCRIPTION: &[&str] = &[
    "ipvsadm administers a running director, shunt-run(8), in the words of the tool of this name that administers the kernel's: the same command lines, \
     output and exit codes. A virtual service is an address, a protocol and a port that clients know, or a firewall mark; its real servers are who does the work.",
    "The command comes first. Short options may share a dash, and a value may follow its option at once, behind a blank or behind `='. \
     Of options that depend on each other the service comes first: -6 behind -f, -r and -M behind the service.",
    "An edit replaces everything: what -E and -e do not name is as if it had never been named. Without -n listings show names of hosts and ports, \
     which can take as long as the resolver does; the director does not wait.",
    "Called as ipvsadm-save it does what -S does, and takes -n alone. Called as ipvsadm-restore it deletes all services and then does what -R does, and \
     leaves out lines that begin with #.",
];

const GOES_WITH: &[&str] = &[
    "Options by the names that messages give them: service-address is one of -t, -u, --sctp-service and -f; forwarding-method one of -g, -i, -m and \
     --fullnat.",
];

const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "Done."),
    ("1", "A listing cannot be had: there is no such service."),
    ("2", "Wrong usage, or no director answers. Nothing has changed."),
    ("255", "An unknown option, or the director refuses. Nothing has changed."),
];

const EXAMPLE: &str = "\
ipvsadm -A -t 10.9.0.1:80 -s wrr
ipvsadm -a -t 10.9.0.1:80 -r 10.1.0.11:8080 -m -w 2
ipvsadm -a -t 10.9.0.1:80 -r 10.1.0.12:8080 -m
ipvsadm -L -n
ipvsadm-save -n > /etc/shunt.rules";
