//! `graven member`: who belongs to the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use graven_net::client::{Client, MemberChange, MemberList, MemberRole, NewMember, NodeReport};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Global;
use super::context::{self, note};
use super::error::{CliResult, ErrorCode, Failure};
use super::out;
use crate::init::NewNode;

/// Arguments of `graven member`.
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the members, their ids and who votes
    List,
    /// Take a running node in as a learner: it receives the log and has no vote yet
    #[command(
        after_help = "Example:\n  graven init --join n4=10.0.0.4:5470 --dir cluster    makes its directory; copy it to its host\n  graven start --config n4/graven.toml                 there\n  graven member add n4 --address 10.0.0.4:5470\n  graven member promote n4"
    )]
    Add {
        /// The new node
        name: String,
        /// Where its peers reach it; clients use PORT+1
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
    },
    /// Give a learner a vote, as soon as it has caught up
    #[command(
        after_help = "Example: graven member promote n4\n\nWaits for the learner; one that makes no progress for the --timeout is exit 4, and nothing has changed."
    )]
    Promote {
        /// The learner
        name: String,
    },
    /// Take a member out
    #[command(
        after_help = "Example: graven member remove n1\n\nRefused with exit 4 when the voters that are left could not decide. Stop the node afterwards; its id is not used again."
    )]
    Remove {
        /// The member
        name: String,
    },
    /// Put a running new node in the place of a member, in one step
    #[command(
        after_help = "Example: graven member replace n1 n4 --address 10.0.0.4:5470\n\nThe new node is taken in as a learner, catches up, and gets its vote in the moment in which the old one loses it. May be repeated when it was interrupted."
    )]
    Replace {
        /// Who goes
        old: String,
        /// Who comes
        new: String,
        /// Where the new node's peers reach it; clients use PORT+1
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
    },
}

/// How often a learner is asked for again.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// A new node is asked who it is for this long at most.
const ASK_FOR: Duration = Duration::from_secs(3);

/// Runs the command.
pub(crate) fn run(args: &MemberArgs, global: &Global) -> CliResult {
    context::block_on(global, async {
        let client = context::connect(global).await?;
        match &args.what {
            What::List => list(&client.members().await?, global),
            What::Add { name, address } => {
                let member = add(&client, name, address, None, global).await?;
                told(global, json!({"name": name, "id": member, "role": "learner"}), || {
                    format!("{name} is a learner, id {member}; `graven member promote {name}` gives it a vote")
                })
            }
            What::Promote { name } => {
                when_caught_up(&client, &MemberChange::Promote { name: name.clone() }, global).await?;
                told(global, json!({"name": name, "role": "voter"}), || format!("{name} votes"))
            }
            What::Remove { name } => {
                remove(&client, name).await?;
                told(global, json!({"name": name, "role": null}), || format!("{name} is removed; stop it"))
            }
            What::Replace { old, new, address } => {
                replace(&client, old, new, address, global).await?;
                told(global, json!({"old": old, "new": new, "role": "voter"}), || {
                    format!("{new} votes in the place of {old}; stop {old}")
                })
            }
        }
    })
}

fn told(global: &Global, value: Value, words: impl FnOnce() -> String) -> CliResult {
    if global.json {
        return out::print_line(&value.to_string());
    }
    note(global, &words());
    Ok(())
}

