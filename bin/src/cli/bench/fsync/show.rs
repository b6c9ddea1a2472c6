//! The figures, for programs and for people.

use serde_json::{Value, json};

use super::measure::Figures;
use super::place::Place;
use super::raw::{Method, Prepared};
use crate::cli::bench::table;
use crate::cli::status::human_size;

/// All that was found out.
pub(super) struct Report {
    pub(super) place: Place,
    pub(super) warnings: Vec<String>,
    pub(super) raw: Vec<Row>,
    pub(super) wal: Vec<Pair>,
}

/// One way, one batch size.
pub(super) struct Row {
    pub(super) method: Method,
    pub(super) prepared: Prepared,
    pub(super) batch_bytes: usize,
    pub(super) figures: Figures,
}

/// The log beside the raw row that it was measured with in turns.
pub(super) struct Pair {
    pub(super) log: Row,
    /// Where the raw row is in the report.
    pub(super) raw_row: usize,
}

impl Row {
    fn mb_per_second(&self) -> f64 {
        self.figures.syncs_per_second() * self.batch_bytes as f64 / 1e6
    }

    fn json(&self) -> Value {
        json!({
            "method": self.method.name(),
            "prepared": self.prepared.name(),
            "batch_bytes": self.batch_bytes,
            "syncs_per_second": rounded(self.figures.syncs_per_second(), 10.0),
            "mb_per_second": rounded(self.mb_per_second(), 1000.0),
            "p50_us": self.figures.quantile_us(0.5),
            "p99_us": self.figures.quantile_us(0.99),
            "p999_us": self.figures.quantile_us(0.999),
            "max_us": self.figures.max_us(),
        })
    }

    fn cells(&self) -> Vec<String> {
        let figures = &self.figures;
        vec![
            self.method.name().to_owned(),
            self.prepared.name().to_owned(),
            human_size(self.batch_bytes as u64),
            format!("{:.0}", figures.syncs_per_second()),
            format!("{:.1}", self.mb_per_second()),
            figures.quantile_us(0.5).to_string(),
            figures.quantile_us(0.99).to_string(),
            figures.quantile_us(0.999).to_string(),
            figures.max_us().to_string(),
        ]
    }
}

fn rounded(value: f64, places: f64) -> f64 {
    (value * places).round() / places
}

/// From this batch on what counts is bytes, below it syncs.
const LARGE_BATCH: usize = 64 << 10;

impl Report {
    /// The log's part of what the raw way reaches.
    fn share(&self, pair: &Pair) -> f64 {
        let raw = &self.raw[pair.raw_row];
        let (log, raw) = if pair.log.batch_bytes >= LARGE_BATCH {
            (pair.log.mb_per_second(), raw.mb_per_second())
        } else {
            (pair.log.figures.syncs_per_second(), raw.figures.syncs_per_second())
        };
        if raw > 0.0 { log / raw } else { 0.0 }
    }

    /// The object that `--json` promises.
    pub(super) fn json(&self) -> Value {
        let wal = self.wal.iter().map(|pair| {
            let mut row = pair.log.json();
            row["raw_same_method"] = self.raw[pair.raw_row].json();
            row["share"] = json!(rounded(self.share(pair), 1000.0));
            row
        });
        json!({
            "filesystem": self.place.filesystem,
            "device": self.place.device,
            "mount_options": self.place.mount_options,
            "write_cache": self.place.write_cache,
            "warnings": self.warnings,
            "raw": self.raw.iter().map(Row::json).collect::<Vec<_>>(),
            "wal": wal.collect::<Vec<_>>(),
        })
    }

