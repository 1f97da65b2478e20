#!/usr/bin/env python3
"""A second decoder for Chatkeep archives, written from docs/format.md alone.

    decode.py restore STORE ARCHIVE DATABASE OUT [--seq N]         the 64 digits are read from standard input
    decode.py restore-folder STORE ARCHIVE FOLDER OUT [--seq N]    likewise; OUT must not exist
    decode.py list STORE ARCHIVE                                   likewise
    decode.py check VECTORS                                        every vector, and the archives beside them

STORE is a folder that holds an archive as a local store does. Needs `cryptography`, `zstandard` and `blake3` from PyPI.
"""

import functools
import hashlib
import hmac
import json
import os
import stat
import struct
import sys
import tempfile

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC = b"chatkeep"
HEADER_LEN = 96
CHUNK_LEN = 65_536
TAG_LEN = 16
MAX_PLAINTEXT_LEN = 67_108_864
MAX_SEALED_LEN = 75_497_472
MIN_STREAM_LEN = 4096
MAX_KEYRING_LEN = 1_048_576
MAX_KEYSLOTS = 32
MAX_KEYSLOT_LEN = 16_384
MAX_KEY_EPOCHS = 1024
MAX_COUNTER = 9_999_999_999_999_999
MAX_NAME_LEN = 255
MAX_TEXT_LEN = 1024
MAX_DATABASES = 256
MAX_PACKS = 65_536
MAX_PAGES = 262_144
MAX_BASES_LEN = 16_777_216
MAX_LEVEL = 15
MAX_PINS = 1024
MAX_FOLDERS = 256
MAX_PATH_LEN = 4096
MAX_FILES = 1_048_576
MAX_FILE_CHUNKS = 1_048_576
KEYRING, ENTRY, PACK = 1, 2, 3


class FormatError(Exception):
    """Its text is the error's name in docs/format.md."""


def fail(error):
    raise FormatError(error)


def checksum(data):
    return blake3(data).digest()[:8]


def hkdf(key, salt, info, length):
    return HKDF(hashes.SHA256(), length, salt or None, info).derive(key)


def padme(n):
    if n < 2:
        return n
    e = n.bit_length() - 1
    mask = (1 << max(0, e - e.bit_length())) - 1
    return (n + mask) & ~mask


class Reader:
    """Takes values off the front; whatever is missing is `error`."""

    def __init__(self, data, error):
        self.data, self.at, self.error = data, 0, error

    def left(self):
        return len(self.data) - self.at

    def take(self, length):
        if length > self.left():
            fail(self.error)
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length, limit=None, signed=False):
        value = int.from_bytes(self.take(length), "little", signed=signed)
        if limit is not None and value > limit:
            fail(self.error)
        return value

    def text(self, limit):
        try:
            return self.take(self.number(2, limit)).decode("utf-8")
        except UnicodeDecodeError:
            fail(self.error)

    def varint(self):
        value = 0
        for shift in range(0, 35, 7):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > 0xFFFFFFFF or (byte == 0 and shift > 0):
                    fail(self.error)
                return value
        fail(self.error)

    def must(self, condition):
        if not condition:
            fail(self.error)


# --- the 64 digits -----------------------------------------------------------------------------------------------


def key_from_digits(text):
    dashes = "-_\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
    spaced = "".join(" " if c in dashes else c for c in text)
    groups = spaced.split()
    digits = "".join(groups)
    if len(digits) not in (64, 68):
        for index, group in enumerate(groups):
            if len(groups) in (16, 17) and len(group) != 4:
                fail(f"GroupLength {index + 1}")
        fail("Length")
    for at, digit in enumerate(digits):
        if digit not in "0123456789abcdefABCDEF":
            fail(f"NotHex {at // 4 + 1}")
    key, check = bytes.fromhex(digits[:64]), bytes.fromhex(digits[64:])
    if check and check != hashlib.sha256(b"chatkeep/1 key check" + key).digest()[:2]:
        fail("CheckGroup")
    return key


# --- header, keyring, objects --------------------------------------------------------------------------------------


