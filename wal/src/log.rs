//! The writer: one owner appends, and says when what was appended is durable.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use graven_frame::{Frame, HEADER_BYTES, Header, Kind};

use crate::disk::{DIRECT_BYTES, Disk, DiskFile, WriteMode};
use crate::error::{AppendError, CreateError, OpenError, SegmentId};
use crate::format::{PREFIX_BYTES, Prefix, RecordKind, SMALL_RECORD, encode_hard_state, encode_reset, extent, twin_of};
use crate::index::View;
use crate::map::Mirror;
use crate::plan::{Fill, MIN_SEGMENT_BYTES};
use crate::planted::{Bug, is_planted};
use crate::pool::{Failure, Pool, zero_fill};
use crate::reader::{LogReader, Shared};
use crate::room::Room;
use crate::types::{Counters, HardState, Identity, LogBase, Options, PrepareState, Recovered, SyncMethod, WalStats};

/// A log open for appending. One owner; [`Wal::reader`] gives others a view.
///
/// Nothing here waits for anything but the disk, and nothing looks at a clock: when to sync, to prepare segments and to
/// write sync points is the owner's decision.
pub struct Wal<D: Disk> {
    pub(crate) disk: D,
    pub(crate) options: Options,
    pub(crate) identity: Identity,
    pub(crate) shared: Arc<Shared>,
    pub(crate) active: Active<D::File>,
    pub(crate) pool: Pool<D>,
    /// The last entry.
    pub(crate) tail: LogBase,
    pub(crate) hard_state: HardState,
    pub(crate) noted_commit: u64,
    /// Last entry covered by a sync.
    pub(crate) durable_index: u64,
    pub(crate) counters: Arc<Counters>,
    /// The first write or sync error; nothing is written after it.
    pub(crate) closed: Option<AppendError>,
    /// Prefixes of the records being written; kept for its capacity.
    pub(crate) staging: Vec<[u8; PREFIX_BYTES]>,
    /// The memory of the segment before, and what readers see of it, for the next one.
    pub(crate) retired: Option<(Mirror, Arc<View>)>,
    /// Segments that hold only entries below this one are on their way out.
    pub(crate) release_to: u64,
    /// Alive while a sealed segment is being mended.
    pub(crate) mending: std::sync::Weak<()>,
    pub(crate) _lock: D::Lock,
}

/// The segment that takes the records.
pub(crate) struct Active<F> {
    pub(crate) view: Arc<View>,
    pub(crate) file: F,
    pub(crate) capacity: u64,
    pub(crate) written: u64,
    /// Everything below is durable.
    pub(crate) synced: u64,
    /// Everything below is known to be durable by a record in the segment, or needs no such record.
    pub(crate) vouched: u64,
    /// Its footer is written: the next record goes into another segment.
    pub(crate) sealed: bool,
    /// Everything below was written at least once since the file got its space.
    pub(crate) filled: u64,
    /// Behind the written mark there may be records of an earlier life of the file: every write ends with an end mark.
    pub(crate) recycled: bool,
    /// Its content, if it is written around the page cache.
    pub(crate) mirror: Option<Mirror>,
}

impl<F: DiskFile> Active<F> {
    /// Writes at or behind the written mark.
    ///
    /// Around the page cache whole blocks are written, and the first one again with the bytes that stand in it already: each
    /// of its sectors is then, whatever becomes of the write, as it was or as it will be. The rest of the last block is
    /// zeroes, at least as many as an end mark has.
    pub(crate) fn write_at(&mut self, at: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let Some(mirror) = &mut self.mirror else { return self.file.write_vectored_at(at, slices) };
        let len: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let (mut from, end) = (at - at % DIRECT_BYTES, at + len);
        let to = (end + PREFIX_BYTES as u64).next_multiple_of(DIRECT_BYTES).min(self.capacity);
        if at > self.written {
            mirror.zero(from.max(self.written), at);
        }
        mirror.put(at, slices.iter().map(|slice| &slice[..]));
        mirror.zero(end, to);
        if is_planted(Bug::TailBlockSkipped) {
            from = at.next_multiple_of(DIRECT_BYTES);
        }
        self.file.write_at(from, mirror.block(from, to))
    }
}

