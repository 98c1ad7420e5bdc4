//! Processes that stop and start again, with the log that their seat has kept or without it.
//!
//! A process that stops at a record has made that one durable and nothing after it, and has carried out nothing of the
//! call that the record came from: what is sent waits until all records of a call are durable.

use super::{Node, World};
use crate::keys::Keys;
use serde::{Deserialize, Serialize};
use vendue_auction_core::{KeyError, Seat, SeatOutput};

/// A process that stops when it has written so many records, and starts again with its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The seat.
    pub seat: u16,
    /// After so many records.
    pub records: u64,
    /// For so many milliseconds.
    pub down_ms: u64,
}

impl<K: Keys> World<K> {
    /// Restarts a seat: it loses everything but its keys.
    pub fn restart(&mut self, seat: u16) -> Result<(), KeyError> {
        let core = Seat::new(self.record.clone(), seat, self.keys.seat(seat)?, self.local(seat));
        self.put(seat, Node::new(seat, core));
        Ok(())
    }

    /// Restarts a seat that then takes part at once, as if its keys had never signed anything: what no seat must do.
    pub fn restart_without_caution(&mut self, seat: u16) -> Result<(), KeyError> {
        let core = Seat::fresh(self.record.clone(), seat, self.keys.seat(seat)?, self.local(seat));
        self.put(seat, Node::new(seat, core));
        Ok(())
    }

    /// Restarts a seat with its log. A seat that does not know its own log breaks I15.
    pub fn restart_with_log(&mut self, seat: u16) {
        let Some(node) = self.nodes.get_mut(usize::from(seat)) else { return };
        let log = std::mem::take(&mut node.log);
        let local_ms = self.local(seat);
        let core = match self.epochs(seat) {
            Ok(epochs) => Seat::restore_in(epochs, seat, local_ms, &log).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match core {
            Ok(core) => self.put(seat, Node { log, ..Node::new(seat, core) }),
            Err(why) => {
                self.watch.lost(self.now, seat, &why);
                if let Some(node) = self.nodes.get_mut(usize::from(seat)) {
                    node.down_until = Some(u64::MAX);
                }
            }
        }
    }

    fn put(&mut self, seat: u16, node: Node<K::Seat>) {
        if let Some(place) = self.nodes.get_mut(usize::from(seat)) {
            *place = node;
            self.restarts += 1;
        }
        self.advertise(seat);
    }

    /// Stops a seat's process when it has written so many more records.
    pub fn stop_at_record(&mut self, stop: &Stop) {
        if let Some(node) = self.nodes.get_mut(usize::from(stop.seat)) {
            node.stops_at = Some((node.log.len() as u64 + stop.records, stop.down_ms));
        }
    }

    pub(super) fn is_down(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(|n| n.down_until.is_some())
    }

    /// Starts processes again whose time has come.
    pub(super) fn start_again(&mut self) {
        let due = |n: &Node<K::Seat>| n.down_until.is_some_and(|until| until <= self.now);
        if !self.nodes.iter().any(due) {
            return;
        }
        let seats: Vec<u16> = self.nodes.iter().filter(|n| due(n)).map(|n| n.seat).collect();
        seats.into_iter().for_each(|seat| self.restart_with_log(seat));
    }

    /// Writes the records of a call, and gives what is then to be done; nothing when the process stops before that.
    pub(super) fn make_durable(&mut self, node: usize, outputs: Vec<SeatOutput>) -> Option<Vec<SeatOutput>> {
        let now = self.now;
        let node = self.nodes.get_mut(node)?;
        node.is_stale = true;
        let mut rest = Vec::with_capacity(outputs.len());
        for output in outputs {
            match output {
                SeatOutput::Persist(record) => {
                    node.log.push(*record);
                    if let Some((_, down_ms)) = node.stops_at.filter(|(at, _)| node.log.len() as u64 >= *at) {
                        (node.stops_at, node.down_until) = (None, Some(now + down_ms));
                        return None;
                    }
                }
                other => rest.push(other),
            }
        }
        Some(rest)
    }
}
