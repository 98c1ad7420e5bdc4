//! Tests of the meter and its store, and the simulated node that they share.

mod crash;
mod gaps;
mod memory;
mod properties;
mod rotation;
mod store;
mod telling;
mod windows;

use std::collections::{BTreeMap, BTreeSet};

use vendue_receipts::{
    ActivitySource, AwardId, Body, BootId, Chain, DeviceId, DeviceTotals, Gap, GapReason, NodeKey, Record,
    Used, Xids, verify_node,
};

use super::{DeviceTick, Draft, Meter, Reading, Resume, Settings, Tick, Unreadable};

pub(super) const SECOND: u64 = 1_000;
pub(super) const A: AwardId = AwardId([0xa; 8]);
pub(super) const B: AwardId = AwardId([0xb; 8]);
pub(super) const IDLE: AwardId = AwardId::IDLE;

pub(super) fn key(seed: u8) -> NodeKey {
    NodeKey::from_bytes(&[seed; 32]).unwrap()
}

pub(super) fn name(device: usize) -> DeviceId {
    format!("GPU-{device}").parse().unwrap()
}

/// A device of the simulated node.
#[derive(Debug, Clone)]
pub(super) struct Gpu {
    pub award: AwardId,
    pub energy_mj: Option<u64>,
    /// Watts are millijoules in a millisecond.
    pub watts: u64,
    pub activity: Option<(ActivitySource, u32)>,
    pub memory: Option<u64>,
    pub driver: &'static str,
    pub fault: Option<Unreadable>,
    pub xids: Vec<u32>,
    pub named: bool,
}

/// A node with devices, a meter, and chains in memory.
pub(super) struct Node {
    pub steady_ms: u64,
    pub suspended_ms: u64,
    /// System clock less steady clock.
    pub system_ms: i64,
    pub boot: u8,
    pub gpus: Vec<Gpu>,
    pub ended: Vec<AwardId>,
    pub meter: Meter,
    pub chains: BTreeMap<AwardId, (Chain, Vec<Record>)>,
    /// Chains that cannot be stored; the idle one stands for all.
    pub failing: BTreeSet<AwardId>,
}

pub(super) const START_MS: u64 = 1_700_000_000_000;

impl Node {
    pub fn new(gpus: usize) -> Self {
        let gpu = Gpu {
            award: IDLE,
            energy_mj: Some(1_000_000),
            watts: 300,
            activity: Some((ActivitySource::Utilization, 500_000)),
            memory: Some(1_000),
            driver: "580.1",
            fault: None,
            xids: vec![],
            named: true,
        };
        Self {
            steady_ms: 5_000,
            suspended_ms: 0,
            system_ms: START_MS as i64 - 5_000,
            boot: 1,
            gpus: vec![gpu; gpus],
            ended: vec![],
            meter: Meter::new(Settings::new(key(1).public()), Resume::default()),
            chains: BTreeMap::new(),
            failing: BTreeSet::new(),
        }
    }

    /// Time passes and devices use energy; nobody looks.
    pub fn pass(&mut self, ms: u64) {
        self.steady_ms += ms;
        for gpu in &mut self.gpus {
            gpu.energy_mj = gpu.energy_mj.map(|e| e + gpu.watts * ms);
        }
    }

    pub fn look(&mut self) -> Tick {
        let devices = self.gpus.iter_mut().enumerate().filter(|(_, gpu)| gpu.named);
        let seen = devices.map(|(n, gpu)| DeviceTick {
            device: name(n),
            award: gpu.award,
            xids: std::mem::take(&mut gpu.xids),
            reading: gpu.fault.map_or(Ok(()), Err).map(|()| Reading {
                energy_mj: gpu.energy_mj,
                activity: gpu.activity,
                memory_used_bytes: gpu.memory,
                driver: gpu.driver.parse().unwrap(),
            }),
        });
        Tick {
            steady_ns: self.steady_ms * 1_000_000,
            suspended_ns: self.suspended_ms * 1_000_000,
            system_ms: (self.system_ms + self.steady_ms as i64) as u64,
            boot: BootId([self.boot; 16]),
            devices: seen.collect(),
            ended: std::mem::take(&mut self.ended),
        }
    }

