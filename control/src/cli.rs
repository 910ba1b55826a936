//! The command line: `shunt run`, `shunt ipvsadm`, and the names of the tools that people know.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::api::{Request, Response, Status};
use crate::socket::{self, Client};
use crate::{daemon, drain, ipvsadm, json, marks, pages, profile, time};

/// A Linux Virtual Server director in user space.
#[derive(Parser)]
#[command(name = "shunt", version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
To begin with, a web server behind NAT (README.md has the rest):
  shunt run --interface eth0 --interface eth1
  ipvsadm -A -t 10.9.0.1:80 -s wrr
  ipvsadm -a -t 10.9.0.1:80 -r 10.1.0.11:8080 -m
  ipvsadm -L -n

Called as ipvsadm, ipvsadm-save or ipvsadm-restore (a link to this binary), it is that tool.
`shunt help ipvsadm' shows what it knows beyond the original; on a terminal its own -h does, too.
SHUNT_SOCKET names the director's socket, /run/shunt.sock by default.";

const SYSCTL_HELP: &str = "\
Examples:
  shunt sysctl expire_nodest_conn=1          clients of a removed server begin anew at once
  shunt sysctl net.ipv4.vs.conn_reuse_mode   shows one setting";

const DRAIN_HELP: &str = "\
Examples:
  shunt drain 10.9.0.1:80 10.1.0.11:8080 --deadline 5m
  shunt drain udp:10.9.0.1:53 10.1.0.11
  shunt drain fwm:1 10.1.0.11:0

It tells of the connections that are left, and ends when they have. Interrupted, it leaves the server there, at weight 0.";

const COMPLETIONS_HELP: &str = "\
Examples:
  shunt completions bash > /usr/share/bash-completion/completions/shunt
  shunt completions bash ipvsadm > /usr/share/bash-completion/completions/ipvsadm
  shunt completions zsh > /usr/share/zsh/vendor-completions/_shunt
  shunt completions fish > /usr/share/fish/vendor_completions.d/shunt.fish";

const MARK_HELP: &str = "\
Examples:
  shunt mark add --destination 10.10.0.0/16 --protocol tcp --ports 8000-8999 --mark 1
  ipvsadm -A -f 1 -s rr

The last rule that is about a packet decides, as in a chain of iptables MARK targets: add rules in the order in which a firewall has them.";

#[derive(Subcommand)]
enum Command {
    /// Run the director, in the foreground, until SIGTERM, SIGINT or SIGHUP.
    Run(daemon::Options),
    /// Show how a running director is doing: interfaces, workers, every counter that is not zero; or where its workers' time goes.
    Status {
        /// As one JSON document, with all counters (docs/json.md has its form).
        #[arg(long)]
        json: bool,
        /// Show what the stages of a burst's life take instead, worker by worker: medians, shares, nanoseconds a packet.
        #[arg(long)]
        profile: bool,
        /// With --profile: watch for this time, such as 10s, instead of telling of all since the director began.
        #[arg(long, requires = "profile", value_parser = time::parse, value_name = "TIME")]
        over: Option<Duration>,
    },
    /// Show or change the settings of a running director that IPVS has under net.ipv4.vs.
    #[command(after_help = SYSCTL_HELP)]
    Sysctl {
        /// NAME shows a setting, NAME=VALUE changes it; net.ipv4.vs. before a name may be left out. Without any, all are shown.
        #[arg(value_name = "NAME[=VALUE]")]
        settings: Vec<String>,
        /// Show all settings as one JSON document.
        #[arg(long, conflicts_with = "settings")]
        json: bool,
    },
    /// Show or change the rules that mark packets for the services of a firewall mark (ipvsadm -f).
    #[command(after_help = MARK_HELP)]
    Mark {
        #[command(subcommand)]
        command: marks::Command,
    },
    /// Take a real server out of service: weight 0, wait for its connections to end, remove it.
    #[command(after_help = DRAIN_HELP)]
    Drain(drain::Options),
    /// Administer a running director, in the words of ipvsadm.
    #[command(disable_help_flag = true, trailing_var_arg = true, after_help = ipvsadm::fullnat::HELP)]
    Ipvsadm {
        /// As for ipvsadm; -h lists them.
        #[arg(allow_hyphen_values = true, num_args = 0..)]
        arguments: Vec<OsString>,
    },
    /// Print a shell's completion script, for the shell's folder of such scripts.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
        /// The command to complete.
        #[arg(value_enum, default_value_t = pages::Name::Shunt)]
        name: pages::Name,
    },
    /// Write the manual pages, those of ipvsadm among them.
    Man {
        /// The folder to write them into, which becomes section 8 of a manual.
        #[arg(value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
        folder: PathBuf,
    },
}

/// Runs shunt with these arguments, the program's name first.
pub fn main_with(arguments: Vec<OsString>) -> ExitCode {
    let program = arguments.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    if matches!(name, "ipvsadm" | "ipvsadm-save" | "ipvsadm-restore") {
        return administer(&program, arguments.into_iter().skip(1).collect());
    }
    let out = &mut io::stdout();
    match Arguments::try_parse_from(arguments) {
        Ok(Arguments { command: Command::Run(options) }) => match daemon::run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("shunt: {}", in_one_line(&error));
                ExitCode::FAILURE
            }
        },
        Ok(Arguments { command: Command::Status { json, profile: false, .. } }) => {
            exit(status(out, json).map(|()| true))
        }
        Ok(Arguments { command: Command::Status { json, over, .. } }) => {
            exit(profiled(out, json, over).map(|()| true))
        }
        Ok(Arguments { command: Command::Sysctl { settings, json } }) => exit(sysctl(out, &settings, json)),
        Ok(Arguments { command: Command::Mark { command } }) => exit(mark(out, command)),
        Ok(Arguments { command: Command::Drain(options) }) => exit(drain(out, &options).map(|()| true)),
        Ok(Arguments { command: Command::Ipvsadm { arguments } }) => administer("ipvsadm", arguments),
        Ok(Arguments { command: Command::Completions { shell, name } }) => {
            let written = pages::completions(shell, name, Arguments::command(), out);
            exit(written.map(|()| true).map_err(Into::into))
        }
        Ok(Arguments { command: Command::Man { folder } }) => {
            let written = pages::manual(Arguments::command(), &folder);
            exit(written.with_context(|| format!("cannot write to {}", folder.display())).map(|()| true))
        }
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let _ = error.print();
            ExitCode::from(error.exit_code() as u8)
        }
    }
}

/// The exit code of what was granted or refused, or could not be asked for.
fn exit(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Nobody reads on, as in a pipe to head.
        Err(error) if is_of_broken_pipe(&error) => ExitCode::from(ipvsadm::BROKEN_PIPE as u8),
        Err(error) => {
            eprintln!("shunt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it is about what was to be printed. One of the director's socket is told in words by then.
fn is_of_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What to do about a director that cannot be asked.
fn with_cure(error: io::Error) -> anyhow::Error {
    anyhow::anyhow!("{error}\n{}", ipvsadm::failure::cure(&error))
}

/// Asks what the director says of itself.
fn ask_status(client: &mut Client) -> anyhow::Result<Status> {
    let answer = client.call(&Request::Status).map_err(with_cure)?;
    match answer.into_iter().next() {
        Some(Response::Status(status)) => Ok(status),
        _ => anyhow::bail!("the director does not say how it is doing"),
    }
}

/// Prints what the stages of each worker's turns take.
fn profiled(out: &mut dyn Write, json: bool, over: Option<Duration>) -> anyhow::Result<()> {
    let mut client = Client::connect(socket::path()).map_err(with_cure)?;
    let workers = ask_status(&mut client)?.cores.len();
    let wait = |client: &mut Client, time| {
        std::thread::sleep(time);
        *client = Client::connect(socket::path()).map_err(with_cure)?;
        Ok(())
    };
    let profiles = profile::read(&mut client, workers, over, wait)?;
    if json {
        let taken = profiles.iter().enumerate().map(|(worker, profile)| json::Taken::new(worker, profile));
        return Ok(json::document(out, "profile", &taken.collect::<Vec<_>>())?);
    }
    writeln!(out, "{}{}", profile::table(&profiles, over), profile::legend(&profiles))?;
    Ok(())
}

/// Prints what the director says of itself.
fn status(out: &mut dyn Write, json: bool) -> anyhow::Result<()> {
    let status = ask_status(&mut Client::connect(socket::path()).map_err(with_cure)?)?;
    if json {
        return Ok(json::document(out, "status", &json::Condition::from(status))?);
    }
    writeln!(out, "shunt {}, snapshot {} in force", status.version, status.epoch)?;
    for (interface, way) in &status.interfaces {
        writeln!(out, "{interface}: {way}")?;
    }
    writeln!(out, "{}", status.memory)?;
    let cores: Vec<String> = status.cores.iter().map(usize::to_string).collect();
    writeln!(
        out,
        "{} worker(s), on core(s) {}; tables for {} connections",
        cores.len(),
        cores.join(","),
        status.table_size
    )?;
    for (worker, pages) in status.tables.iter().enumerate() {
        // Rounded up: a small table's is some kibibytes.
        writeln!(
            out,
            "worker {worker}: {} MiB of room for tables in {pages}",
            pages.bytes().div_ceil(1 << 20)
        )?;
    }
    writeln!(
        out,
        "{} MiB of memory in use, {} of them in huge pages",
        status.memory_in_use >> 20,
        status.in_huge_pages >> 20
    )?;
    if status.reserved_pages > 0 {
        writeln!(
            out,
            "{} reserved huge pages (vm.nr_hugepages) are set aside for it",
            status.reserved_pages
        )?;
    }
    for (counter, value) in status.counters.iter().filter(|(_, value)| *value != 0) {
        writeln!(out, "{counter:<28} {value:>14}")?;
    }
    Ok(())
}

/// Shows and changes settings, in order and in the words of sysctl. What is refused is said, and the rest is done all the same; whether
/// nothing was refused.
fn sysctl(out: &mut dyn Write, settings: &[String], json: bool) -> anyhow::Result<bool> {
    let mut client = Client::connect(socket::path()).map_err(with_cure)?;
    if settings.is_empty() {
        return ask(out, &mut client, &Request::Sysctls(None), json);
    }
    let mut is_granted = true;
    for setting in settings {
        let (name, value) = match setting.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim().to_owned())),
            None => (setting.as_str(), None),
        };
        let name = name.strip_prefix(SYSCTL_PREFIX).unwrap_or(name).to_owned();
        let is_set = match value {
            Some(value) => ask(out, &mut client, &Request::SetSysctl { name: name.clone(), value }, false)?,
            None => true,
        };
        is_granted &= is_set && ask(out, &mut client, &Request::Sysctls(Some(name)), false)?;
    }
    Ok(is_granted)
}

/// Shows or changes the rules that mark packets; whether nothing was refused.
fn mark(out: &mut dyn Write, command: marks::Command) -> anyhow::Result<bool> {
    let (request, json) = match command {
        marks::Command::Add(rule) => (Request::AddMark(rule), false),
        marks::Command::Delete(rule) => (Request::DeleteMark(rule), false),
        marks::Command::List { json } => (Request::Marks, json),
    };
    ask(out, &mut Client::connect(socket::path()).map_err(with_cure)?, &request, json)
}

/// Takes a real server out, and tells of it.
fn drain(out: &mut dyn Write, options: &drain::Options) -> anyhow::Result<()> {
    let mut client = Client::connect(socket::path()).map_err(with_cure)?;
    let mut wait = |_: &mut Client, time| std::thread::sleep(time);
    let outcome = drain::drain(&mut client, options, out, &mut wait)?;
    writeln!(out, "{}", drain::told(options, outcome))?;
    Ok(())
}

/// Prints what is answered; whether it is no refusal.
fn ask(out: &mut dyn Write, client: &mut Client, request: &Request, json: bool) -> anyhow::Result<bool> {
    let mut is_granted = true;
    for response in client.call(request).map_err(with_cure)? {
        match response {
            Response::Sysctls(listed) if json => {
                json::document(out, "sysctls", &json::settings(&listed, SYSCTL_PREFIX))?;
            }
            Response::Marks(rules) if json => {
                let rules: Vec<_> = rules.iter().map(json::Mark::from).collect();
                json::document(out, "marks", &rules)?;
            }
            Response::Sysctls(listed) => {
                for (name, value) in &listed {
                    writeln!(out, "{SYSCTL_PREFIX}{name} = {value}")?;
                }
            }
            Response::Marks(rules) => {
                for rule in &rules {
                    writeln!(out, "{rule}")?;
                }
            }
            Response::Refused { why, .. } => {
                eprintln!("shunt: {why}");
                is_granted = false;
            }
            _ => {}
        }
    }
    Ok(is_granted)
}

/// What the kernel's names of settings begin with.
const SYSCTL_PREFIX: &str = "net.ipv4.vs.";

/// An error and its causes. Those of the data plane tell their cause themselves, for who prints no causes; nobody needs it twice.
pub fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| match cause.to_string() {
        cause if told.contains(&cause) => told,
        cause if told.is_empty() => cause,
        cause => format!("{told}: {cause}"),
    })
}

fn administer(program: &str, arguments: Vec<OsString>) -> ExitCode {
    let arguments: Vec<String> =
        arguments.into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let code = ipvsadm::run(
        program,
        &arguments,
        &socket::path(),
        &mut stdin.lock(),
        &mut io::BufWriter::new(stdout.lock()),
        &mut stderr.lock(),
    );
    // Scripts compare the tool's help; people want to know what else there is.
    let asks = matches!(arguments.first().map(String::as_str), Some("-h" | "--help"));
    if asks && code == 0 && stdout.is_terminal() {
        // Nobody may read on.
        let _ = writeln!(io::stdout(), "\n{}", ipvsadm::fullnat::HELP);
    }
    ExitCode::from(code as u8)
}
