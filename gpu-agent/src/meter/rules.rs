//! The meter: from ticks to drafts of records. Pure.
//!
//! Inputs: ticks, and which chains could not be stored. Outputs: drafts in the order in which they are to be signed.
//!
//! Rules:
//! - An interval between two ticks belongs to an award only if the device served it at both; otherwise to idle time. So an
//!   award is never charged for more than it had, and at most a tick less at each end.
//! - A window ends at each tenth second, at a change of award or driver, at an Xid, at a fault, and when the award ends.
//! - Energy between two readings is in the record that has both. After a gap it is in the gap's record.
//! - What could not be stored comes again as a gap.
//!
//! Invariant: records of one device follow each other without overlap over all chains, and without holes for as long as
//! the device is named.

use std::collections::{BTreeMap, BTreeSet};

use vendue_receipts::{
    AwardId, Body, Chain, Clock, Closed, DeviceId, DriverVersion, GapReason, Opened, PublicKey,
};

use super::clock::{Anchor, MS};
use super::owed::Owed;
use super::span::{Kind, Span};
use super::tick::{DeviceTick, Reading, Tick, Unreadable};

/// A system clock beyond this (the year 2200) is none, and would leave no room to count on.
const LATEST_SYSTEM_MS: u64 = 7_258_118_400_000;
/// A step of the system clock that is recorded.
const STEP_MS: u64 = 1_000;
/// A suspension that is one.
const SUSPENSION_NS: u64 = 1_000_000_000;
/// For how long a device that is not named any more is remembered.
const FORGET_NS: u64 = 3_600_000_000_000;

/// How the meter works.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The node's key, as chains are opened with it.
    pub public_key: PublicKey,
    /// Windows end at multiples of this.
    pub window_ns: u64,
    /// Gaps that go on are recorded at multiples of this.
    pub gap_ns: u64,
    /// Nobody looked for longer than this: that is a gap, not a window.
    pub silence_ns: u64,
    /// Most awards at a time; devices of further ones count as idle.
    pub max_awards: usize,
}

impl Settings {
    /// Windows of 10 s, gaps of a minute, 5 s of silence.
    #[must_use]
    pub fn new(public_key: PublicKey) -> Self {
        let second = 1_000 * MS;
        let (window_ns, gap_ns, silence_ns) = (10 * second, 60 * second, 5 * second);
        Self { public_key, window_ns, gap_ns, silence_ns, max_awards: 1024 }
    }
}

/// What a meter goes on from.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// Where chain time and the steady clock met.
    pub anchor: Option<Anchor>,
    /// Chains of this node's key, closed ones too.
    pub chains: Vec<Chain>,
    /// Awards whose chains are closed and gone.
    pub removed: BTreeSet<AwardId>,
    /// Chain time does not begin before this, in milliseconds.
    pub not_before_ms: u64,
    /// Records after the chains' ends were lost with their disk.
    pub disk_lost: bool,
}

/// A record to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Its chain.
    pub award: AwardId,
    /// What it says.
    pub body: Body,
}

/// Why a tick is refused. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TickError {
    /// It is not known what became of the drafts before.
    #[error("meter: the drafts of the tick before are not settled")]
    Unsettled,
    /// No time of this age.
    #[error("meter: system clock {0} ms is after the year 2200")]
    SystemClock(u64),
}

/// What happened that no record says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ticks that named a device twice.
    pub duplicate_devices: u64,
    /// Ticks at which a device was assigned to an award that had ended, or to one too many.
    pub refused_awards: u64,
    /// Gaps for which there was no room while nothing could be stored.
    pub unrecorded_gaps: u64,
}

/// A chain as the meter knows it.
#[derive(Debug, Clone, Copy)]
struct Award {
    /// Its first record is durable.
    open: bool,
    opened_ms: u64,
    /// How far the system clock is ahead according to its records.
    offset_ms: i64,
    ending: bool,
}