def read_header(data):
    if data[:8] != MAGIC[: len(data)]:
        fail("NotOurs")
    if len(data) < HEADER_LEN:
        fail("Truncated")
    if checksum(data[:88]) != data[88:96]:
        fail("Damaged header")
    version, kind, zero, epoch, length = struct.unpack("<BBHIQ", data[8:24])
    if version > 1:
        fail(f"NewerFormat {version}")
    limit = MAX_KEYRING_LEN if kind == KEYRING else MAX_SEALED_LEN
    if version == 0 or kind not in (KEYRING, ENTRY, PACK) or zero or not HEADER_LEN <= length <= limit:
        fail("Damaged header")
    if len(data) != length:
        fail("Truncated" if len(data) < length else "Damaged trailing")
    return kind, epoch, data[24:56], data[56:88]


def open_keyring(data, archive, counter, key):
    """The data roots by key epoch."""
    kind, newest, salt, check = read_header(data)
    if kind != KEYRING:
        fail("NotThisObject")
    reader = Reader(data[:-8], "Damaged keyring")
    reader.take(HEADER_LEN)
    reader.must(checksum(data[:-8]) == data[-8:])
    found = (reader.take(16), reader.number(8, MAX_COUNTER))
    for _ in range(reader.number(1, MAX_KEYSLOTS)):
        slot_kind, length = reader.number(1), reader.number(2, MAX_KEYSLOT_LEN)
        reader.must(slot_kind != 0 and (slot_kind != 1 or length == 0))
        reader.take(length)
    wrapped = []
    for _ in range(reader.number(2, MAX_KEY_EPOCHS)):
        wrapped.append((reader.number(4), reader.take(48)))
    epochs = [epoch for epoch, _ in wrapped]
    reader.must(epochs == sorted(set(epochs)) and epochs and epochs[-1] == newest)
    before_mac = data[: reader.at]
    mac = reader.take(32)
    reader.must(reader.left() == 0)
    if found != (archive, counter):
        fail("NotThisObject")

    if not hmac.compare_digest(hkdf(key, salt, b"chatkeep/1 keyring check", 32), check):
        fail("WrongKey")
    mac_key = hkdf(key, salt, b"chatkeep/1 keyring mac", 32)
    reader.must(hmac.compare_digest(blake3(before_mac, key=mac_key).digest(), mac))
    roots = {}
    for epoch, sealed in wrapped:
        wrap_key = hkdf(key, salt, b"chatkeep/1 keyring wrap" + archive + struct.pack("<I", epoch), 32)
        try:
            roots[epoch] = AESGCM(wrap_key).decrypt(bytes(11) + b"\x01", sealed, None)
        except InvalidTag:
            fail("Damaged keyring")
    return roots


def parse_store_key(text):
    """(archive, kind, name in bytes)"""
    archive, folder, name = text.split("/", 2)
    if folder == "pack":
        return bytes.fromhex(archive), PACK, bytes.fromhex(name.split("/")[1])
    kind = {"keyring": KEYRING, "log": ENTRY}[folder]
    return bytes.fromhex(archive), kind, struct.pack("<Q", int(name))


