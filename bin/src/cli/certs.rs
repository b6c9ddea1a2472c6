//! `graven certs`: certificates of nodes and clients, made with the authority that `graven init` left in `DIR/ca`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use graven_net::tls::{self, Authority, AuthorityError, CertReport, Issued, Role, UnixTime};
use serde_json::json;

use super::Global;
use super::context::note;
use super::error::{CliResult, ErrorCode, Failure};
use super::out;
use crate::config::NodeConfig;
use crate::init::NewNode;

/// Arguments of `graven certs`.
#[derive(Debug, Args)]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a new certificate for a node that exists
    #[command(
        after_help = "Example: graven certs node n1 --address 10.0.0.1 --dir cluster\n\nCopy the node's new node.key and node.crt to its host, the key first; a running node takes them up by itself."
    )]
    Node {
        /// The node
        name: String,
        /// Where it is reached; only the host goes into the certificate, a port may be left out
        #[arg(long, value_name = "HOST[:PORT]")]
        address: String,
        /// The directory that `graven init` or `graven dev` made
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
    },
    /// Make a certificate and a client.toml for a client
    #[command(after_help = "Example: graven certs client loader --role append --dir cluster")]
    Client {
        /// The client
        name: String,
        /// What it may do: read, append or admin; each may do what those before it may
        #[arg(long, value_name = "ROLE", value_parser = parse_role)]
        role: Role,
        /// The directory that `graven init` or `graven dev` made
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
    },
    /// Show whose certificates these are, until when, and whether an authority among them vouches for them
    #[command(
        after_help = "Example: graven certs check cluster/ca.crt cluster/n1/node.crt\n\nA certificate that cannot be used is exit 5."
    )]
    Check {
        /// PEM files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

fn parse_role(text: &str) -> Result<Role, String> {
    text.parse::<Role>().map_err(|error| error.to_string())
}

/// Runs the command.
pub(crate) fn run(args: &CertsArgs, global: &Global) -> CliResult {
    match &args.what {
        What::Node { name, address, dir } => node(name, address, dir, global),
        What::Client { name, role, dir } => client(name, *role, dir, global),
        What::Check { files } => check(files, global),
    }
}

fn authority(dir: &Path) -> CliResult<Authority> {
    if !dir.join("ca").exists() {
        let dir = dir.display();
        return Err(Failure::usage(format!(
            "there is no authority in {dir}; name the directory that `graven init` or `graven dev` made with --dir"
        )));
    }
    Authority::load(dir.join("ca")).map_err(failure)
}

fn failure(error: AuthorityError) -> Failure {
    Failure::usage(error.to_string())
}

fn node(name: &str, address: &str, dir: &Path, global: &Global) -> CliResult {
    let node = NewNode::at(name, &with_port(address)).map_err(Failure::usage)?;
    let authority = authority(dir)?;
    let certificate = dir.join(name).join("node.crt");
    let key = dir.join(name).join("node.key");
    if !dir.join(name).is_dir() {
        return Err(no_such_node(name, dir));
    }
    let current = tls::check([&certificate]).map_err(|error| {
        let next = "the node's id is read from its present certificate; copy it here from the node's host";
        Failure::usage(format!("{error}; {next}"))
    })?;
    let id = current.iter().find_map(CertReport::node);
    let id = id.ok_or_else(|| Failure::usage(format!("{} is not the certificate of a node", certificate.display())))?;
    if current.iter().any(|report| report.cluster() != Some(authority.cluster()) || report.name() != Some(name)) {
        return Err(Failure::usage(format!("{} is of another cluster or node", certificate.display())));
    }
    let issued = authority.issue_node(name, id, [&node.host]).map_err(failure)?;
    replace(&issued, &certificate, &key)?;
    told(&certificate, &key, None, global)
}

/// An address whose port was left out, with one that is not used.
fn with_port(address: &str) -> String {
    let host = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(host) => format!("[{host}]:1"),
        Err(_) if address.contains(':') => address.to_owned(),
        Err(_) => format!("{address}:1"),
    }
}

fn no_such_node(name: &str, dir: &Path) -> Failure {
    let nodes: Vec<_> = node_configs(dir).into_iter().map(|config| config.name).collect();
    let dir = dir.display();
    Failure::usage(match nodes.as_slice() {
        [] => format!("{dir} has no node's directory in it; name the one that `graven init` made with --dir"),
        nodes => format!("no node in {dir} is called {name}; those there are {}", nodes.join(", ")),
    })
}

/// The configurations of the nodes whose directories are in `dir`, by name.
fn node_configs(dir: &Path) -> Vec<NodeConfig> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut configs: Vec<_> =
        entries.filter_map(|entry| NodeConfig::load(entry.path().join("graven.toml")).ok()).collect();
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    configs
}

fn client(name: &str, role: Role, dir: &Path, global: &Global) -> CliResult {
    let issued = authority(dir)?.issue_client(name, role).map_err(failure)?;
    let home = dir.join(format!("client-{name}"));
    let failed = |what: &'static str| {
        let home = home.display().to_string();
        move |error: io::Error| Failure::usage(format!("cannot {what} {home}: {error}"))
    };
    let endpoints = endpoints(dir)?;
    fs::DirBuilder::new().mode(0o700).create(&home).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::usage(format!(
            "{} exists already; use the client.toml in it, or move it away to make a new certificate for {name}",
            home.display()
        )),
        _ => failed("make")(error),
    })?;
    issued.save(home.join("client.crt"), home.join("client.key")).map_err(failure)?;
    fs::copy(dir.join("ca.crt"), home.join("ca.crt")).map_err(failed("write into"))?;
    let text = format!("{endpoints}ca = \"ca.crt\"\ncertificate = \"client.crt\"\nkey = \"client.key\"\n");
    fs::write(home.join("client.toml"), text).map_err(failed("write into"))?;
    told(&home.join("client.crt"), &home.join("client.key"), Some(&home.join("client.toml")), global)
}

