//! graven
