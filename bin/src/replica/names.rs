//! Snapshots with names: which there are, by the entries that speak of them.
//!
//! An application that lives elsewhere keeps pictures of its state here. `Offer` says that one exists, on the leader at least; whoever
//! reads it fetches the file. `Commit` says that a majority of the voters holds it, durably: from there on the name means this one, and the
//! one before it may go. `Drop` ends a name. What an entry says that makes no sense where it stands is ignored, by all nodes alike.
//!
//! An entry's body, little-endian: version (4: 1), what (4: 1 offer, 2 commit, 3 drop), id (8), offset (8), bytes of the file (8), digest (16), then the
//! name. A commit has no offset, bytes and digest, a drop no id either: zero.
//!
//! In a checkpoint, the number of names (4), and for each, ascending: its length (4) and bytes, and twice, for the one in force and the one that is offered: id (8;
//! zero: none), offset (8), bytes (8), digest (16), timestamp (8).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use graven_frame::{Frame, FrameError, Kind};

use super::checkpoint::Fields;
use super::planted::{Bug, is_planted};

const ENTRY_VERSION: u32 = 1;
const HEAD_BYTES: usize = 48;
/// Names at most: each may hold a large file on every node, twice while a new one comes.
pub const NAMES_MAX: usize = 64;
/// Bytes of a name at most: it stands in file headers, on command lines and in tables.
pub const NAME_BYTES_MAX: usize = 64;

/// Whether a snapshot may be named so: 1 to 64 letters, digits, `.`, `_`, `-`, the first of them no dot and no dash.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['.', '-'])
}

/// One picture of an application's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Picture {
    /// Names its file; drawn at random by the node that took it, never 0.
    pub id: u64,
    /// It is the state after all records below this offset.
    pub offset: u64,
    /// Bytes of its body.
    pub bytes: u64,
    /// The digest of its file.
    pub digest: u128,
    /// When it was offered, by the leader's clock, milliseconds since the epoch.
    pub timestamp_ms: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Named {
    /// What readers get.
    pub current: Option<Picture>,
    /// What is spread at the moment, to take its place.
    pub offered: Option<Picture>,
}

impl Named {
    fn pictures(&self) -> impl Iterator<Item = Picture> + use<> {
        self.current.into_iter().chain(self.offered)
    }
}

/// What an entry says of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    Offer(String, Picture),
    Commit(String, u64),
    Drop(String),
}

impl Word {
    /// The bytes of the entry's body. A picture's timestamp is the entry's own.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (what, name, id, offset, bytes, digest): (u32, _, _, _, _, _) = match self {
            Word::Offer(name, Picture { id, offset, bytes, digest, .. }) => (1, name, *id, *offset, *bytes, *digest),
            Word::Commit(name, id) => (2, name, *id, 0, 0, 0),
            Word::Drop(name) => (3, name, 0, 0, 0, 0),
        };
        let mut body = Vec::with_capacity(HEAD_BYTES + name.len());
        body.extend(ENTRY_VERSION.to_le_bytes());
        body.extend(what.to_le_bytes());
        for number in [id, offset, bytes] {
            body.extend(number.to_le_bytes());
        }
        body.extend(digest.to_le_bytes());
        body.extend(name.as_bytes());
        body
    }

    /// What a frame says of names, when it does.
    pub(super) fn of(frame: &Frame) -> Result<Option<Word>, FrameError> {
        if frame.header().kind != Kind::Snapshot {
            return Ok(None);
        }
        let body = frame.body().concat();
        let word = Word::decode(&body, frame.header().timestamp_ms).filter(|word| word.encode() == *body);
        word.map(Some).ok_or(FrameError::Malformed { what: "snapshot entry", at: 0 })
    }

    fn decode(body: &[u8], timestamp_ms: u64) -> Option<Word> {
        let mut from = Fields::new(body);
        if from.u32()? != ENTRY_VERSION {
            return None;
        }
        let (what, id, offset, bytes) = (from.u32()?, from.u64()?, from.u64()?, from.u64()?);
        let digest = from.u128()?;
        let name = String::from_utf8(from.rest().to_vec()).ok().filter(|name| is_name(name))?;
        match what {
            1 if id > 0 => Some(Word::Offer(name, Picture { id, offset, bytes, digest, timestamp_ms })),
            2 if id > 0 => Some(Word::Commit(name, id)),
            3 => Some(Word::Drop(name)),
            _ => None,
        }
    }
}

/// All names, as of some entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory(BTreeMap<String, Named>);

