//! The command line without a running cluster: what it makes, what it refuses, and how it says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use tempfile::tempdir;

use crate::common::{self, finish, graven, run};

fn init(dir: &Path) -> common::Done {
    let dir = dir.to_str().expect("UTF-8");
    run(["init", "--dir", dir, "--node", "n1=127.0.0.1:6470", "--node", "n2=10.0.0.2:6470", "--node", "n3=host-3:6470"])
}

#[test]
fn init_makes_what_its_interface_says() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("cluster");
    let done = init(&dir).expect(0);
    let lines: Vec<_> =
        ["n1", "n2", "n3"].map(|n| format!("graven start --config {}/{n}/graven.toml\n", dir.display())).into();
    assert_eq!(done.text(), lines.concat());
    assert!(done.stderr.contains("to its host") && done.stderr.contains("two places"), "{}", done.stderr);
    for name in ["n1", "n2", "n3"] {
        for file in ["graven.toml", "node.crt", "node.key", "ca.crt", "data"] {
            assert!(dir.join(name).join(file).exists(), "{name}/{file}");
        }
        let mode = fs::metadata(dir.join(name).join("node.key")).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}/node.key");
    }
    for key in ["ca/ca.key", "client.key"] {
        assert_eq!(fs::metadata(dir.join(key)).expect(key).permissions().mode() & 0o777, 0o600, "{key}");
    }
    let config = fs::read_to_string(dir.join("n2/graven.toml")).expect("config");
    assert!(config.contains("peer = \"0.0.0.0:6470\"") && config.contains("client = \"10.0.0.2:6471\""), "{config}");
    let config = fs::read_to_string(dir.join("n1/graven.toml")).expect("config");
    assert!(config.contains("peer = \"127.0.0.1:6470\""), "{config}");
    let client = fs::read_to_string(dir.join("client.toml")).expect("client");
    assert!(client.contains("n3 = \"host-3:6471\""), "{client}");
    assert!(!dir.join(".graven-init").exists(), "nothing is left of the making");
}

#[test]
fn init_leaves_what_exists_alone() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("cluster");
    fs::create_dir_all(dir.join("n2")).expect("made");
    fs::write(dir.join("n2/precious"), "data").expect("written");
    let done = init(&dir).expect(2);
    assert!(done.stderr.contains("n2 exists already"), "{}", done.stderr);
    assert_eq!(fs::read_dir(&dir).expect("list").count(), 1, "nothing was made");
    fs::remove_file(dir.join("n2/precious")).expect("removed");
    init(&dir).expect(0);
    init(&dir).expect(2);
}

#[test]
fn init_that_was_interrupted_is_repeated_or_refused() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("cluster");
    fs::create_dir_all(dir.join(".graven-init/ca")).expect("made");
    init(&dir).expect(0);
    let dir = temp.path().join("other");
    fs::create_dir_all(dir.join(".graven-init")).expect("made");
    fs::write(dir.join(".graven-init/moving"), "").expect("written");
    let done = init(&dir).expect(2);
    assert!(done.stderr.contains("interrupted half-way"), "{}", done.stderr);
}

#[test]
fn init_refuses_nodes_that_make_no_cluster() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("cluster");
    let dir_arg = dir.to_str().expect("UTF-8");
    let same = ["--node", "n1=h:5470", "--node", "n1=i:5470"];
    let overlap = ["--node", "n1=h:5470", "--node", "n2=h:5471"];
    for nodes in [&same[..], &overlap, &["--node", "n1=h"], &["--node", "a/b=h:1"], &[]] {
        run(["init", "--dir", dir_arg].iter().chain(nodes)).expect(2);
    }
    let set = ["init", "--dir", dir_arg, "--node", "n1=h:5470", "--set", "wal.segment_bytes=5"];
    let done = run(set).expect(2);
    assert!(done.stderr.contains("wal.segment_bytes is 5, it must be 64K to 4G"), "{}", done.stderr);
    assert!(!dir.join("n1").exists() && !dir.join("client.toml").exists());
}

#[test]
fn wrong_arguments_are_one_sentence_and_exit_2() {
    for args in
        [&["append", "--nonsense"][..], &["read", "--from", "yesterday"], &["frobnicate"], &["read", "--count", "x"]]
    {
        let done = run(args).expect(2);
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{}", done.stderr);
        assert!(done.stdout.is_empty());
        let done = run(args.iter().chain(&["--json"])).expect(2);
        let error = done.error();
        assert_eq!((error["code"].as_str(), error["outcome"].as_str()), (Some("usage"), Some("refused")));
        assert!(error["details"].is_object() && error["message"].is_string(), "{error}");
    }
    run([""; 0]).expect(2);
}

