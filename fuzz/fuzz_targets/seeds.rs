//! Writes well-formed bytes for the network targets into `corpus/TARGET/`, for a fuzzer to begin with.

fn main() -> std::io::Result<()> {
    for (target, _) in graven_net::fuzzing::TARGETS {
        let dir = std::path::Path::new("corpus").join(target);
        std::fs::create_dir_all(&dir)?;
        for (number, bytes) in graven_net::fuzzing::seeds(target).into_iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number}")), bytes)?;
        }
    }
    Ok(())
}
