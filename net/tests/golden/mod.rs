//! Captures of messages: a text file with a line for each, its name and its bytes in hex.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

/// The captures of one file, and what this build makes of the same messages.
pub(crate) struct Captures {
    file: PathBuf,
    golden: BTreeMap<String, Vec<u8>>,
    made: String,
    names: Vec<String>,
}

impl Captures {
    pub(crate) fn open(name: &str) -> Self {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden-v1").join(name);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let golden = lines.map(|line| {
            let (name, hex) = line.split_once(' ').unwrap_or((line, ""));
            (name.to_owned(), decode(hex))
        });
        Self { golden: golden.collect(), file, made: String::new(), names: Vec::new() }
    }

    /// Compares the bytes that this build makes with those of the file, and gives the file's bytes to `read`.
    pub(crate) fn check(&mut self, name: &str, made: &[u8], read: impl FnOnce(&[u8])) {
        let hex = made.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let _ = writeln!(self.made, "{name} {hex}");
        assert!(!self.names.iter().any(|known| known == name), "{name} is captured twice");
        self.names.push(name.to_owned());
        if std::env::var_os(WRITE).is_some() {
            return read(made);
        }
        let golden = self.golden.get(name).unwrap_or_else(|| panic!("{name} is not in {}", self.file.display()));
        assert!(golden == made, "{name}: the bytes are {hex}, and not those of {}", self.file.display());
        read(golden);
    }

    /// Every capture was made again; with the variable set, the file is written.
    pub(crate) fn close(self) {
        if std::env::var_os(WRITE).is_some() {
            fs::write(&self.file, format!("# See README.md in this directory.\n{}", self.made)).expect("written");
            return;
        }
        let forgotten: Vec<&String> = self.golden.keys().filter(|name| !self.names.contains(name)).collect();
        assert!(forgotten.is_empty(), "captured and made by nobody any more: {forgotten:?}");
    }
}

/// Set it to write the captures of a version that was never released.
const WRITE: &str = "GRAVEN_WRITE_GOLDEN";

fn decode(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).expect("hex") as u8).collect();
    assert!(digits.len().is_multiple_of(2), "half a byte");
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