    /// Tables and histograms.
    pub(super) fn text(&self) -> String {
        let place = &self.place;
        let mut text = format!(
            "{} on {} ({}), write cache: {}\n",
            place.filesystem, place.device, place.mount_options, place.write_cache
        );
        for warning in &self.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        text.push_str("\nraw, one sync a batch; times in microseconds\n");
        text.push_str(&table(&HEAD, 2, self.raw.iter().map(Row::cells)));
        if !self.wal.is_empty() {
            text.push_str(
                "\n\ngraven's log, one frame and one sync a batch, measured in turns with the same method raw\n",
            );
            let rows = self.wal.iter().map(|pair| {
                let mut cells = pair.log.cells();
                let raw = &self.raw[pair.raw_row];
                cells.push(format!("{:.0}", raw.figures.syncs_per_second()));
                cells.push(format!("{:.0}%", self.share(pair) * 100.0));
                cells
            });
            let head: Vec<&str> = HEAD.iter().copied().chain(["RAW SYNCS/S", "SHARE"]).collect();
            text.push_str(&table(&head, 2, rows));
        }
        text.push_str(
            "\n\nhow long a sync takes: each column half as long again as the one before, darker is more often\n",
        );
        text.push_str(&self.histograms());
        text
    }

    fn histograms(&self) -> String {
        let rows: Vec<(String, &Figures)> = (self.raw.iter().map(|row| (row, "raw")))
            .chain(self.wal.iter().map(|pair| (&pair.log, "log")))
            .map(|(row, kind)| {
                let size = human_size(row.batch_bytes as u64);
                (format!("{kind} {} {} {size}", row.method.name(), row.prepared.name()), &row.figures)
            })
            .collect();
        let least = rows.iter().map(|(_, figures)| figures.latencies().min()).min().unwrap_or(0);
        let most = rows.iter().map(|(_, figures)| figures.latencies().max()).max().unwrap_or(0);
        let (first, last) = (column_of(least), column_of(most));
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = format!("{:width$}  {}\n", "", axis(first, last));
        for (name, figures) in &rows {
            let mut counts = vec![0; last - first + 1];
            for bucket in figures.latencies().iter_recorded() {
                let column = column_of(bucket.value_iterated_to()).clamp(first, last);
                counts[column - first] += bucket.count_since_last_iteration();
            }
            let line = format!("{name:width$} |{}", shades(&counts));
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

const HEAD: [&str; 9] = ["METHOD", "PREPARED", "BATCH", "SYNCS/S", "MB/S", "P50", "P99", "P99.9", "MAX"];

/// Column 0 ends at a microsecond; each ends half as far again.
fn column_of(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds as f64 / 1000.0;
    if microseconds <= 1.0 { 0 } else { (microseconds.ln() / COLUMN_RATIO.ln()).ceil() as usize }
}

/// Six columns are a bit more than a power of ten.
const COLUMN_RATIO: f64 = 1.5;

/// Where 10 us, 100 us, 1 ms and so on are.
fn axis(first: usize, last: usize) -> String {
    let marks = [
        (1, "1us"),
        (10, "10us"),
        (100, "100us"),
        (1000, "1ms"),
        (10_000, "10ms"),
        (100_000, "100ms"),
        (1_000_000, "1s"),
        (10_000_000, "10s"),
    ];
    let mut line = String::new();
    for (microseconds, name) in marks {
        let column = column_of(microseconds * 1000);
        if (first..=last).contains(&column) && (line.is_empty() || column - first > line.len()) {
            line.push_str(&" ".repeat(column - first - line.len()));
            line.push_str(name);
        }
    }
    line
}

/// A character a column; anything that happened at all is seen, because the rare long ones are what one looks for.
fn shades(counts: &[u64]) -> String {
    const DARKER: &[u8] = b".:-=+*#%@";
    let total: u64 = counts.iter().sum();
    let shade = |count: u64| match count {
        0 => ' ',
        _ => char::from(DARKER[((count as f64 / total as f64).sqrt() * (DARKER.len() - 1) as f64).round() as usize]),
    };
    counts.iter().map(|count| shade(*count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_grow_by_half() {
        assert_eq!((column_of(0), column_of(1000), column_of(1001)), (0, 0, 1));
        assert!(column_of(10_000) < column_of(16_000) && column_of(u64::MAX) < 100);
        let line = axis(column_of(20_000), column_of(30_000_000));
        assert!(line.contains("100us") && line.contains("1ms") && !line.contains("10s"), "{line}");
    }

    #[test]
    fn one_in_a_million_is_seen() {
        assert_eq!(shades(&[1_000_000, 0, 1]), "@ .");
        assert_eq!(shades(&[0, 0]), "  ");
    }
}
