//! The smallest plugin in Rust, and the one that the tests of the host start: `memory:` keeps objects as long as the process
//! lives, `folder:///PATH` in a folder.

use chatkeep_store::memory::MemoryStore;
use chatkeep_store::{Opening, Result, StoreError};
use chatkeep_store_local::LocalStore;
use chatkeep_store_serve::{Opened, plain, run};

async fn open(opening: Opening) -> Result<Box<dyn Opened>> {
    match opening.url.split_once(':') {
        Some(("memory", _)) => Ok(plain(MemoryStore::new())),
        Some(("folder", path)) => Ok(plain(LocalStore::from_url(&format!("file:{path}"))?)),
        _ => Err(StoreError::Invalid { reason: "there are memory: and folder:///PATH".to_owned() }),
    }
}

fn main() -> std::io::Result<()> {
    run("memory-plugin", env!("CARGO_PKG_VERSION"), open)
}
