//! The lab as its users run it: what it writes, and what is left when it ends in whatever way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use shunt_bench::lab::{Family, Mode, Plan, Progress, compare};
use shunt_bench::machine::Machine;
use shunt_bench::privilege::{self, permit_test};
use shunt_bench::report::Report;

/// Longer than anything here takes, the ten seconds a director has to answer included.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_direct_baseline_is_measured_and_written() -> Result<()> {
    if !permit_test("the_direct_baseline_is_measured_and_written")? {
        return Ok(());
    }
    let directory = Directory::new("baseline")?;
    let file = directory.0.join("results.json");
    let output = lab()
        .args(["--quick", "--mode", "direct,direct", "--family", "ipv4", "--json"])
        .arg(&file)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("requests/s") && said.contains("direct"), "{said}");

    let written: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let results = written["results"].as_array().context("results")?;
    ensure!(results.len() == 5, "{written}");
    for result in results {
        ensure!(result["mode"] == "direct" && result["family"] == "ipv4", "{result}");
        ensure!(result["value"].as_f64().is_some_and(|value| value > 0.0), "{result}");
        ensure!(result["spread"].is_null() && result["repetitions"] == 1, "{result}");
    }
    ensure!(written["machine"]["kernel"].as_str().is_some_and(|kernel| kernel.contains('.')), "{written}");
    Ok(())
}

/// What a lab says it is doing.
struct Said(Vec<String>);

impl Progress for Said {
    fn step(&mut self, doing: &str) {
        self.0.push(doing.to_owned());
    }

    fn note(&mut self, _: &str) {}
}

#[test]
fn cases_take_turns_so_that_a_ratio_is_of_one_round() -> Result<()> {
    if !permit_test("cases_take_turns_so_that_a_ratio_is_of_one_round")? {
        return Ok(());
    }
    let plan = Plan {
        families: vec![Family::Ipv4, Family::Ipv6],
        modes: vec![Mode::Direct],
        backends: Vec::new(),
        workers: 1,
        repetitions: 2,
        fewer: 2,
        window: Duration::from_millis(50),
    };
    let mut said = Said(Vec::new());
    let held = privilege::current()?;
    let report = compare(&plan, held, Report::new(Machine::describe(held.name())), &mut said)?;
    let turns: Vec<_> = said.0.iter().filter(|step| step.ends_with("HTTP requests")).collect();
    let has_ipv6 = report.skipped.is_empty();
    let families = if has_ipv6 { &["ipv4", "ipv6"][..] } else { &["ipv4"] };
    let expected = (1..=2).flat_map(|round| families.iter().map(move |family| (*family, round)));
    let expected: Vec<_> = expected
        .map(|(family, round)| format!("{family} by direct over kernel, round {round} of 2: HTTP requests"))
        .collect();
    ensure!(turns == expected.iter().collect::<Vec<_>>(), "{turns:#?}");
    ensure!(report.results.iter().all(|entry| entry.repetitions == 2), "{:?}", report.results);
    Ok(())
}

#[test]
fn a_backend_that_does_not_start_is_skipped_in_the_directors_words() -> Result<()> {
    if !permit_test("a_backend_that_does_not_start_is_skipped_in_the_directors_words")? {
        return Ok(());
    }
    let directory = Directory::new("refusal")?;
    let shunt = directory.program("echo 'this NIC is a toaster' >&2; exit 3")?;
    let output = lab()
        .args(["--quick", "--mode", "nat", "--family", "ipv4", "--backend", "af-packet"])
        .env("SHUNT_BIN", shunt)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("Not measured: ipv4 by nat over af-packet"), "{said}");
    ensure!(said.contains("this NIC is a toaster"), "{said}");
    // It is the only one, so nothing was measured, and that is a failure.
    ensure!(output.status.code() == Some(1), "{}", output.status);
    Ok(())
}

#[test]
fn a_signal_ends_the_lab_and_its_director() -> Result<()> {
    if !permit_test("a_signal_ends_the_lab_and_its_director")? {
        return Ok(());
    }
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGTERM, Some(143)), (Signal::SIGKILL, None)]
    {
        let directory = Directory::new(signal.as_str())?;
        let (mut lab, director) = lab_with_a_director(&directory)?;
        kill(Pid::from_raw(lab.id().cast_signed()), signal)?;

        let status = wait(&mut lab)?;
        ensure!(status.code() == code, "{signal}: {status}");
        let begun = Instant::now();
        while runs(&director) {
            ensure!(begun.elapsed() < Duration::from_secs(2), "{signal}: the director still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

#[test]
fn a_signal_ends_the_counting_of_instructions_and_its_valgrind() -> Result<()> {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let directory = Directory::new(&format!("budget-{signal}"))?;
        let id = directory.0.join("id");
        directory
            .named("valgrind", &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 60", id.display()))?;
        let path = format!("{}:{}", directory.0.display(), std::env::var("PATH")?);
        let mut lab = lab().args(["core", "--budget"]).env("PATH", path).stderr(Stdio::null()).spawn()?;
        let valgrind = written(&id, &mut lab)?;
        kill(Pid::from_raw(lab.id().cast_signed()), signal)?;
        let begun = Instant::now();
        let status = wait(&mut lab)?;
        ensure!(status.code() == Some(code), "{signal}: {status}");
        ensure!(begun.elapsed() < Duration::from_secs(5), "{signal}: it ended late");
        ensure!(!runs(&valgrind), "{signal}: its valgrind still runs");
    }
    Ok(())
}

#[test]
fn words_that_would_be_ignored_or_give_nonsense_are_refused() -> Result<()> {
    for words in [
        &["core", "--budget", "--json", "results.json"][..],
        &["core", "--budget", "--quick"],
        &["peers", "--window", "0"],
        &["peers", "--window", "49"],
        &["peers", "--rounds", "0"],
    ] {
        let output = lab().args(words).env("PATH", "").output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{words:?}: {}: {said}", output.status);
        ensure!(said.contains("cannot be used with") || said.contains("is not in"), "{words:?}: {said}");
    }
    Ok(())
}

/// A lab that waits for a director which never answers, and the director's directory in /proc.
fn lab_with_a_director(directory: &Directory) -> Result<(Child, String)> {
    let id = directory.0.join("id");
    let shunt =
        directory.program(&format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 60", id.display()))?;
    let mut lab = lab()
        .args(["--quick", "--mode", "nat", "--family", "ipv4", "--backend", "af-packet"])
        .env("SHUNT_BIN", shunt)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let director = written(&id, &mut lab)?;
    Ok((lab, director))
}

/// Waits until what a lab started has said its id. Gives its directory in /proc.
fn written(id: &Path, lab: &mut Child) -> Result<String> {
    let begun = Instant::now();
    loop {
        if let Ok(id) = fs::read_to_string(id) {
            return Ok(format!("/proc/{}", id.trim()));
        }
        if begun.elapsed() > PATIENCE {
            lab.kill()?;
            lab.wait()?;
            bail!("the lab started nothing");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process is there and not merely unburied: an orphan's zombie waits for whoever adopted it.
fn runs(process: &str) -> bool {
    fs::read_to_string(format!("{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            bail!("the lab did not end: {}", child.wait()?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_shunt-lab"))
}

/// A directory of this test, gone with it.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("shunt-lab-{name}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    fn program(&self, script: &str) -> Result<std::path::PathBuf> {
        self.named("shunt", script)
    }

    fn named(&self, name: &str, script: &str) -> Result<std::path::PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is a few bytes in a directory for such things.
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}
