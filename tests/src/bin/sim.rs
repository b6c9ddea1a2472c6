//! Runs seeds of the simulator: `cargo run --release -p graven-tests --bin sim -- --seeds 0..1000`.

use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use graven_tests::planted::{self, Planted};
use graven_tests::profile::Profile;
use graven_tests::report::Stats;
use graven_tests::trace::TraceTo;
use graven_tests::{Outcome, Settings, run};

#[derive(Debug, Parser)]
#[command(about = "Runs simulated clusters and checks every property after every step")]
struct Arguments {
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A up to, not including, B. Default 0..100; with --planted 0..10000.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Events before all heals.
    #[arg(long, default_value_t = Settings::default().steps)]
    steps: u64,
    /// Nodes: 3, 5 or 7; without it, the seed decides.
    #[arg(long, value_name = "3|5|7", value_parser = nodes)]
    nodes: Option<u64>,
    /// The mix of faults; without it, the seed decides.
    #[arg(long, value_name = "NAME", value_parser = profile)]
    profile: Option<Profile>,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
    /// Switch a planted bug on; ends with 1 when it is found. `list` prints their names.
    #[arg(long, value_name = "NAME")]
    planted: Option<String>,
}

/// Lines of the trace that are shown of a run in which a property does not hold; `--trace` shows all.
const TAIL_LINES: usize = 40;
/// Between two lines of progress where nobody sees them grow.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// The same on a terminal.
const PROGRESS_ON_TERMINAL: Duration = Duration::from_millis(500);

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err("there is no seed in it; B must be above A".to_owned()) } else { Ok(range) }
}

fn nodes(text: &str) -> Result<u64, String> {
    match text {
        "3" | "5" | "7" => text.parse().map_err(|_| String::new()),
        _ => Err("clusters of 3, 5 or 7 nodes are simulated".to_owned()),
    }
}

fn profile(name: &str) -> Result<Profile, String> {
    let names = || Profile::ALL.map(|profile| profile.name).join(", ");
    Profile::named(name).ok_or_else(|| format!("one of {}", names()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut bug = None;
    match arguments.planted.as_deref() {
        Some("list") => {
            planted::ALL.iter().for_each(|bug| println!("{}", bug.name));
            return ExitCode::SUCCESS;
        }
        Some(name) => {
            bug = Planted::named(name);
            let Some(bug) = bug else {
                eprintln!("no planted bug {name}; --planted list prints them");
                return ExitCode::from(2);
            };
            bug.plant();
        }
        None => {}
    }
    let most = if bug.is_some() { 10_000 } else { 100 };
    let seeds = arguments.seed.map(|seed| seed..seed + 1).or(arguments.seeds.clone()).unwrap_or(0..most);
    let settings = Settings {
        steps: arguments.steps,
        nodes: arguments.nodes,
        profile: arguments.profile,
        trace: if arguments.trace { TraceTo::Output } else { TraceTo::Hash },
    };
    // What breaks is told in a paragraph of its own; the words of a panic are part of it.
    std::panic::set_hook(Box::new(|_| {}));
    let (sum, by_profile, broken) = run_all(seeds, &settings);
    if let Some(outcome) = &broken {
        describe(outcome, &settings, &arguments);
    }
    match serde_json::to_string(&sum) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("counters do not encode: {error}"),
    }
    if broken.is_some() {
        return ExitCode::FAILURE;
    }
    if let Some(bug) = bug {
        eprintln!("{} was not found", bug.name);
        return ExitCode::SUCCESS;
    }
    // A profile that does not do what it promises proves nothing.
    for (profile, sum) in &by_profile {
        if let Some(counter) = profile.broken_promise(sum) {
            eprintln!("profile {} promises {}, and in {} runs there was none", profile.name, counter.name, sum.seeds);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Runs seeds until a property does not hold.
fn run_all(seeds: Range<u64>, settings: &Settings) -> (Stats, Vec<(Profile, Stats)>, Option<Outcome>) {
    let mut sum = Stats::default();
    let mut by_profile: Vec<(Profile, Stats)> = Vec::new();
    let mut progress = Progress::new(seeds.end - seeds.start);
    for seed in seeds {
        let outcome = run(seed, settings);
        sum.add(outcome.stats);
        match by_profile.iter_mut().find(|(profile, _)| profile.name == outcome.profile.name) {
            Some((_, sum)) => sum.add(outcome.stats),
            None => by_profile.push((outcome.profile, outcome.stats)),
        }
        if outcome.violation.is_some() {
            progress.end();
            return (sum, by_profile, Some(outcome));
        }
        progress.tell(&sum);
    }
    progress.end();
    (sum, by_profile, None)
}

/// What broke, how to run it alone, and the last lines of what happened.
fn describe(outcome: &Outcome, settings: &Settings, arguments: &Arguments) {
    if settings.trace == TraceTo::Hash {
        let again =
            Settings { trace: TraceTo::Memory, nodes: arguments.nodes, profile: Some(outcome.profile), ..*settings };
        let text = run(outcome.seed, &again).trace.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(TAIL_LINES);
        eprintln!("the last {} of {} lines of the trace; times are microseconds:", lines.len() - skipped, lines.len());
        lines[skipped..].iter().for_each(|line| eprintln!("  {line}"));
    }
    if let Some(words) = outcome.describe() {
        let steps = if settings.steps == Settings::default().steps {
            String::new()
        } else {
            format!(" --steps {}", settings.steps)
        };
        let bug = arguments.planted.as_ref().map(|name| format!(" --planted {name}")).unwrap_or_default();
        eprintln!("{words}{steps}{bug}");
    }
}

/// How far a long run is, on stderr.
struct Progress {
    of: u64,
    began: Instant,
    told: Instant,
    terminal: bool,
}

impl Progress {
    fn new(of: u64) -> Progress {
        Progress { of, began: Instant::now(), told: Instant::now(), terminal: std::io::stderr().is_terminal() }
    }

    fn tell(&mut self, sum: &Stats) {
        let pause = if self.terminal { PROGRESS_ON_TERMINAL } else { PROGRESS_EVERY };
        if self.told.elapsed() < pause {
            return;
        }
        self.told = Instant::now();
        let seconds = self.began.elapsed().as_secs_f64();
        let end = if self.terminal { '\r' } else { '\n' };
        let (rate, left) = (sum.steps as f64 / seconds, seconds / sum.seeds as f64 * (self.of - sum.seeds) as f64);
        // Nobody may be reading.
        let _ = write!(
            std::io::stderr(),
            "{} of {} seeds, {rate:.0} events a second, {left:.0} s left    {end}",
            sum.seeds,
            self.of
        );
    }

    fn end(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "{:70}\r", "");
        }
    }
}
