//! Sockets and quinn profiles that peers and clients share.
