//! What a package installs beside the binary: manual pages and shells' completions, from the definitions that read the command lines.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::ipvsadm::manual::{self, MANUAL, SECTION, SOURCE};

/// The names a completion can be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// This tool.
    Shunt,
    /// The tool that it also is.
    Ipvsadm,
}

/// A shell's completions of the tool of this name; `shunt` is how it reads its own command line.
pub fn completions(shell: Shell, name: Name, shunt: Command, out: &mut dyn io::Write) -> io::Result<()> {
    let (mut command, name) = match name {
        // Behind `shunt ipvsadm` come the words of that tool.
        Name::Shunt => (shunt.mut_subcommand("ipvsadm", |known| beside(&known)), "shunt"),
        Name::Ipvsadm => (manual::command(), "ipvsadm"),
    };
    // It panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)
}

/// The tool's words under a description that is another's.
fn beside(known: &Command) -> Command {
    manual::command().about(known.get_about().cloned().unwrap_or_default())
}

/// Writes the manual pages into a folder, which is there.
///
/// # Errors
/// When one cannot be written.
pub fn manual(shunt: Command, folder: &Path) -> io::Result<()> {
    let mut shunt = shunt.disable_help_subcommand(true);
    shunt.build();
    pages_of(&shunt, folder)?;
    manual::page(&mut File::create(folder.join("ipvsadm.8"))?)?;
    for other_name in ["ipvsadm-save.8", "ipvsadm-restore.8", "shunt-ipvsadm.8"] {
        File::create(folder.join(other_name))?.write_all(b".so man8/ipvsadm.8\n")?;
    }
    Ok(())
}

/// A page for a command and for each one below it. That of ipvsadm is written otherwise.
fn pages_of(command: &Command, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| below.get_name() != "ipvsadm") {
        pages_of(below, folder)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    let man = Man::new(command.clone()).title(name.to_uppercase()).section(SECTION).manual(MANUAL);
    man.source(SOURCE).generate_to(folder).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Arguments;
    use crate::ipvsadm::options::WORDS;
    use crate::ipvsadm::{fullnat, help};

    /// The words of a text as far as they could be options.
    fn words(text: &str) -> HashSet<&str> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect()
    }

    fn completed(shell: Shell, name: Name) -> String {
        let mut out = Vec::new();
        completions(shell, name, Arguments::command(), &mut out).unwrap();
        String::from_utf8(out).expect("a script is text")
    }

    #[test]
    fn every_option_of_ipvsadm_is_in_its_page_and_completed() {
        let mut page = Vec::new();
        manual::page(&mut page).expect("memory takes it");
        let page = String::from_utf8(page).expect("a page is text").replace("\\-", "-");
        let page = page.replace("\\fB", " ").replace("\\fR", " ");
        let (bash, zsh) = (completed(Shell::Bash, Name::Ipvsadm), completed(Shell::Zsh, Name::Ipvsadm));
        let (fish, below) = (completed(Shell::Fish, Name::Ipvsadm), completed(Shell::Bash, Name::Shunt));
        let (page, bash, zsh, below) = (words(&page), words(&bash), words(&zsh), words(&below));
        for word in WORDS {
            let spelled = [Some(format!("--{}", word.long)), word.short.map(|letter| format!("-{letter}"))];
            for spelled in spelled.iter().flatten() {
                for (text, place) in [(&page, "page"), (&bash, "bash"), (&zsh, "zsh"), (&below, "shunt")] {
                    assert!(text.contains(spelled.as_str()), "{spelled} is not in {place}");
                }
            }
            assert!(fish.contains(&format!(" -l {} ", word.long)), "--{} is not in fish", word.long);
        }
    }

    #[test]
    fn every_option_of_ipvsadm_is_in_its_help() {
        let help = words(help::USAGE).into_iter().chain(words(fullnat::HELP)).collect::<HashSet<_>>();
        // The original's help tells of `-v` nowhere.
        for word in WORDS.iter().filter(|word| word.long != "version") {
            assert!(help.contains(format!("--{}", word.long).as_str()), "--{}", word.long);
        }
    }

    #[test]
    fn each_command_has_its_page() {
        let folder = tempfile::tempdir().expect("a folder");
        manual(Arguments::command(), folder.path()).expect("pages can be written");
        let named = |name: &str| std::fs::read_to_string(folder.path().join(format!("{name}.8")));
        for command in Arguments::command().get_subcommands() {
            assert!(named(&format!("shunt-{}", command.get_name())).is_ok(), "{command:?}");
        }
        let run = named("shunt-run").expect("it is there").replace("\\-", "-");
        assert!(run.contains("--connections") && run.contains("shunt-run - "), "{run}");
        assert!(named("ipvsadm-restore").is_ok_and(|page| page == ".so man8/ipvsadm.8\n"));
        Arguments::command().debug_assert();
        manual::command().debug_assert();
    }
}
