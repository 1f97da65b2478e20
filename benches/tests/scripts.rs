//! The scripts that measure have tests of their own, in Python; they run with ours.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_scripts_pass_their_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "test_scripts"])
        .current_dir(folder)
        .output()
        .expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn both_scripts_say_how_they_are_used() {
    for script in ["peers/peers.py", "capture/capture.py"] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
        let output = Command::new("python3").arg("-B").arg(script).arg("--help").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("--bin-dir"), "{said}");
    }
}
