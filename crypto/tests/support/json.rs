//! Decoded plaintexts as vectors write them: every field, bytes in hexadecimal.

use chatkeep_format::{
    DatabaseKind, DatabaseRecord, DatabaseState, Entry, FileOp, FileSet, FolderRecord, PackRef, PageOp,
    PageSet,
};
use serde_json::{Value, json};

/// `[[number, whether it has a base, "zero"], [.., "image", bytes], [.., "patch", bytes]]`
pub(crate) fn pages_json(pages: &PageSet) -> Value {
    let bases: Vec<u32> = pages.bases().collect();
    let page = |(pgno, op): (u32, PageOp<'_>)| {
        let has_base = bases.binary_search(&pgno).is_ok();
        match op {
            PageOp::Zero => json!([pgno, has_base, "zero"]),
            PageOp::Full(image) => json!([pgno, has_base, "image", hex::encode(image)]),
            PageOp::Patch { patch, .. } => json!([pgno, has_base, "patch", hex::encode(patch)]),
        }
    };
    pages.iter().map(page).collect()
}

/// Null when there are no bases.
pub(crate) fn checksum_json(pages: &PageSet) -> Value {
    pages.bases_checksum().map(hex::encode).into()
}

/// `[[path, what it is, or null when it is gone]]`
pub(crate) fn files_json(files: &FileSet) -> Value {
    let file = |(path, op): (&[u8], &FileOp)| match op {
        FileOp::Gone => json!([hex::encode(path), null]),
        FileOp::File(file) => {
            let chunk = |chunk: &chatkeep_format::ChunkRef| {
                json!([hex::encode(chunk.id), hex::encode(chunk.pack), chunk.offset, chunk.len])
            };
            let chunks: Value = file.chunks.iter().map(chunk).collect();
            let about =
                json!({"mode": file.mode, "mtime_ns": file.mtime_ns, "len": file.len, "chunks": chunks});
            json!([hex::encode(path), about])
        }
    };
    files.iter().map(file).collect()
}

/// Every field under the name it has in Rust.
pub(crate) fn entry_json(entry: &Entry) -> Value {
    json!({
        "archive": entry.archive.to_string(),
        "writer_id": hex::encode(entry.writer_id),
        "writer_epoch": entry.writer_epoch,
        "seq": entry.seq,
        "parent_seq": entry.parent_seq,
        "base_seq": entry.base_seq,
        "level": entry.level,
        "prev": hex::encode(entry.prev),
        "parent_digest": hex::encode(entry.parent_digest),
        "taken_at_us": entry.taken_at_us,
        "source_name": entry.source_name,
        "app_id": entry.app_id,
        "digest_key": hex::encode(entry.digest_key),
        "pins": entry.pins,
        "databases": entry.databases.iter().map(database_json).collect::<Value>(),
        "folders": entry.folders.iter().map(folder_json).collect::<Value>(),
    })
}

fn database_json(record: &DatabaseRecord) -> Value {
    let state = match record.state {
        DatabaseState::Present => "present",
        DatabaseState::Gone => "gone",
    };
    let kind = match record.kind {
        DatabaseKind::Plain => "plain",
        DatabaseKind::Opaque => "opaque",
    };
    json!({
        "name": record.name,
        "state": state,
        "kind": kind,
        "is_base": record.is_base,
        "page_size": record.page_size,
        "page_count": record.page_count,
        "user_version": record.user_version,
        "application_id": record.application_id,
        "state_digest": hex::encode(record.state_digest),
        "changed_pages": record.changed_pages,
        "packs": packs_json(&record.packs),
        "bases_checksum": checksum_json(&record.inline),
        "inline": pages_json(&record.inline),
    })
}

fn folder_json(record: &FolderRecord) -> Value {
    json!({
        "name": record.name,
        "is_base": record.is_base,
        "files": record.files,
        "bytes": record.bytes,
        "unread": record.unread,
        "packs": packs_json(&record.packs),
        "inline": files_json(&record.inline),
    })
}

fn packs_json(packs: &[PackRef]) -> Value {
    packs.iter().map(|pack| json!([hex::encode(pack.name), pack.sealed_len, pack.items])).collect()
}
