//! Snapshot files with a body: round trips, damage, power failures, full disks, and receiving one in pieces.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::io::{Read, Write};

use graven_snapshot::body::{
    ASIDE_MAX, BodyError, BodyFlaw, BodyReader, BodyWriter, CHUNK_BYTES, Digest, HEADER_BYTES, Header, INFO_BYTES,
    Info, Name, Options, Partial, SYNC_BYTES, info, partials, remove, set_aside, stored, sweep, verify,
};
use graven_wal::sim::{Fault, Op, SECTOR_BYTES, SimDisk, Unsynced};
use graven_wal::{Disk, RealDisk};
use proptest::prelude::*;

const MIB: usize = CHUNK_BYTES;

fn header(id: u64) -> Header {
    Header { cluster: 0xfeed, id, name: Name::new("orders").unwrap(), offset: 40, timestamp_ms: 1_700_000_000_000 }
}

/// Bytes that differ from place to place and from `salt` to `salt`.
fn body(len: usize, salt: u64) -> Vec<u8> {
    let word = |at: usize| (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt).rotate_left(23);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|at| word(at).to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

fn write<D: Disk>(disk: &D, header: Header, body: &[u8]) -> Result<Info, BodyError> {
    write_with(disk, header, body, Options::default())
}

fn write_with<D: Disk>(disk: &D, header: Header, body: &[u8], options: Options) -> Result<Info, BodyError> {
    let mut writer = BodyWriter::create(disk, header, options)?;
    writer.put(body)?;
    writer.finish()
}

fn read<D: Disk>(disk: &D, file: &str) -> Result<Vec<u8>, BodyError> {
    let mut reader = BodyReader::open(disk, file)?;
    let mut bytes = Vec::new();
    while let Some(some) = reader.next_chunk()? {
        bytes.extend_from_slice(&some);
    }
    Ok(bytes)
}

/// Hands over what `partial` wants, up to `most` chunks; how many were.
fn send<D: Disk, E: Disk>(from: &BodyReader<D>, partial: &mut Partial<E>, most: usize) -> Result<usize, BodyError> {
    let mut sent = 0;
    while let Some(number) = partial.wanted().filter(|_| sent < most) {
        partial.accept(number, &from.encoded_chunk(number)?)?;
        sent += 1;
    }
    Ok(sent)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is written in pieces of any size is read in pieces of any size, in order and by number.
    #[test]
    fn what_is_written_is_read(
        len in prop_oneof![0..3 * MIB, Just(0), Just(MIB - 1), Just(MIB), Just(MIB + 1), Just(2 * MIB)],
        write_step in prop_oneof![1000..3 * MIB, Just(MIB)],
        read_step in 1000..2 * MIB,
        offset: u64,
        announced: bool,
    ) {
        let disk = SimDisk::new(1);
        let bytes = body(len, offset);
        let head = Header { offset, ..header(7) };
        let expected_bytes = announced.then_some(len as u64);
        let mut writer = BodyWriter::create(&disk, head.clone(), Options { expected_bytes, ..Options::default() }).unwrap();
        for piece in bytes.chunks(write_step) {
            writer.write_all(piece).unwrap();
        }
        let written = writer.finish().unwrap();
        prop_assert_eq!(&written, &Info { header: head, bytes: len as u64, digest: Digest::of(&bytes) });
        let file = written.header.file_name();
        prop_assert_eq!(disk.names(), [file.clone()]);
        prop_assert_eq!(verify(&disk, &file).unwrap(), written.clone());
        prop_assert_eq!(Info::decode(&written.encode()), Ok(written.clone()));

        let mut reader = BodyReader::open(&disk, &file).unwrap();
        let (mut got, mut piece) = (Vec::new(), vec![0; read_step]);
        loop {
            let some = reader.read(&mut piece).unwrap();
            if some == 0 { break }
            got.extend_from_slice(&piece[..some]);
        }
        prop_assert!(got == bytes);
        prop_assert!(read(&disk, &file).unwrap() == bytes);
        for number in (0..written.chunks()).rev() {
            let from = number as usize * MIB;
            let want = &bytes[from..(from + MIB).min(len)];
            prop_assert!(reader.read_chunk(number).unwrap() == want);
            prop_assert_eq!(written.chunk_bytes(number), want.len());
        }
        prop_assert!(reader.read_chunk(written.chunks()).unwrap().is_empty());
    }

    /// Any header goes through its bytes, and nothing else is taken for one.
    #[test]
    fn headers_and_names(cluster: u128, id in 1u64.., offset: u64, timestamp_ms: u64, name in "[A-Za-z0-9._-]{1,64}") {
        let head = Header { cluster, id, name: Name::new(&name).unwrap(), offset, timestamp_ms };
        prop_assert_eq!(Header::decode(&head.encode()), Ok(head.clone()));
        let own = Header { name: Name::OWN, ..head };
        prop_assert_eq!(Header::decode(&own.encode()), Ok(own.clone()));
        prop_assert_eq!(own.file_name(), format!("state-{offset:016x}"));
    }
}

#[test]
fn reading_in_order_and_in_chunks_can_be_mixed() {
    let disk = SimDisk::new(1);
    let bytes = body(MIB + 500, 3);
    let file = write(&disk, header(1), &bytes).unwrap().header.file_name();
    let mut reader = BodyReader::open(&disk, &file).unwrap();
    let mut got = vec![0; 300];
    reader.read_exact(&mut got).unwrap();
    assert!(reader.read_chunk(1).unwrap() == bytes[MIB..]);
    while let Some(some) = reader.next_chunk().unwrap() {
        got.extend_from_slice(&some);
    }
    assert!(got == bytes);
}

#[test]
fn names_that_cannot_be_are_refused() {
    let long = "x".repeat(65);
    for name in ["", "a/b", "a b", "ä", "a\0", long.as_str()] {
        assert!(Name::new(name).is_err(), "{name:?}");
    }
    assert!(Name::new(&"x".repeat(64)).is_ok() && Name::new("..").is_ok());
}

#[test]
fn no_changed_bit_and_no_cut_goes_unnoticed() {
    let disk = SimDisk::new(1);
    let file = write(&disk, header(9), &body(200, 5)).unwrap().header.file_name();
    let whole = disk.bytes_of(&file).unwrap();
    for at in 0..whole.len() {
        for bit in 0..8 {
            disk.rot(&file, at as u64, |byte| *byte ^= 1 << bit);
            let found = verify(&disk, &file);
            assert!(found.as_ref().is_err_and(BodyError::is_damage), "bit {bit} of byte {at}: {found:?}");
            assert!(read(&disk, &file).is_err());
            disk.rot(&file, at as u64, |byte| *byte ^= 1 << bit);
        }
    }
    for at in 0..whole.len() {
        disk.edit(&file, |bytes| bytes.truncate(at));
        let found = verify(&disk, &file);
        assert!(found.as_ref().is_err_and(BodyError::is_damage), "cut at {at}: {found:?}");
        disk.edit(&file, |bytes| bytes.clone_from(&whole));
    }
    for at in [whole.len(), whole.len() - (INFO_BYTES - HEADER_BYTES)] {
        disk.edit(&file, |bytes| bytes.clone_from(&whole));
        disk.edit(&file, |bytes| bytes.insert(at, 0));
        assert!(verify(&disk, &file).is_err_and(|error| error.is_damage()), "one byte more at {at}");
    }
}

#[test]
fn a_chunk_at_another_place_or_of_another_snapshot_is_not_taken() {
    let disk = SimDisk::new(1);
    let names = [1, 2].map(|id| write(&disk, header(id), &body(3 * MIB, id)).unwrap().header.file_name());
    let [first, second] = [0, 1].map(|at| disk.bytes_of(&names[at]).unwrap());
    let chunk = |number: usize| HEADER_BYTES + number * (MIB + 8)..HEADER_BYTES + (number + 1) * (MIB + 8);
    disk.edit(&names[0], |bytes| bytes[chunk(0)].copy_from_slice(&first[chunk(2)]));
    disk.edit(&names[1], |bytes| bytes[chunk(1)].copy_from_slice(&first[chunk(1)]));
    assert_ne!(first, second);
    for (file, wrong) in [(&names[0], 0), (&names[1], 1)] {
        let reader = BodyReader::open(&disk, file).unwrap();
        for number in 0..3 {
            match reader.read_chunk(number) {
                Ok(_) => assert_ne!(number, wrong),
                Err(BodyError::Flawed { flaw, .. }) => {
                    assert_eq!((flaw, number), (BodyFlaw::Chunk { number: wrong }, wrong));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// The last bytes of a body whose chunks hold one by one leave only when all of it is what was written.
#[test]
fn the_digest_stands_before_the_last_bytes() {
    let disk = SimDisk::new(1);
    let written = write(&disk, header(1), &body(2 * MIB + 10, 1)).unwrap();
    let file = written.header.file_name();
    let other = Info { digest: written.digest ^ 1, ..written.clone() };
    disk.edit(&file, |bytes| {
        let at = bytes.len() - (INFO_BYTES - HEADER_BYTES);
        bytes[at..].copy_from_slice(&other.encode()[HEADER_BYTES..]);
    });
    let mut reader = BodyReader::open(&disk, &file).unwrap();
    let mut got = Vec::new();
    let error = reader.read_to_end(&mut got).unwrap_err();
    assert_eq!((error.kind(), got.len()), (std::io::ErrorKind::InvalidData, 2 * MIB));
    let digest = BodyFlaw::Digest { have: written.digest, expected: other.digest };
    assert!(matches!(verify(&disk, &file), Err(BodyError::Flawed { flaw, .. }) if flaw == digest));
}

#[test]
fn newer_versions_and_impossible_fields_are_refused_by_name() {
    let disk = SimDisk::new(1);
    let file = write(&disk, header(1), b"body").unwrap().header.file_name();
    let whole = disk.bytes_of(&file).unwrap();
    let patched = |at: usize, with: &[u8]| {
        disk.edit(&file, |bytes| {
            bytes.clone_from(&whole);
            bytes[at..at + with.len()].copy_from_slice(with);
            let sum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
            bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        });
        match info(&disk, &file) {
            Err(BodyError::Flawed { flaw, .. }) => flaw,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(patched(8, &[2]), BodyFlaw::Newer { version: 2, features: 0 });
    assert_eq!(patched(12, &[4]), BodyFlaw::Newer { version: 1, features: 4 });
    assert_eq!(patched(32, &[0; 8]), BodyFlaw::Field { part: "id" });
    assert_eq!(patched(56, &[200]), BodyFlaw::Length { part: "name" });
    assert_eq!(patched(56, &[65]), BodyFlaw::Field { part: "name" });
    assert_eq!(patched(57, b"/"), BodyFlaw::Field { part: "name" });
    assert_eq!(patched(122, &[1]), BodyFlaw::Field { part: "name" });
    // A header that holds, and is not the one that the footer was written for.
    assert_eq!(patched(40, &[41]), BodyFlaw::Sum { part: "footer" });
    disk.edit(&file, |bytes| {
        *bytes = whole[..HEADER_BYTES].to_vec();
        bytes[8] = 9;
        let sum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    });
    // However short: what newer software wrote is not damaged.
    assert!(info(&disk, &file).is_err_and(|error| !error.is_damage() && error.to_string().contains("upgrade first")));
}

#[test]
fn a_file_under_the_name_of_another_is_not_taken_for_it() {
    let disk = SimDisk::new(1);
    let file = write(&disk, header(1), b"body").unwrap().header.file_name();
    let other = header(2).file_name();
    disk.rename(&file, &other).unwrap();
    assert!(matches!(BodyReader::open(&disk, &other), Err(BodyError::Flawed { flaw: BodyFlaw::Other, .. })));
}

/// Power fails at every call that changes the disk: there is the old file, or the new one and whole.
#[test]
fn power_cut_at_every_call_leaves_the_old_one_or_the_new_one() {
    let own = Header { name: Name::OWN, ..header(1) };
    let (old, new) = (body(1000, 1), body(2 * MIB + 77, 2));
    for direct in [true, false] {
        for cut in 0.. {
            let disk = SimDisk::new(cut);
            if !direct {
                disk.refuse_direct();
            }
            let file = write(&disk, own.clone(), &old).unwrap().header.file_name();
            disk.power_off_after(cut);
            let options = Options { sync_bytes: MIB as u64, ..Options::default() };
            let saved = write_with(&disk, Header { id: 2, ..own.clone() }, &new, options);
            let disk = disk.crash(cut);
            sweep(&disk, |_| true).unwrap();
            assert_eq!(disk.names(), std::slice::from_ref(&file), "call {cut}");
            let found = read(&disk, &file).unwrap();
            assert!(found == new || (found == old && saved.is_err()), "call {cut}: {} bytes", found.len());
            write(&disk, Header { id: 3, ..own.clone() }, &new).unwrap();
            if saved.is_ok() {
                assert!(cut >= if direct { 7 } else { 9 }, "{cut} calls: every step was cut");
                break;
            }
        }
    }
}

/// Each call fails once: nothing under the final name but what is whole, no temporary file is left, and the same works again.
#[test]
fn any_call_that_fails_leaves_nothing_half() {
    let bytes = body(2 * MIB + 77, 2);
    for fault in [Fault::Io, Fault::Full, Fault::Short] {
        for call in 1.. {
            let disk = SimDisk::new(call);
            if call % 4 < 2 {
                disk.refuse_direct();
            }
            disk.fail_change(call, fault);
            let expected_bytes = (call % 2 == 0).then_some(bytes.len() as u64);
            let options = Options { expected_bytes, sync_bytes: MIB as u64, ..Options::default() };
            let saved = write_with(&disk, header(1), &bytes, options);
            let file = header(1).file_name();
            match &saved {
                Ok(_) => assert!(read(&disk, &file).unwrap() == bytes),
                Err(error) => {
                    assert_eq!(error.is_full(), fault == Fault::Full, "call {call}: {error}");
                    // Only the directory's sync comes behind the rename.
                    assert!(disk.names().is_empty() || disk.names() == [file.clone()], "call {call}: {disk:?}");
                    if disk.names() == [file.clone()] {
                        assert!(read(&disk, &file).unwrap() == bytes);
                    }
                }
            }
            if saved.is_ok() {
                assert!(call >= 7);
                break;
            }
            assert!(write(&disk, header(1), &bytes).is_ok());
        }
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing_and_one_that_failed_takes_nothing() {
    let disk = SimDisk::new(1);
    let mut writer = BodyWriter::create(&disk, header(1), Options::default()).unwrap();
    writer.put(&body(2 * MIB, 1)).unwrap();
    assert_eq!((disk.names().len(), writer.bytes()), (1, 2 * MIB as u64));
    drop(writer);
    assert!(disk.names().is_empty());
    let mut writer = BodyWriter::create(&disk, header(1), Options::default()).unwrap();
    disk.fail_nth(Op::Write, 1, Fault::Io);
    assert!(writer.put(&body(MIB, 1)).is_err());
    assert!(matches!(writer.put(b"more"), Err(BodyError::Closed { .. })));
    assert!(matches!(writer.finish(), Err(BodyError::Closed { .. })));
    assert!(disk.names().is_empty());
}

/// A log beside it keeps its room, whether or not the length was known before.
#[test]
fn a_full_disk_refuses_it_and_nothing_is_left() {
    let bytes = body(6 * MIB, 1);
    for (capacity, keep_free_bytes, announced, fits) in [
        (4 * MIB, 0, false, false),
        (4 * MIB, 0, true, false),
        (8 * MIB, 3 * MIB, false, false),
        (8 * MIB, 3 * MIB, true, false),
        (16 * MIB, 3 * MIB, false, true),
        (16 * MIB, 3 * MIB, true, true),
    ] {
        let disk = SimDisk::new(1);
        disk.full(Some(capacity as u64));
        let options = || Options {
            keep_free_bytes: keep_free_bytes as u64,
            expected_bytes: announced.then_some(bytes.len() as u64),
            ..Options::default()
        };
        let changes = disk.changes();
        let saved = write_with(&disk, header(1), &bytes, options());
        assert_eq!(saved.is_ok(), fits, "{capacity} bytes, announced {announced}");
        if let Err(error) = &saved {
            assert!(error.is_full(), "{error}");
            assert_eq!(std::io::Error::from(saved.unwrap_err()).kind(), std::io::ErrorKind::StorageFull);
            assert!(disk.names().is_empty());
            // Make, take space, remove: known before a byte was written.
            assert!(!announced || disk.changes() - changes <= 3);
        }
        assert!(disk.free_bytes().unwrap() >= keep_free_bytes as u64);
    }
}

#[test]
fn a_body_of_another_length_than_announced_is_refused() {
    for len in [0, 99, 101, 2 * MIB] {
        let disk = SimDisk::new(1);
        let options = Options { expected_bytes: Some(100), ..Options::default() };
        let error = write_with(&disk, header(1), &body(len, 1), options).unwrap_err();
        assert!(matches!(error, BodyError::Length { expected: 100, have, .. } if have == len as u64), "{error}");
        assert!(disk.names().is_empty());
    }
    let options = Options { expected_bytes: Some(u64::MAX), ..Options::default() };
    assert!(matches!(BodyWriter::create(&SimDisk::new(1), header(1), options), Err(BodyError::Length { .. })));
}

/// However large the body: what waits for the disk stays below one step and a chunk, and whoever sets the pace hears of every byte.
#[test]
fn a_big_body_is_written_in_small_synced_steps() {
    let disk = SimDisk::new(1);
    disk.refuse_direct();
    let (sender, paced) = std::sync::mpsc::channel();
    let pace: graven_snapshot::body::Pace = Box::new(move |bytes| sender.send(bytes).unwrap());
    let mut writer = BodyWriter::create(&disk, header(1), Options { pace: Some(pace), ..Options::default() }).unwrap();
    let piece = body(MIB / 2, 1);
    let mut most = 0;
    for _ in 0..40 {
        writer.put(&piece).unwrap();
        let waiting = disk.unsynced().iter().filter(|what| matches!(what, Unsynced::Sector(..))).count();
        most = most.max(waiting * SECTOR_BYTES);
    }
    assert!(most as u64 <= SYNC_BYTES + MIB as u64, "{most} bytes waited");
    let written = writer.finish().unwrap();
    assert_eq!(paced.iter().sum::<usize>() as u64, written.file_bytes());
}

#[test]
fn a_receiver_killed_ten_times_asks_for_nothing_twice() {
    let (from, to) = (SimDisk::new(1), SimDisk::new(2));
    let bytes = body(21 * MIB + 5, 9);
    let written = write(&from, header(1), &bytes).unwrap();
    let sender = BodyReader::open(&from, &written.header.file_name()).unwrap();
    let (mut lives, mut sent) = (0, 0);
    loop {
        let mut partial = Partial::open(&to, written.clone(), Options::default()).unwrap();
        assert_eq!(partial.received_bytes(), (sent * MIB).min(bytes.len()) as u64);
        sent += send(&sender, &mut partial, 2).unwrap();
        if partial.wanted().is_none() {
            assert_eq!(partial.finish().unwrap(), written);
            break;
        }
        lives += 1;
    }
    assert_eq!((lives, sent), (10, 22));
    assert!(read(&to, &written.header.file_name()).unwrap() == bytes);
    assert_eq!(to.names().len(), 1);
}

/// Power fails at every call of a transfer: after it, the transfer goes on, and what was synced is not asked for again.
#[test]
fn power_cut_at_every_call_of_a_transfer_loses_no_more_than_a_step() {
    let from = SimDisk::new(1);
    let bytes = body(5 * MIB + 5, 9);
    let written = write(&from, header(1), &bytes).unwrap();
    let file = written.header.file_name();
    let sender = BodyReader::open(&from, &file).unwrap();
    let options = || Options { sync_bytes: 2 * MIB as u64, ..Options::default() };
    let receive = |disk: &SimDisk, taken: &mut usize| {
        let mut partial = Partial::open(disk, written.clone(), options())?;
        while let Some(number) = partial.wanted() {
            partial.accept(number, &sender.encoded_chunk(number)?)?;
            *taken += 1;
        }
        partial.finish()
    };
    for cut in 0.. {
        let disk = SimDisk::new(cut);
        let mut before = 0;
        disk.power_off_after(cut);
        let done = receive(&disk, &mut before);
        let disk = disk.crash(cut);
        sweep(&disk, |info| *info == written).unwrap();
        if done.is_ok() {
            assert_eq!(verify(&disk, &file).unwrap(), written);
            assert!(cut >= 13, "{cut} calls: every step was cut");
            return;
        }
        let named = disk.names().contains(&file);
        if named {
            assert_eq!(verify(&disk, &file).unwrap(), written, "call {cut}");
        }
        let mut after = 0;
        assert_eq!(receive(&disk, &mut after).unwrap(), written, "call {cut}");
        assert!(read(&disk, &file).unwrap() == bytes);
        let repeated = (before + after) as u64 - written.chunks();
        // One that has its name is fetched again only because this test does not look.
        assert!(named || repeated <= 2, "call {cut}: {repeated} chunks were sent twice");
    }
}

#[test]
fn a_receiver_takes_only_the_chunk_that_is_due_and_only_whole() {
    let (from, to) = (SimDisk::new(1), SimDisk::new(2));
    let written = write(&from, header(1), &body(2 * MIB + 5, 9)).unwrap();
    let other = write(&from, header(2), &body(2 * MIB + 5, 9)).unwrap();
    let sender = BodyReader::open(&from, &written.header.file_name()).unwrap();
    let stranger = BodyReader::open(&from, &other.header.file_name()).unwrap();
    let mut partial = Partial::open(&to, written.clone(), Options::default()).unwrap();
    let refused = |partial: &mut Partial<SimDisk>, number, chunk: &[u8]| {
        let before = partial.wanted();
        assert!(matches!(partial.accept(number, chunk), Err(BodyError::Refused { .. })));
        assert_eq!(partial.wanted(), before);
    };
    let first = sender.encoded_chunk(0).unwrap();
    refused(&mut partial, 1, &sender.encoded_chunk(1).unwrap());
    refused(&mut partial, 0, &sender.encoded_chunk(1).unwrap());
    refused(&mut partial, 0, &stranger.encoded_chunk(0).unwrap());
    refused(&mut partial, 0, &first[..first.len() - 1]);
    refused(&mut partial, 0, &[]);
    refused(&mut partial, 9, &[]);
    let mut changed = first.to_vec();
    changed[500] ^= 1;
    refused(&mut partial, 0, &changed);
    partial.accept(0, &first).unwrap();
    refused(&mut partial, 0, &first);
    assert!(matches!(partial.finish(), Err(BodyError::Incomplete { wanted: 1, .. })));
    let mut partial = Partial::open(&to, written.clone(), Options::default()).unwrap();
    assert_eq!(partial.wanted(), Some(1));
    send(&sender, &mut partial, 9).unwrap();
    refused(&mut partial, 3, &[]);
    partial.finish().unwrap();
}

#[test]
fn what_was_announced_wrongly_does_not_get_its_name() {
    let (from, to) = (SimDisk::new(1), SimDisk::new(2));
    let written = write(&from, header(1), &body(MIB + 5, 9)).unwrap();
    let sender = BodyReader::open(&from, &written.header.file_name()).unwrap();
    let announced = Info { digest: written.digest ^ 4, ..written.clone() };
    let mut partial = Partial::open(&to, announced, Options::default()).unwrap();
    send(&sender, &mut partial, 9).unwrap();
    let error = partial.finish().unwrap_err();
    assert!(matches!(error, BodyError::Flawed { flaw: BodyFlaw::Digest { .. }, .. }), "{error}");
    assert!(to.names().is_empty());
    let huge = Info { bytes: u64::MAX, ..written };
    assert!(matches!(Partial::open(&to, huge, Options::default()), Err(BodyError::Length { .. })));
}

/// What rotted while it lay there half received is wanted again; so is all of it when it is of another snapshot.
#[test]
fn what_is_there_is_believed_only_after_a_look() {
    let (from, to) = (SimDisk::new(1), SimDisk::new(2));
    let written = write(&from, header(1), &body(4 * MIB, 9)).unwrap();
    let sender = BodyReader::open(&from, &written.header.file_name()).unwrap();
    let mut partial = Partial::open(&to, written.clone(), Options::default()).unwrap();
    send(&sender, &mut partial, 3).unwrap();
    drop(partial);
    let part = to.names()[0].clone();
    to.rot(&part, (HEADER_BYTES + 8 + MIB + 100) as u64, |byte| *byte ^= 1);
    let partial = Partial::open(&to, written.clone(), Options::default()).unwrap();
    assert_eq!(partial.wanted(), Some(1));
    drop(partial);
    let other = Info { digest: 1, ..written.clone() };
    assert_eq!(Partial::open(&to, other, Options::default()).unwrap().wanted(), Some(0));
    to.edit(&part, |bytes| bytes.truncate(100));
    let partial = Partial::open(&to, written, Options::default()).unwrap();
    assert_eq!((partial.wanted(), to.names().len()), (Some(0), 1));
    partial.discard();
    assert!(to.names().is_empty());
}

/// What a failed sync left cannot be told from what is durable: none of it is used.
#[test]
fn a_receiver_whose_disk_fails_starts_over() {
    let from = SimDisk::new(1);
    let bytes = body(3 * MIB, 9);
    let written = write(&from, header(1), &bytes).unwrap();
    let sender = BodyReader::open(&from, &written.header.file_name()).unwrap();
    for fault in [Fault::Io, Fault::Full] {
        for call in 1.. {
            let disk = SimDisk::new(call);
            disk.fail_change(call, fault);
            let options = Options { sync_bytes: MIB as u64, ..Options::default() };
            let received = Partial::open(&disk, written.clone(), options).and_then(|mut partial| {
                send(&sender, &mut partial, 9)?;
                partial.finish()
            });
            if let Err(error) = &received {
                assert_eq!(error.is_full(), fault == Fault::Full, "call {call}: {error}");
                assert!(disk.names().iter().all(|name| !name.contains('.')), "call {call}: {:?}", disk.names());
            }
            if received.is_ok() {
                assert!(call >= 10);
                break;
            }
            let mut again = Partial::open(&disk, written.clone(), Options::default()).unwrap();
            assert_eq!(again.wanted(), Some(0), "call {call}");
            send(&sender, &mut again, 9).unwrap();
            again.finish().unwrap();
            assert!(read(&disk, &written.header.file_name()).unwrap() == bytes);
        }
    }
    let disk = SimDisk::new(1);
    disk.full(Some(2 * MIB as u64));
    assert!(Partial::open(&disk, written, Options::default()).is_err_and(|error| error.is_full()));
    assert!(disk.names().is_empty());
}

#[test]
fn the_directory_is_listed_swept_and_damage_kept() {
    let disk = SimDisk::new(1);
    for name in
        ["checkpoint-0000000000000007", "state.toml", "snapshot-12", "released", "snapshot-0000000000000001.old"]
    {
        disk.edit(name, |bytes| bytes.push(1));
    }
    let foreign = disk.names();
    let own = Header { name: Name::OWN, offset: 0x77, ..header(5) };
    write(&disk, header(3), b"three").unwrap();
    write(&disk, header(4), b"four").unwrap();
    write(&disk, own.clone(), b"own").unwrap();
    disk.edit(&header(4).file_name(), |bytes| bytes.truncate(50));
    let found: Vec<_> = stored(&disk)
        .unwrap()
        .into_iter()
        .map(|stored| (stored.file, stored.info.ok().map(|info| info.bytes)))
        .collect();
    let files = [header(3).file_name(), header(4).file_name(), own.file_name()];
    assert_eq!(found, [(files[0].clone(), Some(5)), (files[1].clone(), None), (files[2].clone(), Some(3))]);

    assert_eq!(set_aside(&disk, &files[1]).unwrap(), files[1].clone() + ".damaged");
    for number in 2..=ASIDE_MAX + 1 {
        write(&disk, header(4), b"four").unwrap();
        let aside = set_aside(&disk, &files[1]).unwrap();
        assert_eq!(aside, format!("{}.damaged.{}", files[1], number.min(ASIDE_MAX)));
    }
    let half = Info { header: header(6), bytes: 9, digest: 1 };
    let other = Info { header: header(7), bytes: 9, digest: 1 };
    drop(Partial::open(&disk, half.clone(), Options::default()).unwrap());
    drop(Partial::open(&disk, other, Options::default()).unwrap());
    std::mem::forget(BodyWriter::create(&disk, header(8), Options::default()).unwrap());
    std::mem::forget(BodyWriter::create(&disk, own.clone(), Options::default()).unwrap());
    let disk = disk.copy();
    let swept = sweep(&disk, |info| info.header.id == 6).unwrap();
    assert_eq!(swept.partial, [half]);
    assert_eq!(partials(&disk).unwrap(), swept.partial);
    assert_eq!(
        swept.removed,
        ["snapshot-0000000000000007.part", "snapshot-0000000000000008.new", "state.new"].map(str::to_owned)
    );
    remove(&disk, &files[0]).unwrap();
    remove(&disk, &files[0]).unwrap();
    let left: Vec<_> = stored(&disk).unwrap().into_iter().map(|stored| stored.file).collect();
    assert_eq!(left, [files[2].clone()]);
    let names = disk.names();
    assert!(foreign.iter().all(|name| names.contains(name)));
    assert_eq!(names.iter().filter(|name| name.contains(".damaged")).count(), ASIDE_MAX as usize);
}

/// The bytes of version 1 stay what they are.
#[test]
fn files_of_this_version_are_these_bytes() {
    let disk = SimDisk::new(1);
    let file = write(&disk, header(0x1122_3344_5566_7788), b"all orders below offset 40").unwrap().header.file_name();
    assert_eq!(file, "snapshot-1122334455667788");
    let golden = include_bytes!("golden/snapshot-1122334455667788");
    assert!(disk.bytes_of(&file).unwrap() == golden, "{:02x?}", disk.bytes_of(&file).unwrap());
    let old = SimDisk::new(2);
    old.edit(&file, |bytes| bytes.extend_from_slice(golden));
    assert_eq!(read(&old, &file).unwrap(), b"all orders below offset 40");
}

#[test]
fn it_works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path());
    let bytes = body(9 * MIB + 3, 4);
    let written = write(&disk, header(1), &bytes).unwrap();
    let file = written.header.file_name();
    assert_eq!(std::fs::metadata(dir.path().join(&file)).unwrap().len(), written.file_bytes());
    let sender = BodyReader::open(&disk, &file).unwrap();
    remove(&disk, &file).unwrap();
    // The open file outlives its name.
    let mut partial = Partial::open(&disk, written.clone(), Options::default()).unwrap();
    send(&sender, &mut partial, 4).unwrap();
    drop(partial);
    let mut partial = Partial::open(&disk, written.clone(), Options::default()).unwrap();
    assert_eq!(send(&sender, &mut partial, 99).unwrap(), 6);
    assert_eq!(partial.finish().unwrap(), written);
    assert_eq!(verify(&disk, &file).unwrap(), written);
    assert!(read(&disk, &file).unwrap() == bytes);
    assert_eq!(disk.list().unwrap(), [file]);
}
