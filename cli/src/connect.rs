//! To the service: by its control socket, else by the session bus.

use std::path::{Path, PathBuf};

use chatkeep_ipc::names::CONTROL_SOCKET;
use chatkeep_ipc::proxy;
use zbus::Connection;

use crate::explain::{Failure, Result};

/// A connection, and how it came to be.
pub(crate) struct Service {
    pub(crate) connection: Connection,
    pub(crate) way: String,
}

/// Where the socket is unless told otherwise.
pub(crate) fn default_socket() -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())?;
    Some(Path::new(&runtime).join(CONTROL_SOCKET))
}

/// Connects. A socket that was named is the only way tried.
pub(crate) async fn connect(socket: Option<&Path>) -> Result<Service> {
    if let Some(path) = socket {
        return by_socket(path).await.map_err(|error| Failure::no_service(&describe(&error, path)));
    }
    let by_default = match default_socket() {
        Some(path) => match by_socket(&path).await {
            Ok(service) => return Ok(service),
            Err(error) => describe(&error, &path),
        },
        None => "XDG_RUNTIME_DIR is not set".to_owned(),
    };
    match proxy::connect_session().await {
        Ok(connection) => {
            let bus = zbus::fdo::DBusProxy::new(&connection).await?;
            let name = zbus::names::WellKnownName::from_static_str_unchecked(chatkeep_ipc::names::BUS_NAME);
            // one that was started by hand has no service file, and dbus-daemon knows only those that have
            if bus.name_has_owner(name.clone().into()).await.unwrap_or(false) {
                return Ok(Service { connection, way: "session bus".into() });
            }
            match bus.start_service_by_name(name, 0).await {
                Ok(_) => Ok(Service { connection, way: "session bus".into() }),
                Err(error) => Err(Failure::no_service(&format!("{by_default}; on the session bus: {error}"))),
            }
        }
        Err(error) => Err(Failure::no_service(&format!("{by_default}; no session bus: {error}"))),
    }
}

async fn by_socket(path: &Path) -> zbus::Result<Service> {
    let connection = proxy::connect_socket(path).await?;
    Ok(Service { connection, way: path.display().to_string() })
}

fn describe(error: &zbus::Error, path: &Path) -> String {
    match error {
        zbus::Error::InputOutput(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("{} does not exist", path.display())
        }
        other => format!("{}: {other}", path.display()),
    }
}
