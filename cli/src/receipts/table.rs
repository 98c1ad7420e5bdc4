//! Sums of receipts as people read them. Pure.

use vendue_receipts::{Billed, FileJob, ReceiptsHeads};

use super::sum::{AwardSums, Row, Sums, decimal, printable};
use crate::cluster::time;

const SECOND_NS: u64 = 1_000_000_000;
const HEAD: [&str; 8] = ["NODE", "GPU", "TIME", "ENERGY", "ACTIVITY", "MEMORY PEAK", "XIDS", "GAPS"];

/// The whole text.
pub fn text(job: &FileJob, sums: &Sums) -> String {
    let mut out = format!("Job {}/{}\n", printable(&job.namespace), printable(&job.name));
    for award in &sums.awards {
        out.push_str(&award_text(award));
    }
    if sums.awards.len() > 1 {
        out.push_str(&format!("\nall awards: {}\n", bill(&sums.total)));
    }
    for fault in &sums.faults {
        out.push_str(&format!("FAIL  {fault}\n"));
    }
    out
}

fn award_text(award: &AwardSums) -> String {
    let AwardSums { id, provider, price, .. } = award;
    let mut out = format!("\naward {id} of {provider} at {price} per GPU-hour\n");
    if award.chains.is_empty() {
        out.push_str("no receipts have come home\n");
        return out;
    }
    out.push_str(&rows(&award.devices));
    out.push_str(&format!("charged: {}\n", bill(&award.billed)));
    let state = match (award.ended, award.closed) {
        (_, true) => "closed: no record is missing at the end",
        (true, false) => "not closed yet: later records may be on their way",
        (false, false) => "the Job runs",
    };
    for chain in &award.chains {
        out.push_str(&format!(
            "{} records of node {} by key {}\n",
            chain.records, chain.node, chain.public_key
        ));
    }
    out.push_str(&format!("all verified, up to {}; {state}\n", time(award.until_ms)));
    out
}

/// How far the receipts are, in one line.
pub fn progress(heads: &ReceiptsHeads) -> String {
    let chains = || heads.awards.iter().flat_map(|award| &award.chains);
    let (records, closed) = (chains().map(|c| c.records).sum::<u64>(), chains().filter(|c| c.closed).count());
    let ended = heads.awards.iter().all(|award| award.ended_at.is_some());
    let state = if ended { "the Job has ended" } else { "the Job runs" };
    let until =
        chains().map(|c| c.until_ms).max().map(|ms| format!(", up to {}", time(ms))).unwrap_or_default();
    format!("waiting: {state}; {records} records{until}; {closed} of {} chains are closed", chains().count())
}

/// What is charged, in one line.
fn bill(billed: &Billed) -> String {
    let gaps = match billed.gap_ns {
        0 => String::new(),
        gap_ns => format!(", {} of gaps, which cost nothing", duration(gap_ns)),
    };
    let seconds = billed.gpu_ns as f64 / SECOND_NS as f64;
    let (energy, cost) = (energy(billed.energy_mj), decimal(billed.cost_micros));
    format!("{seconds:.3} GPU-seconds in {}, {energy}, cost {cost}{gaps}", duration(billed.used_ns))
}

fn rows(devices: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(devices.iter().map(cells));
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let text = cells.collect::<Vec<_>>().join("  ");
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

fn cells(row: &Row) -> [String; 8] {
    let activity = row.activity.iter().map(|(source, share)| {
        let of = if *source == "smActive" { "SMs" } else { "time" };
        format!("{:.0} % of {of}", share * 100.0)
    });
    let xids = row.xids.iter().map(|(code, count)| format!("{code} x{count}"));
    let gaps =
        row.gaps_ms.iter().map(|(why, ms)| format!("{} {why}", duration(ms.saturating_mul(1_000_000))));
    let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(", ") };
    [
        row.node.clone(),
        row.device.clone().unwrap_or_else(|| "all".to_owned()),
        duration(row.used_ns),
        row.energy_mj.map_or_else(|| "-".to_owned(), energy),
        list(activity.collect()),
        row.memory_peak_bytes
            .map_or_else(|| "-".to_owned(), |b| format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64)),
        list(xids.collect()),
        list(gaps.collect()),
    ]
}

/// Millijoules as people read them.
fn energy(millijoules: u64) -> String {
    let wh = millijoules as f64 / 3_600_000.0;
    if wh >= 1_000.0 { format!("{:.3} kWh", wh / 1_000.0) } else { format!("{wh:.2} Wh") }
}

/// Hours, minutes and seconds; below a minute with milliseconds.
fn duration(ns: u64) -> String {
    let (seconds, ms) = (ns / SECOND_NS, ns % SECOND_NS / 1_000_000);
    match seconds {
        0..60 if ms > 0 => format!("{seconds}.{ms:03}s"),
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m{:02}s", seconds / 3_600, seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_people_write_them() {
        let of_seconds = |s: u64| duration(s * SECOND_NS);
        assert_eq!(
            [0, 59, 60, 3_599, 3_600, 90_061].map(of_seconds),
            ["0s", "59s", "1m00s", "59m59s", "1h00m00s", "25h01m01s"]
        );
        assert_eq!(duration(1_500_000_000), "1.500s");
        assert_eq!(energy(3_600_000), "1.00 Wh");
        assert_eq!(energy(7_200_000_000), "2.000 kWh");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let row = Row { node: "n1".into(), used_ns: 10 * SECOND_NS, ..Row::default() };
        assert_eq!(cells(&row), ["n1", "all", "10s", "-", "-", "-", "-", "-"].map(str::to_owned));
    }
}