/// A device as it was at the tick before.
#[derive(Debug, Clone)]
struct Device {
    award: AwardId,
    /// Accounted for up to here.
    at_ns: u64,
    /// What it showed.
    reading: Result<Reading, GapReason>,
    /// The last energy reading that is known to be of the same count, and the driver that gave it, where that is known.
    base: Option<(u64, Option<DriverVersion>)>,
    span: Option<Span>,
    /// Nobody has looked since, for this reason.
    away: Option<GapReason>,
}

/// The meter of one node.
#[derive(Debug, Clone)]
pub struct Meter {
    settings: Settings,
    anchor: Option<Anchor>,
    /// The first tick begins here, and no tick is before the one before.
    now_ns: u64,
    suspended_ns: Option<u64>,
    looked: bool,
    awards: BTreeMap<AwardId, Award>,
    ended: BTreeSet<AwardId>,
    devices: BTreeMap<DeviceId, Device>,
    owed: Owed,
    drafts: Vec<Draft>,
    counts: Counts,
    disk_lost: bool,
}

impl Meter {
    /// A meter that goes on from what is stored.
    #[must_use]
    pub fn new(settings: Settings, resume: Resume) -> Self {
        let Resume { anchor, chains, removed, not_before_ms, disk_lost } = resume;
        let latest_ms = chains.iter().map(Chain::end_ms).max().unwrap_or_default().max(not_before_ms);
        let (mut awards, mut ended) = (BTreeMap::new(), removed);
        for chain in chains.iter().filter(|chain| chain.opening_key().is_some()) {
            if chain.is_closed() {
                ended.insert(chain.award());
                continue;
            }
            let (opened_ms, offset_ms) = (chain.started_ms(), chain.clock_offset_ms());
            awards.insert(chain.award(), Award { open: true, opened_ms, offset_ms, ending: false });
        }
        Self {
            settings,
            anchor,
            now_ns: latest_ms.saturating_mul(MS),
            suspended_ns: None,
            looked: false,
            devices: devices_of(&chains),
            awards,
            ended,
            owed: Owed::default(),
            drafts: vec![],
            counts: Counts::default(),
            disk_lost,
        }
    }

    /// Where chain time and the steady clock met; to be stored before the drafts of the first tick are.
    #[must_use]
    pub fn anchor(&self) -> Option<Anchor> {
        self.anchor
    }

