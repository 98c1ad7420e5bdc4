//! Every deviation once, with numbers that make sense in a market of a size.

use super::{Deviation, FalseRecords as Records, KindName};

/// Every deviation once, for a market of so many seats.
pub fn all_deviations(seats: u16) -> Vec<Deviation> {
    use Deviation::*;
    let f = seats.saturating_sub(1) / 3;
    let mut all = vec![
        Silent,
        PartialBundle(1),
        PartialBundle(f),
        TwoBundles,
        ManyBundles,
        LateBundle(75),
        LateBundle(100),
        CopiedBundle,
        TwoSets,
        Omit(0),
        Omit(seats - 1),
        ClaimAll,
        StarvedSet,
        FalseFull,
        SetToProposer,
        TwoAdmits,
        TwoLocks,
        Echo,
        LastMoment(KindName::Admit),
        LastMoment(KindName::Lock),
        ForgedCommit,
        EarlyShare,
        WrongShare,
        AdmitAll,
        TwoAwards,
        WrongAward,
        TwoProposals,
        FalseProposal,
        JunkAdmit,
        OldView,
        ForgedNewView,
        OtherSetInView,
        Replay,
        ShiftedShare,
        StolenShare,
        LateOpen(450),
        Ungated,
        HoardedProof,
        LateProof(3_000),
        FetchFlood(300),
        Oversize,
        Slow(150),
        TwoReplicas,
        LastWake(5),
        Frame,
    ];
    let false_records = [
        Records::OutOfCapacity,
        Records::NoCapacity,
        Records::NegativePrice,
        Records::TwiceEach,
        Records::ForeignOrders,
        Records::AllOrders,
        Records::Shill(2_050_000),
    ];
    all.extend(false_records.map(Deviation::FalseRecords));
    let kinds = [
        KindName::Bundle,
        KindName::Set,
        KindName::Admit,
        KindName::Lock,
        KindName::Open,
        KindName::Commit,
        KindName::Award,
        KindName::NewView,
        KindName::Propose,
        KindName::Reply,
    ];
    all.extend((0..5).map(MauledBundle));
    all.extend(kinds.map(Mute));
    all.extend(kinds.map(|kind| Only(kind, f)));
    all.push(Only(KindName::Bundle, f + 1));
    all
}
