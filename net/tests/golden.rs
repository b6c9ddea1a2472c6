//! The client protocol's captures of version 1: what was sent once must be read, and sent, for ever.

#![allow(clippy::unwrap_used, reason = "a test whose scene cannot be set has failed")]

#[path = "golden/mod.rs"]
mod captures;

use bytes::BytesMut;
use captures::Captures;
use graven_net::{
    protocol::{
        Behind, Bounds, DamagedRange, ErrorCode, Failure, Hello, HelloReply, LeaderView, MAX_MESSAGE_BYTES,
        MemberChange, MemberEntry, MemberList, MemberReport, MemberRole, NewMember, NodeHealth, NodeReport, NodeRole,
        NodeState, NodeStats, NodeStatus, PeerHealth, PlaceHealth, Request, Response, SocketHealth, SyncHealth, Usage,
        Welcome,
        append::{Ack, Answer, Rejection, decode_answer, decode_prefix, encode_answer, encode_prefix},
        feed::{ITEM_BYTES, ItemHead, Start, SubscribeRequest},
        snapshot::{
            BLOCK_BYTES, BlockHead, GetAnswer, GetRequest, PutAnswer, PutRequest, SnapshotEntry, SnapshotInfo,
            SnapshotState, chunk_head, end_block, message_block,
        },
    },
    wire,
};
use serde::{Serialize, de::DeserializeOwned};

fn message<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(all: &mut Captures, name: &str, value: T) {
    let bytes = wire::encode::<MAX_MESSAGE_BYTES>(&value).unwrap();
    all.check(name, &bytes, |golden| {
        assert_eq!(wire::decode::<MAX_MESSAGE_BYTES, T>(golden).unwrap(), value, "{name}");
    });
}

fn view() -> LeaderView {
    LeaderView { term: 7, leader: Some("n2".into()), address: Some("log-2:5471".into()) }
}

fn failure() -> Failure {
    Failure::unknown(ErrorCode::Conflict, "the next record lands at offset 9").with("next_offset", 9).with("node", "n2")
}

fn new_member() -> NewMember {
    let (peer_address, client_address) = ("log-4:5470".into(), "log-4:5471".into());
    NewMember { id: 4, name: "n4".into(), peer_address, client_address, incarnation: [7; 16] }
}

fn status() -> NodeStatus {
    NodeStatus {
        id: Some(1),
        peer_address: Some("log-1:5470".into()),
        reachable: true,
        role: NodeRole::Leader,
        state: Some(NodeState::DiskFull),
        term: Some(7),
        commit_index: Some(300),
        last_index: Some(301),
        durable_index: Some(301),
        applied_index: Some(300),
        first_offset: Some(0),
        next_offset: Some(70_000),
        segments: Some(3),
        bytes: Some(1 << 33),
        disk_free_bytes: Some(1 << 36),
        incarnation: Some("0".repeat(32)),
        pid: Some(4711),
        version: Some("0.1.0".into()),
        uptime_ms: Some(60_000),
        certificate_expires: Some("2030-01-01T00:00:00Z".into()),
        clock_ms: Some(1_700_000_000_000),
        feature_level: Some(1),
        trouble: Some("node 1 runs already".into()),
        disk_stalled_ms: Some(0),
        ..NodeStatus::unreachable("n1", Some("log-1:5471".into()))
    }
}

fn health() -> NodeHealth {
    NodeHealth {
        clock_ms: 1_700_000_000_000,
        feature_level: 1,
        feature_level_known: 2,
        uptime_ms: 60_000,
        elections: 3,
        written_bytes: 1 << 33,
        socket: SocketHealth { wanted: 4 << 20, receive: 212_992, send: 212_992 },
        syncs: SyncHealth { count: 1024, p50_us: 90, p99_us: 1200, max_us: 70_000 },
        peers: vec![PeerHealth { id: 2, up: true, feature_level: 1, rtt_us: Some(80) }],
        ca_expires: Some("2035-01-01T00:00:00Z".into()),
        open_files: Some(Usage { used: 40, limit: 65_536 }),
        place: Some(PlaceHealth {
            filesystem: "ext4".into(),
            total_bytes: 1 << 40,
            free_bytes: 1 << 39,
            reserve_bytes: 128 << 20,
            sync: "fdatasync".into(),
            cut_files: 1,
            cut_bytes: 64,
            quarantined: vec!["quarantine-1".into()],
            readable_keys: vec!["node.key".into()],
        }),
        trouble: None,
    }
}

#[test]
fn golden_captures_of_clients() {
    let mut all = Captures::open("client.txt");
    message(&mut all, "hello", Hello { oldest: 1, newest: 1, feature_level: 1, software: "0.1.0".into() });
    let (name, software) = ("n1".into(), "0.1.0".into());
    let welcome =
        Welcome { version: 1, feature_level: 1, cluster: 0xc1, node: 1, name, software, max_record_bytes: 1 << 20 };
    message(&mut all, "hello-welcome", HelloReply::Welcome(welcome));
    message(&mut all, "hello-refused", HelloReply::Refused(failure()));
    message(&mut all, "leader-view", view());
    message(&mut all, "leader-nobody", LeaderView::nobody(8));
    requests(&mut all);
    responses(&mut all);
    subscriptions(&mut all);
    appends(&mut all);
    snapshots(&mut all);
    all.close();
}