    /// What happened that no record says.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Chain time of the last tick.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.now_ns / MS
    }

    /// Takes a tick. The drafts are to be signed and stored in this order, then [`Meter::settle`] is to be called.
    ///
    /// # Errors
    /// When the drafts before are not settled, or the system clock is out of range.
    pub fn tick(&mut self, tick: &Tick) -> Result<&[Draft], TickError> {
        if !self.drafts.is_empty() {
            return Err(TickError::Unsettled);
        }
        if tick.system_ms > LATEST_SYSTEM_MS {
            return Err(TickError::SystemClock(tick.system_ms));
        }
        let mut out = self.owed.take();
        self.advance(tick);
        self.end_awards(&tick.ended);
        self.award(AwardId::IDLE);
        let mut named = BTreeSet::new();
        for device in &tick.devices {
            if named.insert(&device.device) {
                self.look_at(device, &mut out);
            } else {
                self.counts.duplicate_devices += 1;
            }
        }
        self.miss(&named, &mut out);
        self.chain_drafts(tick, &mut out);
        // Of one moment: first the opening, then windows, then the clock, then the close.
        out.sort_by_key(|draft| (draft.body.time_ms(), rank(&draft.body)));
        self.drafts = out;
        Ok(&self.drafts)
    }

    /// Ends all windows where they are, for a process that ends. To be settled like a tick.
    ///
    /// # Errors
    /// When the drafts before are not settled.
    pub fn stop(&mut self) -> Result<&[Draft], TickError> {
        if !self.drafts.is_empty() {
            return Err(TickError::Unsettled);
        }
        let mut out = self.owed.take();
        for (name, device) in &mut self.devices {
            flush(name, device, &mut out);
        }
        self.openings(&mut out);
        out.sort_by_key(|draft| (draft.body.time_ms(), rank(&draft.body)));
        self.drafts = out;
        Ok(&self.drafts)
    }

    /// What became of the drafts: they are durable, but for those of chains that could not be stored.
    pub fn settle(&mut self, failed: &BTreeSet<AwardId>) {
        for Draft { award, body } in std::mem::take(&mut self.drafts) {
            let stored = !failed.contains(&award);
            match body {
                Body::Used(_) | Body::Gap(_) if !stored => {
                    self.counts.unrecorded_gaps += u64::from(!self.owed.add(award, body));
                }
                Body::Opened(_) if stored => self.change(award, |a| a.open = true),
                Body::Clock(clock) if stored => {
                    let offset_ms = offset(clock.system_ms, clock.time_ms);
                    self.change(award, |a| a.offset_ms = offset_ms);
                }
                Body::Closed(_) if stored => {
                    self.awards.remove(&award);
                }
                _ => {}
            }
        }
    }

    fn change(&mut self, award: AwardId, change: impl FnOnce(&mut Award)) {
        if let Some(award) = self.awards.get_mut(&award) {
            change(award);
        }
    }

    /// Moves chain time on, and notes why nobody looked in between.
    fn advance(&mut self, tick: &Tick) {
        let before = self.anchor;
        let time = before.and_then(|a| a.at(tick)).filter(|time| *time >= self.now_ns || !self.looked);
        let now_ns = match time {
            Some(time) => time.max(self.now_ns),
            None => Anchor::begin(tick, self.now_ns).chain_ns,
        };
        if time != Some(now_ns) {
            self.anchor = Some(Anchor { boot: tick.boot, steady_ns: tick.steady_ns, chain_ns: now_ns });
        }
        let same_boot = before.is_some_and(|a| a.boot == tick.boot);
        let suspended = self.suspended_ns.map_or(0, |before| tick.suspended_ns.saturating_sub(before));
        let away = if self.disk_lost {
            Some(GapReason::DiskLost)
        } else if !same_boot {
            Some(GapReason::Reboot)
        } else if suspended >= SUSPENSION_NS {
            Some(GapReason::Suspend)
        } else if !self.looked {
            Some(GapReason::AgentDown)
        } else if time.is_none() {
            Some(GapReason::Clock)
        } else {
            Some(GapReason::AgentDown).filter(|_| now_ns - self.now_ns > self.settings.silence_ns)
        };
        if let Some(reason) = away {
            for device in self.devices.values_mut() {
                device.away = Some(reason);
                device.base = device.base.take().filter(|_| same_boot);
            }
        }
        (self.disk_lost, self.looked) = (false, true);
        (self.now_ns, self.suspended_ns) = (now_ns, Some(tick.suspended_ns));
    }

    fn end_awards(&mut self, ended: &[AwardId]) {
        for award in ended.iter().filter(|award| !award.is_idle()) {
            self.change(*award, |a| a.ending = true);
            self.ended.insert(*award);
        }
    }

    /// The award that a device may serve: the one it is said to, unless that has ended or is one too many.
    fn award(&mut self, award: AwardId) -> AwardId {
        let full = self.awards.len() > self.settings.max_awards;
        if self.ended.contains(&award) || (full && !self.awards.contains_key(&award)) {
            self.counts.refused_awards += 1;
            return AwardId::IDLE;
        }
        if self.awards.contains_key(&award) {
            return award;
        }
        // A chain begins with the first window in it; idle time takes the gaps of devices that were known before.
        let known_ns = self.devices.values().map(|d| d.at_ns).min().filter(|_| award.is_idle());
        let opened_ms = known_ns.unwrap_or(self.now_ns) / MS;
        self.awards.insert(award, Award { open: false, opened_ms, offset_ms: 0, ending: false });
        award
    }

    /// Takes the interval since the device was seen last into its span.
    fn look_at(&mut self, seen: &DeviceTick, out: &mut Vec<Draft>) {
        let award = self.award(seen.award);
        let (now_ns, settings) = (self.now_ns, self.settings);
        let Some(device) = self.devices.get_mut(&seen.device) else {
            out.push(first_sight(now_ns, seen));
            self.devices.insert(seen.device.clone(), Device::new(award, now_ns, seen));
            return;
        };
        let of = if device.award == award { award } else { AwardId::IDLE };
        let kind = device.kind(&seen.reading);
        if device.span.as_ref().is_some_and(|span| span.award != of || span.kind != kind) {
            flush(&seen.device, device, out);
        }
        if seen.reading.as_ref().is_ok_and(|reading| device.began_anew(reading)) {
            device.base = None;
        }
        let from_mj = device.base.as_ref().map(|(counter, _)| *counter);
        let is_gap = matches!(kind, Kind::Gap(_));
        let span = device.span.get_or_insert_with(|| Span::new(of, kind, device.at_ns, from_mj));
        span.extend(now_ns, seen.reading.as_ref().ok());
        seen.xids.iter().for_each(|code| span.xids.add(*code));
        let every = if is_gap { settings.gap_ns } else { settings.window_ns };
        let is_over = span.t0_ns / every.max(1) != now_ns / every.max(1);
        let is_back = is_gap && seen.reading.is_ok();
        if is_over || is_back || !seen.xids.is_empty() {
            flush(&seen.device, device, out);
        }
        device.moved_on(award, now_ns, seen);
    }

    /// Devices that are not named: their windows end where they were seen last.
    fn miss(&mut self, named: &BTreeSet<&DeviceId>, out: &mut Vec<Draft>) {
        let now_ns = self.now_ns;
        self.devices.retain(|name, device| {
            if named.contains(name) {
                return true;
            }
            flush(name, device, out);
            device.away = device.away.or(Some(GapReason::DeviceLost));
            now_ns.saturating_sub(device.at_ns) <= FORGET_NS
        });
    }

    /// Openings that are not durable yet.
    fn openings(&self, out: &mut Vec<Draft>) {
        let Some(Anchor { boot, .. }) = self.anchor else { return };
        let public_key = self.settings.public_key;
        let closed = self.awards.iter().filter(|(_, state)| !state.open);
        out.extend(closed.map(|(award, state)| {
            let body = Body::Opened(Opened { public_key, boot, time_ms: state.opened_ms });
            Draft { award: *award, body }
        }));
    }

    /// Openings, clock steps and closes.
    fn chain_drafts(&mut self, tick: &Tick, out: &mut Vec<Draft>) {
        self.openings(out);
        let time_ms = self.now_ns / MS;
        let offset_ms = offset(tick.system_ms, time_ms);
        for (award, state) in &self.awards {
            let mut draft = |body| out.push(Draft { award: *award, body });
            if offset_ms.abs_diff(state.offset_ms) >= STEP_MS {
                draft(Body::Clock(Clock { time_ms, system_ms: tick.system_ms }));
            }
            if state.ending {
                draft(Body::Closed(Closed { time_ms }));
            }
        }
    }
}

