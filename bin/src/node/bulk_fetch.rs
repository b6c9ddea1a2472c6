//! Closing holes in a log with frames of other nodes.
//!
//! What is fetched is checked twice: on arrival (sums, numbers, chain from frame to frame) and by the hole itself, which takes only
//! what fits the chain on both of its ends. So it does not matter whom a frame came from, or whether that node knows it to be
//! committed.

use graven_frame::Frame;
use graven_net::bulk::{BulkClient, BulkConfig, BulkError, BulkIdentity, Only, Refusal, Wanted};
use graven_net::tls::TlsIdentity;
use graven_wal::mend::{Filled, MendError};

use super::peers_file::Peer;

/// Something that takes the frames of a range in order.
pub(super) trait Hole: Send {
    /// First and last entry still missing; `None` when it is closed.
    fn wanted(&mut self) -> Result<Option<(u64, u64)>, MendError>;

    /// Takes the next ones.
    fn fill(&mut self, frames: &[Frame]) -> Result<Filled, MendError>;
}

/// What asking everybody once has brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// The hole is closed.
    Closed,
    /// Everybody has answered, and nobody has what fits. One sentence each.
    Nobody {
        /// What they said.
        sentences: Vec<String>,
        /// Whether each has a whole log that ends earlier, or goes on differently there: what is missing was never on a majority.
        never: bool,
    },
    /// Somebody could not be asked, or said to come later. One sentence each.
    Later(Vec<String>),
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    pub(super) local: BulkIdentity,
    pub(super) tls: TlsIdentity,
}

/// What asking one node has brought.
enum Asked {
    Closed,
    /// It answered: it has not what fits.
    Lacks(String),
    /// The same, and it never had it, as far as its whole log says.
    Never(String),
    /// It cannot be asked now.
    Away(String),
}

/// Frames handed on together: far below what a hole takes at a time, and large enough for a disk.
const BATCH_BYTES: usize = 1 << 20;

impl Fetcher {
    /// Asks `peers` one after the other, beginning with the one at `turn`, until the hole is closed. Whoever is asked next goes on
    /// where the one before stopped, and as long as that brings anything everybody is asked once more: each may have another part of
    /// it. `turn` is left at the one that closed it.
    ///
    /// # Errors
    /// What this node's own disk said.
    pub(super) async fn round(
        &self,
        peers: &[Peer],
        turn: &mut usize,
        hole: &mut dyn Hole,
    ) -> Result<Round, MendError> {
        // Beyond the furthest entry that was ever missing next: a hole that is begun anew brings nothing.
        let mut furthest = hole.wanted()?.map_or(0, |(first, _)| first);
        loop {
            let round = self.ask_each(peers, turn, hole).await?;
            match hole.wanted()? {
                Some((first, _)) if first > furthest => furthest = first,
                _ => return Ok(round),
            }
        }
    }

    async fn ask_each(&self, peers: &[Peer], turn: &mut usize, hole: &mut dyn Hole) -> Result<Round, MendError> {
        let (mut sentences, mut all_answered, mut never) = (Vec::new(), true, true);
        for step in 0..peers.len() {
            let at = (*turn + step) % peers.len();
            let Some(range) = hole.wanted()? else { return Ok(Round::Closed) };
            match self.ask(&peers[at], range, hole).await? {
                Asked::Closed => {
                    *turn = at;
                    return Ok(Round::Closed);
                }
                Asked::Never(sentence) => sentences.push(sentence),
                Asked::Lacks(sentence) => {
                    never = false;
                    sentences.push(sentence);
                }
                Asked::Away(sentence) => {
                    all_answered = false;
                    sentences.push(sentence);
                }
            }
        }
        Ok(if all_answered { Round::Nobody { sentences, never } } else { Round::Later(sentences) })
    }

    /// How a node is dialled.
    pub(super) fn config_for(&self, peer: &Peer) -> BulkConfig {
        BulkConfig::new(peer.address.as_str(), peer.name.as_str(), peer.id, self.local)
    }

    async fn ask(&self, peer: &Peer, (first, last): (u64, u64), hole: &mut dyn Hole) -> Result<Asked, MendError> {
        let client = match BulkClient::connect(self.config_for(peer), &self.tls).await {
            Ok(client) => client,
            Err(error) => return Ok(Asked::of(&error)),
        };
        let mut stream = match client.frames(Wanted { first, last, only: Only::Durable }, u64::MAX).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Asked::of(&error)),
        };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        loop {
            let (frame, ended) = match stream.next().await {
                Some(Ok(frame)) => (Some(frame), None),
                Some(Err(error)) => (None, Some(Asked::of(&error))),
                None => (None, Some(Asked::Lacks(format!("node {} gave less than it was asked for", peer.name)))),
            };
            let len = frame.as_ref().map_or(0, Frame::encoded_len);
            if !batch.is_empty() && (frame.is_none() || bytes + len > BATCH_BYTES) {
                match hole.fill(&batch) {
                    Ok(filled) if filled.done => return Ok(Asked::Closed),
                    Ok(_) => {}
                    Err(MendError::Refused { index, what }) => {
                        let name = &peer.name;
                        return Ok(Asked::Never(format!("entry {index} of node {name} does not fit here: {what}")));
                    }
                    Err(error) => return Err(error),
                }
                batch.clear();
                bytes = 0;
            }
            bytes += len;
            batch.extend(frame);
            if let Some(asked) = ended {
                return Ok(asked);
            }
        }
    }
}

impl Asked {
    fn of(error: &BulkError) -> Asked {
        match error {
            // Who answers there under another name, or does not know this node, is not the one that was meant, or not in its right mind:
            // its address may be another's by now. It is no word of that node about its log.
            BulkError::Refused { refusal: Refusal::Busy, .. }
            | BulkError::Unreachable { .. }
            | BulkError::Unwelcome { .. } => Asked::Away(error.to_string()),
            BulkError::Refused { refusal: Refusal::NotYet { .. }, .. } => Asked::Never(error.to_string()),
            // Whoever does not talk sense has nothing for it, now or later.
            _ => Asked::Lacks(error.to_string()),
        }
    }
}
