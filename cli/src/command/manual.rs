//! The manual page, made from the command line's own definition.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::args::{Cli, EXIT_CODES};

/// chatkeep(1), with a section for every subcommand.
pub(crate) fn page() -> std::io::Result<String> {
    let mut command = Cli::command().after_long_help(None::<&str>).after_help(None::<&str>);
    command.build();
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).title("chatkeep").section("1");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut text = String::from_utf8_lossy(&page).into_owned();
    text.push_str(".SH COMMANDS\n");
    describe(&command, "chatkeep", &mut text);
    text.push_str(".SH \"EXIT STATUS\"\n.nf\n");
    for line in EXIT_CODES.lines().skip(1) {
        text.push_str(&escape(line));
        text.push('\n');
    }
    text.push_str(
        ".fi\n.SH FILES\n.TP\n$XDG_RUNTIME_DIR/chatkeep/control.sock\nthe service's control socket\n",
    );
    text.push_str(".TP\n$XDG_CONFIG_HOME/chatkeep/config.toml\nthe service's configuration\n");
    text.push_str(".SH ENVIRONMENT\n.TP\nNO_COLOR\nif not empty, nothing is coloured\n");
    text.push_str(".SH \"SEE ALSO\"\n.BR chatkeepd (8),\n.BR chatkeep\\-vault (8)\n");
    Ok(text)
}

fn describe(command: &clap::Command, name: &str, text: &mut String) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        let name = format!("{name} {}", sub.get_name());
        if sub.has_subcommands() {
            describe(sub, &name, text);
            continue;
        }
        let mut heading = name.clone();
        for argument in sub.get_arguments().filter(|argument| argument.is_positional()) {
            let value = argument.get_id().as_str().to_uppercase();
            let value = if argument.is_required_set() { value } else { format!("[{value}]") };
            heading.push(' ');
            heading.push_str(&value);
        }
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, ".SS {}\n{}\n", escape(&heading), escape(&about)); // a String takes everything
        for argument in sub.get_arguments().filter(|argument| !argument.is_global_set()) {
            let Some(help) = argument.get_help() else { continue };
            let label = match argument.get_long() {
                Some("help" | "version") => continue,
                Some(long) => {
                    let values: Vec<String> = match argument.get_action() {
                        clap::ArgAction::Set => argument
                            .get_value_names()
                            .unwrap_or_default()
                            .iter()
                            .map(ToString::to_string)
                            .collect(),
                        _ => Vec::new(),
                    };
                    format!("--{long} {}", values.join(" "))
                }
                None => argument.get_id().as_str().to_uppercase(),
            };
            let _ = write!(text, ".TP\n{}\n{}\n", escape(label.trim_end()), escape(&help.to_string()));
        }
    }
}

/// Text as roff: hyphens stay hyphens, and a line never begins a request.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_checked_in_page_is_the_current_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/man/chatkeep.1");
        let checked_in = std::fs::read_to_string(path).unwrap();
        assert!(page().unwrap() == checked_in, "write it again: chatkeep man > docs/man/chatkeep.1");
    }

    #[test]
    fn every_visible_command_is_described() {
        let page = page().unwrap();
        for name in ["status", "restore", "encryption generate\\-key", "vault status", "doctor"] {
            assert!(page.contains(&format!(".SS chatkeep {name}")), "{name}");
        }
        assert!(page.contains("130  interrupted"));
    }

    #[test]
    fn lines_cannot_become_requests() {
        assert_eq!(escape(".so x"), "\\&.so x");
        assert_eq!(escape("--at"), "\\-\\-at");
    }
}
