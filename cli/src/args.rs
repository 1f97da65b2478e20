//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// End-to-end encrypted backup of the databases of chat programs
#[derive(Debug, Parser)]
#[command(name = "chatkeep", version, propagate_version = true, after_long_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Print JSON, for scripts: one object, or one line for each step of a job
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The service's control socket [default: $XDG_RUNTIME_DIR/chatkeep/control.sock, then the session bus]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// In `--help` and in the manual page.
pub(crate) const EXIT_CODES: &str = "\
Exit status:
  0    done; status: everything is fine
  1    it failed; status: a backup is overdue, or you must do something
  2    status: backups are failing
  3    the service cannot be reached
  4    wrong password or key
  5    cancelled by somebody else
  64   wrong use of the command line
  130  interrupted with Ctrl-C

Times are given as 2026-11-24T08:30 or \"2026-11-24 08:30:00\" (UTC), as @SECONDS since 1970, or as an age: 90m, 12h, 3d.
Passwords and keys are asked for on the terminal, or read from --password-fd, --key-fd or standard input, never from
arguments or the environment.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how current and how safe the backups are
    Status,
    /// Watch a database
    Register {
        /// The database file
        file: PathBuf,
        /// A name for it [default: the file's name without its ending]
        #[arg(long)]
        name: Option<String>,
        /// Where its backups go [default: the configured store]
        #[arg(long)]
        store: Option<String>,
        /// Another database of the same app; may be given several times
        #[arg(long = "database", value_name = "FILE")]
        databases: Vec<PathBuf>,
        /// A folder with the app's attachments; may be given several times
        #[arg(long, value_name = "DIR")]
        attachments: Vec<PathBuf>,
    },
    /// Stop watching a database; its backups stay
    Unregister {
        /// The database
        id: String,
    },
    /// Back up now
    Backup {
        /// The database
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<String>,
        /// Back up all databases
        #[arg(long)]
        all: bool,
        /// Wait for the end, with progress
        #[arg(long)]
        wait: bool,
    },
    /// List the moments a database can be restored to
    Points {
        /// The database
        id: String,
        /// At most so many, the newest ones
        #[arg(long)]
        limit: Option<u32>,
        /// Those, too, that are forgotten and not deleted yet
        #[arg(long)]
        all: bool,
    },
    /// Keep a point, whatever is forgotten
    Pin {
        /// The database
        id: String,
        /// A point from `chatkeep points`
        point: String,
    },
    /// Keep a pinned point no longer than others
    Unpin {
        /// The database
        id: String,
        /// A point from `chatkeep points`
        point: String,
    },
    /// Forget points as the configuration says, and delete what was forgotten a week ago
    Prune {
        /// The database
        id: String,
        /// Change nothing, show what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Restore a database into a new file
    Restore {
        /// The database
        id: String,
        /// A directory, or a file name in an existing directory
        #[arg(long, value_name = "DIR[/NAME]")]
        to: PathBuf,
        /// As it was at this time
        #[arg(long, value_name = "TIME", conflicts_with = "point")]
        at: Option<String>,
        /// A point from `chatkeep points`
        #[arg(long, value_name = "POINT")]
        point: Option<String>,
        /// Replace an existing file; the old one is kept beside it
        #[arg(long)]
        overwrite: bool,
    },
    /// List what a store holds, for a new machine
    ListRemote {
        /// The store
        store: String,
    },
    /// Continue an archive from another machine here
    Adopt {
        /// The store
        store: String,
        /// The archive, from `chatkeep list-remote`
        remote_id: String,
        /// Where the database belongs
        #[arg(long, value_name = "DIR/NAME")]
        to: PathBuf,
        /// A name for it
        #[arg(long)]
        name: Option<String>,
        /// Restore it as soon as it is unlocked
        #[arg(long)]
        restore: bool,
    },
    /// Keys and passwords
    #[command(subcommand)]
    Encryption(EncryptionCommand),
    /// Bring a database's key to this machine, with the password or the 64 digits
    Unlock {
        /// The database
        id: String,
        #[command(flatten)]
        secret: SecretArgs,
        #[command(flatten)]
        trust: TrustArgs,
    },
    /// Backup key vaults
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Places where backups are kept
    #[command(subcommand)]
    Store(StoreCommand),
    /// Let backups wait
    Pause {
        /// For how long: 90m, 12h, 3d [default: until resumed]
        #[arg(value_name = "DURATION")]
        duration: Option<String>,
        /// Why; shown by status
        #[arg(long, default_value = "user")]
        reason: String,
    },
    /// End the pause
    Resume,
    /// Check what is stored
    Verify {
        /// The database
        id: String,
        /// How deep: manifest (is it all there), chunks (read it back), restore (a full rehearsal)
        #[arg(long, default_value = "chunks", value_parser = ["manifest", "chunks", "restore"])]
        depth: String,
    },
    /// Rehearse a restore: the newest point and an older one, in full, checked, counted and thrown away
    Drill {
        /// The database
        id: String,
    },
    /// Look for what could be wrong
    Doctor,
    /// Print a completion script
    Completions {
        /// bash, zsh, fish …
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EncryptionCommand {
    /// Show modes, states and keys
    Status {
        /// The database [default: all]
        id: Option<String>,
    },
    /// Encrypt with a password, through a vault
    EnablePassword {
        /// The database
        id: String,
        /// One vault only [default: the first, or all of them with `vaults.threshold` in the configuration]
        #[arg(long)]
        vault: Option<String>,
        #[command(flatten)]
        secret: SecretArgs,
    },
    /// Encrypt with 64 digits that you have already
    EnableKey {
        /// The database
        id: String,
        #[command(flatten)]
        secret: SecretArgs,
    },
    /// Encrypt with 64 new digits, shown once
    GenerateKey {
        /// The database
        id: String,
        #[command(flatten)]
        key: NewKeyArgs,
    },
    /// Type new digits back that were not confirmed yet
    Confirm {
        /// The database
        id: String,
        #[command(flatten)]
        secret: SecretArgs,
    },
    /// Change the password; the key stays the same
    ChangePassword {
        /// The database
        id: String,
        /// Read the current password from this descriptor
        #[arg(long, value_name = "N", requires = "new_password_fd")]
        password_fd: Option<u32>,
        /// Read the new password from this descriptor
        #[arg(long, value_name = "N", requires = "password_fd")]
        new_password_fd: Option<u32>,
    },
    /// Use a new key from now on
    RotateKey {
        /// The database
        id: String,
        /// Also encrypt what is stored already again
        #[arg(long)]
        reencrypt: bool,
        #[command(flatten)]
        key: NewKeyArgs,
    },
    /// Show the 64 digits of the key in use; they open the backups without password and vault
    ShowKey {
        /// The database
        id: String,
        #[command(flatten)]
        secret: SecretArgs,
        /// Write the digits to a new file, readable by you only, instead of showing them
        #[arg(long, value_name = "FILE")]
        key_out: Option<PathBuf>,
    },
    /// Bring the key to this machine, as `chatkeep unlock`
    Unlock {
        /// The database
        id: String,
        #[command(flatten)]
        secret: SecretArgs,
        #[command(flatten)]
        trust: TrustArgs,
    },
    /// Do you still know the password or the digits?
    Check {
        /// The database
        id: String,
        /// Ask the vault, too; a wrong password costs an attempt
        #[arg(long)]
        vault: bool,
        #[command(flatten)]
        secret: SecretArgs,
    },
}

/// Vaults that are not configured here.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TrustArgs {
    /// Ask this vault, too, though it is not configured: its fingerprint, as its operator says it; may be given several times
    #[arg(long = "trust-vault", value_name = "FINGERPRINT")]
    pub(crate) vaults: Vec<String>,
}

/// Where a secret comes from, when not from the terminal or standard input.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SecretArgs {
    /// Read the password from this descriptor
    #[arg(long, value_name = "N", conflicts_with = "key_fd")]
    pub(crate) password_fd: Option<u32>,
    /// Read the digits from this descriptor
    #[arg(long, value_name = "N")]
    pub(crate) key_fd: Option<u32>,
}

