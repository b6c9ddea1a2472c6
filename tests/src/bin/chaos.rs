//! Runs a cluster of real processes under faults: `cargo run --release -p graven-tests --bin chaos -- --minutes 2 --seed 1`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Parser, Subcommand};
use graven_tests::chaos::{Ended, Settings, nodes, run, wires};

/// How a process that a signal ended is told by its shell: 128 and SIGINT's number.
const INTERRUPTED: u8 = 130;
/// As long as anybody would wait; what is longer is a mistake.
const MINUTES_MAX: f64 = 10_000.0;

#[derive(Debug, Parser)]
#[command(
    about = "Runs a cluster of real processes whose network is cut and which are killed and stopped, and checks what its clients were told"
)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// How long faults come, in minutes
    #[arg(long, default_value = "2", value_parser = minutes)]
    minutes: f64,
    /// Which faults come. Without it, a new one every time; it is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes: 3 or 5; without it, the seed decides
    #[arg(long, value_name = "3|5", value_parser = count)]
    nodes: Option<u64>,
    /// Keep everything in this new directory, also when nothing is wrong
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Use no network namespaces: processes are killed and stopped, nothing is cut
    #[arg(long)]
    loopback: bool,
    /// Trim the log meanwhile, so that nodes that were away are given checkpoints
    #[arg(long)]
    trims: bool,
    /// The process is in a network namespace of its own
    #[arg(long, hide = true)]
    inside: bool,
}

/// What this program is besides itself.
#[derive(Debug, Subcommand)]
enum Part {
    /// A node
    #[command(hide = true)]
    Node {
        #[arg(long)]
        config: PathBuf,
        #[arg(long)]
        parent: u32,
    },
    /// What keeps a network namespace
    #[command(hide = true)]
    Hold {
        #[arg(long)]
        parent: u32,
    },
    /// Says whether network namespaces can be made and cut here; called in one
    #[command(hide = true)]
    Probe,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|cause| format!("{cause}"))?;
    if (0.0..=MINUTES_MAX).contains(&minutes) { Ok(minutes) } else { Err(format!("0 to {MINUTES_MAX} minutes")) }
}

fn count(text: &str) -> Result<u64, String> {
    match text {
        "3" | "5" => text.parse().map_err(|_| String::new()),
        _ => Err("clusters of 3 or 5 nodes are run".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.part {
        Some(Part::Node { config, parent }) => nodes::serve(config, *parent),
        Some(Part::Hold { parent }) => wires::hold(*parent),
        Some(Part::Probe) => wires::probe(),
        None => return storm(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

fn storm(arguments: &Arguments) -> ExitCode {
    if !arguments.inside && !arguments.loopback {
        match wires::entrance() {
            Ok(entrance) => return enter(&entrance),
            Err(why) => {
                eprintln!("SKIPPED partitions, one-way cuts, isolated leaders and bridges: {why}");
                if std::env::var_os("GRAVEN_NO_SKIP").is_some() {
                    eprintln!("GRAVEN_NO_SKIP is set: that is a failure");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    let settings = Settings {
        time: Duration::from_secs_f64(arguments.minutes * 60.0),
        seed,
        nodes: arguments.nodes,
        dir: arguments.dir.clone(),
        namespaces: arguments.inside,
        trims: arguments.trims,
    };
    static ASKED: AtomicBool = AtomicBool::new(false);
    if let Err(cause) = listen(&ASKED) {
        eprintln!("signals cannot be listened to: {cause}");
        return ExitCode::FAILURE;
    }
    match run(&settings, &ASKED) {
        Ok(Ended::Done(report)) => {
            match serde_json::to_string(&report) {
                Ok(line) => println!("{line}"),
                Err(cause) => eprintln!("the report does not encode: {cause}"),
            }
            if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(Ended::Asked) => {
            eprintln!("ended by a signal; nothing was checked");
            ExitCode::from(INTERRUPTED)
        }
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes the same program in a network namespace of its own.
fn enter(entrance: &[&str]) -> ExitCode {
    let Ok(program) = std::env::current_exe() else {
        eprintln!("this program does not find itself");
        return ExitCode::FAILURE;
    };
    let mut command = Command::new(entrance[0]);
    command.args(&entrance[1..]).arg(program).args(std::env::args_os().skip(1)).arg("--inside");
    let cause = command.env("PATH", wires::path()).exec();
    eprintln!("cannot run {}: {cause}", entrance[0]);
    ExitCode::FAILURE
}

/// Notes that the user wants an end. A second signal ends the process at once, and with it all its children.
fn listen(asked: &'static AtomicBool) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if asked.swap(true, Ordering::Relaxed) {
                    std::process::exit(i32::from(INTERRUPTED));
                }
            }
        });
    });
    Ok(())
}
