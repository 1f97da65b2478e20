//! `chatkeep-bench`: makes and uses the chat database that Chatkeep and other programs are measured with.
//!
//! `random` and `chat` say what is written, `database` writes it, `app` does so on orders; `media` makes attachments;
//! `check` looks at what was restored; `pages` is what a capture cannot cost less than. docs/benchmarks.md tells how
//! the scripts in `benches/` use it.

mod chat;
mod random;

mod app;
mod check;
mod cpu;
mod database;
mod media;
mod pages;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::json;

/// Makes and uses the database that backups are measured with.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fill a new chat database
    Create {
        /// The database
        file: PathBuf,
        /// How many messages; about 300 bytes each
        #[arg(long)]
        messages: i64,
        /// What is written follows from it
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Open a database and write into it as told on standard input
    App {
        /// The database
        file: PathBuf,
    },
    /// Make attachments
    Media {
        /// Where
        folder: PathBuf,
        /// How many files
        #[arg(long)]
        files: u64,
        /// Their size on average
        #[arg(long)]
        mean_bytes: u64,
        /// What is written follows from it
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Check a database with SQLite, and count its rows
    Check {
        /// The database
        file: PathBuf,
    },
    /// CPU time of reading and compressing the pages that changed
    Pages {
        /// The database before, checkpointed
        before: PathBuf,
        /// The database after, checkpointed
        after: PathBuf,
        /// The median of so many runs
        #[arg(long, default_value_t = 21)]
        repeats: usize,
    },
}

fn main() -> Result<()> {
    let answer = match Arguments::parse().command {
        Command::Create { file, messages, seed } => {
            database::create(&file, messages, seed)?;
            json!({ "bytes": std::fs::metadata(file)?.len() })
        }
        Command::App { file } => return app::run(&file),
        Command::Media { folder, files, mean_bytes, seed } => {
            json!({ "bytes": media::create(&folder, files, mean_bytes, seed)? })
        }
        Command::Check { file } => check::check(&file)?,
        Command::Pages { before, after, repeats } => pages::reference(&before, &after, repeats)?,
    };
    println!("{answer}");
    Ok(())
}