/// What pads a record up to the next boundary, and a hard state up to its second copy.
pub(crate) static PADDING: [u8; 4096] = [0; 4096];

impl<D: Disk> Wal<D> {
    /// Makes a log in an empty directory: its first segment, with `first` as its first entries, durable.
    ///
    /// A crash before the end leaves a directory that [`Wal::open`] calls empty and `create` takes again.
    ///
    /// # Errors
    /// When the directory is not empty, the entries do not start a log, or the disk fails.
    pub fn create(disk: D, identity: Identity, options: Options, first: &[Frame]) -> Result<(), CreateError> {
        crate::create::create(&disk, identity, &options, first)
    }

    /// Opens the log: takes the directory's lock, finds out what is there, and makes all of it durable.
    ///
    /// # Errors
    /// When there is no log, it is locked, foreign, newer or damaged, or the disk fails.
    pub fn open(disk: D, options: Options) -> Result<(Wal<D>, Recovered), OpenError> {
        crate::open::open(disk, options)
    }

    /// Writes entries behind the last one. Durable after the next [`Wal::sync`]; readable at once.
    ///
    /// An entry with the index of one that is there supersedes it and all behind it; its chain must continue the entry
    /// before it. Bodies are trusted: whoever received them verified them.
    ///
    /// # Errors
    /// Everything but [`AppendError::Closed`] was refused before a byte was written.
    pub fn append(&mut self, frames: &[Frame]) -> Result<(), AppendError> {
        self.check_open()?;
        self.check_follow(frames)?;
        let cuts = self.admit(frames)?;
        let mut done = 0;
        for (cut, capacity) in cuts {
            self.write_frames(&frames[done..cut])?;
            self.rotate(capacity)?;
            done = cut;
        }
        let before = self.active.written;
        self.write_frames(&frames[done..])?;
        self.maybe_seal_ahead(self.active.written - before)
    }

    /// Writes a hard state behind the entries. Durable after the next [`Wal::sync`].
    ///
    /// # Errors
    /// When it would go back, there is not even a reserve left, or the log is closed.
    pub fn set_hard_state(&mut self, hard_state: HardState) -> Result<(), AppendError> {
        self.check_open()?;
        let current = self.hard_state;
        let changes_vote = hard_state.term == current.term && current.vote.is_some() && hard_state.vote != current.vote;
        if hard_state.term < current.term || changes_vote {
            return Err(AppendError::HardStateBack { term: hard_state.term, current });
        }
        if hard_state == current {
            return Ok(());
        }
        let span = |at: u64| twin_of(at) + SMALL_RECORD - at;
        self.make_room(span)?;
        let at = self.active.written;
        let twin = twin_of(at);
        let payload = encode_hard_state(hard_state);
        let mut prefix = self.prefix(RecordKind::HardState, at, payload.len(), crc32fast::hash(&payload));
        // Both copies name the first one's place, so that the second cannot be taken for the copy of anything else.
        prefix.head_crc = (at / crate::format::BOUNDARY) as u32;
        let first = prefix.encode();
        (prefix.copy, prefix.position) = (1, twin);
        let second = prefix.encode();
        let gap = &PADDING[..(twin - at - SMALL_RECORD) as usize];
        let mut slices = [
            IoSlice::new(&first),
            IoSlice::new(&payload),
            IoSlice::new(gap),
            IoSlice::new(&second),
            IoSlice::new(&payload),
        ];
        self.write(&mut slices, twin + SMALL_RECORD)?;
        self.hard_state = hard_state;
        Ok(())
    }

