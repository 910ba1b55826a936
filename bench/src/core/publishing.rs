//! An edit among a thousand services of a hundred servers: from the request until the worker, which is busy with packets, obeys it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use shunt::api::Request;
use shunt::daemon::capabilities;
use shunt::publisher::Publisher;
use shunt::rules::Rules;
use shunt_dataplane::service::{Epoch, Snapshot};
use shunt_dataplane::worker::link::{Answer, Command};

use super::{PUBLISH, Row, Run, median, way};
use crate::stand::team::{Options, Team};
use crate::{interrupt, machine};

/// How long to wait for a worker that is at work.
const PATIENCE: Duration = Duration::from_secs(10);

/// Services, and real servers of each.
const SERVICES: usize = 1000;
const SERVERS: usize = 100;

pub(super) fn measure(run: &mut Run) -> Result<()> {
    (run.step)("publishing a thousand services of a hundred servers");
    let cores = machine::cores()?;
    let mut team = Team::new(Options::default())?;
    let mut rules = Rules::restore(capabilities(), &text()).context("the rules are ours")?;
    let mut publisher = Publisher::new(vec!["c0".to_owned(), "s0".to_owned()]);
    let (mut whole, mut edits) = (0.0, Vec::new());
    let mut outcome: Result<()> = Ok(());
    let counters = Arc::clone(&team.counters);
    let base = crate::stand::snapshot(Default::default(), 1);
    team.work(&cores[cores.len() - 1..], |handles| {
        let mut publish = |rules: &Rules, epoch: u64| -> Result<f64> {
            let start = Instant::now();
            let services = publisher.publish(rules, &counters, start).context("identities for all")?;
            let snapshot = Snapshot { epoch: Epoch(epoch), services: Arc::new(services), ..base.clone() };
            let sent = handles[0].send(Command::Adopt(Arc::new(snapshot)));
            if sent.is_err() {
                bail!("the worker takes no commands");
            }
            while handles[0].reached() < Epoch(epoch) {
                interrupt::check()?;
                if start.elapsed() > PATIENCE {
                    bail!("the worker does not answer");
                }
                std::thread::yield_now();
            }
            let took = start.elapsed().as_secs_f64() * 1e3;
            while let Some(answer) = handles[0].answer() {
                if let Answer::Retired(snapshot) = answer {
                    drop(snapshot);
                }
            }
            Ok(took)
        };
        outcome = (|| {
            whole = publish(&rules, 2)?;
            let service = rules.services().next().context("there are services")?;
            let (key, mut server) = (service.config.key, service.servers[0]);
            for n in 0..=run.plan.repetitions as u32 {
                // As the daemon does it: to a copy, which takes the rules' place once everybody obeys it.
                let start = Instant::now();
                server.weight = n + 2;
                let mut edited = rules.clone();
                edited.apply(&Request::EditServer(key, server)).context("the edit is ours")?;
                publish(&edited, u64::from(n) + 3)?;
                rules = edited;
                if n > 0 {
                    edits.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
            Ok(())
        })();
    });
    outcome?;
    let lost = team.lost();
    run.report.add(way("nat"), PUBLISH, &edits);
    run.rows.push(Row {
        what: format!("an edit among {SERVICES} services × {SERVERS} servers published, ms"),
        is_met: median(&edits) <= 100.0 && lost.is_empty(),
        values: edits,
        digits: 1,
        beside: format!("all of them at once: {whole:.0}; lost: {}", named(&lost)),
        target: "≤ 100, none lost",
    });
    Ok(())
}

fn named(lost: &[(&str, u64)]) -> String {
    let each: Vec<_> = lost.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}

/// A thousand services as `ipvsadm -Sn` has them. The first is the one that the worker's packets are of.
fn text() -> String {
    let mut text = String::new();
    for n in 0..SERVICES {
        let (protocol, address) = match n {
            0 => ("-u", "10.9.0.1:80".to_owned()),
            n => ("-t", format!("10.9.{}.{}:80", n / 250, n % 250 + 1)),
        };
        let _ = writeln!(text, "-A {protocol} {address} -s wlc");
        for server in 0..SERVERS {
            let _ = writeln!(text, "-a {protocol} {address} -r 10.1.0.{}:8080 -m -w 1", server + 1);
        }
    }
    text
}