impl Directory {
    /// The names, ascending, with what they stand for.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Named)> {
        self.0.iter().map(|(name, named)| (name.as_str(), named))
    }

    /// What a name stands for.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Named> {
        self.0.get(name)
    }

    /// Whether one more name finds room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.0.len() < NAMES_MAX
    }

    /// The name whose snapshot needs the log most, and from which offset on: records from there on must stay.
    #[must_use]
    pub fn lowest(&self) -> Option<(&str, u64)> {
        let needs =
            |(name, named): (_, &Named)| named.pictures().map(|it| it.offset).min().map(|offset| (name, offset));
        self.iter().filter_map(needs).min_by_key(|(_, offset)| *offset)
    }

    /// The ids of all pictures.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<u64> {
        self.0.values().flat_map(Named::pictures).map(|picture| picture.id).collect()
    }

    fn apply(&mut self, word: &Word) {
        match word {
            Word::Offer(name, picture) => {
                let has_room = self.has_room();
                let old = self.0.get(name).and_then(|named| named.current).map_or(0, |current| current.offset);
                if picture.offset >= old && (has_room || self.0.contains_key(name)) {
                    self.0.entry(name.clone()).or_default().offered = Some(*picture);
                }
            }
            Word::Commit(name, id) => {
                if let Some(named) = self.0.get_mut(name)
                    && let Some(offered) = named.offered.take_if(|offered| offered.id == *id)
                {
                    named.current = Some(offered);
                }
            }
            Word::Drop(name) => {
                self.0.remove(name);
            }
        }
    }
}

/// The names that readers see, and what is in the log behind that.
#[derive(Debug, Default)]
pub(super) struct Names {
    visible: Directory,
    ahead: VecDeque<(u64, Word)>,
    /// Counts what became visible, and what was taken back.
    version: u64,
}

