//! The command as its users see it: what it prints, what it passes on, how it exits.

#![allow(clippy::unwrap_used, reason = "tests")]

mod fake;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chatkeep_ipc::CopyState;
use fake::{DIGITS, Fake};
use serde_json::json;

#[test]
fn status_says_what_is_wrong_and_exits_accordingly() {
    let fake = Fake::start();
    let fine = fake.run(&["status"]);
    assert_eq!(fine.code, 0, "{fine:?}");
    assert!(fine.out.contains("everything is fine") && fine.out.contains("never"), "{}", fine.out);
    assert!(!fine.out.contains('\x1b'), "no colours without a terminal");

    fake.server.update_database("notes", |state, _| state.overdue = true);
    let overdue = fake.run(&["status", "--json"]);
    assert_eq!(overdue.code, 1);
    let status = &overdue.json()[0];
    assert_eq!(status["verdict"], "attention");
    assert_eq!(status["databases"][0]["last_upload"], fake::NOW);
    assert_eq!(status["databases"][0]["last_drill"], 0);
    assert_eq!(status["databases"][0]["encryption"]["attempts_left"], 10);

    fake.server.update_database("notes", |state, _| {
        state.last_error = ("StoreUnreachable".into(), "no answer".into());
    });
    let failing = fake.run(&["status"]);
    assert_eq!(failing.code, 2);
    assert!(failing.out.contains("notes: no answer"), "{}", failing.out);

    // what only the user can mend is no failure
    fake.server.update_database("notes", |state, encryption| {
        state.last_error = ("KeyUnavailable".into(), "the key is not here".into());
        encryption.state = "locked".into();
    });
    assert_eq!(fake.run(&["status"]).code, 1);
}

