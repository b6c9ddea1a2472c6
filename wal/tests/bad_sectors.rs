//! A medium that refuses to give some of its blocks, and a vote that may have stood in damaged bytes.

mod common;

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use common::{first, grow, new_log, options, read_all};
use graven_frame::Frame;
use graven_wal::mend::{Marker, Mended, Mender};
use graven_wal::sim::SimDisk;
use graven_wal::{Disk, DiskFile, DiskMap, HardState, LockError, OpenError, Wal, WriteMode, inspect};

const BLOCK: u64 = 4096;

/// A simulated disk of which some blocks cannot be read, until something else stands in their place.
#[derive(Clone)]
struct Failing {
    disk: SimDisk,
    bad: Arc<Mutex<BTreeMap<String, Vec<u64>>>>,
}

struct FailingFile {
    file: <SimDisk as Disk>::File,
    bad: Vec<u64>,
}

impl Failing {
    fn new(disk: SimDisk, name: &str, blocks: &[u64]) -> Failing {
        Failing { disk, bad: Arc::new(Mutex::new(BTreeMap::from([(name.to_owned(), blocks.to_vec())]))) }
    }

    fn wrap(&self, name: &str, file: <SimDisk as Disk>::File) -> FailingFile {
        FailingFile { file, bad: self.bad.lock().expect("no panic").get(name).cloned().unwrap_or_default() }
    }
}

impl DiskFile for FailingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let end = at + into.len() as u64;
        if self.bad.iter().any(|block| block * BLOCK < end && at < (block + 1) * BLOCK) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.read_at(at, into)
    }

    fn write_vectored_at(&self, at: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.file.write_vectored_at(at, slices)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        self.file.map(len)
    }
}