impl Device {
    fn new(award: AwardId, at_ns: u64, seen: &DeviceTick) -> Self {
        let reading = Err(GapReason::DeviceNotReadable);
        let mut device = Self { award, at_ns, reading, base: None, span: None, away: None };
        device.moved_on(award, at_ns, seen);
        device
    }

    /// What happened between the tick before and one that shows this.
    fn kind(&self, now: &Result<Reading, Unreadable>) -> Kind {
        let now = match (now, self.away) {
            (Ok(now), _) => now,
            (Err(_), Some(away)) => return Kind::Gap(away),
            (Err(unreadable), None) => return Kind::Gap(reason_of(*unreadable)),
        };
        let began_anew = self.began_anew(now);
        let before = match (&self.reading, self.away) {
            (Ok(before), None) => before,
            (reading, away) => {
                let reason = away.or(reading.as_ref().err().copied()).unwrap_or(GapReason::AgentDown);
                let explains = !began_anew || reason.resets_counter();
                return Kind::Gap(if explains { reason } else { GapReason::CounterReset });
            }
        };
        if began_anew || before.driver != now.driver {
            Kind::Gap(GapReason::CounterReset)
        } else if before.energy_mj.is_some() != now.energy_mj.is_some() {
            Kind::Gap(GapReason::DeviceNotReadable)
        } else {
            let source = now.activity.map(|(source, _)| source);
            Kind::Use { driver: now.driver.clone(), source }
        }
    }

