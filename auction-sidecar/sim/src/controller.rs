//! A provider's controller in small: it holds devices for awards and says what is free.
//!
//! It is the judge of overselling: a hold that does not fit on what is really there is counted.

use std::collections::BTreeMap;
use vendue_auction_core::HoldRequest;
use vendue_market::{Digest, NodeCapacity, Offer, Reason, Requirements, fit, take};

/// How a controller answers a hold request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It holds the devices after so many milliseconds.
    After(u64),
    /// It refuses at once.
    Refuse(Reason),
    /// It never answers.
    Never,
}

/// One provider's devices.
#[derive(Debug, Clone)]
pub struct Controller {
    offers: Vec<Offer>,
    held: BTreeMap<Digest, Requirements>,
    /// How hold requests are answered.
    pub answer: Answer,
    /// Hold requests that did not fit on what was free.
    pub oversold: u32,
}

impl Controller {
    /// A provider with these devices.
    pub fn new(offers: Vec<Offer>) -> Self {
        Self { offers, held: BTreeMap::new(), answer: Answer::After(20), oversold: 0 }
    }

    /// Replaces what the provider sells.
    pub fn sell(&mut self, offers: Vec<Offer>) {
        self.offers = offers;
    }

    /// Orders whose devices are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes hold of devices, if they are really there.
    pub fn hold(&mut self, request: &HoldRequest) -> Result<(), Reason> {
        let requirements = &request.order.requirements;
        let offers = self.free();
        let nodes: Vec<NodeCapacity> = offers
            .iter()
            .filter(|o| o.name == request.offer)
            .flat_map(|o| o.nodes.iter().map(|n| n.capacity.clone()))
            .collect();
        match fit(requirements, &nodes) {
            Ok(_) => {
                self.held.insert(request.order.digest(), requirements.clone());
                Ok(())
            }
            Err(reason) => {
                self.oversold += 1;
                Err(reason)
            }
        }
    }

    /// Lets go.
    pub fn release(&mut self, order: &Digest) {
        self.held.remove(order);
    }

    /// Offers with what is free now.
    pub fn free(&self) -> Vec<Offer> {
        let mut offers = self.offers.clone();
        for requirements in self.held.values() {
            for offer in &mut offers {
                let mut nodes: Vec<NodeCapacity> = offer.nodes.iter().map(|n| n.capacity.clone()).collect();
                if let Ok(placement) = fit(requirements, &nodes) {
                    take(&mut nodes, requirements, &placement);
                    offer.nodes.iter_mut().zip(nodes).for_each(|(node, left)| node.capacity = left);
                    break;
                }
            }
        }
        offers
    }
}
