//! Object stores of the large clouds, and whatever speaks their protocols.
