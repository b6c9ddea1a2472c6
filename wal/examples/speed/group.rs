//! Group sync as a node has it: requests go to a log thread through a bounded channel, it writes what has come, syncs once and
//! answers; each request's wait is from its sending to its answer, by the clock of who sent it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use graven_frame::{Body, Frame, HeaderSpec, Kind};
use graven_wal::{Disk, LogBase, PrepareState, Wal};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Requests that wait at the same time.
pub(crate) const WRITERS: usize = 64;

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    /// One thread that sends so many requests and each again as soon as it is answered: a node's protocol thread.
    InFlight(usize),
    /// So many threads, each with one request at a time.
    Threads(usize),
}

/// What joins a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joining {
    /// Whatever is in the queue when the one before it is done.
    Queued,
    /// The thread waits this long at most for as many requests as the last sync answered: those are on their way again.
    Awaited(Duration),
}

/// What was measured, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) waits: Vec<f64>,
    /// Of the sync call alone.
    pub(crate) syncs: Vec<f64>,
    pub(crate) spent: f64,
}

struct Request {
    sent: Instant,
    answer: SyncSender<Instant>,
}

/// One round: `time` long, then lets go of what is written and prepares segments.
pub(crate) fn round<D: Disk>(
    wal: &mut Wal<D>,
    body: &(Body, u32),
    writers: Writers,
    joining: Joining,
    time: Duration,
    measured: &mut Measured,
) -> Fallible<()> {
    let start = Instant::now();
    let until = start + time;
    let (queue, requests) = sync_channel::<Request>(WRITERS);
    let (waits, syncs) = std::thread::scope(|scope| -> Fallible<_> {
        let mut threads = Vec::new();
        match writers {
            Writers::InFlight(count) => threads.push(scope.spawn(move || in_flight(&queue, count, until))),
            Writers::Threads(count) => {
                threads.extend((0..count).map(|_| {
                    let queue = queue.clone();
                    scope.spawn(move || in_flight(&queue, 1, until))
                }));
                drop(queue);
            }
        }
        let syncs = serve(wal, body, joining, &requests)?;
        let waits: Vec<f64> = threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect();
        Ok((waits, syncs))
    })?;
    measured.spent += start.elapsed().as_secs_f64();
    measured.waits.extend(waits);
    measured.syncs.extend(syncs);
    wal.note_commit(wal.last_index());
    wal.release_before(wal.last_index())?;
    while wal.prepare(16 << 20)? == PrepareState::More {}
    Ok(())
}

/// Keeps so many requests waiting; how long each did.
fn in_flight(queue: &SyncSender<Request>, count: usize, until: Instant) -> Vec<f64> {
    let (answer, answers) = sync_channel(count);
    let send = || queue.send(Request { sent: Instant::now(), answer: answer.clone() }).is_ok();
    let (mut waiting, mut waits) = ((0..count).filter(|_| send()).count(), Vec::new());
    while waiting > 0
        && let Ok(sent) = answers.recv()
    {
        let now = Instant::now();
        waits.push((now - sent).as_secs_f64());
        waiting -= 1;
        if now < until && send() {
            waiting += 1;
        }
    }
    waits
}

/// The log thread; ends when nobody can send any more.
fn serve<D: Disk>(
    wal: &mut Wal<D>,
    body: &(Body, u32),
    joining: Joining,
    requests: &Receiver<Request>,
) -> Fallible<Vec<f64>> {
    let (mut syncs, mut batch, mut expected) = (Vec::new(), Vec::new(), 1);
    while let Ok(first) = requests.recv() {
        batch.push(first);
        match joining {
            Joining::Queued => batch.extend(requests.try_iter()),
            Joining::Awaited(most) => {
                let begun = Instant::now();
                loop {
                    batch.extend(requests.try_iter());
                    if batch.len() >= expected || begun.elapsed() >= most {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
        }
        wal.append(&frames(wal.tail(), body, batch.len()))?;
        let start = Instant::now();
        wal.sync()?;
        syncs.push(start.elapsed().as_secs_f64());
        expected = batch.len();
        for request in batch.drain(..) {
            // Nobody listens any more: the round is over.
            let _ = request.answer.send(request.sent);
        }
    }
    Ok(syncs)
}

/// Entries behind `before`, each with one record.
fn frames(mut before: LogBase, body: &(Body, u32), count: usize) -> Vec<Frame> {
    let seal = |_| {
        let spec = HeaderSpec {
            kind: Kind::Records,
            term: 1,
            index: before.index + 1,
            base_offset: before.next_offset,
            count: 1,
            timestamp_ms: before.timestamp_ms + 1,
        };
        let frame = Frame::seal(spec, before.chain, body.0.clone(), body.1);
        before = LogBase::after(frame.header());
        frame
    };
    (0..count).map(seal).collect()
}

impl Measured {
    pub(crate) fn rate(&self) -> f64 {
        self.waits.len() as f64 / self.spent
    }

    /// A line of figures. The p50 and the mean of the syncs are those of the same rounds.
    pub(crate) fn told(&self) -> String {
        let (sync, mean) = (quantile(&self.syncs, 0.5), self.syncs.iter().sum::<f64>() / self.syncs.len() as f64);
        let wait = quantile(&self.waits, 0.99);
        format!(
            "{:.0} records/s, {:.1} a sync; sync p50 {:.0} us, mean {:.0} us, p99 {:.0} us; wait p50 {:.0} us, p99 {:.0} us: {:.2} times the sync's p50, {:.2} times its mean ({} syncs)",
            self.rate(),
            self.waits.len() as f64 / self.syncs.len() as f64,
            sync * 1e6,
            mean * 1e6,
            quantile(&self.syncs, 0.99) * 1e6,
            quantile(&self.waits, 0.5) * 1e6,
            wait * 1e6,
            wait / sync,
            wait / mean,
            self.syncs.len(),
        )
    }
}

/// The value that this part of them do not exceed.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
