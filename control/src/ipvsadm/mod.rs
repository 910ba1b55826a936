//! `ipvsadm`, as version 1.31 behaves: the same grammar, the same tables, the same words on the same stream, the same
//! exit codes.
//!
//! ```text
//!  words ─ words ─▶ options ─ parse ─▶ Command ─┬─ Backend ─▶ print, save ─▶ stdout
//!                   (the tables)                └─ restore: lines, each one a Command
//! ```
//!
//! [`main`] is the whole tool, on any [`Backend`] and any streams, so that tests run it against [`Rules`] in memory and
//! the binary against the daemon. [`run`] adds the daemon's socket. Called `ipvsadm-save` or `ipvsadm-restore`, the
//! tool behaves as the two scripts of these names.
//!
//! [`Rules`]: crate::rules::Rules

pub mod address;
mod backend;
pub mod failure;
pub mod fullnat;
pub mod help;
mod listing;
pub mod manual;
pub mod options;
pub mod order;
pub mod parse;
pub mod print;
pub mod restore;
pub mod save;
pub mod words;

use std::{
    io::{self, BufRead, Write},
    path::Path,
};

pub use backend::Backend;

use crate::{
    api::{Request, Response},
    socket::Client,
};
use address::{Names, Printed, SystemNames};
use failure::Failure;
use parse::Command;

/// Exit code when no daemon answers.
const NO_DAEMON: i32 = 2;
/// Exit code when the reader of the listing has gone: what a shell shows for SIGPIPE.
pub(crate) const BROKEN_PIPE: i32 = 141;

/// Runs the tool called `program` with these arguments on a backend. Gives the exit code.
pub fn main(
    program: &str,
    args: &[String],
    backend: &mut dyn Backend,
    stdin: &mut dyn BufRead,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> i32 {
    main_with(&SystemNames::default(), program, args, backend, stdin, stdout, stderr)
}

/// [`main`], with names of hosts and services from elsewhere than the system.
pub fn main_with(
    names: &dyn Names,
    program: &str,
    args: &[String],
    backend: &mut dyn Backend,
    stdin: &mut dyn BufRead,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> i32 {
    let mut tool = Tool { program, names, backend, stdin, stdout, stderr };
    let outcome = match wrapper(program) {
        Some(Wrapper::Save) => tool.save_script(args),
        Some(Wrapper::Restore) => tool.restore_script(),
        None => tool.command_line(args),
    };
    let flushed = tool.stdout.flush().map_err(Failure::from);
    match outcome.and_then(|code| flushed.map(|()| code)) {
        Ok(code) => code,
        Err(failure) => {
            tool.complain(&failure);
            failure.code
        }
    }
}

/// [`main`] on the daemon that serves the socket at `path`.
pub fn run(
    program: &str,
    args: &[String],
    path: &Path,
    stdin: &mut dyn BufRead,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> i32 {
    let asks_nothing = wrapper(program).is_none()
        && matches!(args.first().map(String::as_str), Some("-h" | "--help" | "-v" | "--version"));
    match Client::connect(path) {
        Ok(mut client) => main(program, args, &mut client, stdin, stdout, stderr),
        Err(_) if asks_nothing => main(program, args, &mut Nobody, stdin, stdout, stderr),
        Err(error) => {
            // Nowhere is left to report that this cannot be written.
            let _ = writeln!(stderr, "Can't initialize ipvs: {error}\n{}", failure::cure(&error));
            NO_DAEMON
        }
    }
}

/// The scripts that come with ipvsadm.
enum Wrapper {
    Save,
    Restore,
}

fn wrapper(program: &str) -> Option<Wrapper> {
    match program.rsplit('/').next() {
        Some("ipvsadm-save") => Some(Wrapper::Save),
        Some("ipvsadm-restore") => Some(Wrapper::Restore),
        _ => None,
    }
}

/// Answers nothing: help and the version do not ask.
struct Nobody;

impl Backend for Nobody {
    fn request(&mut self, _: &Request, _: &mut dyn FnMut(Response) -> io::Result<()>) -> io::Result<()> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// One run of the tool.
struct Tool<'a> {
    program: &'a str,
    names: &'a dyn Names,
    backend: &'a mut dyn Backend,
    stdin: &'a mut dyn BufRead,
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
}

impl Tool<'_> {
    fn command_line(&mut self, args: &[String]) -> Result<i32, Failure> {
        if args.is_empty() {
            return self.carry_out(self.parse(&["-L".to_string()])?);
        }
        match self.parse(args)? {
            Command::Restore => restore::run(self, None),
            command => self.carry_out(command),
        }
    }

    /// `ipvsadm-save [-n]`. Words that are no options are not looked at.
    fn save_script(&mut self, args: &[String]) -> Result<i32, Failure> {
        let mut numeric = false;
        for word in args.iter().filter(|word| word.starts_with('-')) {
            match word.as_str() {
                "-n" => numeric = true,
                _ => {
                    let text = "ipvsadm-save: Script to save the IPVS table to stdout.\n   \
                                With the -n option, prints out the table in numeric format.";
                    return Err(Failure { text: text.into(), code: 1, ends_restore: true });
                }
            }
        }
        self.carry_out(Command::Save { numeric })
    }

    /// `ipvsadm-restore`: empty tables first, and comments allowed. No argument is looked at.
    fn restore_script(&mut self) -> Result<i32, Failure> {
        self.program = "ipvsadm";
        self.carry_out(Command::Ask(Request::Flush))?;
        restore::run(self, Some(b'#'))
    }

    fn parse(&self, words: &[String]) -> Result<Command, Failure> {
        parse::parse(self.program, words, self.names)
    }

    /// Carries out anything but a restore.
    fn carry_out(&mut self, command: Command) -> Result<i32, Failure> {
        match command {
            Command::Help => write!(self.stdout, "{}\n{}", help::VERSION, help::USAGE)?,
            Command::Version => writeln!(self.stdout, "{}", help::VERSION)?,
            Command::List(listing) => self.list(&listing)?,
            Command::Save { numeric } => self.save(numeric)?,
            Command::Locals { service, numeric, json } => self.locals(service, numeric, json)?,
            Command::Ask(request) => backend::ask(self.backend, &request, &mut |_| Ok(()))?,
            Command::Restore => return Err(Failure::try_help(self.program)),
        }
        Ok(0)
    }

    fn save(&mut self, numeric: bool) -> Result<(), Failure> {
        let mut names = self.printed(numeric);
        let mut services = backend::services(self.backend, &Request::Services(None))?;
        listing::sort(&mut services);
        let locals = backend::locals(self.backend, None)?;
        for entry in &services {
            let locals = locals.iter().find(|l| l.service == entry.config.key);
            let locals = locals.map_or(&[][..], |entry| &entry.addresses);
            save::service(self.stdout, entry, locals, &mut names)?;
        }
        Ok(())
    }

    fn complain(&mut self, failure: &Failure) {
        if !failure.text.is_empty() {
            // Nowhere is left to report that this cannot be written.
            let _ = self.stdout.flush();
            let _ = writeln!(self.stderr, "{}", failure.text);
        }
    }
}

impl<'a> Tool<'a> {
    fn printed(&self, numeric: bool) -> Printed<'a> {
        if numeric { Printed::numeric() } else { Printed::named(self.names) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => {
                Failure { text: String::new(), code: BROKEN_PIPE, ends_restore: true }
            }
            _ => Failure { text: error.to_string(), code: failure::REFUSED, ends_restore: true },
        }
    }
}
