//! Encoding and decoding of bodies.

use super::bodies::*;
use super::views::{NewView, Propose};
use super::{Kind, MAX_MESSAGE, Signers, View};
use crate::award::{AwardProof, Certificate};
use vendue_market::encode::{Canonical, DecodeError, Reader, Writer};
use vendue_market::{Digest, GpuModel, MAX_JOB, Order, Reason};

type Decoded<T> = Result<T, DecodeError>;

/// Reads a list that must be strictly ascending, so that a set of items has one encoding.
fn ascending<T: PartialOrd>(
    r: &mut Reader<'_>,
    what: &'static str,
    max: usize,
    each: impl FnMut(&mut Reader<'_>) -> Decoded<T>,
) -> Decoded<Vec<T>> {
    let mut each = each;
    let items = r.list(what, max, |r| each(r))?;
    if items.windows(2).all(|w| matches!(w, [a, b] if a < b)) {
        Ok(items)
    } else {
        Err(DecodeError::Invalid(what))
    }
}

/// Reads an order view, which is ascending.
fn order_view(r: &mut Reader<'_>) -> Decoded<View> {
    let count = r.count("order view", MAX_ORDERS)?;
    let (orders, _) = r.take(32 * count)?.as_chunks::<32>();
    if orders.windows(2).all(|w| matches!(w, [a, b] if a < b)) {
        Ok(orders.to_vec().into())
    } else {
        Err(DecodeError::Invalid("order view"))
    }
}

impl Quorum {
    pub(super) fn write(&self, w: &mut Writer) {
        self.signers.write(w);
        w.raw(&self.aggregate);
    }
    pub(super) fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        Ok(Self { signers: Signers::read(r, n)?, aggregate: r.array()? })
    }
}

impl Commit {
    pub(crate) fn write(&self, w: &mut Writer) {
        match self {
            Commit::Fast { aggregate } => {
                w.u8(0).raw(aggregate);
            }
            Commit::Locked { view, quorum } => {
                w.u8(1).u32(*view);
                quorum.write(w);
            }
        }
    }
    pub(crate) fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        match r.u8()? {
            0 => Ok(Commit::Fast { aggregate: r.array()? }),
            1 => Ok(Commit::Locked { view: r.u32()?, quorum: Quorum::read(r, n)? }),
            _ => Err(DecodeError::Invalid("commit")),
        }
    }
}

impl Listed {
    pub(super) fn write(&self, w: &mut Writer) {
        w.u16(self.seat).raw(&self.d);
    }
    pub(super) fn read(r: &mut Reader<'_>) -> Decoded<Self> {
        Ok(Self { seat: r.u16()?, d: r.array()? })
    }
}

impl SetMsg {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.list(&self.held, |w, d| {
            w.raw(d);
        });
        if let Some(full) = &self.full {
            w.raw(full);
        }
    }
    fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        let held: Vec<Digest> = r.list("set", usize::from(n), Reader::array)?;
        if held.len() != usize::from(n) {
            return Err(DecodeError::Invalid("set"));
        }
        // The vote is there exactly if the set is complete.
        let full = if held.contains(&[0; 32]) { None } else { Some(r.array()?) };
        Ok(Self { held, full })
    }
}

impl Acks {
    fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        let held: Vec<Digest> = r.list("acknowledgements", usize::from(n), Reader::array)?;
        if held.len() != usize::from(n) {
            return Err(DecodeError::Invalid("acknowledgements"));
        }
        Ok(Self { held })
    }
}

impl Proof {
    fn write(&self, w: &mut Writer) {
        self.certificate.write(w);
        self.proof.write(w);
    }
    fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        Ok(Self { certificate: Certificate::read(r, n)?, proof: AwardProof::read(r)? })
    }
}

impl Fetch {
    fn write(&self, w: &mut Writer) {
        match self {
            Fetch::Bundles(items) => {
                w.u8(0).list(items, |w, l| l.write(w));
            }
            Fetch::Orders(items) => {
                w.u8(1).list(items, |w, d| {
                    w.raw(d);
                });
            }
            Fetch::Set(digest) => {
                w.u8(2).raw(digest);
            }
            Fetch::Proof(order) => {
                w.u8(3).raw(order);
            }
            Fetch::Dealings(items) => {
                w.u8(4).list(items, |w, l| l.write(w));
            }
        }
    }
    fn read(r: &mut Reader<'_>) -> Decoded<Self> {
        match r.u8()? {
            0 => Ok(Fetch::Bundles(ascending(r, "bundles to fetch", MAX_FETCH, Listed::read)?)),
            1 => Ok(Fetch::Orders(ascending(r, "orders to fetch", MAX_FETCH, |r| r.array::<32>())?)),
            2 => Ok(Fetch::Set(r.array()?)),
            3 => Ok(Fetch::Proof(r.array()?)),
            4 => Ok(Fetch::Dealings(ascending(r, "dealings to fetch", MAX_FETCH, Listed::read)?)),
            _ => Err(DecodeError::Invalid("fetch")),
        }
    }
}

