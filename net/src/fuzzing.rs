//! Where bytes from the network come in, as functions that a fuzzer or a property test can call: they must neither panic nor take more
//! memory than their limits, whatever the bytes are.
//!
//! Called by the targets in `fuzz/` and by the tests of this crate; of no use to anybody else. Each target has a counterpart in
//! [`seeds`]: well-formed bytes to begin with.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use graven_frame::{
    Chain, Frame, GroupBuilder, GroupHeaderSpec, HEADER_BYTES, HeaderSpec, Kind, MAX_BODY_BYTES, MAX_GROUP_BYTES,
};
use graven_raft::{AppendHead, ConflictHint, Index, LogId, Message, NodeId, Report, Term};
use serde::{Serialize, de::DeserializeOwned};

use crate::client::Records;
use crate::peer::append::{encode_head, read_append};
use crate::peer::chunks::{ChunkReader, ChunkSource};
use crate::peer::hello::{
    self, HELLO_BYTES_MAX, HELLO_FIXED_BYTES, Hello as PeerHello, Local, Reply, Welcome as PeerWelcome,
};
use crate::peer::{APPEND_BYTES_MAX, CONTROL_MESSAGE_BYTES_MAX, Lane, Refusal, Roster, RosterEntry};
use crate::protocol::append::{
    Ack, Answer, GROUP_PREFIX_BYTES, Rejection, decode_answer, decode_prefix, encode_answer, encode_prefix,
};
use crate::protocol::chunks::{Chunks, body_for};
use crate::protocol::feed::{ITEM_BYTES, ItemHead, MAX_FRAME_BYTES, Start, SubscribeRequest};
use crate::protocol::{
    ErrorCode, Failure, Hello, HelloReply, LeaderView, MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, MemberChange, NewMember,
    Request, Response, Welcome,
};
use crate::server::fuzzing as server;
use crate::tls::{Identity, NodeIdentity, UnixTime, Verified};
use crate::wire;

/// A client's messages to a node: the first byte chooses hello, request or subscription.
pub fn client_request(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => same_again::<MAX_REQUEST_BYTES, Hello>(rest),
        1 => same_again::<MAX_REQUEST_BYTES, Request>(rest),
        _ => same_again::<MAX_REQUEST_BYTES, SubscribeRequest>(rest),
    }
}

/// A client's append stream, cut into pieces as the first byte says.
pub fn client_append(bytes: &[u8]) {
    let Some((cut, rest)) = bytes.split_first() else { return };
    let mut chunks = Chunks::default();
    pieces(rest, *cut).into_iter().for_each(|piece| chunks.push(piece));
    assert_eq!(chunks.len(), rest.len(), "every byte is there");
    while let Some(prefix) = chunks.take_array::<GROUP_PREFIX_BYTES>() {
        let Some((len, crc)) = decode_prefix(prefix) else { return };
        assert!(len <= MAX_GROUP_BYTES, "no more is waited for than a group can have");
        let Some(parts) = chunks.take(len) else { return };
        let joined = parts.concat();
        let whole = server::parse(vec![Bytes::from(joined.clone())], crc);
        let Ok(group) = server::parse(parts, crc) else {
            assert!(whole.is_err(), "chunks do not matter");
            // With the checksum put right the lengths inside must still add up.
            let _ = server::parse(vec![Bytes::from(joined.clone())], crc32fast::hash(&joined));
            return;
        };
        assert_eq!(group.records().count(), group.header().count as usize, "a group holds what its header says");
        let largest = group.records().map(|record| record.payload.len()).max().unwrap_or(0);
        assert_eq!(server::too_large(&group, 10).is_some(), largest > 10);
    }
}

/// A node's answers to a client: the first byte chooses append answers, a feed, or one of the messages.
pub fn node_answer(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => answers(rest),
        1 => feed(rest, kind / 6),
        2 => same_again::<MAX_MESSAGE_BYTES, HelloReply>(rest),
        3 => same_again::<MAX_MESSAGE_BYTES, Response>(rest),
        4 => same_again::<MAX_MESSAGE_BYTES, LeaderView>(rest),
        _ => same_again::<MAX_MESSAGE_BYTES, Failure>(rest),
    }
}