#[test]
fn attempts_elsewhere_are_a_reason_to_look_until_they_are_acknowledged() {
    let fake = Fake::start();
    let vault = chatkeep_ipc::VaultState {
        state: "ok".into(),
        attempts_left: 9,
        attempts_max: 10,
        failed_elsewhere: 2,
        unacknowledged: 1,
        elsewhere_seen: fake::NOW,
        ..Default::default()
    };
    fake.server.upsert_vault("one", vault.clone());
    let ran = fake.run(&["status"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("vault one: 1 wrong passwords were not tried on this machine"), "{}", ran.out);
    assert!(ran.out.contains("noticed 2026-11-24 08:30:00 UTC"), "{}", ran.out);
    assert_eq!(fake.run(&["vault", "acknowledge"]).code, 0);
    fake.server.upsert_vault("one", chatkeep_ipc::VaultState { unacknowledged: 0, ..vault });
    assert_eq!(fake.run(&["status"]).code, 0);
    assert_eq!(fake.log(), ["acknowledge one"]);
}

#[test]
fn a_freeze_has_an_end_and_is_lifted() {
    let fake = Fake::start();
    let ran = fake.run(&["vault", "freeze", "--for", "soon"]);
    assert_eq!((ran.code, fake.log().len()), (1, 0), "{ran:?}");
    let ran = fake.run(&["vault", "freeze", "--for", "3d"]);
    assert!(ran.code == 0 && ran.out.contains("nobody can try the password until 20"), "{ran:?}");
    assert_eq!(fake.run(&["vault", "unfreeze", "one"]).code, 0);
    assert_eq!(fake.run(&["vault", "unfreeze", "none"]).code, 1);
    assert_eq!(fake.log(), ["freeze one true", "freeze one false"]);
}

#[test]
fn vaults_that_nobody_chose_are_confirmed_by_their_fingerprints_only() {
    let fake = Fake::start();
    let print = "ab".repeat(32);
    let ran = fake.run_with(&["unlock", "notes"], "right\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = fake.run_with(&["unlock", "notes", "--trust-vault", &print], "right\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.log(), ["unlock right".to_owned(), format!("unlock right trusting {print}")]);
}

#[test]
fn few_attempts_are_a_reason_to_look() {
    let fake = Fake::start();
    let vault = chatkeep_ipc::VaultState {
        state: "ok".into(),
        attempts_left: 2,
        attempts_max: 10,
        ..Default::default()
    };
    fake.server.upsert_vault("one", vault);
    let ran = fake.run(&["status"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("only 2 attempts are left"), "{}", ran.out);
}

#[test]
fn without_a_service_the_advice_is_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [vec!["status"], vec!["backup", "--all"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_chatkeep"))
            .env_clear()
            .env("XDG_RUNTIME_DIR", dir.path())
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
            .args(&arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("systemctl --user start chatkeepd"), "{text}");
    }
}

#[test]
fn wrong_use_has_its_own_code() {
    let fake = Fake::start();
    for arguments in
        [&["nonsense"][..], &["backup"], &["restore", "notes"], &["verify", "notes", "--depth", "deep"]]
    {
        assert_eq!(fake.run(arguments).code, 64, "{arguments:?}");
    }
    assert_eq!(fake.run(&["--version"]).code, 0);
    assert_eq!(fake.run(&["backup", "missing"]).code, 1);
}

#[test]
fn a_backup_is_followed_to_its_end() {
    let fake = Fake::start();
    let ran = fake.run(&["--json", "backup", "notes", "--wait"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines = ran.json();
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["state"]), (&json!("finished"), &json!("done")));
    assert!(lines.iter().any(|line| line["event"] == "progress" && line["bytes_done"] == 1024), "{lines:?}");
    let ran = fake.run(&["backup", "notes"]);
    assert!(ran.code == 0 && ran.out.starts_with("started"), "{ran:?}");
    assert!(fake.run(&["backup", "--all"]).out.contains("nothing to back up"));
}

#[test]
fn points_are_a_table_or_json() {
    let fake = Fake::start();
    let ran = fake.run(&["points", "Notes (fake)", "--limit", "2"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("POINT  TIME (UTC)"), "{}", ran.out);
    assert!(lines[1].contains("2026-11-24 08:30:00") && lines[1].contains("hour"), "{}", ran.out);
    assert!(lines[2].contains("2.0 KiB") && lines[2].contains("base"), "{}", ran.out);
    let mut points = fake.run(&["points", "notes", "--json"]).json()[0]["points"].take();
    assert!(points[1].as_object_mut().unwrap().remove("age").unwrap().is_u64());
    assert_eq!(
        points[1],
        json!({
            "id": "7", "time": fake::NOW, "size": 2048, "verified": 0, "pinned": false, "base": true,
            "level": "base", "forgotten": false, "damaged": true,
        })
    );
    assert_eq!(fake.log(), ["points Some(2)", "points None"]);
    let ran = fake.run(&["points", "notes", "--all"]);
    assert!(ran.out.lines().nth(3).unwrap().contains("entry, pinned, forgotten"), "{}", ran.out);
}

#[test]
fn a_pin_names_its_point() {
    let fake = Fake::start();
    let ran = fake.run(&["pin", "Notes (fake)", "7"]);
    assert!(ran.code == 0 && ran.out.contains("point 7 stays"), "{ran:?}");
    assert_eq!(fake.run(&["unpin", "notes", "7"]).code, 0);
    let ran = fake.run(&["pin", "notes", "9"]);
    assert!(ran.code == 1 && ran.err.contains("there is no point `9`"), "{ran:?}");
    assert_eq!(fake.log(), ["pin notes 7 true", "pin notes 7 false", "pin notes 9 true"]);
}

#[test]
fn a_prune_says_what_goes_and_what_waits() {
    let fake = Fake::start();
    let ran = fake.run(&["prune", "notes", "--dry-run"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[1].starts_with('6') && lines[1].contains("after 2026-11-24 08:30:00 UTC"), "{}", ran.out);
    assert!(lines[2].starts_with('3') && lines[2].ends_with("now"), "{}", ran.out);
    assert!(ran.out.contains("would be deleted: 1 points, 2 objects, 4.0 KiB"), "{}", ran.out);
    assert!(ran.out.contains("waiting: 1 objects, 1.0 KiB"), "{}", ran.out);
    let ran = fake.run(&["prune", "notes"]);
    assert!(ran.out.starts_with("deleted: 1 points"), "{}", ran.out);
    let ran = fake.run(&["prune", "notes", "--json"]);
    let result = &ran.json().pop().unwrap()["result"];
    assert_eq!(result["points"], json!([["6", 2048, fake::NOW], ["3", 1024, 0]]));
    assert_eq!(fake.log(), ["prune true", "prune false", "prune false"]);
}

#[test]
fn the_status_says_what_is_forgotten_and_why_it_does_not_go() {
    let fake = Fake::start();
    fake.server
        .update_database("notes", |state, _| (state.forgotten_points, state.forgotten_bytes) = (3, 2048));
    let ran = fake.run(&["status"]);
    assert!(ran.code == 0 && ran.out.contains("3 forgotten points, 2.0 KiB: wait"), "{ran:?}");
    // a store that permits no deletion is no reason to look
    fake.server.update_database("notes", |state, _| {
        state.last_prune_error = ("AccessDenied".into(), "the store permits no deletion".into());
    });
    let ran = fake.run(&["status"]);
    assert!(ran.code == 0 && ran.out.contains("permits no deletion"), "{ran:?}");
    fake.server.update_database("notes", |state, _| {
        state.last_prune_error = ("ObjectMissing".into(), "two objects are missing".into());
    });
    let ran = fake.run(&["status"]);
    assert!(ran.code == 1 && ran.out.contains("nothing is deleted: two objects"), "{ran:?}");
    let status = fake.run(&["status", "--json"]).json().pop().unwrap();
    assert_eq!(status["databases"][0]["forgotten_points"], 3);
}

#[test]
fn each_store_of_a_database_has_a_line_with_its_own_ages() {
    let fake = Fake::start();
    let main = CopyState {
        store: "nas".to_owned(),
        main: true,
        state: "current".to_owned(),
        last_upload: fake::NOW,
        ..CopyState::default()
    };
    let copy = CopyState {
        store: "cloud".to_owned(),
        main: false,
        state: "failed".to_owned(),
        last_error: ("StoreUnreachable".to_owned(), "no route".to_owned()),
        behind_points: 3,
        behind_bytes: 2048,
        ..main.clone()
    };
    let show = |copies: &[CopyState]| {
        let copies = copies.to_vec();
        fake.server.update_database("notes", |state, _| state.copies = copies);
        fake.run(&["status"])
    };
    let ran = show(std::slice::from_ref(&main));
    assert!(ran.code == 0 && !ran.out.contains("BEHIND"), "one store needs no table: {ran:?}");
    let ran = show(&[main.clone(), copy.clone()]);
    let line = ran.out.lines().find(|line| line.contains("cloud")).unwrap();
    assert!(line.contains("failed") && line.contains("3 points, 2.0 KiB"), "{line}");
    assert!(ran.out.contains("nas (main)") && ran.out.contains("notes, cloud: no route"), "{}", ran.out);
    let status = fake.run(&["status", "--json"]).json().pop().unwrap();
    let stores = &status["databases"][0]["stores"];
    assert_eq!((&stores[0]["main"], &stores[1]["behind_points"]), (&json!(true), &json!(3)));
    let refused = ("StoreAuth".to_owned(), "sign in".to_owned());
    let ran = show(&[main, CopyState { last_error: refused, ..copy }]);
    assert!(ran.code == 1 && ran.out.contains("the copy in cloud cannot go on: sign in"), "{ran:?}");
}

#[test]
fn a_restore_passes_its_target_on_and_explains_damage() {
    let fake = Fake::start();
    let dir = fake.dir.path().to_str().unwrap();
    let ran = fake.run(&["restore", "notes", "--to", dir, "--at", "2026-11-24T08:30", "--overwrite"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out.trim(), format!("restored to {dir}/notes.db"));
    let ran = fake.run(&["restore", "notes", "--to", &format!("{dir}/x.db"), "--point", "7"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.contains("stored data is damaged: page 3") && ran.err.contains("earlier point"),
        "{}",
        ran.err
    );
    assert_eq!(
        fake.log(),
        [
            format!(
                "restore notes.db RestoreOptions {{ target: At({}), overwrite: true, into: true }}",
                fake::NOW
            ),
            "restore x.db RestoreOptions { target: Point(\"7\"), overwrite: false, into: false }".to_owned(),
        ]
    );
    let ran = fake.run(&["restore", "notes", "--to", dir, "--at", "yesterday"]);
    assert!(ran.code == 1 && ran.err.contains("is no time"), "{ran:?}");
}

#[test]
fn a_file_is_registered_under_its_name() {
    let fake = Fake::start();
    let file = fake.dir.path().join("messages.db");
    std::fs::write(&file, b"x").unwrap();
    let ran = fake.run(&["register", file.to_str().unwrap(), "--store", "home"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("watching") && ran.out.contains("enable-password messages"), "{}", ran.out);
    assert_eq!(fake.run(&["register", fake.dir.path().to_str().unwrap()]).code, 1);
    assert_eq!(fake.run(&["unregister", "notes"]).code, 0);
    assert_eq!(fake.log(), ["register messages Some(\"home\")", "unregister notes"]);
    let remote = fake.run(&["list-remote", "home"]);
    assert!(remote.out.contains("archive-in-home"), "{remote:?}");
}

#[test]
fn a_password_comes_from_standard_input_or_a_descriptor() {
    let fake = Fake::start();
    let ran = fake.run_with(&["unlock", "notes"], "right\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("printf right | \"$0\" --socket \"$1\" unlock notes --password-fd 7 7<&0 </dev/null");
    let status = shell.arg(env!("CARGO_BIN_EXE_chatkeep")).arg(fake.socket()).stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
    assert_eq!(fake.log(), ["unlock right", "unlock right"]);
    let ran = fake.run_with(&["encryption", "change-password", "notes"], "old\nnew\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.log()[2], "change old new");
    assert_eq!(fake.run(&["unlock", "notes"]).code, 1, "an empty input is no secret");
}

#[test]
fn a_wrong_password_says_what_is_left_and_what_the_last_one_means() {
    let fake = Fake::start();
    let ran = fake.run_with(&["unlock", "notes"], "wrong\n");
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("Only 3 attempts are left"), "{}", ran.err);
    assert!(ran.err.contains("destroyed for good") && ran.err.contains("64 digits"), "{}", ran.err);
    assert_eq!(fake.log(), ["unlock wrong"], "standard input is tried once");
    let ran = fake.run_with(&["unlock", "notes", "--json"], "wrong\n");
    let lines = ran.json();
    assert_eq!(lines[lines.len() - 2]["result"]["attempts-left"], 3);
    assert_eq!(lines.last().unwrap()["error"], "WrongSecret");
}

#[test]
fn new_digits_go_to_a_private_file_and_are_confirmed_from_it() {
    let fake = Fake::start();
    let file = fake.dir.path().join("digits");
    let path = file.to_str().unwrap();
    let arguments = ["encryption", "generate-key", "notes", "--key-out", path, "--confirm-from-file", path];
    let ran = fake.run(&arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{DIGITS}\n"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!ran.out.contains(&DIGITS[..8]) && !ran.err.contains(&DIGITS[..8]));
    assert_eq!(fake.log(), ["confirm true"]);
    assert_eq!(fake.run(&arguments).code, 1, "an existing file is not overwritten");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{DIGITS}\n"));

    std::fs::write(&file, "0123 typo").unwrap();
    let ran = fake.run(&["encryption", "generate-key", "notes", "--confirm-from-file", path]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("group 16 is not the same"), "{}", ran.err);
    let ran = fake.run(&["encryption", "generate-key", "notes"]);
    assert!(ran.code == 1 && ran.err.contains("no terminal"), "{ran:?}");
}

/// Runs a command on a terminal of its own (`script`, Debian package bsdutils), typing each answer when its prompt
/// shows. Returns what was on the screen.
fn on_a_terminal(fake: &Fake, arguments: &str, answers: &[(&str, &str)]) -> (String, i32) {
    let line = format!("{} --socket {} {arguments}", env!("CARGO_BIN_EXE_chatkeep"), fake.socket().display());
    let mut child = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is needed for this test (Debian package: bsdutils)");
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let (sender, screen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            if sender.send(String::from_utf8_lossy(&buffer[..count]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    let mut looked = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    for (prompt, answer) in answers {
        while !seen[looked..].contains(prompt) {
            let left = deadline.saturating_duration_since(Instant::now());
            let more = screen.recv_timeout(left);
            seen.push_str(&more.unwrap_or_else(|_| panic!("no {prompt:?} on the screen:\n{seen}")));
        }
        looked = seen.len();
        // the prompt is written before the echo is off: what is typed too early is thrown away
        std::thread::sleep(Duration::from_millis(300));
        input.write_all(answer.as_bytes()).unwrap();
    }
    while let Ok(more) = screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        seen.push_str(&more);
    }
    (seen, child.wait().unwrap().code().unwrap())
}

#[test]
fn on_a_terminal_nothing_typed_is_shown_and_a_wrong_one_is_asked_again() {
    let fake = Fake::start();
    let (screen, code) = on_a_terminal(
        &fake,
        "unlock notes",
        &[("Password: ", "wrong\n"), ("Password: ", "rigth\u{7f}\u{7f}ht\n")],
    );
    assert_eq!(code, 0, "{screen}");
    assert!(!screen.contains("wrong\r") && !screen.contains("rig"), "{screen}");
    assert!(screen.contains("Only 3 attempts are left") && screen.contains("unlocked"), "{screen}");
    assert_eq!(fake.log(), ["unlock wrong", "unlock right"]);
}

#[test]
fn digits_are_shown_once_and_typed_back() {
    let fake = Fake::start();
    let mut spaced = String::new();
    for (index, digit) in DIGITS.chars().enumerate() {
        if index > 0 && index % 4 == 0 {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    let answers = [("back: ", "0123\n"), ("back: ", &format!("{spaced}\n"))];
    let (screen, code) = on_a_terminal(&fake, "encryption generate-key notes", &answers);
    assert_eq!(code, 0, "{screen}");
    assert_eq!(screen.matches("0123 4567 89ab cdef").count(), 4, "shown, and not echoed: {screen}");
    assert!(screen.contains("group 16 is not the same"), "{screen}");
    assert_eq!(fake.log(), ["confirm false", "confirm true"]);
}

#[test]
fn ctrl_c_at_a_prompt_leaves_the_terminal_as_it_was() {
    let fake = Fake::start();
    let (screen, code) =
        on_a_terminal(&fake, "unlock notes; rc=$?; stty -a; exit $rc", &[("Password: ", "x\u{3}")]);
    assert_eq!(code, 130, "{screen}");
    let words: Vec<&str> = screen.split_whitespace().collect();
    assert!(["echo", "icanon", "isig"].iter().all(|mode| words.contains(mode)), "{screen}");
    assert!(fake.log().is_empty());
}

#[test]
fn ctrl_c_cancels_the_job() {
    let fake = Fake::start();
    let child =
        fake.command(&["verify", "notes"]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(fake.log(), ["cancel"]);
}

#[test]
fn pauses_have_a_length_or_none() {
    let fake = Fake::start();
    assert!(fake.run(&["pause", "2h"]).out.starts_with("paused until 20"));
    assert!(fake.run(&["pause", "--reason", "travel"]).out.contains("chatkeep resume"));
    assert_eq!(fake.run(&["pause", "long"]).code, 1);
    assert_eq!(fake.log(), ["pause true user", "pause false travel"]);
}

#[test]
fn what_the_service_cannot_do_is_said() {
    let fake = Fake::start();
    let ran = fake.run(&["store", "test", "home"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("this version of the service cannot do it: this is a fake"), "{}", ran.err);
    let ran = fake.run(&["--json", "store", "test", "home"]);
    assert_eq!(ran.json()[0]["error"], "Unsupported");
}

#[test]
fn the_doctor_looks_at_both_sides() {
    let fake = Fake::start();
    let ran = fake.run(&["doctor"]);
    assert!(ran.out.contains("answers on") && ran.out.contains("no mistakes"), "{ran:?}");
    fake.server.update_manager(|state| {
        state.version = "9.9.9".into();
        state.config_errors = vec!["line 3: no such key".into()];
    });
    let ran = fake.run(&["doctor", "--json"]);
    assert_eq!(ran.code, 1);
    let findings = ran.json()[0]["findings"].as_array().unwrap().clone();
    let bad: Vec<_> =
        findings.iter().filter(|finding| finding["ok"] == false).map(|f| f["what"].clone()).collect();
    assert!(bad.contains(&json!("service version")) && bad.contains(&json!("configuration")), "{bad:?}");
}

#[test]
fn completions_are_made_for_each_shell() {
    let fake = Fake::start();
    for shell in ["bash", "zsh", "fish"] {
        let ran = fake.run(&["completions", shell]);
        assert!(ran.code == 0 && ran.out.contains("list-remote"), "{shell}");
    }
}

#[test]
fn what_is_damaged_is_a_table_and_for_scripts_a_list() {
    let fake = Fake::start();
    let ran = fake.run(&["verify", "notes", "--depth", "manifest"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let row = ran.out.lines().nth(1).unwrap();
    let cells: Vec<_> = row.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect();
    assert_eq!(cells, ["log/7", "missing", "a recovery point", "8, 7"]);
    let ran = fake.run(&["--json", "verify", "notes", "--depth", "manifest"]);
    let lines = ran.json();
    let finished = lines.iter().find(|line| line["event"] == "finished").unwrap();
    let expected = serde_json::json!([["ab/log/7", "missing", "a recovery point", ["8", "7"]]]);
    assert_eq!(finished["result"]["damage"], expected);
    let points = fake.run(&["points", "notes"]);
    assert!(points.out.contains("base, damaged"), "{points:?}");
}

#[test]
fn a_rehearsal_says_what_it_found_and_stays_in_the_status() {
    let fake = Fake::start();
    let ran = fake.run(&["drill", "notes"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.ends_with("2.0 MiB, 3 tables, 12,345 rows, whole\n"), "{ran:?}");
    let status = fake.run(&["status"]);
    assert!(status.out.contains("notes: drill"), "{status:?}");
    let status = fake.run(&["--json", "status"]).json();
    assert_eq!(status[0]["databases"][0]["drill"]["rows"], 12_345);
    fake.server.update_database("notes", |state, _| {
        let text = |text: &str| zbus::zvariant::Value::from(text).try_to_owned().unwrap();
        state.last_drill_result.insert("failed-time".to_owned(), fake::NOW.into());
        state.last_drill_result.insert("failed-error".to_owned(), text("Corrupt"));
        state.last_drill_result.insert("failed-message".to_owned(), text("it broke"));
    });
    let status = fake.run(&["status"]);
    assert_eq!(status.code, 2, "{status:?}");
    assert!(status.out.contains("it broke") && status.out.contains("12,345 rows"), "{status:?}");
}
