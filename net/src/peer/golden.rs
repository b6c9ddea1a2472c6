//! The peer protocol's captures of version 1: what was sent once must be read, and sent, for ever.

#[path = "../../tests/golden/mod.rs"]
mod captures;

use std::fmt::Debug;

use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
use graven_raft::{AppendHead, ConflictHint, Index, LogId, Message, NodeId, Report, Term};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    CONTROL_MESSAGE_BYTES_MAX, Lane, Refusal, append,
    hello::{HELLO_BYTES_MAX, Hello, Reply, VERSION_MAX, VERSION_MIN, Welcome},
};
use crate::wire;
use captures::Captures;

fn check<const LIMIT: usize, T: Serialize + DeserializeOwned + PartialEq + Debug>(
    all: &mut Captures,
    name: &str,
    value: T,
) {
    let bytes = wire::encode::<LIMIT>(&value).expect("small");
    all.check(name, &bytes, |golden| assert_eq!(wire::decode::<LIMIT, T>(golden).expect(name), value));
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term: Term(term), index: Index(index) }
}

#[test]
fn golden_captures_of_peers() {
    assert_eq!((VERSION_MIN, VERSION_MAX), (1, 1), "another version needs a directory of its own");
    let mut all = Captures::open("peer.txt");
    hellos(&mut all);
    messages(&mut all);
    appends(&mut all);
    all.close();
}

fn hellos(all: &mut Captures) {
    for (name, lane) in [("control", Lane::Control), ("append", Lane::Append)] {
        let hello = Hello {
            cluster: 0xc1,
            from: NodeId(2),
            to: NodeId(1),
            incarnation: 0x22,
            boot: 0x1234_5678_9abc_def0,
            lane,
            feature_level: 1,
            advertised: "log-2:5470".into(),
        };
        check::<HELLO_BYTES_MAX, _>(all, &format!("hello-{name}"), hello);
    }
    let welcome = Welcome { version: 1, node: NodeId(1), incarnation: 0x11, boot: 300, feature_level: 1 };
    check::<HELLO_BYTES_MAX, _>(all, "reply-welcome", Reply::Welcome(welcome));
    let (node, expected, seen) = (2, "11".to_owned(), "22".to_owned());
    for (name, refusal) in [
        ("certificate", Refusal::Certificate("it expired".into())),
        ("not-a-node", Refusal::NotANode("client c".into())),
        ("certificate-of-other", Refusal::CertificateOfOther { certificate: 3, hello: 2 }),
        ("cluster", Refusal::Cluster { expected: expected.clone(), seen: seen.clone() }),
        ("wrong-node", Refusal::WrongNode { expected: 1, seen: 3 }),
        ("not-member", Refusal::NotMember { node, name: "n2".into() }),
        ("incarnation", Refusal::Incarnation { node, expected, seen }),
        ("version", Refusal::Version { seen_min: 2, seen_max: 3, known_min: 1, known_max: 1 }),
        ("malformed", Refusal::Malformed("no hello".into())),
        ("other-life", Refusal::OtherLife { node, address: "10.0.0.2:5470".into() }),
    ] {
        check::<HELLO_BYTES_MAX, _>(all, &format!("reply-refused-{name}"), Reply::Refused(refusal));
    }
}

fn messages(all: &mut Captures) {
    let (term, last) = (Term(7), id(6, 300));
    let hint = Some(ConflictHint { at: id(5, 200), first: Index(150) });
    let reply = |success, hint| Message::AppendReply {
        term,
        request: 70_000,
        epoch: 2,
        success,
        matched: Index(299),
        last: Index(300),
        hint,
    };
    for (name, message) in [
        ("pre-vote", Message::PreVote { term, campaign: Term(8), last }),
        ("pre-vote-reply", Message::PreVoteReply { term, campaign: Term(8), granted: true }),
        ("vote", Message::Vote { term, last, transfer: false }),
        ("vote-reply", Message::VoteReply { term, granted: true }),
        ("append-reply-success", reply(true, None)),
        ("append-reply-refused", reply(false, hint)),
        ("heartbeat", Message::Heartbeat { term, commit: Index(299), round: 9 }),
        (
            "heartbeat-reply",
            Message::HeartbeatReply { term, round: 9, last: Index(300), verified: Index(299), disk_full: true },
        ),
        ("commit", Message::Commit { term, commit: Index(300) }),
        ("timeout-now", Message::TimeoutNow { term, last }),
        ("read-index", Message::ReadIndex { term, token: 1 << 40 }),
        ("read-index-reply", Message::ReadIndexReply { term, token: 1 << 40, index: Some(Index(300)) }),
        ("install", Message::Install { term, base: last }),
        ("install-reply", Message::InstallReply { term, base: last, ok: true }),
        (
            "report",
            Message::Report { term, report: Report { wall_ms: 1 << 41, snapshot: 300, held: vec![1, u64::MAX] } },
        ),
    ] {
        check::<CONTROL_MESSAGE_BYTES_MAX, _>(all, &format!("message-{name}"), message);
    }
}

fn appends(all: &mut Captures) {
    let head = AppendHead {
        term: Term(7),
        prev: id(6, 300),
        prev_chain: 0x0123_4567_89ab_cdef,
        commit: Index(299),
        request: 70_000,
        epoch: 2,
    };
    check::<{ append::APPEND_HEAD_BYTES_MAX }, _>(all, "append-head", head);
    // With the lengths around the head and the number of frames, as it stands before the frames on the stream.
    let body = Body::from_chunks(vec![bytes::Bytes::from_static(b"voters 1 2 3")]);
    let crc = body.crc();
    let spec = HeaderSpec { kind: Kind::Membership, term: 7, index: 301, base_offset: 9, count: 0, timestamp_ms: 1 };
    let frames = [Frame::seal(spec, Chain::START, body, crc)];
    let (before, _) = append::encode_head(&head, &frames).expect("small");
    all.check("append-before-frames", &before, |_| ());
}
