//! What clients do in a run: writers send and are answered, readers follow the stream, reads are asked of any node.

use graven::members::change::MemberChange;
use graven::replica::cursors::Move;
use graven::replica::feed::{Feed, Step};
use graven::replica::names::Picture;
use graven::replica::{Answer, Rejection, RequestId};
use graven_frame::{Group, GroupBuilder, GroupHeaderSpec};
use graven_raft::NodeId;
use graven_wal::ReadError;

use crate::check::{Asked, Checked, Violation};
use crate::client::Wish;
use crate::cluster::{Cluster, Event, LANES, first_broken};
use crate::node::Node;

/// Somebody who waits for an answer.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// Number 0 is nobody's.
    None,
    Open {
        writer: usize,
    },
    Append {
        writer: usize,
        group: Group,
        asked: Asked,
    },
    Read {
        asked: Asked,
    },
    /// An append that wants to be the first.
    Probe {
        asked: Asked,
    },
    Transfer {
        to: u64,
    },
    /// A wish to change the members.
    Change(MemberChange),
    /// A wish that the log begins here.
    Trim {
        before: u64,
    },
    /// A snapshot with a name.
    Put {
        name: String,
        picture: Picture,
    },
    /// A wish that a name stands for nothing.
    DropName {
        name: String,
    },
    /// A move of a cursor, and what was committed when it was asked for.
    Move {
        wanted: Move,
        asked: usize,
    },
    /// A linearizable look at a cursor.
    Look {
        name: String,
        asked: usize,
    },
    /// Of somebody who is none of the simulated clients and looks for the answer himself.
    Outside {
        group: Group,
    },
}

impl Cluster {
    pub(crate) fn on_request(&mut self, node: u64, request: u64) -> Checked {
        let life = self.node(node).life;
        let id = RequestId(request);
        match self.requests[request as usize].clone() {
            Request::None => Ok(()),
            Request::Open { .. } => self.input(node, |replica, now| replica.open_session(now, id)),
            Request::Append { writer, group, .. } => {
                let asked = self.checkers.append_began(&group);
                self.requests[request as usize] = Request::Append { writer, group: group.clone(), asked };
                let Some(process) = self.node_mut(node).process.as_mut() else { return Ok(()) };
                if !std::mem::replace(&mut process.flushing, true) {
                    self.after(0, 60, Event::Flush { node, life });
                }
                self.input(node, |replica, _| replica.append_of(writer as u64 + 1, id, group))
            }
            Request::Read { .. } => {
                let asked = self.checkers.read_began();
                self.requests[request as usize] = Request::Read { asked };
                self.input(node, |replica, now| replica.read_index(now, id))
            }
            Request::Probe { .. } => {
                let asked = self.checkers.read_began();
                self.requests[request as usize] = Request::Probe { asked };
                self.input(node, |replica, now| {
                    replica.append(id, hopeless_append());
                    replica.flush(now);
                })
            }
            Request::Transfer { to } => self.input(node, |replica, now| replica.transfer(now, id, NodeId(to))),
            Request::Change(change) => self.input(node, |replica, now| replica.change_members(now, id, &change)),
            Request::Trim { before } => self.input(node, |replica, now| replica.trim(now, id, before)),
            Request::Put { name, picture } => self.on_put(node, request, name, picture),
            Request::DropName { name } => self.input(node, |replica, now| replica.drop_snapshot(now, id, &name)),
            Request::Move { wanted, .. } => self.on_move(node, request, wanted),
            Request::Look { name, .. } => self.on_look(node, request, name),
            Request::Outside { group } => self.input(node, |replica, now| {
                replica.append(id, group);
                replica.flush(now);
            }),
        }
    }

    /// Gives `group` to `node` at once. The answer comes into `answered` under the number returned.
    pub(crate) fn append_from_outside(&mut self, node: u64, group: Group) -> Result<u64, Violation> {
        self.next_request += 1;
        self.requests.push(Request::Outside { group });
        self.on_request(node, self.next_request)?;
        Ok(self.next_request)
    }

