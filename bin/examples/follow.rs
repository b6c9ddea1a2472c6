//! Appends two records and follows the log, from its beginning, until interrupted.
//!
//! ```sh
//! cargo run --release -- dev                                  # in one terminal
//! cargo run --release --example follow                        # in another; it survives `kill -9` of any node
//! ```

use graven::{Client, ClientConfig, Item, Start};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "graven-dev/client.toml".to_owned());
    let client = Client::connect(ClientConfig::load(file)?).await?;

    let ack = client.append(["hello", "world"]).await?;
    eprintln!("committed and synced on a majority: offsets {} to {}", ack.first, ack.last);

    let mut stream = client.subscribe(Start::Beginning).await?;
    while let Some(item) = stream.next().await {
        match item? {
            Item::Records(batch) => {
                for record in batch.iter() {
                    println!("{} {}", record.offset, String::from_utf8_lossy(&record.payload));
                }
            }
            Item::Trimmed { from, to } => eprintln!("offsets {from} to {to} were trimmed"),
            Item::CaughtUp { next_offset } => eprintln!("caught up at {next_offset}; waiting for more"),
            _ => {}
        }
    }
    Ok(())
}
