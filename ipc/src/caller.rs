//! Who calls.
//!
//! The uid comes from the kernel (control socket) or from the bus. Whether the caller is a sandboxed app is read from
//! the root of its process, as xdg-desktop-portal does. There are three answers, not two: a sandboxed service cannot
//! look into other processes, and reading "permission denied" as "no sandbox" would trust every app.

use std::io;

use zbus::fdo::DBusProxy;
use zbus::message::Header;

use crate::Error;

/// What is known of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// User id, always the service's own.
    pub uid: u32,
    /// Process id; a name for logs, no proof of anything.
    pub pid: u32,
    /// Sandbox.
    pub app: App,
    /// Unique bus name, empty on the control socket.
    pub sender: String,
}

/// Which app the caller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum App {
    /// A process outside of any sandbox.
    Host,
    /// A Flatpak app.
    Flatpak(String),
    /// Cannot be told: least rights.
    Unknown,
}

impl Caller {
    /// The sandboxed app's identifier, if there is one.
    pub fn app_id(&self) -> Option<&str> {
        match &self.app {
            App::Flatpak(id) => Some(id),
            App::Host | App::Unknown => None,
        }
    }

    /// For `StartedBy`: the app, or the process id.
    pub fn label(&self) -> String {
        match &self.app {
            App::Flatpak(id) => id.clone(),
            App::Host => format!("pid {}", self.pid),
            App::Unknown => format!("unknown, pid {}", self.pid),
        }
    }
}

/// Asks the kernel or the bus about the sender of a message.
pub(crate) async fn identify(connection: &zbus::Connection, header: &Header<'_>) -> Result<Caller, Error> {
    let unknown = |what: &str| Error::AccessDenied(format!("the caller cannot be identified: {what}"));
    let sender = header.sender();
    let (uid, pid) = if connection.is_bus() {
        let sender = sender.ok_or_else(|| unknown("no sender"))?;
        let bus = DBusProxy::new(connection).await?;
        let credentials = bus
            .get_connection_credentials(sender.to_owned().into())
            .await
            .map_err(|error| unknown(&error.to_string()))?;
        (credentials.unix_user_id(), credentials.process_id())
    } else {
        let credentials = connection.peer_creds().await.map_err(|error| unknown(&error.to_string()))?;
        (credentials.unix_user_id(), credentials.process_id())
    };
    let uid = uid.ok_or_else(|| unknown("no user id"))?;
    if uid != rustix::process::getuid().as_raw() {
        return Err(Error::AccessDenied("the service belongs to another user".into()));
    }
    let pid = pid.unwrap_or(0);
    let on_bus = connection.is_bus();
    let app = tokio::task::spawn_blocking(move || app_of(pid, on_bus)).await.unwrap_or(App::Unknown);
    Ok(Caller { uid, pid, app, sender: sender.map(ToString::to_string).unwrap_or_default() })
}

/// Reads which app the process is.
///
/// When this service may not look into other processes (`hardening.conf`), a caller on the bus is unknown. One on the
/// control socket is a host process: sandboxes do not contain that directory, and without this the command would be
/// refused.
fn app_of(pid: u32, on_bus: bool) -> App {
    if pid == 0 {
        return App::Unknown; // in another pid namespace
    }
    let info = std::fs::read_to_string(format!("/proc/{pid}/root/.flatpak-info"));
    if !on_bus && matches!(&info, Err(error) if error.kind() == io::ErrorKind::PermissionDenied) {
        return App::Host;
    }
    app_of_info(info, || {
        // the file is missing, or the process has ended and everything is: only the first means a host process
        std::fs::symlink_metadata(format!("/proc/{pid}/root/proc")).is_ok()
    })
}

fn app_of_info(info: io::Result<String>, root_is_visible: impl Fn() -> bool) -> App {
    match info {
        Ok(text) => app_id_in(&text).map_or(App::Unknown, App::Flatpak),
        Err(error) if error.kind() == io::ErrorKind::NotFound && root_is_visible() => App::Host,
        Err(_) => App::Unknown,
    }
}

/// `name=` of the group `[Application]` (or `[Runtime]`) in a key file.
fn app_id_in(text: &str) -> Option<String> {
    let mut in_group = false;
    for line in text.lines() {
        let line = line.trim();
        if let Some(group) = line.strip_prefix('[') {
            in_group = matches!(group, "Application]" | "Runtime]");
        } else if let (true, Some(name)) = (in_group, line.strip_prefix("name=")) {
            return (!name.is_empty()).then(|| name.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readable_file_names_the_app() {
        let text = "[Application]\nname=org.gajim.Gajim\nruntime=x\n[Instance]\nname=no\n";
        assert_eq!(app_of_info(Ok(text.into()), || true), App::Flatpak("org.gajim.Gajim".into()));
    }

    #[test]
    fn a_file_without_a_name_is_not_trusted() {
        for text in ["", "[Instance]\nname=x\n", "[Application]\nname=\n", "name=x\n"] {
            assert_eq!(app_of_info(Ok(text.into()), || true), App::Unknown, "{text:?}");
        }
    }

    #[test]
    fn no_file_is_a_host_process_and_anything_else_is_unknown() {
        let error = |kind: io::ErrorKind| Err(io::Error::from(kind));
        assert_eq!(app_of_info(error(io::ErrorKind::NotFound), || true), App::Host);
        assert_eq!(app_of_info(error(io::ErrorKind::NotFound), || false), App::Unknown);
        assert_eq!(app_of_info(error(io::ErrorKind::PermissionDenied), || true), App::Unknown);
    }

    #[test]
    fn this_process_is_a_host_process_and_a_missing_one_is_unknown() {
        for on_bus in [true, false] {
            assert_eq!(app_of(std::process::id(), on_bus), App::Host);
            assert_eq!(app_of(0, on_bus), App::Unknown);
            assert_eq!(app_of(u32::MAX, on_bus), App::Unknown);
        }
    }
}
