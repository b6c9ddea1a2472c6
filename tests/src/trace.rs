//! What happened, one line an event: a hash of it always, its text on demand.
//!
//! Two runs of one seed must have equal traces; the hash proves it without keeping the text.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

/// See the module's documentation.
pub struct Trace {
    hash: Xxh3,
    text: Option<String>,
    print: bool,
}

/// What becomes of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceTo {
    /// Only its hash is kept.
    Hash,
    /// It is kept in memory.
    Memory,
    /// It goes to standard output as it happens.
    Output,
}

struct Hashing<'a>(&'a mut Xxh3);

impl fmt::Write for Hashing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({:016x})", self.hash())
    }
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub fn new(to: TraceTo) -> Trace {
        Trace { hash: Xxh3::new(), text: (to == TraceTo::Memory).then(String::new), print: to == TraceTo::Output }
    }

    /// Adds a line.
    pub fn line(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        use fmt::Write as _;
        // Neither sink can fail.
        let _ = writeln!(Hashing(&mut self.hash), "{now_us} {what}");
        if let Some(text) = &mut self.text {
            let _ = writeln!(text, "{now_us} {what}");
        }
        if self.print {
            println!("{:>12.6} {what}", now_us as f64 / 1e6);
        }
    }

    /// Hash of all lines so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// The lines, when they were kept.
    #[must_use]
    pub fn into_text(self) -> Option<String> {
        self.text
    }
}