impl Reply {
    fn write(&self, w: &mut Writer) {
        match self {
            Reply::Bundle(bytes) => w.u8(0).bytes(bytes),
            Reply::Order(bytes) => w.u8(1).bytes(bytes),
            Reply::Set(items) => w.u8(2).list(items, |w, l| l.write(w)),
            Reply::TwoBundles { seat, versions } => {
                w.u8(3).u16(*seat);
                versions.iter().fold(w, |w, (d, signature)| w.raw(d).raw(signature))
            }
            Reply::Dealing(bytes) => w.u8(4).bytes(bytes),
        };
    }
    fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        match r.u8()? {
            0 => Ok(Reply::Bundle(r.bytes("bundle", MAX_MESSAGE)?.to_vec())),
            1 => Ok(Reply::Order(r.bytes("order", MAX_MESSAGE)?.to_vec())),
            // Two versions of each seat's bundle at most can be listed by f+1 seats each.
            2 => Ok(Reply::Set(ascending(r, "list of bundles", 3 * usize::from(n), Listed::read)?)),
            3 => {
                let seat = r.u16()?;
                let versions = [(r.array()?, r.array()?), (r.array()?, r.array()?)];
                match versions.map(|(d, _)| d) {
                    [first, second] if seat < n && first < second => Ok(Reply::TwoBundles { seat, versions }),
                    _ => Err(DecodeError::Invalid("two bundles")),
                }
            }
            4 => Ok(Reply::Dealing(r.bytes("dealing", MAX_MESSAGE)?.to_vec())),
            _ => Err(DecodeError::Invalid("reply")),
        }
    }
}

