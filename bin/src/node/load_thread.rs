//! The thread that reads old frames for followers: page faults and slow disks stay here.

use std::sync::mpsc::Receiver;

use graven_wal::{LogReader, ReadError};
use tokio::sync::mpsc::Sender;
use tracing::error;

use super::bulk::{Suspects, whole};
use super::input::Input;
use crate::replica::Load;

/// Runs until the channel is closed.
pub(super) fn run(reader: &LogReader, loads: &Receiver<Load>, inputs: &Sender<Input>, suspects: &Suspects) {
    while let Ok(load) = loads.recv() {
        let frames = match reader.frames(load.first, load.last, load.max_bytes) {
            Ok(frames) => frames,
            Err(cause) => {
                error!("entries {} to {} cannot be read for a follower: {cause}", load.first, load.last);
                if let ReadError::Damaged(damage) = &cause {
                    suspects.tell(damage.first_index);
                }
                Vec::new()
            }
        };
        if let (Some(first), Some(last)) = (frames.first(), frames.last()) {
            reader.populate(first.header().index, last.header().index);
        }
        let (frames, broken) = whole(frames);
        if let Some(index) = broken {
            error!("entry {index} is not what was written: it is not sent to a follower");
            suspects.tell(index);
        }
        if inputs.blocking_send(Input::Loaded(load.token, frames)).is_err() {
            return;
        }
    }
}