impl Disk for Failing {
    type File = FailingFile;
    type Lock = <SimDisk as Disk>::Lock;

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str, mode: WriteMode) -> io::Result<FailingFile> {
        Ok(self.wrap(name, self.disk.create(name, mode)?))
    }

    fn open(&self, name: &str, mode: Option<WriteMode>) -> io::Result<FailingFile> {
        Ok(self.wrap(name, self.disk.open(name, mode)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut bad = self.bad.lock().expect("no panic");
        let blocks = bad.remove(from);
        bad.remove(to);
        bad.extend(blocks.map(|blocks| (to.to_owned(), blocks)));
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        self.disk.create_dir(name)
    }

    fn sync_subdir(&self, name: &str) -> io::Result<()> {
        self.disk.sync_subdir(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn lock(&self, name: &str) -> Result<Self::Lock, LockError> {
        self.disk.lock(name)
    }

    fn lock_holder(&self, name: &str) -> io::Result<Option<u32>> {
        self.disk.lock_holder(name)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn random(&self) -> io::Result<u64> {
        self.disk.random()
    }
}

fn mend<D: Disk>(disk: &D, frames: &[Frame]) -> Mended {
    let mut mender = Mender::open(disk.clone(), options()).expect("damage is no error");
    assert!(!mender.holes().is_empty());
    while let Some(wanted) = mender.wanted() {
        mender.fill(wanted.hole, &frames[wanted.first as usize - 1..wanted.last as usize]).expect("they fit");
    }
    if mender.has_damaged_tail() {
        mender.cut_tail().expect("no fault");
    }
    mender.finish().expect("no fault")
}

/// Every block of every segment, refused by the medium: the rest is read, and what stood there comes from elsewhere.
#[test]
fn refused_blocks_are_mended_like_any_damage() {
    let disk = SimDisk::new(17);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for term in 2..5 {
        frames.extend(grow(&mut wal, 5, 1900));
        wal.set_hard_state(HardState { term, vote: Some(term) }).expect("room");
        wal.sync().expect("no fault");
    }
    // The last entry and what vouches for it lie in one block.
    frames.extend(grow(&mut wal, 1, 100));
    wal.sync().expect("no fault");
    let hard_state = wal.hard_state();
    wal.close().expect("no fault");
    let begun = inspect::scan(&disk).expect("a log").segments;
    let begun: Vec<_> = begun.iter().filter(|found| found.state != inspect::SegmentState::Prepared).collect();
    let mut cut = 0;
    for found in &begun {
        let name = format!("{}.seg", found.id);
        for block in 0..found.file_bytes / BLOCK {
            let failing = Failing::new(disk.copy(), &name, &[block]);
            let refused = Wal::open(failing.clone(), options());
            let used = block * BLOCK < found.written;
            if found.state == inspect::SegmentState::Active {
                assert!(!used || matches!(refused, Err(OpenError::Io { .. })), "{name} block {block}");
            }
            drop(refused);
            let mended = mend(&failing, &frames);
            assert!(mended.left.is_empty(), "{name} block {block}: {mended:?}");
            let (wal, recovered) = Wal::open(failing.clone(), options()).expect("mended");
            let shorter = Marker::read(&failing).expect("whole").is_some();
            cut += u64::from(shorter);
            let kept = read_all(&wal.reader());
            assert!(shorter || kept == frames, "{name} block {block}");
            assert_eq!(kept, frames[..kept.len()]);
            assert!(recovered.hard_state == hard_state || !mended.hard_state_certain, "{name} block {block}");
        }
    }
    println!("{} segments, {cut} cuts", begun.len());
    assert!(begun.len() > 2 && cut > 0);
}

/// A vote between two entries, both of its copies gone with them.
fn log_with_a_vote() -> (SimDisk, Vec<Frame>, Vec<(u64, u64)>) {
    let disk = SimDisk::new(18);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    frames.extend(grow(&mut wal, 2, 300));
    wal.sync().expect("no fault");
    wal.set_hard_state(HardState { term: 7, vote: Some(2) }).expect("room");
    frames.extend(grow(&mut wal, 2, 300));
    wal.sync().expect("no fault");
    wal.close().expect("no fault");
    let entries = inspect::entries(&disk).expect("a log").map(|entry| entry.expect("intact"));
    let places: Vec<u64> = entries.map(|entry| entry.at).collect();
    let ranges = places.iter().zip(places.iter().skip(1)).map(|(from, to)| (*from, *to)).collect();
    (disk, frames, ranges)
}

#[test]
fn vote_that_may_have_been_lost_is_told_and_marked() {
    let (disk, frames, ranges) = log_with_a_vote();
    let name = "0000000000000001.seg";
    // Entry 3, and the vote behind it up to entry 4.
    let (from, to) = ranges[2];
    assert!(to - from > 640, "the vote is between them");
    let both = disk.copy();
    (from..to).for_each(|at| both.rot(name, at, |byte| *byte ^= 0xFF));
    let mended = mend(&both, &frames);
    assert!(!mended.hard_state_certain && mended.left.is_empty() && mended.entries == 1, "{mended:?}");
    let marker = Marker::read(&both).expect("whole").expect("written");
    assert!(!marker.hard_state_certain && marker.last_kept == frames.len() as u64, "{marker:?}");
    let (wal, recovered) = Wal::open(both.copy(), options()).expect("mended");
    assert_eq!(read_all(&wal.reader()), frames);
    assert_eq!(recovered.hard_state.term, 1, "the vote is gone, and nobody may think otherwise");
    Marker::remove(&both).expect("no fault");
    assert_eq!(Marker::read(&both).expect("whole"), None);
    Marker::remove(&both).expect("twice is once");
    // With one copy left nothing is lost.
    let one = disk.copy();
    (from..from + 900).for_each(|at| one.rot(name, at, |byte| *byte ^= 0xFF));
    let mended = mend(&one, &frames);
    assert!(mended.hard_state_certain, "{mended:?}");
    let (_, recovered) = Wal::open(one.copy(), options()).expect("mended");
    assert_eq!((recovered.hard_state, Marker::read(&one).expect("none")), (HardState { term: 7, vote: Some(2) }, None));
    // An entry alone leaves no room for a vote.
    let entry = disk.copy();
    entry.rot(name, ranges[3].0 + 100, |byte| *byte ^= 1);
    assert!(mend(&entry, &frames).hard_state_certain);
}

/// Entries that nobody else has are cut. While the prefix of the damaged one is whole it is known to be an entry, however long, and no vote
/// is doubted; without it a vote may have stood there, where an entry lies across a border of blocks.
#[test]
fn an_end_that_is_given_up_costs_no_vote_while_its_prefix_says_what_it_was() {
    let disk = SimDisk::new(19);
    let mut wal = new_log(&disk);
    for _ in 0..9 {
        grow(&mut wal, 1, 1000);
        wal.sync().expect("no fault");
    }
    wal.close().expect("no fault");
    let entries = inspect::entries(&disk).expect("a log").map(|entry| entry.expect("intact"));
    let places: Vec<u64> = entries.map(|entry| entry.at).collect();
    let name = "0000000000000001.seg";
    let give_up = |at: u64| {
        let copy = disk.copy();
        copy.rot(name, at, |byte| *byte ^= 1);
        let mut mender = Mender::open(copy.clone(), options()).expect("damage is no error");
        let wanted = mender.wanted().expect("a hole");
        mender.give_up(wanted.hole).expect("nothing of it is committed");
        let marker = mender.cut_tail().expect("no fault");
        let mended = mender.finish().expect("no fault");
        assert_eq!(mended.hard_state_certain, marker.hard_state_certain);
        mended.hard_state_certain
    };
    let mut doubted = 0;
    for at in &places[2..places.len() - 2] {
        assert!(give_up(at + 500), "the body of the entry at {at}");
        doubted += u64::from(!give_up(at + 20));
    }
    assert!(doubted > 0, "no entry lies across a border");
}

#[test]
fn damaged_marker_is_no_marker_that_permits() {
    let (disk, frames, ranges) = log_with_a_vote();
    let (from, to) = ranges[2];
    (from..to).for_each(|at| disk.rot("0000000000000001.seg", at, |byte| *byte ^= 0xFF));
    mend(&disk, &frames);
    for at in 0..64 {
        let copy = disk.copy();
        copy.rot("recovering", at, |byte| *byte ^= 1);
        assert!(Marker::read(&copy).is_err(), "byte {at}");
    }
    let short = disk.copy();
    short.edit("recovering", |bytes| bytes.truncate(40));
    assert!(Marker::read(&short).is_err());
}