    /// Starts the log anew behind `base`, as after the install of a checkpoint. Durable after the next [`Wal::sync`].
    ///
    /// The entries held so far are gone from the log's view; their segments go with [`Wal::release_before`].
    ///
    /// # Errors
    /// When there is not even a reserve left, or the log is closed.
    pub fn reset(&mut self, base: LogBase) -> Result<(), AppendError> {
        self.check_open()?;
        self.make_room(|_| SMALL_RECORD)?;
        let payload = encode_reset(&base);
        let at = self.active.written;
        let prefix = self.prefix(RecordKind::Reset, at, payload.len(), crc32fast::hash(&payload)).encode();
        self.write(&mut [IoSlice::new(&prefix), IoSlice::new(&payload)], at + SMALL_RECORD)?;
        let mut index = self.shared.write();
        index.reset(base);
        if let Some(segment) = index.segments.last_mut() {
            segment.reset = true;
        }
        drop(index);
        self.tail = base;
        self.durable_index = self.durable_index.min(base.index);
        self.note_stable();
        Ok(())
    }

    /// Notes that entries up to `index` are committed. It goes into the records written later, as far as it is durable
    /// here, and keeps these entries from being superseded.
    pub fn note_commit(&mut self, index: u64) {
        self.noted_commit = self.noted_commit.max(index);
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// The first error closes the log for good: what was written since the last success may or may not be there.
    pub fn sync(&mut self) -> Result<(), AppendError> {
        self.check_open()?;
        if self.options.sync == SyncMethod::UnsafeNone || self.active.synced == self.active.written {
            return Ok(());
        }
        Counters::add(&self.counters.syncs, 1);
        let mut synced = self.active.file.sync_data();
        if is_planted(Bug::SyncRetried) && synced.is_err() {
            synced = self.active.file.sync_data();
        }
        synced.map_err(|cause| self.close_for(Failure::at("sync", self.active.view.id, self.active.synced)(cause)))?;
        self.mark_synced();
        Ok(())
    }

    /// Whether the last bytes made durable are not yet vouched for by a record behind them. The owner then calls
    /// [`Wal::write_sync_point`] when nothing else came within 10 ms.
    #[must_use]
    pub fn sync_point_due(&self) -> bool {
        let Active { written, synced, vouched, .. } = self.active;
        self.closed.is_none()
            && written == synced
            && synced > vouched
            && self.options.sync != SyncMethod::UnsafeNone
            // Else only the next segment can vouch for what is before; the reserve is not for that.
            && (self.takes_sync_point() || self.pool.len() > 1)
    }

    /// Whether the active segment has room for one more. Every record before it kept some for one, and each start needs another.
    fn takes_sync_point(&self) -> bool {
        Fill::of(&self.shared.read(), self.active.written, self.active.sealed, self.active.capacity).takes(0)
    }

    /// Writes a record that vouches for everything synced before, and syncs it: from then on a change in those bytes is
    /// damage, not a torn tail. Behind a footer, and where there is no room left, it is the opening of the next segment. Does nothing when
    /// none is due.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub fn write_sync_point(&mut self) -> Result<(), AppendError> {
        self.check_open()?;
        if !self.sync_point_due() {
            return Ok(());
        }
        if !self.takes_sync_point() {
            return match self.ensure(&[self.options.segment_bytes], 1) {
                Ok(()) => self.rotate(self.options.segment_bytes).and_then(|()| self.sync()),
                // Later, then.
                Err(AppendError::DiskFull { .. }) => Ok(()),
                Err(error) => Err(error),
            };
        }
        let at = self.active.written;
        let prefix = self.prefix(RecordKind::SyncPoint, at, 0, crc32fast::hash(b"")).encode();
        self.write(&mut [IoSlice::new(&prefix)], at + PREFIX_BYTES as u64)?;
        self.sync()?;
        self.active.vouched = self.active.synced;
        Ok(())
    }

    /// One step of making segments ready, writing at most `budget_bytes` of zeroes. For idle moments.
    ///
    /// # Errors
    /// The first error but a full disk closes the log for good.
    pub fn prepare(&mut self, budget_bytes: u64) -> Result<PrepareState, AppendError> {
        self.check_open()?;
        self.shared.sweep_held(&self.counters);
        let state = match self.fill_active(budget_bytes) {
            Ok(true) => Ok(PrepareState::More),
            Ok(false) => self.pool.prepare(budget_bytes, &self.counters),
            Err(failure) => Err(failure),
        };
        state.map_err(|failure| self.close_for(failure))
    }

