//! The word that a log differs from the others': a file `diverged` in the data directory.
//!
//! The node that finds it stops. Started again it would serve what it has until it meets a leader once more, so the file keeps it from
//! starting. Whoever is sure of what they do may remove it; nothing else does.

use std::io::Write as _;
use std::path::Path;

use tracing::warn;

use super::engine::Fatal;
use crate::replica::Alarm;

/// Its name.
const MARK: &str = "diverged";
/// The sentence in it is one of ours.
const MARK_BYTES_MAX: u64 = 4096;

/// Leaves the word, if this is why the node stops.
pub(super) fn note(data_dir: &Path, fatal: &Fatal) {
    let Fatal::Alarm(alarm @ Alarm::Diverged { .. }) = fatal else { return };
    let write = || {
        let mut file = std::fs::File::create(data_dir.join(MARK))?;
        writeln!(file, "{alarm}")?;
        file.sync_all()?;
        std::fs::File::open(data_dir)?.sync_all()
    };
    if let Err(cause) = write() {
        warn!("cannot write {MARK} into {}: {cause}; do not start this node again", data_dir.display());
    }
}

/// What an earlier life of this node found, if its log differs.
pub(super) fn found(data_dir: &Path) -> Option<String> {
    use std::io::Read as _;
    let file = std::fs::File::open(data_dir.join(MARK)).ok()?;
    let mut text = String::new();
    // Whatever stands in it: that it is there is what counts.
    let _ = file.take(MARK_BYTES_MAX).read_to_string(&mut text);
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use graven_raft::NodeId;

    use super::*;

    #[test]
    fn only_a_divergence_leaves_the_word_and_it_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        note(dir.path(), &Fatal::Machine("it fell over".to_owned()));
        note(dir.path(), &Fatal::Alarm(Alarm::DiskStalled));
        assert_eq!(found(dir.path()), None);
        note(dir.path(), &Fatal::Alarm(Alarm::Diverged { index: 7, peer: NodeId(2) }));
        assert!(found(dir.path()).is_some_and(|words| words.contains("entry 7")));
        std::fs::write(dir.path().join(MARK), [0xff, 0xfe]).expect("written");
        assert!(found(dir.path()).is_some(), "damaged, it still holds");
    }
}
