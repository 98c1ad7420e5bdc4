//! Prometheus metrics, prefix `vendue_auction_`.
//!
//! Inputs: what the tasks report. Outputs: the text format on `/metrics`. Invariant: every label has a fixed, small set
//! of values; no job, peer, price or error text is ever a label.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::net::Protocol;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    /// Rounds that ended, by result: certified, expired, quiet.
    pub rounds: IntCounterVec,
    /// From a round's start to its certificate.
    pub round_duration: Histogram,
    dropped: IntCounterVec,
    /// Orders by event: placed, receipted, awarded, undecided, no_feasible_bid, cancelled, expired.
    pub orders: IntCounterVec,
    /// Orders that look for a provider now.
    pub orders_open: IntGauge,
    /// Own bids by outcome: won, standby, lost, none.
    pub bids: IntCounterVec,
    /// Connected members by role.
    pub peers_connected: IntGaugeVec,
    /// From the order to the certificate, at home.
    pub time_to_award: Histogram,
    bytes: IntCounterVec,
    /// Messages with a share of a round's key that this seat sent.
    pub shares_sent: IntCounter,
    /// 1 when the market's keys were dealt by one dealer, for development.
    pub market_insecure: IntGauge,
    /// 1 when this cluster's seat takes part in rounds, 0 while it only observes after a start.
    pub seat_active: IntGauge,
    /// Records in the seat's log.
    pub log_records: IntCounter,
    /// Bytes written to the seat's log.
    pub log_written: IntCounter,
    /// Bytes that the seat's log takes.
    pub log_bytes: IntGauge,
    /// Time to make a group of records durable.
    pub log_sync: Histogram,
    /// Proven faults of seats, by fault.
    pub fault_proofs: IntCounterVec,
    /// Requests to the API server, by kind and result.
    pub writes: IntCounterVec,
    /// Awards by side and event.
    pub awards: IntCounterVec,
    /// Bytes in the output store.
    pub store_bytes: IntGauge,
    /// Receipts that came home, by result: stored (records), failed (requests), refused and equivocation (evidence).
    pub receipts: IntCounterVec,
    /// Bytes of receipts at home.
    pub receipts_bytes: IntGauge,
    /// Requests of users for logs, outputs and receipts, by resource and status code.
    pub stream_requests: IntCounterVec,
    /// Status updates relayed, by result.
    pub relays: IntCounterVec,
    /// Time of requests to the API server.
    pub write_duration: HistogramVec,
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let vec = IntCounterVec::new(Opts::new(format!("vendue_auction_{name}"), help), labels)?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::with_opts(Opts::new(format!("vendue_auction_{name}"), help))?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::with_opts(Opts::new(format!("vendue_auction_{name}"), help))?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> Result<Histogram, prometheus::Error> {
    let options = HistogramOpts::new(format!("vendue_auction_{name}"), help).buckets(buckets.to_vec());
    let histogram = Histogram::with_opts(options)?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Result<Self, prometheus::Error> {
        let r = Registry::new();
        let peers_connected = IntGaugeVec::new(
            Opts::new("vendue_auction_peers_connected", "Connected members of the market by role."),
            &["role"],
        )?;
        r.register(Box::new(peers_connected.clone()))?;
        let write_duration = HistogramVec::new(
            HistogramOpts::new(
                "vendue_auction_write_duration_seconds",
                "Time of requests to the API server.",
            )
            .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
            &["kind"],
        )?;
        r.register(Box::new(write_duration.clone()))?;
        let fault_proofs = IntCounterVec::new(
            Opts::new("vendue_fault_proofs_total", "Proven faults of seats, by fault."),
            &["fault"],
        )?;
        r.register(Box::new(fault_proofs.clone()))?;
        let sync = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
        let seconds = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0];
        let metrics = Self {
            rounds: counters(&r, "rounds_total", "Rounds that ended, by result.", &["result"])?,
            round_duration: histogram(
                &r,
                "round_duration_seconds",
                "From a round's start to its certificate.",
                &seconds,
            )?,
            dropped: counters(&r, "messages_dropped_total", "Messages dropped, by reason.", &["reason"])?,
            orders: counters(&r, "orders_total", "Orders of this cluster, by event.", &["event"])?,
            orders_open: gauge(&r, "orders_open", "Orders of this cluster that look for a provider.")?,
            bids: counters(&r, "bids_total", "Bids of this cluster's seat, by outcome.", &["outcome"])?,
            peers_connected,
            time_to_award: histogram(
                &r,
                "time_to_award_seconds",
                "From the order to its certificate.",
                &seconds,
            )?,
            bytes: counters(
                &r,
                "network_bytes_total",
                "Bytes of messages, by protocol and direction.",
                &["protocol", "direction"],
            )?,
            shares_sent: counter(
                &r,
                "shares_sent_total",
                "Messages with a share of a round's key that were sent.",
            )?,
            market_insecure: gauge(&r, "market_insecure", "1 when one dealer made the keys of all seats.")?,
            seat_active: gauge(
                &r,
                "seat_active",
                "1 when the seat takes part in rounds, 0 while it observes.",
            )?,
            log_records: counter(&r, "log_records_total", "Records in the seat's log.")?,
            log_written: counter(&r, "log_written_bytes_total", "Bytes written to the seat's log.")?,
            log_bytes: gauge(&r, "log_bytes", "Bytes that the seat's log takes.")?,
            log_sync: histogram(
                &r,
                "log_sync_seconds",
                "Time to write a group of records of the seat's log and to make it durable.",
                &sync,
            )?,
            fault_proofs,
            writes: counters(
                &r,
                "writes_total",
                "Requests to the API server, by kind and result.",
                &["kind", "result"],
            )?,
            awards: counters(&r, "awards_total", "Awards by side and event.", &["side", "event"])?,
            store_bytes: gauge(&r, "store_bytes", "Bytes in the store of outputs and logs.")?,
            receipts: counters(
                &r,
                "receipts_total",
                "Records of receipts that came home; requests that failed; evidence against providers.",
                &["result"],
            )?,
            receipts_bytes: gauge(&r, "receipts_bytes", "Bytes of receipts that came home.")?,
            stream_requests: counters(
                &r,
                "stream_requests_total",
                "Requests for logs, outputs and receipts.",
                &["resource", "code"],
            )?,
            relays: counters(&r, "relays_total", "Status updates to homes, by result.", &["result"])?,
            write_duration,
            registry: r,
        };
        metrics.preset();
        Ok(metrics)
    }

    /// Makes the series that alerts and panels read exist before the first event.
    fn preset(&self) {
        for result in ["certified", "expired"] {
            self.rounds.with_label_values(&[result]);
        }
        for outcome in ["won", "standby", "lost", "none"] {
            self.bids.with_label_values(&[outcome]);
        }
        for event in ["placed", "awarded", "undecided", "no_feasible_bid", "cancelled", "expired"] {
            self.orders.with_label_values(&[event]);
        }
        for reason in ["foreign_peer", "oversize", "rate", "garbage", "duplicate", "inbox_full"] {
            self.dropped.with_label_values(&[reason]);
        }
        for result in ["stored", "failed", "refused", "equivocation"] {
            self.receipts.with_label_values(&[result]);
        }
        for role in ["seat", "home"] {
            self.peers_connected.with_label_values(&[role]);
        }
    }

    /// Counts a message that was dropped. `reason` is one of a fixed set of words.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped.with_label_values(&[reason]).inc();
    }

    /// How many messages were dropped for a reason.
    pub fn dropped_count(&self, reason: &str) -> u64 {
        self.dropped.with_label_values(&[reason]).get()
    }

    /// The counter of messages above the size limit.
    pub fn oversize(&self) -> IntCounter {
        self.dropped.with_label_values(&["oversize"])
    }

    /// Counts the bytes of a request or response.
    pub fn bytes(&self, direction: &'static str, protocol: Protocol, len: usize) {
        let protocol = match protocol {
            Protocol::Handover => "handover",
            Protocol::Bulk => "bulk",
        };
        self.bytes.with_label_values(&[protocol, direction]).inc_by(len as u64);
    }

    /// Counts the bytes of a round message.
    pub fn round_bytes(&self, direction: &'static str, len: usize) {
        self.bytes.with_label_values(&["round", direction]).inc_by(len as u64);
    }

    /// The text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