fn requests(all: &mut Captures) {
    message(all, "request-open-session", Request::OpenSession);
    message(all, "request-node-status", Request::NodeStatus);
    message(all, "request-bounds", Request::Bounds { linearizable: true });
    message(all, "request-transfer", Request::Transfer { node: "n2".into() });
    message(all, "request-node-stats", Request::NodeStats);
    message(all, "request-members", Request::Members);
    message(all, "request-node-health", Request::NodeHealth);
    message(all, "request-trim", Request::Trim { before: 70_000 });
    message(all, "request-damage", Request::Damage);
    let (name, offset) = ("billing".to_owned(), 70_000);
    message(all, "request-cursor", Request::Cursor { name: name.clone() });
    message(all, "request-cursors", Request::Cursors { after: name.clone() });
    message(all, "request-advance-cursor", Request::AdvanceCursor { name: name.clone(), offset });
    message(all, "request-set-cursor", Request::SetCursor { name: name.clone(), offset });
    message(all, "request-drop-cursor", Request::DropCursor { name });
    let (old, name) = ("n1".to_owned(), "n4".to_owned());
    let changes = [
        ("add", MemberChange::Add(new_member())),
        ("promote", MemberChange::Promote { name: name.clone() }),
        ("remove", MemberChange::Remove { name: old.clone() }),
        ("replace", MemberChange::Replace { old: old.clone(), new: name }),
        ("add-in-place", MemberChange::AddInPlace { old, new: new_member() }),
    ];
    for (name, change) in changes {
        message(all, &format!("request-change-{name}"), Request::ChangeMembers(change));
    }
}

fn responses(all: &mut Captures) {
    message(all, "response-session", Response::SessionOpened { session: 5 });
    let member = MemberReport { name: "n1".into(), id: 1, address: None, peer_address: Some("log-1:5470".into()) };
    let report =
        NodeReport { status: status(), cluster_id: "c".repeat(32), leader: Some("n2".into()), members: vec![member] };
    message(all, "response-node-status", Response::NodeStatus(Box::new(report)));
    let bounds = Bounds { first_offset: 0, next_offset: 70_000, term: 7, leader: None, node: "n1".into() };
    message(all, "response-bounds", Response::Bounds(bounds));
    message(all, "response-transferred", Response::Transferred);
    let stats = NodeStats {
        rss_anon_bytes: 1 << 24,
        cpu_us: 5,
        syncs: 6,
        frames: 7,
        written_bytes: 8,
        elections: 9,
        appends_acked: 10,
        records_acked: 11,
    };
    message(all, "response-node-stats", Response::NodeStats(stats));
    message(all, "response-not-leader", Response::NotLeader(view()));
    message(all, "response-failed", Response::Failed(failure()));
    for (name, role) in [
        ("learner", MemberRole::Learner),
        ("voter", MemberRole::Voter),
        ("joining", MemberRole::Joining),
        ("leaving", MemberRole::Leaving),
    ] {
        let (address, peer_address) = ("log-1:5471".into(), "log-1:5470".into());
        let entry = MemberEntry { name: "n1".into(), id: 1, role, address, peer_address, incarnation: "0".repeat(32) };
        let list = MemberList { members: vec![entry], changing: true };
        message(all, &format!("response-members-{name}"), Response::Members(list));
    }
    message(all, "response-members-changed", Response::MembersChanged);
    message(all, "response-node-health", Response::NodeHealth(Box::new(health())));
    message(all, "response-trimmed", Response::Trimmed { first_offset: 70_000 });
    let range = DamagedRange { first: 7, last: Some(9), segment: "2".into(), from: 4096, to: 8192 };
    message(all, "response-damage", Response::Damage(Some(range)));
    message(all, "response-cursor", Response::Cursor { offset: Some(70_000) });
    message(all, "response-cursors", Response::Cursors { cursors: vec![("billing".into(), 70_000)], more: true });
    message(all, "response-cursor-dropped", Response::CursorDropped { offset: None });
    for code in ErrorCode::ALL {
        message(all, &format!("response-code-{code}"), Response::Failed(Failure::refused(code, "why")));
    }
    for (name, role) in [
        ("leader", NodeRole::Leader),
        ("follower", NodeRole::Follower),
        ("candidate", NodeRole::Candidate),
        ("learner", NodeRole::Learner),
        ("unknown", NodeRole::Unknown),
    ] {
        message(all, &format!("role-{name}"), role);
    }
    for (name, state) in [
        ("ok", NodeState::Ok),
        ("recovering", NodeState::Recovering),
        ("damaged", NodeState::Damaged),
        ("disk-full", NodeState::DiskFull),
    ] {
        message(all, &format!("state-{name}"), state);
    }
}

