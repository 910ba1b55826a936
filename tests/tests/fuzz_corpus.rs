//! Every file of the fuzzers' corpus and of what they once found (`fuzz/corpus`, `fuzz/findings`) through the same code,
//! with the stable compiler.

use std::path::Path;

use shunt_tests::targets;

fn replay(target: &str, run: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut played = 0;
    for room in ["corpus", "findings"] {
        // Git keeps no empty directory, and a target may have no findings.
        let Ok(files) = fuzz.join(room).join(target).read_dir() else { continue };
        for file in files {
            let path = file.expect("a directory can be read").path();
            println!("{}", path.display());
            run(&std::fs::read(&path).expect("a file of the corpus"));
            played += 1;
        }
    }
    assert!(played > 0, "no corpus for {target}");
}

#[test]
fn director() {
    replay("director", targets::director);
}

#[test]
fn modes() {
    replay("modes", targets::modes);
}

#[test]
fn request() {
    replay("request", targets::request);
}

#[test]
fn ipvsadm() {
    replay("ipvsadm", targets::ipvsadm);
}

/// A refusal that repeats what it refuses could be longer than a message may be, and the client got no answer at all.
#[test]
fn a_refusal_of_a_very_long_name_fits_a_message() {
    let name = "\\\"".repeat(500_000);
    for (scheduler, engine) in [(name.as_str(), "null"), ("rr", &*format!("\"{name}\""))] {
        let message = format!(
            r#"{{"version":1,"request":{{"add_service":{{"key":{{"mark":{{"mark":1,"family":"ipv4"}}}},"scheduler":"{scheduler}","flags":0,"persistent":null,"one_packet":false,"engine":{engine}}}}}}}"#
        );
        assert!(message.len() < shunt::api::MAX_MESSAGE);
        targets::request(message.as_bytes());
    }
}
