//! Reads live SQLite databases of other programs consistently from outside, and writes them back proven.