/// Where new digits go, when not to the terminal.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NewKeyArgs {
    /// Write the digits to a new file, readable by you only, instead of showing them
    #[arg(long, value_name = "FILE")]
    pub(crate) key_out: Option<PathBuf>,
    /// Confirm with the digits in this file instead of typing them; with --key-out, right afterwards
    #[arg(long, value_name = "FILE")]
    pub(crate) confirm_from_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Ask the vaults, and show the attempts left and who made the others
    Status,
    /// Ask the vaults whether somebody tried the password
    Refresh,
    /// Let nobody try the password for a while, not even with the right one
    Freeze {
        /// The vault, and those that guard the same backups [default: all]
        vault: Option<String>,
        /// For how long, 30d at most: 12h, 7d
        #[arg(long = "for", value_name = "DURATION", default_value = "7d")]
        duration: String,
    },
    /// End a freeze
    Unfreeze {
        /// The vault, and those that guard the same backups [default: all]
        vault: Option<String>,
    },
    /// The attempts that were noticed were yours: show them no longer
    Acknowledge {
        /// The vault, and those that guard the same backups [default: all]
        vault: Option<String>,
    },
}

/// What a store is opened with.
#[derive(Debug, clap::Args)]
pub(crate) struct StoreSettings {
    /// A setting of that kind of store; can be given several times
    #[arg(long = "option", value_name = "NAME=VALUE")]
    pub(crate) options: Vec<String>,
    /// A secret of it that is to be asked for, though it could do without; can be given several times
    #[arg(long = "secret", value_name = "NAME")]
    pub(crate) secrets: Vec<String>,
    /// Read the secrets from this descriptor, one a line in the order of `store kinds`, not from the terminal
    #[arg(long, value_name = "N")]
    pub(crate) secret_fd: Option<u32>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NewStoreArguments {
    /// Its name, in the configuration and everywhere else
    pub(crate) name: String,
    /// Its URL: `file:///mnt/nas/chatkeep`, `s3://bucket/folder`, `sftp://user@host/path` …
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) settings: StoreSettings,
    /// Add it without trying it: it cannot be reached now
    #[arg(long)]
    pub(crate) untried: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArguments {
    /// The URL of a store, or the path of a plugin (with `/`)
    pub(crate) target: String,
    /// The URL that a plugin given by its path is opened with
    #[arg(long, default_value = "check:nowhere")]
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) settings: StoreSettings,
    /// Shorter races and listings, smaller objects
    #[arg(long)]
    pub(crate) quick: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Add a store: asks for its secrets, tries it, shows what it can do, and writes it into the configuration
    Add(NewStoreArguments),
    /// Try everything that a store must do, and what it can do beyond; prints TAP, for authors of plugins, too
    Check(CheckArguments),
    /// List the kinds of stores that there are, with their options and secrets
    Kinds,
    /// Let a plugin of your home directory run, as it is now
    Trust {
        /// The name of its manifest, without `.toml`
        plugin: String,
    },
    /// Let a plugin of your home directory run no longer
    Distrust {
        /// The name of its manifest, without `.toml`
        plugin: String,
    },
    /// Write, read and delete a probe
    Test {
        /// The store
        store: String,
    },
    /// Give a store one of its secrets anew; it is kept where this device keeps its keys
    Credentials {
        /// The store
        store: String,
        /// Which of its secrets, as named in the configuration
        name: String,
        /// Read the secret from this descriptor, not from the terminal
        #[arg(long, value_name = "N")]
        secret_fd: Option<u32>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_option_takes_a_secret_itself() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                let secret = name.contains("password") || name.contains("key");
                let safe = name.ends_with("_fd") || name == "key_out";
                assert!(!secret || safe, "{} of {}", name, command.get_name());
                assert!(argument.get_env().is_none(), "{name} is not read from the environment");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