    /// Zero-fills what the active segment has not used yet, if it was begun before that was done: it was the first one, or
    /// preparation was behind. Not before the next segments have their space. `true` when it did something.
    fn fill_active(&mut self, budget_bytes: u64) -> Result<bool, Failure> {
        let mut from = self.active.filled.max(self.active.written);
        if self.options.sync.mode() == WriteMode::Direct {
            // Up to there the next records write zeroes themselves.
            from = from.next_multiple_of(DIRECT_BYTES);
        }
        if self.active.sealed || from >= self.active.capacity || self.pool.wants_space() {
            return Ok(false);
        }
        let Active { view, file, capacity, .. } = &self.active;
        self.active.filled = zero_fill(file, view.id, (from, *capacity), budget_bytes, &self.counters)?;
        Ok(true)
    }

    /// Whether the disk has no room for another segment and little more than the reserve is left: take no more records.
    ///
    /// Told early: entries that are on their way when it becomes true, about 16 MiB of them if as much was prepared, are still
    /// taken. They are refused only when they would need the reserve. It clears by itself when a segment can be prepared again.
    #[must_use]
    pub fn disk_full(&self) -> bool {
        self.room().is_full()
    }

    /// What there is room for, without the reserve.
    #[must_use]
    pub fn room(&self) -> Room {
        if !self.pool.no_space() {
            return Room::plenty();
        }
        let fill = Fill::of(&self.shared.read(), self.active.written, self.active.sealed, self.active.capacity);
        let spare = self.pool.len().saturating_sub(1);
        Room::left(fill.left(), spare as u64, self.options.segment_bytes, FULL_MARGIN_BYTES)
    }

    /// Whether there is a segment that records do not take; for the simulator.
    #[doc(hidden)]
    #[must_use]
    pub fn has_reserve(&self) -> bool {
        self.pool.len() > 0
    }