def open_object(data, store_key, roots):
    archive, kind, name = parse_store_key(store_key)
    found_kind, epoch, salt, commitment = read_header(data)
    if found_kind != kind or kind == KEYRING:
        fail("NotThisObject")
    if epoch not in roots:
        fail(f"UnknownKeyEpoch {epoch}")
    derived = hkdf(roots[epoch], salt, b"chatkeep/1 object" + bytes([kind]) + archive + name, 64)
    if not hmac.compare_digest(derived[32:], commitment):
        fail("NotThisObject")
    cipher, header, body = AESGCM(derived[:32]), data[:HEADER_LEN], data[HEADER_LEN:]
    count = -(-len(body) // (CHUNK_LEN + TAG_LEN))
    stream_len = len(body) - count * TAG_LEN
    if stream_len < MIN_STREAM_LEN or -(-stream_len // CHUNK_LEN) != count:
        fail("Damaged header")
    stream = bytearray()
    for index in range(count):
        nonce = index.to_bytes(11, "big") + (b"\x01" if index == count - 1 else b"\x00")
        start = index * (CHUNK_LEN + TAG_LEN)
        try:
            stream += cipher.decrypt(nonce, body[start : start + CHUNK_LEN + TAG_LEN], header)
        except InvalidTag:
            fail(f"Damaged chunk {index}")
    return read_body(bytes(stream))


def read_body(stream):
    reader = Reader(stream, "Damaged body")
    frame_len, plain_len = reader.number(8), reader.number(8, MAX_PLAINTEXT_LEN)
    frame = reader.take(frame_len)
    padding = reader.take(reader.left())
    reader.must(len(stream) == max(MIN_STREAM_LEN, padme(16 + frame_len)) and not any(padding))
    reader.must(frame[:4] == bytes.fromhex("28b52ffd"))
    try:
        reader.must(zstandard.frame_content_size(frame) == plain_len)
        # unpacks into a buffer of the content size, which was just checked
        plaintext = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        fail("Damaged body")
    reader.must(len(plaintext) == plain_len)
    return plaintext


# --- plaintexts ----------------------------------------------------------------------------------------------------


def is_page_size(size):
    return 512 <= size <= 65_536 and size & (size - 1) == 0


def read_pages(data):
    """(page size, checksum of the bases, {page number: (has a base, "zero"), (.., "image", bytes) or (.., "patch", bytes)})"""
    reader = Reader(data, "Malformed")
    size, count, index_len = reader.number(4), reader.number(4, MAX_PAGES), reader.number(4)
    reader.must(is_page_size(size) if count else size == 0)
    index = Reader(reader.take(index_len), "Malformed")
    index.must(count <= index_len // 2)
    listed, pgno = [], 0
    for _ in range(count):
        delta, operation = index.varint(), index.number(1, 7)
        pgno += delta
        based, operation = divmod(operation, 4)
        index.must(delta > 0 and pgno <= 0xFFFFFFFF and operation != 3)
        length = index.varint() if operation == 2 else 0
        index.must(operation != 2 or 1 <= length <= size)
        listed.append((pgno, based == 1, operation, length))
    index.must(index.left() == 0)
    bases_len = size * sum(based for _, based, _, _ in listed)
    reader.must(bases_len <= MAX_BASES_LEN)
    reader.must(bases_len > 0 or all(operation != 2 for _, _, operation, _ in listed))
    bases_checksum = reader.take(8) if bases_len else None
    pages = {pgno: (based, "zero") for pgno, based, _, _ in listed}
    for pgno, based, operation, _ in listed:
        if operation == 1:
            pages[pgno] = (based, "image", reader.take(size))
    for pgno, based, operation, length in listed:
        if operation == 2:
            pages[pgno] = (based, "patch", reader.take(length))
    reader.must(reader.left() == 0)
    return size, bases_checksum, pages


def apply_pages(found, pages, bases_checksum, size):
    """Replaces pages, those of {page number: bytes}, with what a page set makes of them."""
    based = [pgno for pgno, page in pages.items() if page[0]]
    if not all(pgno in found for pgno in based):
        fail("Damaged database")
    bases = b"".join(found[pgno] for pgno in based)
    if based and checksum(bases) != bases_checksum:
        fail("Damaged database")
    place = 0
    for pgno, (has_base, operation, *content) in pages.items():
        if operation == "patch":
            found[pgno] = apply_patch(bases, place, content[0], size)
        else:
            found[pgno] = content[0] if content else bytes(size)
        place += size if has_base else 0


def apply_patch(bases, place, patch, page_size):
    reader = Reader(patch, "Malformed")
    reader.must(len(patch) <= page_size and place <= len(bases))
    page, distance = b"", 0
    while True:
        page += reader.take(reader.varint())
        reader.must(len(page) <= page_size)
        if len(page) < page_size:
            length, moved = divmod(reader.varint(), 2)
            if moved:
                change = reader.varint()
                distance += -(change + 1) // 2 if change % 2 else change // 2
            start = place + len(page) + distance
            reader.must(length > 0 and 0 <= start <= start + length <= len(bases))
            page += bases[start : start + length]
        reader.must(len(page) <= page_size)
        if len(page) == page_size:
            reader.must(reader.left() == 0)
            return page


def is_segment(name):
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name and len(name) <= MAX_NAME_LEN


def read_files(data):
    """{path in bytes: None when it is gone, else what is known of the file}"""
    reader = Reader(data, "Malformed")
    files, before = {}, b""
    for _ in range(reader.number(4, MAX_FILES)):
        path = reader.take(reader.number(2, MAX_PATH_LEN))
        reader.must(path > before and all(is_segment(part) for part in path.split(b"/")))
        before, operation = path, reader.number(1)
        reader.must(operation in (0, 1))
        files[path] = read_file(reader) if operation == 1 else None
    reader.must(reader.left() == 0)
    return files


def read_file(reader):
    file = {"mode": reader.number(4, 0o777), "mtime_ns": reader.number(8, signed=True), "len": reader.number(8)}
    count = reader.number(4, MAX_FILE_CHUNKS)
    reader.must(count * 40 <= reader.left())
    file["chunks"] = [(reader.take(16), reader.take(16), reader.number(4), reader.number(4)) for _ in range(count)]
    for _, _, offset, length in file["chunks"]:
        reader.must(length > 0 and offset + length <= MAX_PLAINTEXT_LEN)
    reader.must(file["len"] == sum(length for _, _, _, length in file["chunks"]))
    return file


def read_entry(data):
    reader = Reader(data, "Malformed")
    entry = {
        "archive": reader.take(16),
        "writer_id": reader.take(16),
        "writer_epoch": reader.number(8),
        "seq": reader.number(8, MAX_COUNTER),
        "parent_seq": reader.number(8),
        "base_seq": reader.number(8),
        "level": reader.number(1, MAX_LEVEL),
        "prev": reader.take(32),
        "parent_digest": reader.take(32),
        "taken_at_us": reader.number(8, signed=True),
        "digest_key": reader.take(32),
        "source_name": reader.text(MAX_TEXT_LEN),
        "app_id": reader.text(MAX_TEXT_LEN),
        "pins": [reader.number(8) for _ in range(reader.number(2, MAX_PINS))],
        "databases": [read_record(reader) for _ in range(reader.number(2, MAX_DATABASES))],
        "folders": [read_folder(reader) for _ in range(reader.number(2, MAX_FOLDERS))],
    }
    reader.must(reader.left() == 0)
    seq, parent, base = entry["seq"], entry["parent_seq"], entry["base_seq"]
    reader.must(1 <= seq and parent < seq)
    reader.must(1 <= base <= parent if parent else base == seq)
    reader.must((seq == 1) == (entry["prev"] == bytes(32)))
    reader.must((parent == 0) == (entry["parent_digest"] == bytes(32)))
    reader.must(parent == 0 or parent != seq - 1 or entry["parent_digest"] == entry["prev"])
    pins = entry["pins"]
    reader.must(pins == sorted(set(pins)) and all(1 <= pin <= seq for pin in pins))
    for records in (entry["databases"], entry["folders"]):
        names = [record["name"].encode() for record in records]
        reader.must(names == sorted(set(names)) and all(is_segment(name) for name in names))
        for record in records:
            reader.must(parent > 0 or record["is_base"] or record.get("state") == "gone")
    return entry


def read_packs(reader):
    """[(name, sealed length, number of pages or files)]"""
    count = reader.number(4, MAX_PACKS)
    reader.must(count * 28 <= reader.left())
    packs = [(reader.take(16), reader.number(8, MAX_SEALED_LEN), reader.number(4)) for _ in range(count)]
    reader.must(all(items > 0 for _, _, items in packs))
    return packs


def read_record(reader):
    record = {"name": reader.text(MAX_NAME_LEN)}
    state, kind, flags = reader.number(1), reader.number(1), reader.number(1)
    reader.must(state in (1, 2) and kind in (1, 2) and flags in (0, 1))
    record["state"] = {1: "present", 2: "gone"}[state]
    record["kind"] = {1: "plain", 2: "opaque"}[kind]
    record["is_base"] = flags == 1
    for field in ("page_size", "page_count", "user_version", "application_id"):
        record[field] = reader.number(4)
    record["state_digest"] = reader.take(16)
    record["changed_pages"] = reader.number(8)
    record["packs"] = read_packs(reader)
    inline = read_pages(reader.take(reader.number(4, MAX_PLAINTEXT_LEN)))
    _, record["bases_checksum"], record["inline"] = inline

    size, without_pages = record["page_size"], not record["packs"] and not record["inline"]
    bare = record["page_count"] == 0 and without_pages
    reader.must(state == 1 or bare)
    reader.must(is_page_size(size) or (size == 0 and bare))
    reader.must(fits(record, *inline))
    return record


def fits(record, page_size, bases_checksum, pages):
    """Whether a page set can belong to a record."""
    return not pages or (page_size == record["page_size"] and not (record["is_base"] and bases_checksum))


def read_folder(reader):
    record, flags = {"name": reader.text(MAX_NAME_LEN)}, reader.number(1)
    reader.must(flags in (0, 1))
    record["is_base"] = flags == 1
    record["files"], record["bytes"], record["unread"] = reader.number(8), reader.number(8), reader.number(4)
    record["packs"] = read_packs(reader)
    record["inline"] = read_files(reader.take(reader.number(4, MAX_PLAINTEXT_LEN)))
    return record


# --- a store in a folder, and restoring from it ------------------------------------------------------------------


class Archive:
    def __init__(self, store, archive, key):
        self.store, self.archive = store, archive
        self.pack = functools.lru_cache(maxsize=4)(self.read_pack)
        counter = max(self.numbers("keyring"), default=None)
        if counter is None:
            fail("no keyring")
        keyring = self.read(f"{archive}/keyring/{counter:016}")
        self.roots = open_keyring(keyring, bytes.fromhex(archive), counter, key)

    def read(self, store_key):
        try:
            with open(os.path.join(self.store, store_key), "rb") as file:
                return file.read(MAX_SEALED_LEN + 1)
        except FileNotFoundError:
            fail("Missing")

    def numbers(self, folder):
        path = os.path.join(self.store, self.archive, folder)
        names = os.listdir(path) if os.path.isdir(path) else []
        return sorted(int(name) for name in names if len(name) == 16 and name.isdecimal())

    def entry(self, seq):
        """The entry, and the digest of its sealed bytes."""
        store_key = f"{self.archive}/log/{seq:016}"
        sealed = self.read(store_key)
        entry = read_entry(open_object(sealed, store_key, self.roots))
        if entry["archive"].hex() != self.archive or entry["seq"] != seq:
            fail("NotThisObject")
        return entry, blake3(sealed).digest()

    def read_pack(self, name):
        store_key = f"{self.archive}/pack/{name[:1].hex()}/{name.hex()}"
        return open_object(self.read(store_key), store_key, self.roots)

    def chain(self, seq):
        """The entries that a restore of `seq` needs, the base last."""
        chain, expected = [], None
        while True:
            entry, digest = self.entry(seq)
            chain.append(entry)
            same = all(entry[field] == chain[0][field] for field in ("base_seq", "digest_key"))
            if not same or expected not in (None, digest):
                fail("Damaged chain")
            if entry["parent_seq"] == 0:
                return chain
            seq, expected = entry["parent_seq"], entry["parent_digest"]

    def records(self, seq, kind, name):
        """The records of a database or folder that a restore applies, oldest first, and the digest key."""
        chain = self.chain(seq)
        records = []
        for entry in chain:
            record = next((record for record in entry[kind] if record["name"] == name), None)
            if not records and record is None:
                fail("nothing of this name at this point")
            if record is None or (records and record.get("state") == "gone"):
                break
            records.append(record)
            if record["is_base"]:
                break
        return records[::-1], chain[0]["digest_key"]

    def page_sets(self, record):
        """[(pages, checksum of their bases)]"""
        for name, _, _ in record["packs"]:
            size, bases_checksum, pages = read_pages(self.pack(name))
            if not fits(record, size, bases_checksum, pages):
                fail("Malformed")
            yield pages, bases_checksum
        yield record["inline"], record["bases_checksum"]

    def restore(self, seq, database):
        """The bytes of the database at entry `seq`; None if it is gone."""
        records, digest_key = self.records(seq, "databases", database)
        goal = records[-1]
        if goal["state"] == "gone":
            return None
        size, count = goal["page_size"], goal["page_count"]
        lock_page = (1 << 30) // size + 1 if size else 0
        found = {}
        for record in records:
            if record["page_size"] != size and (record["packs"] or record["inline"]):
                fail("Malformed")
            for pages, bases_checksum in self.page_sets(record):
                apply_pages(found, pages, bases_checksum, size)
                found.pop(lock_page, None)
        image, digest = bytearray(size * count), 0
        for pgno in range(1, count + 1):
            if pgno == lock_page:
                continue
            if pgno not in found:
                fail("Damaged database")
            image[(pgno - 1) * size : pgno * size] = found[pgno]
            keyed = blake3(found[pgno] + struct.pack("<I", pgno), key=digest_key).digest()
            digest ^= int.from_bytes(keyed[:16], "big")
        if digest.to_bytes(16, "big") != goal["state_digest"]:
            fail("Damaged database")
        return bytes(image)

    def restore_folder(self, seq, name, out):
        """Writes the folder as it is at entry `seq` into the new folder `out`; returns the number of files."""
        records, digest_key = self.records(seq, "folders", name)
        files = {}
        for record in records:
            lists = [read_files(self.pack(pack)) for pack, _, _ in record["packs"]]
            for listed in [*lists, record["inline"]]:
                files.update(listed)
        files = {path: file for path, file in files.items() if file is not None}
        folders = {path[:at] for path in files for at, byte in enumerate(path) if byte == ord("/")}
        sums = (len(files), sum(file["len"] for file in files.values()))
        if sums != (records[-1]["files"], records[-1]["bytes"]) or not folders.isdisjoint(files):
            fail("Damaged folder")
        os.mkdir(out, 0o700)
        for path, file in files.items():
            place = os.path.join(os.fsencode(out), path)
            os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
            with open(place, "xb") as writer:
                for chunk in file["chunks"]:
                    writer.write(self.chunk(chunk, digest_key))
                os.fchmod(writer.fileno(), file["mode"])
            os.utime(place, ns=(file["mtime_ns"], file["mtime_ns"]))
        return len(files)

    def chunk(self, chunk, digest_key):
        chunk_id, pack, offset, length = chunk
        content = self.pack(pack)[offset : offset + length]
        if len(content) != length or blake3(content, key=digest_key).digest()[:16] != chunk_id:
            fail("Damaged folder")
        return content


# --- vectors -------------------------------------------------------------------------------------------------------


def edited(data, edits):
    data = bytearray(data)
    for edit in edits:
        ((operation, argument),) = edit.items()
        if operation == "flip":
            data[argument[0]] ^= 1 << argument[1]
        elif operation == "truncate":
            del data[argument:]
        elif operation == "append":
            data += bytes.fromhex(argument)
        elif operation == "replace":
            data = bytearray.fromhex(argument)
        elif operation == "put":
            put = bytes.fromhex(argument[1])
            data[argument[0] : argument[0] + len(put)] = put
        elif operation == "swap_chunks":
            a, b = (
                slice(HEADER_LEN + i * (CHUNK_LEN + TAG_LEN), HEADER_LEN + (i + 1) * (CHUNK_LEN + TAG_LEN))
                for i in argument
            )
            data[a], data[b] = data[b], data[a]
        elif operation == "mend_header":
            data[88:96] = checksum(bytes(data[:88]))
        elif operation == "mend_end":
            data[-8:] = checksum(bytes(data[:-8]))
        else:
            raise ValueError(operation)
    return bytes(data)


def check_case(file, case):
    """Raises FormatError as the decoder does; AssertionError when the decoder opens but reads something else."""
    what = file["what"]
    if what == "digits":
        assert key_from_digits(case["digits"]).hex() == case["key"]
    elif what == "padme":
        assert padme(case[0]) == case[1]
    elif what == "pages":
        _, bases_checksum, pages = read_pages(unhex(case["bytes"]))
        assert plain(pages) == case["pages"] and plain(bases_checksum) == case["bases_checksum"]
    elif what == "patches":
        bases, patch = bytes.fromhex(file["bases"]), bytes.fromhex(case["patch"])
        assert apply_patch(bases, case["place"], patch, file["page_size"]).hex() == case["page"]
    elif what == "files":
        assert plain(read_files(unhex(case["bytes"]))) == case["files"]
    elif what == "entries":
        entry = plain(read_entry(unhex(case["bytes"])))
        for name in entry.keys() | case["fields"].keys():
            assert entry.get(name) == case["fields"].get(name), name
    elif what == "keyring":
        field = {**file, **case}
        data = edited(bytes.fromhex(file["object"]), case["edits"])
        roots = open_keyring(data, bytes.fromhex(field["archive"]), field["counter"], bytes.fromhex(field["key"]))
        assert {str(epoch): root.hex() for epoch, root in roots.items()} == case["roots"]
    elif what == "objects":
        archive, key = bytes.fromhex(file["archive"]), bytes.fromhex(file["key"])
        roots = open_keyring(bytes.fromhex(file["keyring"]), archive, file["keyring_counter"], key)
        sealed = file["objects"][case["object"]]
        data = edited(bytes.fromhex(sealed["sealed"]), case["edits"])
        plaintext = open_object(data, case.get("as", sealed["store_key"]), roots)
        assert len(plaintext) == case["len"] and blake3(plaintext).hexdigest() == case["blake3"]
    else:
        raise ValueError(what)


def unhex(value):
    """Bytes as vectors write them: digits, or [[digits, how often] …] for what is long and all alike."""
    return bytes.fromhex(value) if isinstance(value, str) else b"".join(bytes.fromhex(part) * n for part, n in value)


def plain(value):
    """As vectors write it in JSON: bytes as hex, a set of pages or files as [[key, what it is …]]."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict) and not isinstance(next(iter(value), None), str):
        return [[plain(key), *plain(what if isinstance(what, tuple) else [what])] for key, what in value.items()]
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    return [plain(member) for member in value] if isinstance(value, list | tuple) else value


def check_restore(archive, restore):
    seq = restore["seq"]
    if "folder" in restore:
        with tempfile.TemporaryDirectory() as scratch:
            out = os.path.join(scratch, "out")
            archive.restore_folder(seq, restore["folder"], out)
            assert files_in(os.fsencode(out)) == restore["files"]
    else:
        image = archive.restore(seq, restore["database"])
        assert (image is None) == ("gone" in restore)
        assert image is None or blake3(image).hexdigest() == restore["blake3"]


def files_in(folder):
    found = []
    for place, _, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in names):
            about = os.lstat(path)
            with open(path, "rb") as file:
                content = file.read()
            name, mode = os.path.relpath(path, folder).hex(), stat.S_IMODE(about.st_mode)
            found.append([name, mode, about.st_mtime_ns, blake3(content).hexdigest()])
    return sorted(found)


def outcome(check, *arguments):
    try:
        check(*arguments)
        return "opens"
    except FormatError as error:
        return str(error)
    except AssertionError as error:
        return f"opens, but reads otherwise {error}"


def check_vectors(folder):
    results = []
    for name in sorted(os.listdir(os.path.join(folder, "format"))):
        with open(os.path.join(folder, "format", name), encoding="utf-8") as file:
            content = json.load(file)
        for case in content["cases"]:
            about = case if isinstance(case, dict) else {"name": str(case)}
            result = outcome(check_case, content, case)
            results.append((f"{name}: {about['name']}", result, about.get("error", "opens")))
    for name in ("store", "hostile"):
        store = os.path.join(folder, name)
        with open(os.path.join(store, "expected.json"), encoding="utf-8") as file:
            about = json.load(file)
        archive = Archive(store, about["archive"], key_from_digits(about["digits"]))
        for restore in about["restores"]:
            label = restore.get("name") or f"{restore.get('database', restore.get('folder'))} at {restore['seq']}"
            result = outcome(check_restore, archive, restore)
            results.append((f"{name}: {label}", result, restore.get("error", "opens")))
        if "digits_before_rotation" in about:
            old_key = key_from_digits(about["digits_before_rotation"])
            result = outcome(Archive, store, about["archive"], old_key)
            results.append((f"{name}: the key before the rotation", result, "WrongKey"))
    wrong = [result for result in results if result[1] != result[2]]
    for label, result, expected in wrong:
        print(f"{label}: {result}, not {expected}")
    print(f"{len(results)} checked, {len(wrong)} wrong")
    return not wrong


def main(arguments):
    seq = None
    if "--seq" in arguments:
        at = arguments.index("--seq")
        seq = int(arguments[at + 1])
        del arguments[at : at + 2]
    match arguments:
        case ["check", folder]:
            return 0 if check_vectors(folder) else 1
        case ["list", store, name]:
            archive = Archive(store, name, key_from_digits(sys.stdin.read()))
            for number in archive.numbers("log"):
                entry, _ = archive.entry(number)
                names = ", ".join(record["name"] for record in entry["databases"] + entry["folders"])
                print(f"{number}\t{entry['taken_at_us']}\t{entry['source_name']}\t{names}")
            return 0
        case ["restore", store, name, database, out]:
            archive = Archive(store, name, key_from_digits(sys.stdin.read()))
            image = archive.restore(seq or max(archive.numbers("log"), default=0), database)
            if image is None:
                fail("the database was gone at this point")
            with open(out, "xb") as file:
                file.write(image)
            print(f"{out}: {len(image)} bytes, state digest is right")
            return 0
        case ["restore-folder", store, name, folder, out]:
            archive = Archive(store, name, key_from_digits(sys.stdin.read()))
            count = archive.restore_folder(seq or max(archive.numbers("log"), default=0), folder, out)
            print(f"{out}: {count} files, every chunk has its id")
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FormatError as problem:
        sys.exit(f"decode.py: {problem}")
