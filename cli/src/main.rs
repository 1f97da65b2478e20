//! The chatkeep command: asks the service, and shows what it says.

mod args;
mod command;
mod config_file;
mod connect;
mod explain;
mod job;
mod output;
mod secret_input;
mod time;
mod view;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;
use crate::explain::Failure;

/// Of the command line, as in sysexits.h; 2 is taken by `status`.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // nowhere to report a closed terminal to
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let json = cli.json;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(command::run(cli));
            // a thread may still wait for the terminal
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::local("the program could not start", &error)),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.code)
        }
    }
}
