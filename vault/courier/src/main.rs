//! `chatkeep-courier`: serves the listening unix socket that it finds as file descriptor 0.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

/// Carries blinded and signed messages to Backup Key Vaults. Started with a listening unix socket as standard input.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Stop after so many seconds without a call.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle_timeout: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_acceptconn(&socket)
        .ok()
        .filter(|listening| *listening)
        .context("standard input is not a listening unix socket")?;
    let listener = UnixListener::from(socket);
    listener.local_addr().context("standard input is not a unix socket")?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        chatkeep_vault_courier::serve(listener, Duration::from_secs(arguments.idle_timeout)).await
    })?;
    Ok(())
}
