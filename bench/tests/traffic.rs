//! The traffic's own honesty: a server that answers wrongly, cuts off or says nothing is an error, never a
//! slow result.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shunt_bench::namespace::Namespace;
use shunt_bench::netlink::Netlink;
use shunt_bench::privilege::permit_test;
use shunt_bench::traffic::{Sources, answer, http};

#[test]
fn a_wrong_byte_is_an_error() -> Result<()> {
    let mut wrong = answer(0);
    let last = wrong.len() - 2;
    wrong[last] ^= 1;
    complaint("a_wrong_byte_is_an_error", Some(wrong), "a wrong answer")
}

#[test]
fn a_cut_answer_is_an_error() -> Result<()> {
    let cut = answer(1)[..20].to_vec();
    complaint("a_cut_answer_is_an_error", Some(cut), "in the middle of the answer")
}

#[test]
fn bytes_after_the_answer_are_an_error() -> Result<()> {
    let more = [&answer(1)[..], b"!"].concat();
    complaint("bytes_after_the_answer_are_an_error", Some(more), "a wrong answer")
}

#[test]
fn silence_is_an_error() -> Result<()> {
    complaint("silence_is_an_error", None, "no answer from")
}

/// Runs clients against a server that says `says` to everything, and expects their complaint.
fn complaint(test: &str, says: Option<Vec<u8>>, expected: &str) -> Result<()> {
    if !permit_test(test)? {
        return Ok(());
    }
    let namespace = Namespace::new("island")?;
    namespace.run_in(|| Netlink::open()?.up("lo"))??;
    let listener = namespace.run_in(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    let target = listener.local_addr()?;
    // Ends with the test's process; it holds nothing but its sockets.
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for mut stream in listener.incoming().flatten() {
            match &says {
                Some(says) => {
                    let mut request = [0; 512];
                    let _ = stream.read(&mut request).and_then(|_| stream.write_all(says));
                }
                None => silent.push(stream),
            }
        }
    });

    let load = http::Load {
        targets: vec![target],
        connections: 4,
        keep_alive: false,
        bytes: None,
        warm_up: Duration::from_millis(20),
        window: Duration::from_millis(100),
    };
    let sources = Sources::new([IpAddr::from(Ipv4Addr::LOCALHOST)]);
    let error = namespace.run_in(|| http::run(&load, &sources))?.err().context("the clients were content")?;
    ensure!(format!("{error:#}").contains(expected), "{error:#}");
    Ok(())
}