    /// `node` answers a request: the moment at which its promises must hold.
    pub(crate) fn on_answer(&mut self, node: u64, request: RequestId, answer: Result<Answer, Rejection>) -> Checked {
        self.trace.line(self.now_us, format_args!("n{node} answers {}: {answer:?}", request.0));
        let unexpected = |answer| {
            Err(Violation { property: "answers", detail: format!("node {node} answers {request:?} with {answer:?}") })
        };
        let (writer, group) = match &self.requests[request.0 as usize] {
            Request::Open { writer } => (*writer, None),
            Request::Append { writer, group, asked } => (*writer, Some((group, *asked))),
            Request::Read { asked } => {
                return match answer {
                    Ok(Answer::ReadIndex { next_offset }) => {
                        self.stats.reads += 1;
                        self.checkers.read_answered(*asked, next_offset)
                    }
                    Ok(other) => unexpected(Ok(other)),
                    Err(_) => Ok(()),
                };
            }
            Request::Probe { asked } => {
                return match answer {
                    Ok(other) => unexpected(Ok(other)),
                    Err(rejection) => self.checkers.refused(&hopeless_append(), rejection, *asked),
                };
            }
            Request::Transfer { .. } => return Ok(()),
            Request::Change(change) => {
                return match answer {
                    Ok(Answer::MembersChanged) => self.checkers.members_changed(change),
                    Ok(other) => unexpected(Ok(other)),
                    Err(_) => Ok(()),
                };
            }
            Request::Trim { before } => {
                return match answer {
                    Ok(Answer::Trimmed { first_offset }) => self.checkers.trimmed(*before, first_offset),
                    // What is refused for reaching too far reached too far.
                    Err(Rejection::NeededBySnapshot { offset, .. }) if offset >= *before => unexpected(answer),
                    Err(Rejection::TrimBeyond { next_offset }) if next_offset >= *before => unexpected(answer),
                    Ok(other) => unexpected(Ok(other)),
                    Err(_) => Ok(()),
                };
            }
            Request::Put { picture, .. } => return self.put_answered(*picture, answer),
            Request::DropName { .. } => return Ok(()),
            Request::Move { wanted, asked } => {
                let (wanted, asked) = (wanted.clone(), *asked);
                return self.moved(&wanted, asked, answer);
            }
            Request::Look { name, asked } => {
                let (name, asked) = (name.clone(), *asked);
                return self.looked(node, &name, asked, &answer);
            }
            Request::Outside { group } => {
                if let Ok(Answer::Appended(placed)) = answer {
                    self.checkers.acknowledged(node, placed.index, placed.first, group)?;
                    self.stats.acked += 1;
                }
                self.answered.insert(request.0, answer);
                return Ok(());
            }
            Request::None => return unexpected(answer),
        };
        match (group, answer.clone()) {
            (Some((group, _)), Ok(Answer::Appended(placed))) => {
                let header = group.header();
                if placed.count != header.count || Some(placed.sequence) != header.sequence {
                    return unexpected(answer);
                }
                self.checkers.acknowledged(node, placed.index, placed.first, group)?;
                self.stats.acked += 1;
            }
            (None, Ok(Answer::SessionOpened { session })) => self.checkers.session_opened(session)?,
            // No session of these clients is old enough to be forgotten.
            (_, Ok(_) | Err(Rejection::SessionExpired | Rejection::Malformed)) => return unexpected(answer),
            (Some((group, asked)), Err(rejection)) => {
                self.stats.judged +=
                    u64::from(matches!(rejection, Rejection::Conflict { .. } | Rejection::Fenced { .. }));
                self.checkers.refused(group, rejection, asked)?;
            }
            (None, Err(_)) => {}
        }
        if self.rng.chance(self.profile.client_loss) {
            return Ok(());
        }
        let at = self.lane(writer, node as usize + LANES);
        self.schedule(at, Event::Answer { request: request.0, answer });
        Ok(())
    }

    /// When the next message on a lane of a client arrives: its stream keeps order.
    fn lane(&mut self, writer: usize, lane: usize) -> u64 {
        let at = (self.now_us + self.rng.between(30, 300)).max(self.client_lanes[writer][lane]);
        self.client_lanes[writer][lane] = at;
        at
    }

    pub(crate) fn on_writer(&mut self, at: usize) -> Checked {
        let committed = self.checkers.committed_records();
        let mut wishes = Vec::new();
        let writer = &mut self.writers[at];
        writer.act(self.now_us, committed, &mut self.next_request, &mut wishes);
        let (target, pause) = (writer.target, writer.pause_us());
        for (request, wish) in wishes {
            self.requests.push(match wish {
                Wish::Open => Request::Open { writer: at },
                Wish::Append(group) => {
                    self.checkers.called(&group);
                    Request::Append { writer: at, group, asked: Asked::default() }
                }
            });
            if !self.rng.chance(self.profile.client_loss) {
                let arrives = self.lane(at, target as usize);
                self.schedule(arrives, Event::Request { node: target, request });
            }
        }
        self.schedule(self.now_us + pause * self.profile.pace, Event::Writer { at });
        Ok(())
    }

    pub(crate) fn ask(&mut self, node: u64, request: Request) {
        self.next_request += 1;
        self.requests.push(request);
        self.after(30, 300, Event::Request { node, request: self.next_request });
    }

