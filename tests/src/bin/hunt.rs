//! scratch
use graven_tests::{Settings, planted, profile::Profile};
fn main() {
    let n: u64 = std::env::args().nth(1).map_or(300, |n| n.parse().unwrap());
    let only = std::env::args().nth(2);
    let profile = std::env::args().nth(3).and_then(|p| Profile::named(&p));
    let nodes = std::env::args().nth(4).map(|n| n.parse().unwrap());
    std::panic::set_hook(Box::new(|_| {}));
    for p in planted::ALL {
        if only.as_deref().is_some_and(|o| o != "all" && !o.split(',').any(|o| o == p.name)) {
            continue;
        }
        let t = std::time::Instant::now();
        match p.hunt(0..n, &Settings { profile, nodes, ..Settings::default() }) {
            Some(o) => println!(
                "{:<28} seed {:>5} {:<12} {:>5.1}s {:?}",
                p.name,
                o.seed,
                o.profile.name,
                t.elapsed().as_secs_f64(),
                {
                    let v = o.violation.unwrap();
                    format!("{}: {}", v.property, v.detail.chars().take(150).collect::<String>())
                }
            ),
            None => println!("{:<28} NOT FOUND {:.1}s", p.name, t.elapsed().as_secs_f64()),
        }
    }
}