fn list(members: &MemberList, global: &Global) -> CliResult {
    if global.json {
        let line = serde_json::to_string(members).map_err(|error| Failure::internal(error.to_string()))?;
        return out::print_line(&line);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["NAME", "ID", "ROLE", "PEERS", "CLIENTS"]);
    for member in &members.members {
        table.add_row([
            member.name.clone(),
            member.id.to_string(),
            role_word(member.role).to_owned(),
            member.peer_address.clone(),
            member.address.clone(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    out::print(&lines)
}

fn role_word(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Learner => "learner",
        MemberRole::Voter => "voter",
        MemberRole::Joining => "joining",
        MemberRole::Leaving => "leaving",
        _ => "unknown",
    }
}

/// Takes the node in, in the place of `old` when it runs at its address; answers its id. A node tells itself which id and incarnation it has, and its certificate vouches for the
/// cluster and the name.
async fn add(client: &Client, name: &str, address: &str, old: Option<&str>, global: &Global) -> CliResult<u64> {
    let node = NewNode::at(name, address).map_err(Failure::usage)?;
    let report = ask_node(&node, global).await?;
    let unclear = || Failure::internal(format!("{name} does not say its id and incarnation; upgrade it"));
    let id = report.status.id.ok_or_else(unclear)?;
    let incarnation = report.status.incarnation.as_deref().and_then(|hex| u128::from_str_radix(hex, 16).ok());
    let new = NewMember {
        id,
        name: name.to_owned(),
        peer_address: node.peer_address(),
        client_address: node.client_address(),
        incarnation: incarnation.ok_or_else(unclear)?.to_le_bytes(),
    };
    let change = match old {
        Some(old) => MemberChange::AddInPlace { old: old.to_owned(), new },
        None => MemberChange::Add(new),
    };
    client.change_members(&change).await?;
    let file = context::client_file(global.client.as_deref())?;
    let listed = context::client_config(global)?.endpoints.iter().any(|(known, _)| known == name);
    if !listed {
        let at = node.client_address();
        note(
            global,
            &format!(
                "clients find it through the others; list {name} = \"{at}\" in the endpoints of {} as well",
                file.display()
            ),
        );
    }
    Ok(id)
}

async fn ask_node(node: &NewNode, global: &Global) -> CliResult<NodeReport> {
    let mut config = context::client_config(global)?;
    config.endpoints = BTreeMap::from([(node.name.clone(), node.client_address())]).into_iter().collect();
    config.timeout = config.timeout.min(ASK_FOR);
    let there = Client::connect(config).await;
    let answer = match there {
        Ok(there) => there.node_report(&node.name).await.map_err(Failure::from),
        Err(error) => Err(error.into()),
    };
    answer.map_err(|failure| match failure {
        Failure::Error(error) if matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout) => {
            let (name, at) = (&node.name, node.client_address());
            Failure::new(
                error.code,
                format!(
                    "node {name} does not answer at {at}: {}; make its directory with `graven init --join {name}={} --dir DIR` and run `graven start` on its host first",
                    error.message,
                    node.peer_address()
                ),
            )
        }
        other => other,
    })
}

/// Asks for `change` until the learner in it has caught up, as long as it makes progress.
async fn when_caught_up(client: &Client, change: &MemberChange, global: &Global) -> CliResult {
    let mut best = u64::MAX;
    let mut since = Instant::now();
    loop {
        let Err(error) = client.change_members(change).await else { return Ok(()) };
        let failure = Failure::from(error);
        let behind = match &failure {
            Failure::Error(error) => error.details.get("behind_entries").and_then(Value::as_u64),
            Failure::StdoutClosed => None,
        };
        let Some(behind) = behind else { return Err(failure) };
        if behind < best {
            if best == u64::MAX {
                note(global, &format!("waits for {behind} entries to be copied"));
            }
            (best, since) = (behind, Instant::now());
        } else if since.elapsed() >= global.timeout {
            return Err(failure);
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn remove(client: &Client, name: &str) -> CliResult {
    let is_member = client.members().await?.members.iter().any(|member| member.name == name);
    let Err(error) = client.change_members(&MemberChange::Remove { name: name.to_owned() }).await else {
        return Ok(());
    };
    match Failure::from(error) {
        // It was a member a moment ago: the wish was granted, and its answer was lost with a leader.
        Failure::Error(error) if is_member && error.details.contains_key("unknown_member") => Ok(()),
        failure => Err(failure),
    }
}

async fn replace(client: &Client, old: &str, new: &str, address: &str, global: &Global) -> CliResult {
    let members = client.members().await?.members;
    let role_of = |name: &str| members.iter().find(|member| member.name == name).map(|member| member.role);
    match (role_of(old), role_of(new)) {
        (None, None) => {
            let known: Vec<String> = members.iter().map(|member| member.name.clone()).collect();
            return Err(context::unknown_node(old, &known));
        }
        (Some(_), None) => {
            let at = NewNode::at(new, address).map_err(Failure::usage)?.peer_address();
            let is_there = members.iter().any(|member| member.name == old && member.peer_address == at);
            let id = add(client, new, address, is_there.then_some(old), global).await?;
            note(global, &format!("{new} is a learner, id {id}"));
        }
        // Begun before, or done.
        (_, Some(_)) => {}
    }
    let change = MemberChange::Replace { old: old.to_owned(), new: new.to_owned() };
    when_caught_up(client, &change, global).await
}
