//! The board "Market": is the market deciding, how fast, who wins, and what is free.
//!
//! A label `cluster` on the scraped series tells the clusters apart; with one cluster it may be missing.

use super::Dashboard;
use super::panel::{Look, Panel, Query};

fn query(expr: impl Into<String>, legend: &'static str) -> Query {
    Query { expr: expr.into(), legend }
}

/// How often something happened, by a label.
fn rate(metric: &str, by: &str) -> String {
    format!("sum by ({by}) (rate({metric}[$__rate_interval]))")
}

/// How often something went wrong; zero where nothing ever did.
fn errors(metric: &str) -> String {
    format!("sum(rate({metric}[$__rate_interval])) or vector(0)")
}

/// A quantile over the time range; since the process started where nothing happened in the range.
fn quantile(q: &str, metric: &str) -> String {
    let of = |buckets: String| format!("histogram_quantile({q}, sum by (le) ({buckets}))");
    let range = of(format!("rate({metric}_bucket[$__rate_interval])"));
    format!("({range} >= 0) or {}", of(format!("{metric}_bucket")))
}

/// The dashboard.
pub fn dashboard() -> Dashboard {
    let mut panels = numbers();
    panels.extend(orders_and_rounds());
    panels.extend(awards_and_capacity());
    panels.extend(metering());
    panels.extend(trouble());
    Dashboard {
        uid: "vendue-market",
        title: "Vendue / Market",
        description: "Orders, rounds, awards and capacity of a Vendue market.",
        panels,
    }
}

fn stat(title: &'static str, description: &'static str, unit: &'static str, query: Query) -> Panel {
    Panel { title, description, unit, look: Look::Stat, queries: vec![query] }
}

fn lines(title: &'static str, description: &'static str, unit: &'static str, queries: Vec<Query>) -> Panel {
    Panel { title, description, unit, look: Look::Lines, queries }
}

fn numbers() -> Vec<Panel> {
    vec![
        stat(
            "Orders open",
            "Orders that look for a provider now, over all home clusters.",
            "none",
            query("sum(vendue_auction_orders_open)", "orders"),
        ),
        stat(
            "Awarded",
            "Orders that got an award since the processes started.",
            "none",
            query("sum(vendue_auction_orders_total{event=\"awarded\"})", "orders"),
        ),
        stat(
            "Time to award, p95",
            "From an order to its certificate. Target: 2 s on one site.",
            "s",
            query(quantile("0.95", "vendue_auction_time_to_award_seconds"), "p95"),
        ),
        stat(
            "GPUs free",
            "GPUs that nobody holds or uses, over all providers.",
            "none",
            query("sum(vendue_controller_gpus_free)", "GPUs"),
        ),
        stat(
            "GPUs held",
            "GPUs that awards hold, over all providers.",
            "none",
            query("sum(vendue_controller_gpus_held)", "GPUs"),
        ),
        stat(
            "Insecure keys",
            "Clusters in a market whose keys one dealer made: for development only.",
            "none",
            query("sum(vendue_auction_market_insecure)", "clusters"),
        ),
    ]
}

fn orders_and_rounds() -> Vec<Panel> {
    let round = "vendue_auction_round_duration_seconds";
    let award = "vendue_auction_time_to_award_seconds";
    let running = "vendue_controller_time_to_running_seconds";
    vec![
        Panel {
            title: "Orders by event",
            description: "What became of orders: placed, awarded, no feasible bid, undecided, cancelled, expired.",
            unit: "ops",
            look: Look::Stacked,
            queries: vec![query(rate("vendue_auction_orders_total", "event"), "{{event}}")],
        },
        Panel {
            title: "Rounds by result",
            description: "Rounds as each seat saw them end. Expired rounds reveal nothing; their orders are taken up again.",
            unit: "ops",
            look: Look::Stacked,
            queries: vec![query(rate("vendue_auction_rounds_total", "result"), "{{result}}")],
        },
        lines(
            "Duration of a round",
            "From the start of a round to its certificate.",
            "s",
            vec![query(quantile("0.5", round), "p50"), query(quantile("0.95", round), "p95")],
        ),
        lines(
            "Time to award and to running",
            "From an order to its certificate, and from a Job to its entry point running.",
            "s",
            vec![
                query(quantile("0.5", award), "award p50"),
                query(quantile("0.95", award), "award p95"),
                query(quantile("0.95", running), "running p95"),
            ],
        ),
    ]
}