    /// Asks `node` to change the members.
    pub(crate) fn ask_change(&mut self, node: u64, change: MemberChange) {
        self.ask(node, Request::Change(change));
    }

    /// Asks `node` to trim.
    pub(crate) fn ask_trim(&mut self, node: u64, before: u64) {
        self.ask(node, Request::Trim { before });
    }

    /// Asks `node` to hand leadership to `to`.
    pub(crate) fn ask_transfer(&mut self, node: u64, to: u64) {
        self.ask(node, Request::Transfer { to });
    }

    pub(crate) fn on_read(&mut self) -> Checked {
        let any = self.rng.between(1, self.nodes.len() as u64 + 1);
        // Who was deposed and does not know it is the one to ask.
        let leads = |node: &&Node| node.process.as_ref().is_some_and(|process| process.replica.leads());
        let oldest = self.nodes.iter().filter(leads).min_by_key(|node| {
            let replica = node.process.as_ref().map(|process| &process.replica);
            replica.map(|replica| replica.view().term)
        });
        let oldest = oldest.map_or(any, |node| node.id);
        let node = if self.rng.chance(500) { oldest } else { any };
        // An append on a condition that cannot hold tells the length as well, and rests on the leader's word in the same way.
        match self.rng.chance(400) && self.checkers.committed_records() > 0 {
            true => self.ask(node, Request::Probe { asked: Asked::default() }),
            false => self.ask(node, Request::Read { asked: Asked::default() }),
        }
        let pace = self.profile.pace;
        self.after(1_000 * pace, 20_000 * pace, Event::Read);
        Ok(())
    }

    pub(crate) fn on_follower(&mut self, at: usize) -> Checked {
        let pace = self.profile.pace;
        self.after(2_000 * pace, 30_000 * pace, Event::Follower { at });
        let count = self.nodes.len() as u64;
        let next = self.checkers.reader_next(at);
        let moves = self.rng.chance(30);
        let stale = self.rng.chance(300);
        let other = self.rng.between(1, count + 1);
        let follower = &mut self.followers[at];
        if moves || follower.feed.is_none() || self.nodes[follower.node as usize - 1].alive(follower.life).is_none() {
            follower.node = other;
            follower.life = self.nodes[other as usize - 1].life;
            follower.feed = Some(Feed::new(next));
            follower.view = None;
        }
        let Some(process) = self.nodes[follower.node as usize - 1].process.as_ref() else {
            follower.feed = None;
            return Ok(());
        };
        let Some(feed) = &mut follower.feed else { return Ok(()) };
        // The view that a reader's task has may be an old one.
        let news = process.replica.view();
        let mut view = follower.view.filter(|_| stale).unwrap_or(news);
        follower.view = Some(news);
        for _ in 0..4 {
            match feed.step(&view) {
                Step::Read => {
                    let mut frames = match feed.read(&process.reader, &view, 4096) {
                        Ok(frames) => frames,
                        // It is told so, and goes to another node.
                        Err(ReadError::Damaged(damage))
                            if self.sick.as_ref().is_some_and(|it| it.is(follower.node)) =>
                        {
                            let node = follower.node;
                            follower.feed = None;
                            self.suspect(node, damage.first_index);
                            return Ok(());
                        }
                        // Its view is older than a trim: it looks again.
                        Err(ReadError::Trimmed { .. }) if feed.next_offset() < news.first_offset => {
                            view = news;
                            continue;
                        }
                        Err(error) => {
                            let detail =
                                format!("node {} cannot read for its reader at {next}: {error}", follower.node);
                            return Err(Violation { property: "P4", detail });
                        }
                    };
                    let broken = first_broken(&mut frames);
                    for frame in &frames {
                        self.checkers.delivered(at, frame)?;
                    }
                    if let Some(index) = broken {
                        let node = follower.node;
                        follower.feed = None;
                        self.suspect(node, index);
                        return Ok(());
                    }
                }
                Step::CaughtUp { next_offset } => {
                    self.checkers.caught_up(at, next_offset, view.next_offset)?;
                }
                Step::Wait => break,
                Step::Trimmed { from, to } => self.checkers.told_trimmed(at, from, to)?,
            }
        }
        Ok(())
    }

    /// Lets writers finish: each makes a few more appends, to show that the healed cluster takes them.
    pub(crate) fn finish_writers(&mut self) {
        for writer in &mut self.writers {
            writer.finish_after(3);
        }
    }
}

/// An append outside of any session that wants to be the first of all. The log is not empty any more.
fn hopeless_append() -> Group {
    let mut builder = GroupBuilder::new();
    // One byte is within every bound.
    let _ = builder.push(&[], b"!");
    builder.finish(GroupHeaderSpec { expected_offset: Some(0), ..GroupHeaderSpec::default() })
}