    /// The directory it lives in, for what stands beside it.
    #[must_use]
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// A view for reading, here or on other threads.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// The last entry written.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.tail.index
    }

    /// The last entry covered by a sync.
    #[must_use]
    pub fn durable_index(&self) -> u64 {
        self.durable_index
    }

    /// The last entry written, as the place behind which the log goes on.
    #[must_use]
    pub fn tail(&self) -> LogBase {
        self.tail
    }

    /// The hard state last written.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Whose log this is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        self.counters.load()
    }

    /// The counters behind [`Wal::stats`], for another thread.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Makes everything durable and vouched for, and lets the directory go.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub fn close(mut self) -> Result<(), AppendError> {
        self.sync()?;
        self.write_sync_point()
    }

    /// Lets go of the log and keeps the directory.
    pub(crate) fn into_lock(self) -> D::Lock {
        self._lock
    }

    pub(crate) fn check_open(&self) -> Result<(), AppendError> {
        self.closed.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn close_for(&mut self, failure: Failure) -> AppendError {
        let Failure { operation, segment, at, cause } = failure;
        let closed = AppendError::Closed { operation, segment, at, cause: Arc::new(cause) };
        self.closed = Some(closed.clone());
        closed
    }

    /// Refuses entries that would not continue the log.
    fn check_follow(&self, frames: &[Frame]) -> Result<(), AppendError> {
        let Some(first) = frames.first().map(Frame::header) else { return Ok(()) };
        if first.index > self.tail.index + 1 {
            return Err(AppendError::Gap { index: first.index, last: self.tail.index });
        }
        let base = self.shared.read().base;
        let settled = base.index.max(self.noted_commit.min(self.tail.index));
        if first.index <= settled {
            return Err(AppendError::Settled { index: first.index, settled });
        }
        let mut before = self.tail;
        if first.index <= self.tail.index {
            before = if first.index == base.index + 1 {
                base
            } else {
                let index = first.index - 1;
                let header = self.reader().header(index);
                LogBase::after(&header.map_err(|cause| AppendError::Unreadable { index, cause: Arc::new(cause) })?)
            };
        }
        for frame in frames {
            let header = frame.header();
            follows(&before, header).map_err(|what| AppendError::WrongChain { index: header.index, what })?;
            before = LogBase::after(header);
        }
        Ok(())
    }

    /// Plans where segments end, and takes the space for all of it, or refuses.
    fn admit(&mut self, frames: &[Frame]) -> Result<Vec<(usize, u64)>, AppendError> {
        // Moves of cursors may be as many as records.
        let records = frames.iter().any(|frame| matches!(frame.header().kind, Kind::Records | Kind::Cursor));
        let cuts = {
            let index = self.shared.read();
            let fill = Fill::of(&index, self.active.written, self.active.sealed, self.active.capacity);
            fill.plan(frames, self.options.segment_bytes)
        };
        if !cuts.is_empty() {
            let capacities: Vec<u64> = cuts.iter().map(|(_, capacity)| *capacity).collect();
            // Entries with records leave one segment behind: the reserve.
            self.ensure(&capacities, usize::from(records && !is_planted(Bug::ReserveSpent)))?;
        }
        Ok(cuts)
    }

    fn ensure(&mut self, capacities: &[u64], spare: usize) -> Result<(), AppendError> {
        match self.pool.ensure(capacities, spare, &self.counters) {
            Ok(()) => Ok(()),
            Err(failure) if failure.is_full() => {
                Err(AppendError::DiskFull { segment_bytes: self.options.segment_bytes })
            }
            Err(failure) => Err(self.close_for(failure)),
        }
    }

    /// Goes on in the next segment if a control record of `span(at)` bytes does not fit here.
    fn make_room(&mut self, span: impl Fn(u64) -> u64) -> Result<(), AppendError> {
        let fits = {
            let index = self.shared.read();
            let fill = Fill::of(&index, self.active.written, self.active.sealed, self.active.capacity);
            fill.takes(span(self.active.written))
        };
        if fits {
            return Ok(());
        }
        self.ensure(&[self.options.segment_bytes], 0)?;
        self.rotate(self.options.segment_bytes)
    }

    pub(crate) fn prefix(&self, kind: RecordKind, position: u64, payload_len: usize, body_crc: u32) -> Prefix {
        Prefix {
            kind,
            copy: 0,
            salt: self.active.view.salt,
            segment: self.active.view.id,
            position,
            watermark: if is_planted(Bug::WatermarkStuck) { 0 } else { self.active.synced },
            // Only what is durable here as well: recovery takes this as proof that the entries were synced.
            known_commit: self.noted_commit.min(self.durable_index),
            head_crc: 0,
            body_crc,
            payload_len: payload_len as u32,
        }
    }

    /// Writes entries of one segment with as few calls as possible.
    fn write_frames(&mut self, frames: &[Frame]) -> Result<(), AppendError> {
        let Some(first) = frames.first() else { return Ok(()) };
        let mut staging = std::mem::take(&mut self.staging);
        staging.clear();
        // From here on nothing at or behind the first entry is durable any more, and the prefixes must not say it is.
        self.durable_index = self.durable_index.min(first.header().index - 1);
        let mut at = self.active.written;
        for frame in frames {
            let mut prefix = self.prefix(RecordKind::Frame, at, frame.encoded_len(), frame.header().body_crc);
            prefix.head_crc = head_crc(frame.head());
            staging.push(prefix.encode());
            at += extent(frame.encoded_len());
        }
        let chunks: usize = frames.iter().map(|frame| 3 + frame.body().chunks().len()).sum();
        let mut slices = Vec::with_capacity(chunks);
        for (prefix, frame) in staging.iter().zip(frames) {
            slices.push(IoSlice::new(prefix));
            slices.push(IoSlice::new(frame.head()));
            slices.extend(frame.body().chunks().iter().map(|chunk| IoSlice::new(chunk)));
            let len = frame.encoded_len();
            let padding = extent(len) - (PREFIX_BYTES + len) as u64;
            if padding > 0 {
                slices.push(IoSlice::new(&PADDING[..padding as usize]));
            }
        }
        let start = self.active.written;
        self.write(&mut slices, at)?;
        self.staging = staging;
        self.publish(frames, start);
        Ok(())
    }

    /// Lets readers see entries whose bytes are written.
    fn publish(&mut self, frames: &[Frame], start: u64) {
        let mut at = start;
        let mut index = self.shared.write();
        for frame in frames {
            index.push(frame.header(), at);
            at += extent(frame.encoded_len());
        }
        drop(index);
        if let Some(last) = frames.last() {
            self.tail = LogBase::after(last.header());
        }
        Counters::add(&self.counters.frames, frames.len() as u64);
        self.note_stable();
    }

    /// Writes one contiguous run of records up to `end`.
    pub(crate) fn write(&mut self, slices: &mut [IoSlice<'_>], end: u64) -> Result<(), AppendError> {
        let at = self.active.written;
        let written = if self.active.recycled && !self.active.sealed && !is_planted(Bug::EndMarkOmitted) {
            // Where a prefix would be there are zeroes, then: whatever else stands there after a crash is what is left of
            // a later write. The next record goes over them.
            let mut marked = slices.to_vec();
            marked.push(IoSlice::new(&PADDING[..PREFIX_BYTES]));
            self.active.write_at(at, &mut marked)
        } else {
            self.active.write_at(at, slices)
        };
        written.map_err(|cause| self.close_for(Failure::at("write", self.active.view.id, at)(cause)))?;
        Counters::add(&self.counters.bytes_written, end - at);
        self.active.vouched = self.active.vouched.max(self.active.synced);
        self.active.written = end;
        self.active.view.written.store(end, Ordering::Release);
        if self.options.sync == SyncMethod::Dsync {
            self.active.synced = end;
        }
        Ok(())
    }

    /// With `O_DSYNC` what is written is durable: call when the state of this object says what was written.
    fn note_stable(&mut self) {
        if self.options.sync == SyncMethod::Dsync {
            self.mark_synced();
        }
    }

    fn mark_synced(&mut self) {
        self.active.synced = self.active.written;
        self.durable_index = self.tail.index;
    }
}

/// Whether the entry with this header may stand behind `before`; the message says what does not fit.
pub(crate) fn follows(before: &LogBase, header: &Header) -> Result<(), &'static str> {
    if header.index != before.index + 1 {
        Err("its index is not the next one")
    } else if header.term < before.term {
        Err("its term is lower")
    } else if header.base_offset != before.next_offset {
        Err("its offset is not the next one")
    } else if header.chain_after(before.chain) != header.chain {
        Err("its chain does not match")
    } else {
        Ok(())
    }
}