fn awards_and_capacity() -> Vec<Panel> {
    vec![
        Panel {
            title: "Awards by provider",
            description: "Awards that a provider's controller holds devices for, as a rate.",
            unit: "ops",
            look: Look::Stacked,
            queries: vec![query(
                rate("vendue_auction_awards_total{side=\"host\",event=\"held\"}", "cluster"),
                "{{cluster}}",
            )],
        },
        lines(
            "Bids by outcome",
            "Bids of the seats: won, stand-by, lost, or none made for an order.",
            "ops",
            vec![query(rate("vendue_auction_bids_total", "outcome"), "{{outcome}}")],
        ),
        lines(
            "GPUs free and held",
            "Capacity of each provider. A held GPU is an award's, whether its work runs yet or not.",
            "none",
            vec![
                query("sum by (cluster) (vendue_controller_gpus_free)", "{{cluster}} free"),
                query("sum by (cluster) (vendue_controller_gpus_held)", "{{cluster}} held"),
            ],
        ),
        lines(
            "Healthy GPUs by model",
            "Devices that answer and report no fault, as the agents read them.",
            "none",
            vec![query("sum by (model) (vendue_gpu_healthy)", "{{model}}")],
        ),
    ]
}

fn metering() -> Vec<Panel> {
    vec![
        lines(
            "GPUs metered",
            "GPUs that work for awards according to durable receipts: GPU-seconds in a second.",
            "none",
            vec![query(
                "sum by (cluster) (rate(vendue_metered_gpu_seconds_total{award!=\"idle\"}[$__rate_interval]))",
                "{{cluster}}",
            )],
        ),
        lines(
            "Power metered",
            "Power that awards use according to durable receipts. MIG devices have none: energy is the whole card's.",
            "watt",
            vec![query(
                "sum by (cluster) (rate(vendue_metered_energy_joules_total{award!=\"idle\"}[$__rate_interval]))",
                "{{cluster}}",
            )],
        ),
        lines(
            "Gaps in metering",
            "GPU-seconds in a second that nobody is charged for, because they were not observed or not stored.",
            "none",
            vec![query(rate("vendue_metering_gap_seconds_total", "reason"), "{{reason}}")],
        ),
        lines(
            "Receipts that wait",
            "Receipts that the nodes have and the controller has not, nodes that cannot store any, and readings that were lost.",
            "none",
            vec![
                query("sum by (cluster) (vendue_agent_receipts_undelivered)", "{{cluster}} undelivered"),
                query("sum(1 - vendue_agent_metering)", "nodes that cannot store"),
                query(errors("vendue_agent_metering_looks_lost_total"), "readings lost"),
            ],
        ),
    ]
}

fn trouble() -> Vec<Panel> {
    vec![
        lines(
            "Seats connected",
            "Seats that each cluster's auction process reaches, and seats that take part. A round decides with n - f of n.",
            "none",
            vec![
                query("sum by (cluster) (vendue_auction_peers_connected{role=\"seat\"})", "{{cluster}}"),
                query("sum(vendue_auction_seat_active)", "take part in rounds"),
            ],
        ),
        lines(
            "Messages dropped",
            "Messages that were malformed, foreign, too large, too many or late, by reason.",
            "ops",
            vec![query(rate("vendue_auction_messages_dropped_total", "reason"), "{{reason}}")],
        ),
        lines(
            "Errors",
            "Failed writes to the API server, failed reconciles, failed readings of devices.",
            "ops",
            vec![
                query(errors("vendue_auction_writes_total{result!=\"ok\"}"), "auction writes"),
                query(
                    errors("vendue_controller_reconcile_duration_seconds_count{result!=\"ok\"}"),
                    "reconciles",
                ),
                query(errors("vendue_agent_reads_total{result!=\"success\"}"), "device readings"),
            ],
        ),
        lines(
            "Network",
            "Bytes between the clusters by protocol: rounds, hand-over and status, logs and outputs.",
            "Bps",
            vec![query(rate("vendue_auction_network_bytes_total", "protocol"), "{{protocol}}")],
        ),
    ]
}
