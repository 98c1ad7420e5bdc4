//! Whether the devices that a provider names are those that its certified bid is bound to. Pure.
//!
//! Inputs: the certified award, who holds it, the fingerprint that somebody names. Output: one check, or none for a bid that
//! is bound to nothing while nobody names devices.
//! Invariant: a fingerprint that the user gives must be the one; that of the cluster is told of, since an award is as valid
//! on other devices.

use vendue_crds::{AsBid, Award, BoundDevices, parse_fingerprint};
use vendue_market::{self as market, Digest};

use crate::report::Check;

const NAME: &str = "devices";

/// Who names devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The user, who wants to know whether these are they.
    User(String),
    /// The provider, in the status of the Award: as it held them, and how often they have changed since.
    Provider {
        /// The fingerprint as they were held.
        fingerprint: String,
        /// Changes since then.
        changes: usize,
    },
}

impl Claim {
    /// What the provider says in an Award of the cluster.
    pub fn of(award: &Award) -> Option<Self> {
        let status = award.status.as_ref()?;
        let changes = status.fingerprint_changes.len();
        Some(Self::Provider { fingerprint: status.fingerprint.clone()?, changes })
    }

    fn fingerprint(&self) -> &str {
        let (Self::User(fingerprint) | Self::Provider { fingerprint, .. }) = self;
        fingerprint
    }
}

/// Checks a claim against what is certified of the seat that holds the award, which is the winner where nobody says.
pub fn check(
    claim: Option<&Claim>,
    award: &market::Award,
    (market, round, holder): (Digest, u64, Option<i32>),
) -> Option<Check> {
    let holder = holder.and_then(|seat| u16::try_from(seat).ok()).unwrap_or(award.seat);
    let commitment = award.bound().find(|(seat, _)| *seat == holder).and_then(|(_, devices)| devices);
    let bound = BoundDevices { market, round, seat: holder, commitment };
    let named = commitment.map(hex::encode).unwrap_or_default();
    let Some(claim) = claim else {
        let detail = format!("the bid is bound to devices by {named}; the provider has not named them");
        return commitment.map(|_| Check::ok(NAME, detail));
    };
    let fingerprint = claim.fingerprint();
    let demanded = matches!(claim, Claim::User(_));
    let wrong = |detail: String| match demanded {
        true => Check::fail(NAME, detail, "do not take these devices for those that were bid"),
        false => Check::warn(NAME, detail),
    };
    if demanded && parse_fingerprint(fingerprint).is_none() {
        return Some(wrong(format!(
            "fingerprint is {fingerprint:?}; accepted: 64 lower-case hexadecimal digits"
        )));
    }
    Some(match (bound.check(fingerprint), claim) {
        (AsBid::Unbound, _) => wrong("the certified bid is bound to no devices".to_owned()),
        (AsBid::Other, _) => {
            wrong(format!("the certified bid is bound by {named} to others than {fingerprint}"))
        }
        (AsBid::Same, Claim::Provider { changes: 1.., .. }) => wrong(format!(
            "{fingerprint} is what the certified bid is bound to, and has changed since; see the Award"
        )),
        (AsBid::Same, _) => Check::ok(NAME, format!("{fingerprint} is what the certified bid is bound to")),
    })
}

#[cfg(test)]
mod tests {
    use vendue_market::commit_devices;

    use super::*;
    use crate::report::Level;

    fn mk_award(devices: Option<Digest>) -> market::Award {
        let price = "1".parse().unwrap();
        let stand_by = market::StandBy {
            seat: 2,
            price,
            spec: 0,
            devices: Some(commit_devices(&[1; 32], 7, 2, &[0xbb; 32])),
        };
        market::Award { seat: 1, price, spec: 0, devices, stand_bys: vec![stand_by] }
    }

    fn judged(claim: Option<&Claim>, award: &market::Award, holder: Option<i32>) -> Option<Level> {
        check(claim, award, ([1; 32], 7, holder)).map(|check| check.level)
    }

    #[test]
    fn a_user_wants_these_devices_and_a_provider_tells_which() {
        let award = mk_award(Some(commit_devices(&[1; 32], 7, 1, &[0xaa; 32])));
        let user = |byte: &str| Claim::User(byte.repeat(32));
        let provider = |byte: &str, changes| Claim::Provider { fingerprint: byte.repeat(32), changes };
        for (claim, holder, level) in [
            (user("aa"), None, Level::Ok),
            (user("aa"), Some(1), Level::Ok),
            (user("bb"), None, Level::Fail),
            (user("bb"), Some(2), Level::Ok),
            (user("aa"), Some(2), Level::Fail),
            (user("aa"), Some(3), Level::Fail),
            (user("a"), None, Level::Fail),
            (provider("aa", 0), None, Level::Ok),
            (provider("aa", 1), None, Level::Warn),
            (provider("bb", 0), None, Level::Warn),
        ] {
            assert_eq!(judged(Some(&claim), &award, holder), Some(level), "{claim:?} {holder:?}");
        }
        assert_eq!(judged(None, &award, None), Some(Level::Ok));
    }

    #[test]
    fn a_bid_that_is_bound_to_nothing_proves_nothing() {
        let award = mk_award(None);
        assert_eq!(judged(None, &award, None), None);
        assert_eq!(judged(Some(&Claim::User("aa".repeat(32))), &award, None), Some(Level::Fail));
        let told = Claim::Provider { fingerprint: "aa".repeat(32), changes: 0 };
        assert_eq!(judged(Some(&told), &award, None), Some(Level::Warn));
    }
}