/// The last four bytes of an encoded header: its own CRC.
pub(crate) fn head_crc(head: &[u8]) -> u32 {
    let mut crc = [0; 4];
    crc.copy_from_slice(&head[HEADER_BYTES - 4..HEADER_BYTES]);
    u32::from_le_bytes(crc)
}

/// Checks the settings, and rounds what needs rounding.
pub(crate) fn settled_options(options: &Options) -> Result<Options, (&'static str, &'static str)> {
    let segment_bytes = options.segment_bytes.max(MIN_SEGMENT_BYTES).next_multiple_of(4096);
    if segment_bytes > MAX_SEGMENT_BYTES {
        return Err(("segment_bytes", "at most 64 GiB"));
    }
    Ok(Options { segment_bytes, prepared_segments: options.prepared_segments.max(1), ..options.clone() })
}

/// A hard state's copies name the first one's place in units of 64 bytes in 32 bits; this stays far below.
const MAX_SEGMENT_BYTES: u64 = 64 << 30;
/// What a leader may have on its way to this log when it hears that the disk is full: it stops at 4 MiB that are not committed,
/// after one round of 1 MiB more, and the word needs its time. The rest is for what frames waste at the ends of small segments.
const FULL_MARGIN_BYTES: u64 = 16 << 20;

impl<D: Disk> std::fmt::Debug for Wal<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let segment = SegmentId(self.active.view.id);
        f.debug_struct("Wal")
            .field("segment", &segment)
            .field("tail", &self.tail)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
