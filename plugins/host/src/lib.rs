//! Finds, starts and supervises plugin processes; the `Store` that talks plugin protocol 1 over their socket.