/// A peer's hello and the answer to one, judged by a node that knows one other.
pub fn peer_hello(bytes: &[u8]) {
    same_again::<HELLO_BYTES_MAX, Reply>(bytes);
    let Some((fixed, body)) = bytes.split_first_chunk::<HELLO_FIXED_BYTES>() else { return };
    if hello::check_fixed(*fixed).is_err() {
        return;
    }
    let Some((len, body)) = body.split_first_chunk::<4>() else { return };
    if u32::from_le_bytes(*len) as usize > HELLO_BYTES_MAX.min(body.len()) {
        return;
    }
    let Ok(said) = hello::decode_hello(body) else { return };
    same_again::<HELLO_BYTES_MAX, PeerHello>(body);
    let entry = RosterEntry { name: "n2".to_owned(), address: "h:1".to_owned(), incarnation: 22 };
    let roster = Roster { members: BTreeMap::from([(NodeId(2), entry)]), newest: NodeId(2) };
    let identity = Identity::Node(NodeIdentity { cluster: 7, node: 2, name: "n2".to_owned() });
    let verified = Verified { identity, not_after: UnixTime(0) };
    if let Ok(judged) = local().judge(&said, &verified, &roster) {
        assert_eq!((said.cluster, said.from, said.to, said.incarnation), (7, NodeId(2), NodeId(1), 22));
        assert!(judged.guest.is_none(), "a member is no guest");
    }
}

/// A peer's control messages, one behind the other as on the lane.
pub fn peer_control(mut bytes: &[u8]) {
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        if len > CONTROL_MESSAGE_BYTES_MAX {
            return;
        }
        let Some((message, rest)) = rest.split_at_checked(len) else { return };
        same_again::<CONTROL_MESSAGE_BYTES_MAX, Message>(message);
        bytes = rest;
    }
}

/// A peer's append lane, cut into pieces as the first byte says.
pub fn peer_append(bytes: &[u8]) {
    let Some((cut, rest)) = bytes.split_first() else { return };
    let mut reader = ChunkReader::new(Memory(pieces(rest, *cut)));
    block_on(async {
        while let Ok(Some((head, frames, size))) = read_append(&mut reader).await {
            assert!(
                size <= rest.len() && size <= APPEND_BYTES_MAX + HELLO_BYTES_MAX,
                "an append ends inside its bytes"
            );
            let Ok((again, total)) = encode_head(&head, &frames) else { panic!("what was taken can be sent on") };
            assert!(again.len() <= total);
            for frame in &frames {
                let _ = frame.check_groups();
                let _ = frame.records().take_while(Result::is_ok).count();
            }
        }
    });
}

/// Takes whatever bytes there are.
pub type Target = fn(&[u8]);

/// All targets by name, for whoever goes through them.
pub const TARGETS: [(&str, Target); 6] = [
    ("client_request", client_request),
    ("client_append", client_append),
    ("node_answer", node_answer),
    ("peer_hello", peer_hello),
    ("peer_control", peer_control),
    ("peer_append", peer_append),
];

/// Well-formed bytes for the target of this name.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let tagged = |tag: u8, bytes: Vec<u8>| [vec![tag], bytes].concat();
    match target {
        "client_request" => client_requests(),
        "client_append" => vec![tagged(0, group_on_stream(3, 20)), tagged(7, group_on_stream(1, 5000))],
        "node_answer" => node_answers(),
        "peer_hello" => peer_hellos(),
        "peer_control" => {
            let all: Vec<Vec<u8>> = messages().iter().map(|message| prefixed(&encoded(message))).collect();
            all.iter().cloned().chain([all.concat()]).collect()
        }
        "peer_append" => {
            vec![tagged(0, append_on_lane(1, 3)), tagged(5, [append_on_lane(2, 2), append_on_lane(4, 0)].concat())]
        }
        _ => Vec::new(),
    }
}

