//! Address ranges, for NetworkPolicies.
//!
//! Inputs: the text of a CIDR. Outputs: whether it is one, and whether it contains another.
//! Invariant: a range that does not parse is never put into a policy.

use std::net::IpAddr;

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u32,
}

impl Cidr {
    /// Parses `address/bits`; `None` when it is not a range or has bits set behind the prefix.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let cidr = Self { address: address.parse().ok()?, bits: bits.parse().ok()? };
        (cidr.bits <= cidr.width() && cidr.number() == cidr.prefix(cidr.bits)).then_some(cidr)
    }

    fn width(self) -> u32 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    fn number(self) -> u128 {
        match self.address {
            IpAddr::V4(a) => u128::from(u32::from(a)),
            IpAddr::V6(a) => u128::from(a),
        }
    }

    fn prefix(self, bits: u32) -> u128 {
        let host = self.width() - bits;
        self.number().checked_shr(host).and_then(|n| n.checked_shl(host)).unwrap_or(0)
    }

    /// Whether every address of `inner` is in this range.
    pub fn contains(self, inner: Self) -> bool {
        self.address.is_ipv4() == inner.address.is_ipv4()
            && self.bits <= inner.bits
            && inner.prefix(self.bits) == self.number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_contains() {
        let c = |t: &str| Cidr::parse(t).unwrap();
        assert!(c("0.0.0.0/0").contains(c("169.254.169.254/32")));
        assert!(c("169.254.0.0/16").contains(c("169.254.169.254/32")));
        assert!(!c("10.0.0.0/8").contains(c("169.254.169.254/32")));
        assert!(c("::/0").contains(c("fd00:ec2::254/128")));
        assert!(!c("::/0").contains(c("10.0.0.0/8")));
        assert!(!c("169.254.169.254/32").contains(c("169.254.0.0/16")));
        for bad in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "a/8", "10.0.0.0/-1"] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
