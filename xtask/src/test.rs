//! `cargo xtask test`: brings up what the tests need, then runs every check. The first failure ends it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program that a test runs for real, or a file that a build needs, and the Debian packages that have it. Some are not on
/// the path.
const NEEDED: [(&str, &str); 19] = [
    ("dbus-daemon", "dbus-daemon"),
    ("dbus-monitor", "dbus-bin"),
    ("gnome-keyring-daemon", "gnome-keyring"),
    ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    ("sqlcipher", "sqlcipher"),
    ("systemd-analyze", "systemd"),
    ("python3", "python3"),
    ("softhsm2-util", "softhsm2"),
    ("swtpm", "swtpm"),
    ("tpm2_getcap", "tpm2-tools"),
    ("/usr/sbin/tpm2-abrmd", "tpm2-abrmd libtss2-tcti-tabrmd0"),
    ("/usr/include/tss2/tss2_esys.h", "libtss2-dev"),
    ("pkg-config", "pkg-config"),
    ("/usr/sbin/sshd", "openssh-server"),
    ("/usr/sbin/nginx", "nginx-extras"),
    ("/usr/sbin/apache2", "apache2"),
    ("npm", "npm"),
    ("strace", "strace"),
    ("/usr/lib/python3/dist-packages/dbusmock/__init__.py", "python3-dbusmock"),
];

/// What is not built unless somebody asks for it, because it needs a C library. Tested all the same.
pub(crate) const FEATURES: &str = "chatkeep-vault-server/tpm2";
/// The crate that has them, which must hold without them, too.
const WITH_FEATURES: &str = "chatkeep-vault-server";

/// Runs all of it.
pub(crate) fn run() -> Result<()> {
    let root = workspace();
    bring_up()?;
    step(&root, "format", "cargo", &["fmt", "--all", "--check"])?;
    // a measurement that nobody runs here has to build, too
    let features = format!("{FEATURES},chatkeep-bench-vault/tpm2");
    let all = ["--workspace", "--all-targets", "--features", &features, "--", "-D", "warnings"];
    step(&root, "lints", "cargo", &[&["clippy"], &all[..]].concat())?;
    let without = ["clippy", "-p", WITH_FEATURES, "--all-targets", "--", "-D", "warnings"];
    step(&root, "lints without features", "cargo", &without)?;
    step(&root, "tests without features", "cargo", &["test", "-p", WITH_FEATURES, "--lib"])?;
    step(&root, "binaries", "cargo", &["build", "--workspace", "--bins", "--features", FEATURES])?;
    step(&root, "tests", "cargo", &["test", "--workspace", "--no-fail-fast", "--features", FEATURES])?;
    second_decoder(&root)?;
    step(&root, "units", "sh", &["systemd/verify.sh", "target/debug"])?;
    println!("\nall checks passed");
    Ok(())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

fn step(root: &Path, title: &str, program: &str, arguments: &[&str]) -> Result<()> {
    println!("\n== {title}: {program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{title} failed ({status})");
    }
    Ok(())
}

/// Reads the test vectors with the decoder that shares no line with ours. Its libraries come from PyPI, pinned.
fn second_decoder(root: &Path) -> Result<()> {
    let python = root.join("target/decoder/bin/python3");
    let python = python.to_str().context("the path of the workspace is not UTF-8")?;
    if !Path::new(python).exists() {
        step(root, "decoder", "python3", &["-m", "venv", "target/decoder"])?;
    }
    let install =
        ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", "tests/decoder/requirements.txt"];
    step(root, "decoder", python, &install)?;
    step(root, "decoder", python, &["tests/decoder/decode.py", "check", "tests/vectors"])
}

/// Installs what is missing when we may, else says the exact command.
pub(crate) fn bring_up() -> Result<()> {
    let mut missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    let venv = Command::new("python3").args(["-c", "import ensurepip"]).stderr(Stdio::null()).status();
    if !venv.is_ok_and(|status| status.success()) {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("\n== packages: {}", missing.join(" "));
    let install =
        format!("apt-get update -q && apt-get install -q -y --no-install-recommends {}", missing.join(" "));
    if find("apt-get").is_none() || !is_root() {
        bail!("the tests need programs that are not installed; on Debian, as root: {install}");
    }
    let status =
        Command::new("sh").args(["-c", &install]).env("DEBIAN_FRONTEND", "noninteractive").status()?;
    if !status.success() {
        bail!("could not install {}", missing.join(" "));
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // joined to a folder, a path from the root stays what it is
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}