    /// Time passes and the meter looks; what it says is signed and kept.
    pub fn tick(&mut self, ms: u64) -> Vec<Draft> {
        self.pass(ms);
        let tick = self.look();
        let drafts = self.meter.tick(&tick).unwrap().to_vec();
        self.keep(&drafts);
        drafts
    }

    pub fn ticks(&mut self, count: u64) -> Vec<Draft> {
        (0..count).flat_map(|_| self.tick(SECOND)).collect()
    }

    pub fn stop(&mut self) {
        let drafts = self.meter.stop().unwrap().to_vec();
        self.keep(&drafts);
    }

    fn keep(&mut self, drafts: &[Draft]) {
        let fails = |award: &AwardId| self.failing.contains(&IDLE) || self.failing.contains(award);
        for Draft { award, body } in drafts.iter().filter(|d| !fails(&d.award)) {
            let (chain, records) =
                self.chains.entry(*award).or_insert_with(|| (Chain::new(*award, 0), vec![]));
            records.push(chain.sign(body.clone(), &key(1)).unwrap());
        }
        let failed = drafts.iter().map(|d| d.award).filter(fails).collect();
        self.meter.settle(&failed);
    }

    pub fn resume(&self) -> Resume {
        let chains = self.chains.values().map(|(chain, _)| chain.clone()).collect();
        Resume { anchor: self.meter.anchor(), chains, ..Resume::default() }
    }

    /// The agent dies and another one starts.
    pub fn restart(&mut self) {
        self.meter = Meter::new(Settings::new(key(1).public()), self.resume());
    }

    /// The machine goes down; the steady clock and the counters begin anew.
    pub fn reboot(&mut self, down_ms: u64) {
        self.system_ms += (self.steady_ms + down_ms) as i64;
        (self.steady_ms, self.suspended_ms, self.boot) = (0, 0, self.boot + 1);
        self.gpus.iter_mut().for_each(|gpu| gpu.energy_mj = gpu.energy_mj.map(|_| 0));
        self.restart();
    }

    pub fn totals(&self) -> BTreeMap<DeviceId, DeviceTotals> {
        let chains: Vec<&[Record]> = self.chains.values().map(|(_, records)| records.as_slice()).collect();
        verify_node(key(1).public(), &chains).unwrap()
    }

    pub fn of(&self, device: usize) -> DeviceTotals {
        self.totals()[&name(device)]
    }

    /// The records of an award, without the opening.
    pub fn said(&self, award: AwardId) -> Vec<Body> {
        self.chains
            .get(&award)
            .into_iter()
            .flat_map(|(_, r)| r.iter().skip(1))
            .map(|r| r.body.clone())
            .collect()
    }

    pub fn windows(&self, award: AwardId) -> Vec<Used> {
        let said = self.said(award).into_iter();
        said.filter_map(|body| if let Body::Used(used) = body { Some(used) } else { None }).collect()
    }

    /// The gaps of an award, without those of no length with which observation begins.
    pub fn gaps(&self, award: AwardId) -> Vec<Gap> {
        let said = self.said(award).into_iter();
        let gaps = said.filter_map(|body| if let Body::Gap(gap) = body { Some(gap) } else { None });
        gaps.filter(|g| g.t0_ms < g.t1_ms || g.reason != GapReason::AgentDown || !g.xids.is_empty()).collect()
    }

    pub fn reasons(&self, award: AwardId) -> Vec<GapReason> {
        self.gaps(award).iter().map(|gap| gap.reason).collect()
    }
}

/// A window of a device, without anything that a card may not offer.
pub(super) fn used(award: AwardId, device: usize, t0_ms: u64, t1_ms: u64) -> Draft {
    let body = Body::Used(Used {
        device: name(device),
        t0_ms,
        t1_ms,
        wall_ns: (t1_ms - t0_ms) * 1_000_000,
        energy: None,
        activity: None,
        memory_peak_bytes: None,
        xids: Xids::default(),
        driver: "580.1".parse().unwrap(),
    });
    Draft { award, body }
}