/// One of each message of the control lane.
#[must_use]
pub fn messages() -> Vec<Message> {
    let (term, index) = (Term(7), Index(9));
    let last = LogId { term, index };
    vec![
        Message::PreVote { term, campaign: Term(8), last },
        Message::PreVoteReply { term, campaign: Term(8), granted: true },
        Message::Vote { term, last, transfer: true },
        Message::VoteReply { term, granted: true },
        Message::AppendReply {
            term,
            request: 1,
            epoch: 2,
            success: false,
            matched: index,
            last: index,
            hint: Some(ConflictHint { at: last, first: index }),
        },
        Message::Heartbeat { term, commit: index, round: 3 },
        Message::HeartbeatReply { term, round: 3, last: index, verified: index, disk_full: true },
        Message::Commit { term, commit: index },
        Message::TimeoutNow { term, last },
        Message::ReadIndex { term, token: 4 },
        Message::ReadIndexReply { term, token: 4, index: Some(index) },
        Message::Install { term, base: last },
        Message::InstallReply { term, base: last, ok: true },
        Message::Report { term, report: Report { wall_ms: 5, snapshot: 6, held: vec![7, 8] } },
    ]
}

/// What decodes is encoded to bytes that decode to the same; bytes may have several spellings of it, values have one.
fn same_again<const LIMIT: usize, T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = wire::decode::<LIMIT, T>(bytes) else { return };
    let again = wire::encode::<LIMIT>(&value);
    assert!(again.as_ref().is_ok_and(|again| again.len() <= bytes.len()), "the shortest spelling is ours: {value:?}");
    assert_eq!(again.and_then(|again| wire::decode::<LIMIT, T>(&again)), Ok(value));
}

fn answers(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(answer)) = decode_answer(&mut buffer) {
        let mut again = BytesMut::new();
        encode_answer(&answer, &mut again);
        let decoded = decode_answer(&mut again);
        assert!(matches!(&decoded, Ok(Some(same)) if *same == answer) || is_lossy(&answer), "{answer:?}: {decoded:?}");
    }
}

/// A text that was cut, or numbers at the end of their range, come back as the nearest there is.
fn is_lossy(answer: &Answer) -> bool {
    match &answer.result {
        Ok(_) => false,
        Err(Rejection::Failed(failure)) => {
            failure.message.len() > 1000
                || ["next_offset", "limit", "fence"].iter().any(|key| failure.number(key) == Some(u64::MAX))
        }
        Err(_) => true,
    }
}

fn feed(bytes: &[u8], cut: u8) {
    let mut chunks = Chunks::default();
    pieces(bytes, cut).into_iter().for_each(|piece| chunks.push(piece));
    while let Some(head) = chunks.take_array::<ITEM_BYTES>() {
        match ItemHead::decode(head) {
            Ok(ItemHead::Frame { len }) => {
                assert!((HEADER_BYTES..=MAX_FRAME_BYTES).contains(&len));
                let Some(header) = chunks.take_array::<HEADER_BYTES>() else { return };
                let Some(parts) = chunks.take(len - HEADER_BYTES) else { return };
                let Ok(frame) = Frame::from_parts(&header, body_for(parts, 1)) else { return };
                if frame.verify(None).is_ok()
                    && let Ok(Some(records)) = Records::of_frame(frame, 0)
                {
                    assert_eq!(records.iter().count(), records.len());
                }
            }
            Ok(ItemHead::Failed { len }) => {
                let Some(parts) = chunks.take(len) else { return };
                same_again::<MAX_MESSAGE_BYTES, Failure>(&parts.concat());
            }
            Ok(other) => assert_eq!(
                other.encode()[..].try_into().map_err(|_| "a head has its size").and_then(ItemHead::decode),
                Ok(other)
            ),
            Err(_) => return,
        }
    }
}

/// `bytes` in pieces: all in one for 0, else of about so many bytes, each in memory of its own.
fn pieces(bytes: &[u8], cut: u8) -> Vec<Bytes> {
    if cut == 0 {
        return vec![Bytes::copy_from_slice(bytes)];
    }
    bytes.chunks(usize::from(cut)).map(Bytes::copy_from_slice).collect()
}

/// A stream that is all there.
struct Memory(Vec<Bytes>);