/// The endpoints of the cluster as they stand in the admin's client file or, when that is gone, in the nodes' configurations.
fn endpoints(dir: &Path) -> CliResult<String> {
    let file = dir.join("client.toml");
    let failed = |why: String| Failure::usage(format!("cannot take the endpoints from {}: {why}", file.display()));
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => {
            let nodes = node_configs(dir).into_iter().map(|node| (node.name, node.advertise.client.into()));
            let nodes: toml::Table = nodes.collect();
            let next = "name the directory that `graven init` or `graven dev` made with --dir";
            return match (error.kind(), nodes.is_empty()) {
                (io::ErrorKind::NotFound, false) => Ok(format!("endpoints = {}\n", toml::Value::Table(nodes))),
                _ => Err(failed(format!("{error}; {next}"))),
            };
        }
    };
    let table: toml::Table = toml::from_str(&text).map_err(|error| failed(error.message().to_owned()))?;
    let endpoints = table.get("endpoints").ok_or_else(|| failed("there are none".to_owned()))?;
    Ok(format!("endpoints = {endpoints}\n"))
}

/// Puts a new pair in the place of an old one. The key goes first: whoever reads in between finds a pair that does not belong
/// together and keeps its old one.
fn replace(issued: &Issued, certificate: &Path, key: &Path) -> CliResult {
    let pair = [(key, &issued.key_pem, 0o600), (certificate, &issued.certificate_pem, 0o644)];
    for (path, pem, mode) in pair {
        let fresh = path.with_extension("new");
        let write = || -> io::Result<()> {
            let _ = fs::remove_file(&fresh);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, path)
        };
        write().map_err(|error| Failure::internal(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}

fn told(certificate: &Path, key: &Path, client: Option<&Path>, global: &Global) -> CliResult {
    let show = |path: &Path| path.display().to_string();
    if global.json {
        let mut value = json!({"certificate": show(certificate), "key": show(key)});
        if let Some(client) = client {
            value["client"] = show(client).into();
        }
        return out::print_line(&value.to_string());
    }
    note(global, &format!("made {} and {}", certificate.display(), key.display()));
    client.map_or(Ok(()), |client| out::print_line(&show(client)))
}

fn check(files: &[PathBuf], global: &Global) -> CliResult {
    let now = UnixTime::now();
    let reports = tls::check(files).map_err(|error| Failure::usage(error.to_string()))?;
    let mut text = String::new();
    for report in &reports {
        let line = if global.json { as_json(report, now).to_string() } else { as_line(report, now) };
        text.push_str(&line);
        text.push('\n');
    }
    out::print(&text)?;
    let bad: Vec<_> = reports.iter().filter(|report| !report.usable(now)).collect();
    match bad.first() {
        None => Ok(()),
        Some(first) => {
            let message = format!(
                "{} cannot be used: {}; make a new one with `graven certs`",
                first.file.display(),
                verdict(first, now)
            );
            Err(Failure::new(ErrorCode::Unauthenticated, message).with("unusable", bad.len()))
        }
    }
}

fn verdict(report: &CertReport, now: UnixTime) -> String {
    match (&report.identity, &report.chain) {
        (Err(why), _) => why.clone(),
        _ if report.expired => format!("expired at {}", report.not_after),
        _ if now < report.not_before => format!("valid from {} on", report.not_before),
        (_, Some(Err(why))) => why.clone(),
        (_, Some(Ok(()))) => "ok, vouched for".to_owned(),
        _ => "ok".to_owned(),
    }
}

fn as_line(report: &CertReport, now: UnixTime) -> String {
    let who = report.identity.as_ref().map_or_else(|_| "unknown".to_owned(), ToString::to_string);
    format!("{}: {who}, until {}: {}", report.file.display(), report.not_after, verdict(report, now))
}

fn as_json(report: &CertReport, now: UnixTime) -> serde_json::Value {
    json!({
        "file": report.file.display().to_string(),
        "kind": report.kind(),
        "cluster_id": report.cluster().map(|cluster| format!("{cluster:032x}")),
        "name": report.name(),
        "id": report.node(),
        "role": report.role().map(Role::as_str),
        "not_before": report.not_before.to_string(),
        "not_after": report.not_after.to_string(),
        "expired": report.expired,
        "usable": report.usable(now),
        "verdict": verdict(report, now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_be_left_out() {
        let host = |address: &str| NewNode::at("n1", &with_port(address)).map(|node| node.host).ok();
        for address in ["log-1", "log-1:5470"] {
            assert_eq!(host(address).as_deref(), Some("log-1"));
        }
        for address in ["fd00::7", "[fd00::7]", "[fd00::7]:5470"] {
            assert_eq!(host(address).as_deref(), Some("fd00::7"));
        }
        for wrong in ["", ":5470", "log-1:", "log 1", "log-1:x"] {
            assert_eq!(host(wrong), None, "{wrong}");
        }
    }
}