#[test]
fn help_and_version_are_data_and_survive_a_closed_pipe() {
    let version = run(["--version"]).expect(0).text();
    assert!(version.starts_with("graven 0.") && version.contains("log format 1"), "{version}");
    assert!(version.contains("graven-client/1") && version.contains("graven-peer/1"), "{version}");
    for command in [
        "dev", "init", "start", "append", "read", "status", "transfer", "member", "snapshot", "cursor", "trim",
        "backup", "restore", "certs", "wal", "bench",
    ] {
        let help = run([command, "--help"]).expect(0).text();
        assert!(help.contains("Usage: graven"), "{help}");
    }
    assert_eq!(run(["help", "read"]).expect(0).text(), run(["read", "--help"]).expect(0).text());
    for args in [&["--help"][..], &["--version"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = graven().args(args).stdout(writer).stderr(Stdio::piped()).output().expect("runs");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
}

#[test]
fn configuration_errors_name_the_line() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("cluster");
    init(&dir).expect(0);
    let file = dir.join("n1/graven.toml");
    let text = fs::read_to_string(&file).expect("config");
    let line = text.lines().count() + 2;
    fs::write(&file, format!("{text}[wal]\nsegment_size = 3\n")).expect("written");
    let start = ["start", "--json", "--config", file.to_str().expect("UTF-8")];
    let error = run(start).expect(2).error();
    assert_eq!(error["code"], "config");
    let message = error["message"].as_str().expect("a sentence");
    assert!(message.contains(&format!("line {line}")) && message.contains("segment_size"), "{message}");
    run(["start", "--config", "/nonexistent/graven.toml"]).expect(2);
}

#[test]
fn start_never_makes_a_data_directory() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("cluster");
    init(&dir).expect(0);
    let data = dir.join("n1/data");
    let start = ["start", "--config", dir.join("n1/graven.toml").to_str().expect("UTF-8")].map(str::to_owned);
    fs::rename(&data, dir.join("n1/kept")).expect("moved");
    for made in [false, true] {
        if made {
            fs::create_dir(&data).expect("made");
        }
        let done = run(&start).expect(2);
        assert!(done.stderr.contains("\n  graven member replace n1 n1-2 --address 127.0.0.1:"), "{}", done.stderr);
        assert!(done.stderr.contains("is its disk mounted?"), "{}", done.stderr);
        assert_eq!(data.exists(), made);
    }
    fs::remove_dir(&data).expect("empty still");
    // Another node's directory is foreign.
    fs::rename(dir.join("n2/data"), &data).expect("moved");
    let done = run(&start).expect(2);
    assert!(done.stderr.contains("member replace"), "{}", done.stderr);
}

#[test]
fn clients_find_their_cluster_in_the_documented_order() {
    let temp = tempdir().expect("a directory");
    let at = |place: &str| {
        let file = temp.path().join(place);
        fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        // Wrong on purpose: the error names the file that was taken.
        fs::write(&file, "wrong = 1\n").expect("written");
        file
    };
    let status = |args: &[&str], env: Option<&Path>| {
        let mut command = graven();
        command.args(args).current_dir(temp.path()).env("HOME", temp.path());
        if let Some(env) = env {
            command.env("GRAVEN_CLIENT", env);
        }
        finish(command.args(["status", "--json"]), b"").expect(2).error()
    };
    let error = status(&[], None);
    assert_eq!(error["code"], "config");
    assert!(error["message"].as_str().expect("text").contains("graven dev"), "{error}");
    let taken = |error: serde_json::Value, file: &Path| {
        let message = error["message"].as_str().expect("text").to_owned();
        assert!(message.contains(file.file_name().and_then(|n| n.to_str()).expect("name")), "{message}");
        assert!(message.contains("line 1"), "{message}");
    };
    let user = at(".config/graven/client.toml");
    taken(status(&[], None), &user);
    let local = at("graven-dev/client.toml");
    let message = status(&[], None)["message"].as_str().expect("text").to_owned();
    assert!(message.contains("graven-dev/client.toml"), "{message}");
    drop(local);
    let env = at("env.toml");
    taken(status(&[], Some(&env)), &env);
    let flag = at("flag.toml");
    taken(status(&["--client", flag.to_str().expect("UTF-8")], Some(&env)), &flag);
    status(&["--client", "missing.toml"], None);
    status(&[], Some(Path::new("missing.toml")));
}