fn subscriptions(all: &mut Captures) {
    for (name, start) in [
        ("beginning", Start::Beginning),
        ("end", Start::End),
        ("offset", Start::Offset(300)),
        ("last", Start::Last(3)),
        ("time", Start::Time(1_700_000_000_000)),
        ("snapshot", Start::Snapshot("orders".into())),
    ] {
        let request = SubscribeRequest { start, until: Some(9), skip_trimmed: true, resume: false };
        message(all, &format!("subscribe-{name}"), request);
    }
    for (name, head) in [
        ("begin", ItemHead::Begin { from: 300 }),
        ("frame", ItemHead::Frame { len: 4096 }),
        ("trimmed", ItemHead::Trimmed { from: 1, to: 2 }),
        ("progress", ItemHead::Progress { next_offset: 7 }),
        ("caught-up", ItemHead::CaughtUp { next_offset: 8 }),
        ("done", ItemHead::Done),
        ("failed", ItemHead::Failed { len: 60 }),
    ] {
        all.check(&format!("item-{name}"), &head.encode(), |golden| {
            let bytes: [u8; ITEM_BYTES] = golden.try_into().unwrap();
            assert_eq!(ItemHead::decode(bytes), Ok(head), "{name}");
        });
    }
}

fn snapshots(all: &mut Captures) {
    let info = SnapshotInfo {
        name: "orders".into(),
        id: 0x1122,
        offset: 70_000,
        bytes: 1 << 33,
        digest: 0xfeed,
        timestamp: 1_700_000_000_000,
    };
    let entry = |state| SnapshotEntry { info: info.clone(), state };
    message(all, "request-followers", Request::Followers);
    let behind = Behind { lag_entries: 70_000, checkpoints: 2, growing_ms: 12_000 };
    message(all, "response-followers", Response::Followers(vec![(2, behind)]));
    message(all, "request-snapshots", Request::Snapshots);
    message(all, "request-drop-snapshot", Request::DropSnapshot { name: "orders".into() });
    let list = vec![entry(SnapshotState::Committed), entry(SnapshotState::Spreading)];
    message(all, "response-snapshots", Response::Snapshots(list));
    message(all, "response-snapshot-dropped", Response::SnapshotDropped);
    message(all, "put-request", PutRequest { name: "orders".into(), offset: 70_000, bytes: Some(1 << 33) });
    message(all, "put-go", PutAnswer::Go);
    message(all, "put-done", PutAnswer::Done(info.clone()));
    message(all, "put-not-leader", PutAnswer::NotLeader(view()));
    message(all, "put-failed", PutAnswer::Failed(failure()));
    message(all, "get-request", GetRequest { name: "orders".into(), id: Some(0x1122), chunk: 3 });
    message(all, "get-begin", GetAnswer::Begin(info.clone()));
    message(all, "get-failed", GetAnswer::Failed(failure()));
    for (name, block) in
        [("message", message_block(b"go")), ("chunk", chunk_head(&[7; 4096])), ("end", end_block(70_000, 0xfeed))]
    {
        all.check(&format!("block-{name}"), &block, |golden| {
            let head = BlockHead::decode(golden[..BLOCK_BYTES].try_into().unwrap()).unwrap();
            let rest = if name == "chunk" { &[7; 4096][..] } else { &golden[BLOCK_BYTES..] };
            assert!(head.holds(rest), "{name}");
        });
    }
}

fn appends(all: &mut Captures) {
    let prefix = encode_prefix(4096, 0xdead_beef);
    all.check("append-prefix", &prefix, |golden| {
        assert_eq!(decode_prefix(golden.try_into().unwrap()), Some((4096, 0xdead_beef)));
    });
    let ack = Ack { first: 300, last: 309, records: 10, term: 7, timestamp: 1_700_000_000_000 };
    // What travels of a failure's details are numbers of three names.
    let failed = Failure::refused(ErrorCode::Conflict, "the next record lands at offset 9").with("next_offset", 9);
    for (name, result) in [
        ("ack", Ok(ack)),
        ("not-leader", Err(Rejection::NotLeader(view()))),
        ("gap", Err(Rejection::Gap { expected: 4 })),
        ("again", Err(Rejection::Again)),
        ("unsure", Err(Rejection::Unsure)),
        ("failed", Err(Rejection::Failed(failed))),
    ] {
        let answer = Answer { session: 5, sequence: 6, result };
        let mut made = BytesMut::new();
        encode_answer(&answer, &mut made);
        all.check(&format!("answer-{name}"), &made, |golden| {
            let mut bytes = BytesMut::from(golden);
            assert_eq!(decode_answer(&mut bytes), Ok(Some(answer)), "{name}");
            assert!(bytes.is_empty(), "{name}");
        });
    }
}