impl ChunkSource for Memory {
    async fn read(&mut self, bufs: &mut [Bytes]) -> Result<Option<usize>, quinn::ReadError> {
        let count = self.0.len().min(bufs.len());
        for (buf, piece) in bufs.iter_mut().zip(self.0.drain(..count)) {
            *buf = piece;
        }
        Ok((count > 0).then_some(count))
    }
}

/// Runs what never has to wait: all its bytes are in memory.
fn block_on<T>(ready: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: std::cell::OnceCell<tokio::runtime::Runtime> = const { std::cell::OnceCell::new() };
    }
    RUNTIME.with(|runtime| {
        let build = || tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.get_or_init(|| build().expect("a runtime without sockets needs nothing"));
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(5), ready).await.expect("waits for nothing") })
    })
}

fn local() -> Local {
    Local { cluster: 7, node: NodeId(1), incarnation: 11, boot: 1, feature_level: 1, advertised: "h:1".to_owned() }
}

fn encoded(value: &impl Serialize) -> Vec<u8> {
    wire::encode::<MAX_MESSAGE_BYTES>(value).unwrap_or_default()
}

fn prefixed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

fn client_requests() -> Vec<Vec<u8>> {
    let member = NewMember {
        id: 4,
        name: "n4".to_owned(),
        peer_address: "h:1".to_owned(),
        client_address: "h:2".to_owned(),
        incarnation: [9; 16],
    };
    let requests = [
        Request::OpenSession,
        Request::NodeStatus,
        Request::Bounds { linearizable: true },
        Request::Transfer { node: "n2".to_owned() },
        Request::NodeStats,
        Request::Members,
        Request::ChangeMembers(MemberChange::Add(member)),
    ];
    let hello = Hello { oldest: 1, newest: 1, feature_level: 1, software: "0.1.0".to_owned() };
    let starts = [Start::Beginning, Start::End, Start::Offset(300), Start::Last(5), Start::Time(1_700_000_000_000)];
    let subscribe = |start| SubscribeRequest { start, until: Some(1 << 40), skip_trimmed: true, resume: false };
    let tagged = |tag: u8, bytes: Vec<u8>| [vec![tag], bytes].concat();
    let requests = requests.iter().map(|request| tagged(1, encoded(request)));
    let starts = starts.into_iter().map(|start| tagged(2, encoded(&subscribe(start))));
    requests.chain(starts).chain([tagged(0, encoded(&hello))]).collect()
}

fn group_on_stream(records: u8, size: usize) -> Vec<u8> {
    let mut builder = GroupBuilder::new();
    for number in 0..records {
        let _ = builder.push(b"m", &vec![number; size]);
    }
    let group = builder.finish(GroupHeaderSpec { session: Some(5), sequence: Some(1), ..GroupHeaderSpec::default() });
    [&encode_prefix(group.body().len(), group.crc())[..], &group.body().concat()].concat()
}

fn records_frame(index: u64) -> Frame {
    let mut builder = GroupBuilder::new();
    let _ = builder.push(b"", b"stone");
    let _ = builder.push(b"meta", &[7; 100]);
    let group = builder.finish(GroupHeaderSpec { session: Some(5), sequence: Some(1), ..GroupHeaderSpec::default() });
    let count = group.header().count;
    let spec = HeaderSpec { kind: Kind::Records, term: 7, index, base_offset: 10, count, timestamp_ms: 9 };
    Frame::seal(spec, Chain::START, group.body().clone(), group.crc())
}

fn append_on_lane(request: u64, frames: u64) -> Vec<u8> {
    let head = AppendHead {
        term: Term(7),
        prev: LogId { term: Term(6), index: Index(1) },
        prev_chain: 5,
        commit: Index(1),
        request,
        epoch: 1,
    };
    let frames: Vec<Frame> = (0..frames).map(|more| records_frame(2 + more)).collect();
    let Ok((mut bytes, _)) = encode_head(&head, &frames).map(|(head, total)| (head.to_vec(), total)) else {
        return Vec::new();
    };
    for frame in &frames {
        bytes.extend_from_slice(frame.head());
        bytes.extend_from_slice(&frame.body().concat());
    }
    bytes
}

