//! Every file of the fuzzers' corpus and of what they once found (`fuzz/corpus`, `fuzz/findings`) through the same code,
//! with the stable compiler.

use std::path::Path;

use shunt_tests::harness;

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
    replay("director", harness::director);
}

#[test]
fn request() {
    replay("request", harness::request);
}

#[test]
fn ipvsadm() {
    replay("ipvsadm", harness::ipvsadm);
}
