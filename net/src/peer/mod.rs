//! Lanes between nodes: control messages and appends.