    /// Whether the energy counter is not the one of before any more.
    fn began_anew(&self, now: &Reading) -> bool {
        self.base.as_ref().is_some_and(|(counter, driver)| {
            now.energy_mj.is_some_and(|now| now < *counter)
                || driver.as_ref().is_some_and(|d| *d != now.driver)
        })
    }

    /// The tick becomes the one before.
    fn moved_on(&mut self, award: AwardId, at_ns: u64, seen: &DeviceTick) {
        (self.award, self.at_ns, self.away) = (award, at_ns, None);
        if let Ok(Reading { energy_mj: Some(counter), driver, .. }) = &seen.reading {
            self.base = Some((*counter, Some(driver.clone())));
        }
        self.reading = seen.reading.clone().map_err(reason_of);
    }
}

/// Observation of a device begins with a gap of no length: its counter is known from then on, whatever becomes of the
/// agent, and Xid events before are kept.
fn first_sight(now_ns: u64, seen: &DeviceTick) -> Draft {
    let reading = seen.reading.as_ref().ok();
    let counter = reading.and_then(|r| r.energy_mj);
    let mut span = Span::new(AwardId::IDLE, Kind::Gap(GapReason::AgentDown), now_ns, counter);
    span.extend(now_ns, reading);
    seen.xids.iter().for_each(|code| span.xids.add(*code));
    Draft { award: AwardId::IDLE, body: span.body(seen.device.clone()) }
}

/// Devices where the chains left them: each at the end of its last record over all chains, with the last word of all
/// chains on its counter.
fn devices_of(chains: &[Chain]) -> BTreeMap<DeviceId, Device> {
    let mut latest: BTreeMap<&DeviceId, (u64, AwardId)> = BTreeMap::new();
    let mut counters: BTreeMap<&DeviceId, (u64, Option<u64>)> = BTreeMap::new();
    for chain in chains {
        let award = if chain.is_closed() { AwardId::IDLE } else { chain.award() };
        for (name, state) in chain.devices() {
            let end = latest.entry(name).or_insert((0, AwardId::IDLE));
            *end = (*end).max((state.end_ms, award));
            let counter = counters.entry(name).or_default();
            *counter = (*counter).max((state.counter_ms, state.counter_mj));
        }
    }
    let resumed = latest.into_iter().map(|(name, (end_ms, award))| {
        let base = counters.get(name).and_then(|(_, counter)| counter.map(|counter| (counter, None)));
        let (at_ns, reading) = (end_ms.saturating_mul(MS), Err(GapReason::AgentDown));
        let away = Some(GapReason::AgentDown);
        (name.clone(), Device { award, at_ns, reading, base, span: None, away })
    });
    resumed.collect()
}

fn reason_of(unreadable: Unreadable) -> GapReason {
    match unreadable {
        Unreadable::Lost => GapReason::DeviceLost,
        Unreadable::NotReadable => GapReason::DeviceNotReadable,
    }
}

fn flush(name: &DeviceId, device: &mut Device, out: &mut Vec<Draft>) {
    if let Some(span) = device.span.take() {
        out.push(Draft { award: span.award, body: span.body(name.clone()) });
    }
}

fn offset(system_ms: u64, time_ms: u64) -> i64 {
    system_ms as i64 - time_ms as i64
}

fn rank(body: &Body) -> u8 {
    match body {
        Body::Opened(_) => 0,
        Body::Used(_) | Body::Gap(_) => 1,
        Body::Clock(_) | Body::Rotated(_) => 2,
        Body::Closed(_) => 3,
    }
}
