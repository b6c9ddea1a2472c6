//! Runs seeds of the simulator: `cargo run --release -p graven-tests --bin sim -- --seeds 0..1000`.

use std::ops::Range;
use std::process::ExitCode;

use clap::Parser;
use graven_tests::planted::{self, Planted};
use graven_tests::profile::Profile;
use graven_tests::report::Stats;
use graven_tests::trace::TraceTo;
use graven_tests::{Settings, run};

#[derive(Debug, Parser)]
#[command(about = "Runs simulated clusters and checks every property after every step")]
struct Arguments {
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A up to, not including, B.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Events before all heals.
    #[arg(long, default_value_t = Settings::default().steps)]
    steps: u64,
    /// Nodes: 3, 5 or 7; without it, the seed decides.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=7))]
    nodes: Option<u64>,
    /// The mix of faults; without it, the seed decides.
    #[arg(long, value_parser = profile)]
    profile: Option<Profile>,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
    /// Switch a planted bug on; `list` prints their names.
    #[arg(long)]
    planted: Option<String>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}

fn profile(name: &str) -> Result<Profile, String> {
    let names = || Profile::ALL.map(|profile| profile.name).join(", ");
    Profile::named(name).ok_or_else(|| format!("one of {}", names()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.planted.as_deref() {
        Some("list") => {
            planted::ALL.iter().for_each(|bug| println!("{}", bug.name));
            return ExitCode::SUCCESS;
        }
        Some(name) => {
            let Some(bug) = Planted::named(name) else {
                eprintln!("no planted bug {name}; --planted list prints them");
                return ExitCode::from(2);
            };
            bug.plant();
        }
        None => {}
    }
    let seeds = arguments.seed.map(|seed| seed..seed + 1).or(arguments.seeds).unwrap_or(0..100);
    let settings = Settings {
        steps: arguments.steps,
        nodes: arguments.nodes,
        profile: arguments.profile,
        trace: if arguments.trace { TraceTo::Output } else { TraceTo::Hash },
    };
    let mut sum = Stats::default();
    for seed in seeds {
        let outcome = run(seed, &settings);
        sum.add(outcome.stats);
        if let Some(words) = outcome.describe() {
            eprintln!("{words}");
            break;
        }
    }
    match serde_json::to_string(&sum) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("counters do not encode: {error}"),
    }
    if sum.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
