//! Snapshot files: the state of an application after all records below an offset, of any size.
//!
//! - [`BodyWriter`] makes one durable under its name, or leaves nothing of it.
//! - [`BodyReader`] reads one, in order or chunk by chunk; no byte leaves it unverified.
//! - [`Partial`] receives one from another node, and goes on after a restart where it stood.
//! - [`stored`], [`remove`], [`set_aside`] and [`sweep`] look after the files of a directory.
//!
//! All of it is synchronous and holds little more than two chunks ([`CHUNK_BYTES`]) in memory. Nothing here looks at a clock: whoever wants a
//! rate gives [`Options::pace`].
//!
//! ```
//! use std::io::{Read, Write};
//! use graven_snapshot::body::{BodyReader, BodyWriter, Header, Name, Options};
//! use graven_wal::sim::SimDisk;
//!
//! let disk = SimDisk::new(42);
//! let name = Name::new("orders")?;
//! let header = Header { cluster: 1, id: 99, name, offset: 40, timestamp_ms: 1_700_000_000_000 };
//! let mut writer = BodyWriter::create(&disk, header, Options::default())?;
//! writer.write_all(b"all orders below offset 40")?;
//! let info = writer.finish()?;
//! assert_eq!((info.header.offset, info.bytes), (40, 26));
//!
//! let mut text = String::new();
//! BodyReader::open(&disk, &info.header.file_name())?.read_to_string(&mut text)?;
//! assert_eq!(text, "all orders below offset 40");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod directory;
mod error;
mod format;
mod partial;
mod read;
mod write;

pub use directory::{ASIDE_MAX, Stored, Swept, partials, remove, set_aside, stored, sweep};
pub use error::{BodyError, BodyFlaw};
pub use format::{
    BODY_BYTES_MAX, BODY_FORMAT_VERSION, CHUNK_BYTES, CHUNK_HEAD_BYTES, Digest, HEADER_BYTES, Header, INFO_BYTES, Info,
    NAME_BYTES_MAX, Name, NameError, file_of, id_of, own_file_at,
};
pub use partial::Partial;
pub use read::{BodyReader, info, verify};
pub use write::{BodyWriter, Options, Pace, SYNC_BYTES};