#[test]
fn append_opens_all_files_before_it_asks_for_a_cluster() {
    let done = run(["append", "/etc/hostname", "/nonexistent/file"]).expect(2);
    assert!(done.stderr.contains("/nonexistent/file"), "{}", done.stderr);
    let done = run(["append", "/"]).expect(2);
    assert!(done.stderr.contains("is a directory"), "{}", done.stderr);
}

#[test]
fn certificates_are_made_and_checked() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("cluster");
    init(&dir).expect(0);
    let dir_arg = dir.to_str().expect("UTF-8");
    let path = |name: &str| dir.join(name).to_str().expect("UTF-8").to_owned();
    let check = |files: &[String]| run(["certs", "check", "--json"].map(str::to_owned).iter().chain(files));
    let done = check(&[path("ca.crt"), path("n2/node.crt"), path("client.crt")]).expect(0);
    let reports: Vec<serde_json::Value> =
        done.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(reports.len(), 3);
    assert_eq!((reports[1]["name"].as_str(), reports[1]["id"].as_u64()), (Some("n2"), Some(2)));
    assert_eq!((reports[2]["role"].as_str(), reports[2]["verdict"].as_str()), (Some("admin"), Some("ok, vouched for")));

    run(["certs", "client", "loader", "--role", "append", "--dir", dir_arg]).expect(0);
    check(&[path("ca.crt"), path("client-loader/client.crt")]).expect(0);
    let mode = fs::metadata(path("client-loader/client.key")).expect("key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = run(["certs", "client", "loader", "--role", "append", "--dir", dir_arg]).expect(2);
    assert!(again.stderr.contains("client-loader exists already; use"), "{}", again.stderr);
    run(["certs", "client", "other", "--role", "king", "--dir", dir_arg]).expect(2);

    let before = fs::read(path("n1/node.crt")).expect("certificate");
    run(["certs", "node", "n1", "--address", "10.9.9.9:6470", "--dir", dir_arg]).expect(0);
    assert_ne!(fs::read(path("n1/node.crt")).expect("certificate"), before);
    check(&[path("ca.crt"), path("n1/node.crt")]).expect(0);
    run(["certs", "node", "n1", "--address", "10.9.9.9", "--dir", dir_arg]).expect(0);
    let unknown = run(["certs", "node", "n9", "--address", "10.9.9.9", "--dir", dir_arg]).expect(2);
    assert!(unknown.stderr.contains("called n9; those there are n1, n2, n3"), "{}", unknown.stderr);

    // The admin's client file is no longer needed to make one for somebody else.
    let endpoints = |file: &str| {
        let table: toml::Table = toml::from_str(&fs::read_to_string(path(file)).expect(file)).expect("TOML");
        table["endpoints"].clone()
    };
    let known = endpoints("client.toml");
    fs::remove_file(path("client.toml")).expect("removed");
    run(["certs", "client", "second", "--role", "read", "--dir", dir_arg]).expect(0);
    assert_eq!(endpoints("client-second/client.toml"), known);

    let other = temp.path().join("other");
    init(&other).expect(0);
    let foreign = other.join("n1/node.crt").to_str().expect("UTF-8").to_owned();
    let done = check(&[path("ca.crt"), foreign]).expect(5);
    assert_eq!(done.error()["code"], "unauthenticated");
    check(&[path("n1/graven.toml")]).expect(2);
}

#[test]
fn dev_refuses_what_is_not_its_own() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().join("dev");
    fs::create_dir(&dir).expect("made");
    fs::write(dir.join("thesis.tex"), "precious").expect("written");
    let dev = |extra: &[&str]| run(["dev", "--dir", dir.to_str().expect("UTF-8")].iter().chain(extra));
    let done = dev(&[]).expect(2);
    assert!(done.stderr.contains("is not empty"), "{}", done.stderr);
    assert_eq!(fs::read_dir(&dir).expect("list").count(), 1, "nothing was made");

    fs::remove_file(dir.join("thesis.tex")).expect("removed");
    fs::remove_dir(&dir).expect("removed");
    let base = common::free_base_port(3);
    let socket = std::net::UdpSocket::bind(("127.0.0.1", base + 11)).expect("bound");
    let done = dev(&["--base-port", &base.to_string()]).expect(2);
    assert!(done.stderr.contains(&format!("port {}", base + 11)), "{}", done.stderr);
    assert!(!dir.exists(), "a busy port leaves no trace");
    drop(socket);
    let done = dev(&["--base-port", &base.to_string(), "--set", "wal.colour=3"]).expect(2);
    assert!(done.stderr.contains("colour"), "{}", done.stderr);
    assert!(!dir.exists(), "a wrong setting leaves no trace");
    dev(&["--nodes", "8"]).expect(2);
    dev(&["--base-port", "65530"]).expect(2);
}
