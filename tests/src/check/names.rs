//! Snapshots with names: a name means what a majority holds, on every node alike, and no trim takes what one of them goes on with.

use std::collections::{BTreeMap, BTreeSet};

use graven_frame::{Frame, Kind};

use super::{Checked, violated};

/// Id and offset of a snapshot.
pub type Version = (u64, u64);

/// What a name stands for: what readers get, and what is offered.
pub type Meaning = (Option<Version>, Option<Version>);

/// What the names stand for, by what is committed.
#[derive(Debug, Default)]
pub struct Names {
    /// Index of an entry that changed them, and the names behind it.
    history: Vec<(u64, BTreeMap<String, Meaning>)>,
    /// Which node had which file, durably, at any time.
    held: BTreeSet<(u64, u64)>,
    committed: BTreeSet<u64>,
}

fn field(body: &[u8], at: usize) -> Option<u64> {
    body.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

impl Names {
    /// `node` has the file of snapshot `id`, durably.
    pub fn held(&mut self, node: u64, id: u64) {
        self.held.insert((node, id));
    }

    /// The names at the end of what is committed.
    #[must_use]
    pub fn now(&self) -> BTreeMap<String, Meaning> {
        self.history.last().map(|(_, names)| names.clone()).unwrap_or_default()
    }

    /// The files that every node should have in the end.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<u64> {
        let both = |(current, offered): &Meaning| current.iter().chain(offered).map(|(id, _)| *id).collect::<Vec<_>>();
        self.now().values().flat_map(both).collect()
    }

    /// `frame` is committed, after all before it, in a cluster of `voters` nodes.
    ///
    /// # Errors
    /// A name means what no majority has, or a trim takes what a snapshot goes on with.
    pub fn committed(&mut self, frame: &Frame, voters: u64) -> Checked {
        let index = frame.header().index;
        let body = frame.body().concat();
        if frame.header().kind == Kind::Trim {
            let before = field(&body, 8).unwrap_or(0);
            let both = |(current, offered): Meaning| current.into_iter().chain(offered);
            let needed =
                self.now().into_iter().flat_map(|(name, meaning)| both(meaning).map(move |it| (it.1, name.clone())));
            return match needed.min().filter(|(offset, _)| before > *offset) {
                Some((offset, name)) => violated(
                    "P2",
                    format!("the entry at {index} trims up to {before}, and the snapshot {name} goes on at {offset}"),
                ),
                None => Ok(()),
            };
        }
        if frame.header().kind != Kind::Snapshot {
            return Ok(());
        }
        let word = (field(&body, 0).map(|word| word >> 32), field(&body, 8), field(&body, 16), body.get(48..));
        let (Some(what), Some(id), Some(offset), Some(name)) = word else {
            return violated("P2", format!("the entry at {index} about a snapshot cannot be read"));
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let mut names = self.now();
        match what {
            1 => names.entry(name).or_default().1 = Some((id, offset)),
            2 => {
                let holders = self.held.iter().filter(|(_, held)| *held == id).count() as u64;
                if holders * 2 <= voters {
                    return violated(
                        "P1",
                        format!("snapshot {id:x} of {name} is committed, {holders} nodes ever held it"),
                    );
                }
                self.committed.insert(id);
                if let Some(meaning) = names.get_mut(&name)
                    && meaning.1.is_some_and(|(offered, _)| offered == id)
                {
                    *meaning = (meaning.1, None);
                }
            }
            _ => drop(names.remove(&name)),
        }
        self.history.push((index, names));
        Ok(())
    }

    /// `node`, which shows entries up to `readable`, says that the names stand for this.
    ///
    /// # Errors
    /// They do not.
    pub fn shows(&self, node: u64, readable: u64, names: &BTreeMap<String, Meaning>) -> Checked {
        let known = self.history.partition_point(|(at, _)| *at <= readable);
        let none = BTreeMap::new();
        let should = known.checked_sub(1).map_or(&none, |at| &self.history[at].1);
        if names == should {
            return Ok(());
        }
        violated("P2", format!("node {node} at entry {readable} has the snapshots {names:?}, they are {should:?}"))
    }

    /// Somebody was told that snapshot `id` is committed.
    ///
    /// # Errors
    /// It is not.
    pub fn answered(&self, id: u64) -> Checked {
        match self.committed.contains(&id) {
            true => Ok(()),
            false => violated("P1", format!("snapshot {id:x} was acknowledged, and no committed entry says so")),
        }
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{Body, Chain, HeaderSpec};

    use super::*;

    fn frame(kind: Kind, index: u64, body: Vec<u8>) -> Frame {
        let spec = HeaderSpec { kind, term: 1, index, base_offset: 0, count: 0, timestamp_ms: 0 };
        let body = Body::from_chunks(vec![body.into()]);
        let crc = body.crc();
        Frame::seal(spec, Chain::START, body, crc)
    }

    fn word(index: u64, what: u32, id: u64, offset: u64) -> Frame {
        let mut body = [1u32.to_le_bytes(), what.to_le_bytes()].concat();
        [id, offset, 0, 0, 0].iter().for_each(|number| body.extend(number.to_le_bytes()));
        body.extend(b"a");
        frame(Kind::Snapshot, index, body)
    }

    fn trim(index: u64, before: u64) -> Frame {
        frame(Kind::Trim, index, [1u64.to_le_bytes(), before.to_le_bytes()].concat())
    }

    #[test]
    fn a_commit_needs_a_majority_and_a_trim_stops_at_the_lowest() {
        let mut names = Names::default();
        names.committed(&word(1, 1, 7, 50), 3).expect("an offer");
        names.held(1, 7);
        assert!(names.committed(&word(2, 2, 7, 0), 3).is_err_and(|violation| violation.property == "P1"));
        assert!(names.answered(7).is_err());
        names.held(2, 7);
        names.committed(&word(2, 2, 7, 0), 3).expect("two hold it");
        names.answered(7).expect("it is committed");
        names.committed(&trim(3, 50), 3).expect("up to it");
        assert!(names.committed(&trim(4, 51), 3).is_err_and(|violation| violation.property == "P2"));
        names.committed(&word(5, 3, 0, 0), 3).expect("dropped");
        names.committed(&trim(6, 51), 3).expect("nobody needs it");
    }

    #[test]
    fn a_node_shows_the_names_of_its_own_place_in_the_log() {
        let mut names = Names::default();
        names.committed(&word(4, 1, 7, 50), 3).expect("an offer");
        let offered = BTreeMap::from([("a".to_owned(), (None, Some((7, 50))))]);
        names.shows(1, 3, &BTreeMap::new()).expect("not there yet");
        names.shows(1, 4, &offered).expect("there");
        assert!(names.shows(1, 4, &BTreeMap::new()).is_err());
        assert!(names.shows(1, 3, &offered).is_err());
    }
}
