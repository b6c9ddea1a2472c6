//! Named cursors: what was acknowledged is committed, nothing but a set or a drop takes a cursor back, and every node shows what the log says.

use std::collections::BTreeMap;

use graven_frame::{Frame, Kind};

use super::{Checked, violated};

/// Cursors by name.
pub type Table = BTreeMap<String, u64>;

/// The cursors, by what is committed.
#[derive(Debug, Default)]
pub struct Cursors {
    /// Index of an entry, and the cursors behind each of its moves: each is answered for itself.
    history: Vec<(u64, Table)>,
}

/// Moves in an entry: what (1 advance, 2 set, 3 drop), name, offset.
fn moves(body: &[u8]) -> Option<Vec<(u8, String, u64)>> {
    let count = u32::from_le_bytes(body.get(4..8)?.try_into().ok()?);
    let mut rest = body.get(8..)?;
    let mut found = Vec::new();
    for _ in 0..count {
        let (head, behind) = rest.split_at_checked(10)?;
        let (name, behind) = behind.split_at_checked(head[1].into())?;
        let offset = u64::from_le_bytes(head[2..].try_into().ok()?);
        found.push((head[0], String::from_utf8(name.to_vec()).ok()?, offset));
        rest = behind;
    }
    rest.is_empty().then_some(found)
}

impl Cursors {
    fn now(&self) -> Table {
        self.history.last().map(|(_, table)| table.clone()).unwrap_or_default()
    }

    /// A request reaches its node: what [`Cursors::answered`] and [`Cursors::seen`] are given later.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.history.len()
    }

    /// `frame` is committed, after all before it.
    ///
    /// # Errors
    /// It moves a cursor past the records before it, or cannot be read.
    pub fn committed(&mut self, frame: &Frame) -> Checked {
        if frame.header().kind != Kind::Cursor {
            return Ok(());
        }
        let index = frame.header().index;
        let Some(moves) = moves(&frame.body().concat()) else {
            return violated("P2", format!("the entry at {index} about cursors cannot be read"));
        };
        let mut table = self.now();
        for (what, name, offset) in moves {
            if offset > frame.header().base_offset {
                return violated("P2", format!("the entry at {index} moves {name} to {offset}, which is not there"));
            }
            match what {
                1 => {
                    let at = table.entry(name).or_default();
                    *at = offset.max(*at);
                }
                2 => drop(table.insert(name, offset)),
                _ => drop(table.remove(&name)),
            }
            self.history.push((index, table.clone()));
        }
        Ok(())
    }

    /// `node`, which shows entries up to `readable`, says that the cursors stand here.
    ///
    /// # Errors
    /// They do not.
    pub fn shows(&self, node: u64, readable: u64, table: &Table) -> Checked {
        let known = self.history.partition_point(|(at, _)| *at <= readable);
        let none = Table::new();
        let should = known.checked_sub(1).map_or(&none, |at| &self.history[at].1);
        if table == should {
            return Ok(());
        }
        violated("P2", format!("node {node} at entry {readable} has the cursors {table:?}, they are {should:?}"))
    }

    /// Whether a cursor stood at `at` at any time from `asked` on.
    fn stood(&self, asked: usize, name: &str, at: Option<u64>) -> bool {
        let before = asked == 0 && at.is_none();
        let since = &self.history[asked.saturating_sub(1)..];
        before || since.iter().any(|(_, table)| table.get(name).copied() == at)
    }

    /// A move that reached its node at `asked` was answered with where the cursor stands; `None`: it is gone.
    ///
    /// # Errors
    /// What is committed does not say so.
    pub fn answered(&self, asked: usize, name: &str, at: Option<u64>) -> Checked {
        match self.stood(asked, name, at) {
            true => Ok(()),
            false => violated("P1", format!("cursor {name} was acknowledged at {at:?}, and nothing committed says so")),
        }
    }

    /// A linearizable look at a cursor, which reached its node at `asked`, found it here.
    ///
    /// # Errors
    /// It stood elsewhere, all the time.
    pub fn seen(&self, asked: usize, name: &str, at: Option<u64>) -> Checked {
        match self.stood(asked, name, at) {
            true => Ok(()),
            false => {
                violated("P8", format!("cursor {name} was seen at {at:?}, where it was not since it was asked for"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{Body, Chain, HeaderSpec};

    use super::*;

    /// An entry behind 100 records.
    fn entry(index: u64, moves: &[(u8, &str, u64)]) -> Frame {
        let mut body = [1u32.to_le_bytes(), (moves.len() as u32).to_le_bytes()].concat();
        for (what, name, offset) in moves {
            body.extend([*what, name.len() as u8]);
            body.extend(offset.to_le_bytes());
            body.extend(name.as_bytes());
        }
        let spec = HeaderSpec { kind: Kind::Cursor, term: 1, index, base_offset: 100, count: 0, timestamp_ms: 0 };
        let body = Body::from_chunks(vec![body.into()]);
        let crc = body.crc();
        Frame::seal(spec, Chain::START, body, crc)
    }

    fn table(cursors: &[(&str, u64)]) -> Table {
        cursors.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect()
    }

    #[test]
    fn a_node_shows_the_cursors_of_its_own_place_in_the_log() {
        let mut cursors = Cursors::default();
        cursors.committed(&entry(4, &[(1, "a", 7), (1, "b", 9)])).expect("moved");
        cursors.committed(&entry(6, &[(1, "a", 3), (2, "b", 2)])).expect("moved");
        cursors.shows(1, 3, &table(&[])).expect("not there yet");
        cursors.shows(1, 5, &table(&[("a", 7), ("b", 9)])).expect("there");
        cursors.shows(1, 6, &table(&[("a", 7), ("b", 2)])).expect("an advance goes not back, a set does");
        for wrong in [table(&[("a", 3), ("b", 2)]), table(&[("a", 7)]), table(&[("a", 7), ("b", 9)])] {
            assert!(cursors.shows(1, 6, &wrong).is_err_and(|violation| violation.property == "P2"));
        }
        assert!(cursors.committed(&entry(7, &[(1, "a", 101)])).is_err());
    }

    #[test]
    fn what_was_acknowledged_and_seen_was_so_after_it_was_asked_for() {
        let mut cursors = Cursors::default();
        assert!(cursors.answered(0, "a", Some(7)).is_err_and(|violation| violation.property == "P1"));
        cursors.seen(0, "a", None).expect("nobody made it");
        cursors.committed(&entry(4, &[(1, "a", 7)])).expect("moved");
        cursors.committed(&entry(5, &[(1, "a", 9)])).expect("moved");
        cursors.answered(0, "a", Some(7)).expect("it was there");
        cursors.seen(1, "a", Some(7)).expect("it was there when it was asked for");
        assert!(cursors.seen(2, "a", Some(7)).is_err_and(|violation| violation.property == "P8"));
        assert!(cursors.seen(2, "a", None).is_err());
        cursors.committed(&entry(6, &[(3, "a", 0), (1, "a", 1), (1, "a", 2)])).expect("moved");
        cursors.answered(2, "a", None).expect("it was gone");
        cursors.answered(2, "a", Some(1)).expect("it was there before it went on");
        cursors.shows(1, 6, &table(&[("a", 2)])).expect("only the last is seen");
    }
}
