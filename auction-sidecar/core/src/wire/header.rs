//! The 25-byte header of every message, and the message kinds.

use vendue_market::encode::{DecodeError, Reader, Writer};

/// Version of the protocol.
pub const VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 25;

/// What a message is. Codes are part of the wire format and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A seat's sealed bids.
    Bundle = 1,
    /// The bundles that a seat held in time.
    Set = 2,
    /// First vote of a view.
    Admit = 3,
    /// Second vote of a view.
    Lock = 4,
    /// A seal share, with the commit that permits it.
    Open = 5,
    /// A commit on its own.
    Commit = 6,
    /// A vote for the round's awards.
    Award = 7,
    /// What a seat brings into a view after the first.
    NewView = 8,
    /// The set that a view is to admit.
    Propose = 9,
    /// The round's certificate.
    Cert = 10,
    /// An order.
    Order = 16,
    /// A seat's receipt for an order.
    Receipt = 17,
    /// The user's word that an order is taken.
    Taken = 18,
    /// The user's word that an order is withdrawn.
    Cancel = 19,
    /// Home asks a seat to hold the devices.
    Reserve = 20,
    /// The seat holds them.
    Accept = 21,
    /// The seat cannot.
    Refuse = 22,
    /// Certificate and the proof of one order's outcome.
    Proof = 23,
    /// Asks for data by digest.
    Fetch = 24,
    /// Data that was asked for.
    Reply = 25,
    /// An order's next body, with the proof that its last round gave it to nobody.
    Again = 26,
    /// The user's word that a whole search is withdrawn.
    Withdraw = 27,
    /// Key generation: the key that a seat's values are sealed to.
    DealKey = 32,
    /// Key generation: a seat's dealing.
    Deal = 33,
    /// Key generation: the dealings that a seat holds good values of.
    Acks = 34,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 25] = [
        Kind::Bundle,
        Kind::Set,
        Kind::Admit,
        Kind::Lock,
        Kind::Open,
        Kind::Commit,
        Kind::Award,
        Kind::NewView,
        Kind::Propose,
        Kind::Cert,
        Kind::Order,
        Kind::Receipt,
        Kind::Taken,
        Kind::Cancel,
        Kind::Reserve,
        Kind::Accept,
        Kind::Refuse,
        Kind::Proof,
        Kind::Fetch,
        Kind::Reply,
        Kind::Again,
        Kind::Withdraw,
        Kind::DealKey,
        Kind::Deal,
        Kind::Acks,
    ];

    /// The kind with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|k| **k as u8 == code).copied()
    }
    /// Whether messages of this kind carry an evidence signature.
    pub fn is_signed(self) -> bool {
        !matches!(self, Kind::Cert | Kind::Proof | Kind::Fetch | Kind::Reply)
    }
    /// Whether homes receive this kind (seats receive all others).
    pub fn is_for_home(self) -> bool {
        matches!(self, Kind::Receipt | Kind::Accept | Kind::Refuse | Kind::Proof)
    }
    /// Whether homes send this kind.
    pub fn is_from_home(self) -> bool {
        matches!(
            self,
            Kind::Order | Kind::Again | Kind::Taken | Kind::Cancel | Kind::Withdraw | Kind::Reserve
        )
    }
    /// The name of the kind's signed struct.
    pub(crate) fn type_name(self) -> &'static str {
        match self {
            Kind::Bundle => "Bundle",
            Kind::Set => "Set",
            Kind::Admit => "Admit",
            Kind::Lock => "Lock",
            Kind::Open => "Open",
            Kind::Commit => "Commit",
            Kind::Award => "Award",
            Kind::NewView => "NewView",
            Kind::Propose => "Propose",
            Kind::Cert => "Cert",
            Kind::Order => "Order",
            Kind::Receipt => "Receipt",
            Kind::Taken => "Taken",
            Kind::Cancel => "Cancel",
            Kind::Reserve => "Reserve",
            Kind::Accept => "Accept",
            Kind::Refuse => "Refuse",
            Kind::Proof => "Proof",
            Kind::Fetch => "Fetch",
            Kind::Reply => "Reply",
            Kind::Again => "Again",
            Kind::Withdraw => "Withdraw",
            Kind::DealKey => "DealKey",
            Kind::Deal => "Deal",
            Kind::Acks => "Acks",
        }
    }
    /// A short name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bundle => "bundle",
            Kind::Set => "set",
            Kind::Admit => "admit",
            Kind::Lock => "lock",
            Kind::Open => "open",
            Kind::Commit => "commit",
            Kind::Award => "award",
            Kind::NewView => "new_view",
            Kind::Propose => "propose",
            Kind::Cert => "cert",
            Kind::Order => "order",
            Kind::Receipt => "receipt",
            Kind::Taken => "taken",
            Kind::Cancel => "cancel",
            Kind::Reserve => "reserve",
            Kind::Accept => "accept",
            Kind::Refuse => "refuse",
            Kind::Proof => "proof",
            Kind::Fetch => "fetch",
            Kind::Reply => "reply",
            Kind::Again => "again",
            Kind::Withdraw => "withdraw",
            Kind::DealKey => "deal_key",
            Kind::Deal => "deal",
            Kind::Acks => "acks",
        }
    }
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// First 8 bytes of the market id; signatures bind all 32.
    pub market: [u8; 8],
    /// Key epoch.
    pub epoch: u32,
    /// Round; 0 where a message belongs to none.
    pub round: u64,
    /// Index of the sending seat; for messages from homes the home's position.
    pub seat: u16,
}

impl Header {
    /// Appends the header's bytes.
    pub fn write(&self, w: &mut Writer) {
        w.raw(&self.to_array());
    }
    /// Reads a header; version and flags must be the known ones.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("version"));
        }
        let kind = Kind::from_code(r.u8()?).ok_or(DecodeError::Invalid("message kind"))?;
        if r.u8()? != 0 {
            return Err(DecodeError::Invalid("flags"));
        }
        Ok(Self { kind, market: r.array()?, epoch: r.u32()?, round: r.u64()?, seat: r.u16()? })
    }
    /// The header's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_array().to_vec()
    }
    /// The header's bytes.
    pub fn to_array(&self) -> [u8; HEADER_LEN] {
        let ([a, b, c, d], [s, t]) = (self.epoch.to_be_bytes(), self.seat.to_be_bytes());
        let ([i, j, k, l, m, n, o, p], [q, r, u, v, w, x, y, z]) = (self.market, self.round.to_be_bytes());
        let kind = self.kind as u8;
        [VERSION, kind, 0, i, j, k, l, m, n, o, p, a, b, c, d, q, r, u, v, w, x, y, z, s, t]
    }
}
