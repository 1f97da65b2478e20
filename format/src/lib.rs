//! Every object in a Chatkeep archive, byte by byte.