impl Names {
    pub(super) fn note(&mut self, frame: &Frame) -> Result<(), FrameError> {
        if let Some(word) = Word::of(frame)? {
            self.ahead.push_back((frame.header().index, word));
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, index: u64) {
        while self.ahead.back().is_some_and(|(at, _)| *at >= index) {
            self.ahead.pop_back();
            self.version += 1;
        }
    }

    /// Entries up to `index` may be seen.
    pub(super) fn pass(&mut self, index: u64) {
        while self.ahead.front().is_some_and(|(at, _)| *at <= index) {
            let Some((_, word)) = self.ahead.pop_front() else { break };
            self.visible.apply(&word);
            self.version += 1;
        }
    }

    /// These names in place of ours; whoever counts versions sees that something changed.
    pub(super) fn replaced(&self, by: Names) -> Names {
        Names { version: self.version + 1, ..by }
    }

    /// As readers see them.
    pub(super) fn visible(&self) -> &Directory {
        &self.visible
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// As they are at the end of the log: what the next entry is judged by.
    pub(super) fn latest(&self) -> Directory {
        let mut latest = self.visible.clone();
        if !is_planted(Bug::NamesJudgedLate) {
            self.ahead.iter().for_each(|(_, word)| latest.apply(word));
        }
        latest
    }

    /// What readers see, and what any entry behind that brings: a later one that takes its name may be superseded, and it is not.
    pub(super) fn pictures(&self) -> BTreeSet<u64> {
        let brought = self.ahead.iter().filter_map(|(_, word)| match word {
            Word::Offer(_, picture) => Some(picture.id),
            _ => None,
        });
        self.visible.ids().into_iter().chain(brought).collect()
    }

    /// Whether the log says already that this picture is committed.
    pub(super) fn is_settling(&self, id: u64) -> bool {
        self.ahead.iter().any(|(_, word)| matches!(word, Word::Commit(_, settled) if *settled == id))
    }

    pub(super) fn ahead(&self) -> usize {
        self.ahead.len()
    }

    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        if self.visible.0.is_empty() {
            return None;
        }
        let mut out = (self.visible.0.len() as u32).to_le_bytes().to_vec();
        for (name, named) in &self.visible.0 {
            out.extend((name.len() as u32).to_le_bytes());
            out.extend(name.as_bytes());
            for picture in [named.current, named.offered] {
                let none = Picture { id: 0, offset: 0, bytes: 0, digest: 0, timestamp_ms: 0 };
                let Picture { id, offset, bytes, digest, timestamp_ms } = picture.unwrap_or(none);
                for number in [id, offset, bytes] {
                    out.extend(number.to_le_bytes());
                }
                out.extend(digest.to_le_bytes());
                out.extend(timestamp_ms.to_le_bytes());
            }
        }
        Some(out)
    }

    pub(super) fn decode(from: &mut Fields<'_>) -> Option<Names> {
        let mut names = BTreeMap::new();
        let count = from.u32()?;
        for _ in 0..count {
            let len = from.u32()? as usize;
            let name = String::from_utf8(from.bytes(len)?.to_vec()).ok().filter(|name| is_name(name))?;
            let mut pictures = [None; 2];
            for picture in &mut pictures {
                let (id, offset, bytes) = (from.u64()?, from.u64()?, from.u64()?);
                let (digest, timestamp_ms) = (from.u128()?, from.u64()?);
                *picture = (id > 0).then_some(Picture { id, offset, bytes, digest, timestamp_ms });
            }
            let [current, offered] = pictures;
            if names.last_key_value().is_some_and(|(last, _)| *last >= name) || names.len() == NAMES_MAX {
                return None;
            }
            names.insert(name, Named { current, offered });
        }
        Some(Names { visible: Directory(names), ..Names::default() })
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{Body, Chain, HeaderSpec};

    use super::*;

    fn picture(id: u64, offset: u64) -> Picture {
        Picture { id, offset, bytes: id * 100, digest: u128::from(id) << 70, timestamp_ms: 9 }
    }

    fn frame(index: u64, body: Vec<u8>) -> Frame {
        let spec = HeaderSpec { kind: Kind::Snapshot, term: 1, index, base_offset: 0, count: 0, timestamp_ms: 9 };
        let body = Body::from_chunks(vec![body.into()]);
        let crc = body.crc();
        Frame::seal(spec, Chain::START, body, crc)
    }

    fn names(words: &[Word]) -> Names {
        let mut names = Names::default();
        for (index, word) in (1..).zip(words) {
            names.note(&frame(index, word.encode())).expect("well formed");
        }
        names
    }

    fn offer(name: &str, id: u64, offset: u64) -> Word {
        Word::Offer(name.into(), picture(id, offset))
    }

    #[test]
    fn words_are_read_back_and_others_refused() {
        for word in [offer("a", 7, 70), Word::Commit("b.c".into(), 7), Word::Drop("x-1".into())] {
            let body = word.encode();
            assert_eq!(Word::of(&frame(3, body.clone())), Ok(Some(word)));
            for end in 0..HEAD_BYTES + 1 {
                assert!(Word::of(&frame(3, body[..end].to_vec())).is_err(), "cut at {end}");
            }
            for at in [0, 4, 7] {
                let mut other = body.clone();
                other[at] ^= 0x40;
                assert!(Word::of(&frame(3, other)).is_err(), "byte {at}");
            }
        }
        for name in ["", "-a", ".a", "a/b", "ä", &"x".repeat(65)] {
            assert!(Word::of(&frame(3, Word::Drop(name.into()).encode())).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_name_means_the_committed_picture_until_a_newer_one_is() {
        let mut names = names(&[offer("a", 1, 10), Word::Commit("a".into(), 1), offer("a", 2, 30), offer("b", 3, 20)]);
        names.pass(1);
        assert_eq!(names.visible().get("a"), Some(&Named { current: None, offered: Some(picture(1, 10)) }));
        names.pass(3);
        let a = Named { current: Some(picture(1, 10)), offered: Some(picture(2, 30)) };
        assert_eq!(names.visible().get("a"), Some(&a));
        assert_eq!((names.visible().lowest(), names.latest().get("b").is_some()), (Some(("a", 10)), true));
        names.truncate(4);
        assert!(names.latest().get("b").is_none());
        names.note(&frame(4, Word::Commit("a".into(), 2).encode())).expect("well formed");
        assert!(names.is_settling(2));
        names.pass(4);
        assert_eq!((names.visible().lowest(), names.visible().ids()), (Some(("a", 30)), BTreeSet::from([2])));
    }

    #[test]
    fn a_picture_whose_name_a_later_entry_takes_is_still_spoken_of() {
        let all = names(&[offer("a", 1, 4), offer("a", 2, 5), Word::Drop("a".to_owned())]);
        assert_eq!((all.latest().ids(), all.pictures()), (BTreeSet::new(), BTreeSet::from([1, 2])));
    }

    #[test]
    fn what_makes_no_sense_is_ignored() {
        let mut words = vec![offer("a", 1, 10), Word::Commit("a".into(), 1)];
        words.extend([
            offer("a", 2, 9),
            Word::Commit("a".into(), 2),
            Word::Commit("z".into(), 5),
            Word::Drop("z".into()),
        ]);
        words.extend((0..2 * NAMES_MAX as u64).map(|at| offer(&format!("n{at}"), 100 + at, 50)));
        let mut names = names(&words);
        names.pass(u64::MAX);
        assert_eq!(names.visible().get("a"), Some(&Named { current: Some(picture(1, 10)), offered: None }));
        assert_eq!(names.visible().iter().count(), NAMES_MAX);
    }

    #[test]
    fn a_checkpoint_has_what_readers_see() {
        let mut names = names(&[offer("a", 1, 10), Word::Commit("a".into(), 1), offer("a", 2, 30), offer("b", 3, 20)]);
        assert_eq!(names.encode(), None);
        names.pass(3);
        let bytes = names.encode().expect("a name");
        let back = Names::decode(&mut Fields::new(&bytes)).expect("whole");
        assert_eq!((back.visible(), back.ahead()), (names.visible(), 0));
        for end in 0..bytes.len() {
            assert!(Names::decode(&mut Fields::new(&bytes[..end])).is_none(), "cut at {end}");
        }
    }
}
