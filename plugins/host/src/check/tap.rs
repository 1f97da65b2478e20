//! The report of a check as a text that programs read, too: the Test Anything Protocol, version 13.

use std::fmt::Write as _;

use chatkeep_store::conformance::Outcome;
use chatkeep_store::{CreateGuarantee, Visibility};

use super::Report;

/// The report in TAP, with what was claimed and found as comments at its end.
pub fn tap(report: &Report) -> String {
    let mut text = format!("TAP version 13\n1..{}\n", report.results.len());
    for (index, result) in report.results.iter().enumerate() {
        let (number, name) = (index + 1, result.name);
        // writing to a string does not fail
        let _ = match &result.outcome {
            Outcome::Passed => writeln!(text, "ok {number} - {name}"),
            Outcome::Skipped(why) => writeln!(text, "ok {number} - {name} # SKIP {}", one_line(why)),
            Outcome::Failed(why) => {
                writeln!(
                    text,
                    "not ok {number} - {name}\n  ---\n  message: '{}'\n  ...",
                    one_line(why).replace('\'', "''")
                )
            }
        };
    }
    let (claimed, found) = (&report.claimed, &report.found);
    let mut compare = |what: &str, claimed: &str, found: Option<&str>| {
        let _ = writeln!(text, "# {what}: claimed {claimed}, found {}", found.unwrap_or("nothing about it"));
    };
    compare("create", create(claimed.create), found.create.map(create));
    compare("read after write", visible(claimed.read_after_write), found.read_after_write.map(visible));
    compare("list after write", visible(claimed.list_after_write), found.list_after_write.map(visible));
    compare("range", yes(claimed.range), found.range.map(yes));
    text
}

fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn create(guarantee: CreateGuarantee) -> &'static str {
    match guarantee {
        CreateGuarantee::Atomic => "atomic",
        CreateGuarantee::Advisory => "advisory",
        CreateGuarantee::None => "none",
    }
}

fn visible(when: Visibility) -> &'static str {
    match when {
        Visibility::Strong => "strong",
        Visibility::Eventual => "eventual",
    }
}

fn yes(holds: bool) -> &'static str {
    if holds { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use chatkeep_store::Store as _;
    use chatkeep_store::conformance::CaseResult;
    use chatkeep_store::memory::MemoryStore;

    use super::*;
    use crate::check::Found;

    #[test]
    fn a_report_is_written_as_its_protocol_says() {
        let case = |name, outcome| CaseResult { name, outcome };
        let report = Report {
            results: vec![
                case("it works", Outcome::Passed),
                case("it can more", Outcome::Skipped("it\nsays no".to_owned())),
                case("it breaks", Outcome::Failed("what's 'this'".to_owned())),
            ],
            claimed: MemoryStore::new().capabilities(),
            found: Found { create: Some(CreateGuarantee::Advisory), range: Some(true), ..Found::default() },
        };
        let expected = "TAP version 13\n1..3\nok 1 - it works\nok 2 - it can more # SKIP it says no\nnot ok 3 - it breaks\n  \
                        ---\n  message: 'what''s ''this'''\n  ...\n# create: claimed atomic, found advisory\n# read after write: \
                        claimed strong, found nothing about it\n# list after write: claimed strong, found nothing about it\n# \
                        range: claimed yes, found yes\n";
        assert_eq!(tap(&report), expected);
        assert!(!report.passed());
    }
}
