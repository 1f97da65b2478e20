//! The contract of Chatkeep object stores, its conformance suite, memory and chaos stores.