fn node_answers() -> Vec<Vec<u8>> {
    let view = LeaderView { term: 3, leader: Some("n2".to_owned()), address: Some("h:2".to_owned()) };
    let failure = Failure::unknown(ErrorCode::Trimmed, "what, where, what to do").with("next_offset", 4);
    let results = [
        Ok(Ack { first: 5, last: 7, records: 3, term: 2, timestamp: 11 }),
        Err(Rejection::NotLeader(view.clone())),
        Err(Rejection::Gap { expected: 4 }),
        Err(Rejection::Failed(failure.clone())),
    ];
    let mut answers = BytesMut::from(&[0_u8][..]);
    for result in results {
        encode_answer(&Answer { session: 5, sequence: 1, result }, &mut answers);
    }
    let frame = records_frame(2);
    let feed = [
        &[1][..],
        &ItemHead::Begin { from: 0 }.encode(),
        &ItemHead::Frame { len: frame.encoded_len() }.encode(),
        frame.head(),
        &frame.body().concat(),
        &ItemHead::Trimmed { from: 1, to: 2 }.encode(),
        &ItemHead::Done.encode(),
    ]
    .concat();
    let welcome = Welcome {
        version: 1,
        feature_level: 1,
        cluster: 7,
        node: 1,
        name: "n1".to_owned(),
        software: "0.1.0".to_owned(),
        max_record_bytes: 1 << 20,
    };
    let tagged = |tag: u8, bytes: Vec<u8>| [vec![tag], bytes].concat();
    vec![
        answers.to_vec(),
        feed,
        tagged(2, encoded(&HelloReply::Welcome(welcome))),
        tagged(3, encoded(&Response::Failed(failure.clone()))),
        tagged(4, encoded(&view)),
        tagged(5, encoded(&failure)),
    ]
}

fn peer_hellos() -> Vec<Vec<u8>> {
    let other = Local { node: NodeId(2), incarnation: 22, ..local() };
    let body = encoded(&other.hello(NodeId(1), Lane::Append));
    let mut bytes = b"GRVPEER\0".to_vec();
    bytes.extend_from_slice(&[1, 0, 1, 0]);
    bytes.extend_from_slice(&prefixed(&body));
    let welcome = PeerWelcome { version: 1, node: NodeId(1), incarnation: 11, boot: 1, feature_level: 1 };
    let refusals = [
        Refusal::Malformed("it does not begin as a peer's".to_owned()),
        Refusal::Incarnation { node: 2, expected: "16".to_owned(), seen: "17".to_owned() },
    ];
    let refused = refusals.into_iter().map(|refusal| encoded(&Reply::Refused(refusal)));
    [bytes, encoded(&Reply::Welcome(welcome))].into_iter().chain(refused).collect()
}

/// The largest body is part of what these targets rely on.
const _: () = assert!(MAX_BODY_BYTES <= APPEND_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    /// Smoke size; `GRAVEN_LONG=1` runs two hundred times as many.
    fn rounds() -> u64 {
        if std::env::var_os("GRAVEN_LONG").is_some() { 400_000 } else { 2000 }
    }

    #[test]
    fn well_formed_bytes_pass_every_target() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name}");
            seeds.iter().for_each(|bytes| target(bytes));
        }
    }

    #[test]
    fn bytes_changed_at_random_pass_every_target() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            for round in 0..rounds() {
                let bytes = changed(&seeds, round);
                let outcome = std::panic::catch_unwind(|| target(&bytes));
                assert!(outcome.is_ok(), "{name}, round {round}: {bytes:?}");
            }
        }
    }

    /// One of the seeds with a few changes, all told by `round`: bits, bytes, lengths far too large, cuts, repetitions.
    fn changed(seeds: &[Vec<u8>], round: u64) -> Vec<u8> {
        let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 16).unwrap_or(0) % limit.max(1)
        };
        let mut bytes = seeds[below(seeds.len())].clone();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            match below(6) {
                0 => bytes.truncate(at),
                1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (round % 8)),
                2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = round as u8),
                3 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xFF),
                4 => bytes.iter_mut().skip(at).take(8).zip((1_u64 << 63).to_le_bytes()).for_each(|(to, by)| *to = by),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    }
}