impl Body {
    /// The kind that belongs to the body.
    pub fn kind(&self) -> Kind {
        match self {
            Body::Bundle(_) => Kind::Bundle,
            Body::Set(_) => Kind::Set,
            Body::Admit(_) => Kind::Admit,
            Body::Lock(_) => Kind::Lock,
            Body::Open(_) => Kind::Open,
            Body::Commit(_) => Kind::Commit,
            Body::Award(_) => Kind::Award,
            Body::NewView(_) => Kind::NewView,
            Body::Propose(_) => Kind::Propose,
            Body::Cert(_) => Kind::Cert,
            Body::Order(_) => Kind::Order,
            Body::Again(_) => Kind::Again,
            Body::Receipt(_) => Kind::Receipt,
            Body::Taken(_) => Kind::Taken,
            Body::Cancel(_) => Kind::Cancel,
            Body::Withdraw(_) => Kind::Withdraw,
            Body::Reserve(_) => Kind::Reserve,
            Body::Accept(_) => Kind::Accept,
            Body::Refuse(_) => Kind::Refuse,
            Body::Proof(_) => Kind::Proof,
            Body::Fetch(_) => Kind::Fetch,
            Body::Reply(_) => Kind::Reply,
            Body::DealKey(_) => Kind::DealKey,
            Body::Deal(_) => Kind::Deal,
            Body::Acks(_) => Kind::Acks,
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        match self {
            Body::Bundle(b) => {
                w.u32(b.order_view.len() as u32).raw(b.order_view.as_flattened());
                w.raw(&b.u).raw(&b.v).bytes(&b.payload);
            }
            Body::Set(s) => s.write(w),
            Body::Admit(a) => {
                w.u32(a.view).raw(&a.set).raw(&a.proposal).raw(&a.vote);
            }
            Body::Lock(l) => {
                w.u32(l.view).raw(&l.set);
                l.quorum.write(w);
                w.raw(&l.vote);
            }
            Body::Open(o) => {
                w.raw(&o.set);
                o.commit.write(w);
                w.raw(&o.share);
            }
            Body::Commit(c) => {
                w.raw(&c.set);
                c.commit.write(w);
            }
            Body::Award(a) => {
                w.raw(&a.root).raw(&a.vote);
            }
            Body::NewView(v) => v.write(w),
            Body::Propose(p) => p.write(w),
            Body::Cert(c) => {
                w.raw(&c.root);
                c.quorum.write(w);
            }
            Body::Proof(p) => p.write(w),
            Body::Fetch(f) => f.write(w),
            Body::Reply(r) => r.write(w),
            Body::DealKey(k) => {
                w.raw(&k.key).raw(&k.commitment);
            }
            Body::Deal(d) => {
                w.bytes(&d.dealing);
            }
            Body::Acks(a) => {
                w.list(&a.held, |w, d| {
                    w.raw(d);
                });
            }
            other => other.write_order_talk(w),
        }
    }

    /// The messages between homes and seats.
    fn write_order_talk(&self, w: &mut Writer) {
        match self {
            Body::Order(o) => o.order.write(w),
            Body::Again(a) => {
                a.order.write(w);
                a.before.write(w);
                a.proof.write(w);
            }
            Body::Receipt(x) => {
                w.raw(&x.order).u64(x.from_round).list(&x.models, |w, m| m.write(w));
            }
            Body::Taken(t) => {
                w.raw(&t.order).u16(t.seat);
            }
            Body::Cancel(c) => {
                w.raw(&c.order);
            }
            Body::Withdraw(x) => {
                w.str(&x.job).u32(x.attempt).u64(x.round).raw(&x.except);
            }
            Body::Reserve(x) => {
                x.proof.write(w);
                x.order.write(w);
                w.raw(&x.order_signature);
            }
            Body::Accept(a) => {
                w.raw(&a.order);
            }
            Body::Refuse(x) => {
                w.raw(&x.order).u8(x.reason.code());
            }
            _ => {}
        }
    }

    pub(super) fn read(kind: Kind, r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        Ok(match kind {
            Kind::Bundle => Body::Bundle(Bundle {
                order_view: order_view(r)?,
                u: r.array()?,
                v: r.array()?,
                payload: r.bytes("payload", MAX_PAYLOAD)?.to_vec(),
            }),
            Kind::Set => Body::Set(SetMsg::read(r, n)?),
            Kind::Admit => {
                Body::Admit(Admit { view: r.u32()?, set: r.array()?, proposal: r.array()?, vote: r.array()? })
            }
            Kind::Lock => Body::Lock(Lock {
                view: r.u32()?,
                set: r.array()?,
                quorum: Quorum::read(r, n)?,
                vote: r.array()?,
            }),
            Kind::Open => {
                Body::Open(OpenShare { set: r.array()?, commit: Commit::read(r, n)?, share: r.array()? })
            }
            Kind::Commit => Body::Commit(CommitMsg { set: r.array()?, commit: Commit::read(r, n)? }),
            Kind::Award => Body::Award(AwardVote { root: r.array()?, vote: r.array()? }),
            Kind::NewView => Body::NewView(NewView::read(r, n)?),
            Kind::Propose => Body::Propose(Propose::read(r, n)?),
            Kind::Cert => Body::Cert(Cert { root: r.array()?, quorum: Quorum::read(r, n)? }),
            Kind::Proof => Body::Proof(Box::new(Proof::read(r, n)?)),
            Kind::Fetch => Body::Fetch(Fetch::read(r)?),
            Kind::Reply => Body::Reply(Reply::read(r, n)?),
            Kind::DealKey => Body::DealKey(DealKeyMsg { key: r.array()?, commitment: r.array()? }),
            Kind::Deal => Body::Deal(Deal { dealing: r.bytes("dealing", MAX_DEALING)?.to_vec() }),
            Kind::Acks => Body::Acks(Acks::read(r, n)?),
            Kind::Order
            | Kind::Again
            | Kind::Receipt
            | Kind::Taken
            | Kind::Cancel
            | Kind::Withdraw
            | Kind::Reserve
            | Kind::Accept
            | Kind::Refuse => Self::read_order_talk(kind, r, n)?,
        })
    }

    fn read_order_talk(kind: Kind, r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        Ok(match kind {
            Kind::Order => Body::Order(OrderMsg { order: Order::read(r)? }),
            Kind::Again => Body::Again(Box::new(Again {
                order: Order::read(r)?,
                before: Order::read(r)?,
                proof: Proof::read(r, n)?,
            })),
            Kind::Receipt => Body::Receipt(Receipt {
                order: r.array()?,
                from_round: r.u64()?,
                models: ascending(r, "models", MAX_KNOWN_MODELS, GpuModel::read)?,
            }),
            Kind::Taken => Body::Taken(Taken { order: r.array()?, seat: r.u16()? }),
            Kind::Cancel => Body::Cancel(Cancel { order: r.array()? }),
            Kind::Withdraw => Body::Withdraw(Withdraw {
                job: r.str("job", MAX_JOB)?,
                attempt: r.u32()?,
                round: r.u64()?,
                except: r.array()?,
            }),
            Kind::Reserve => Body::Reserve(Box::new(Reserve {
                proof: Proof::read(r, n)?,
                order: Order::read(r)?,
                order_signature: r.array()?,
            })),
            Kind::Accept => Body::Accept(Accept { order: r.array()? }),
            Kind::Refuse => Body::Refuse(Refuse {
                order: r.array()?,
                reason: Reason::from_code(r.u8()?).ok_or(DecodeError::Invalid("reason"))?,
            }),
            _ => return Err(DecodeError::Invalid("message kind")),
        })
    }
}
