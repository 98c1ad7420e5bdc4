//! What a round can tell about itself afterwards: which bundles were admitted, and why each order went where it did.

use super::Round;
use crate::clearing::Explained;
use crate::crypto::Crypto;
use crate::wire::Listed;
use vendue_sealed_bid::Sealed;

impl<C: Crypto> Round<C> {
    /// The admitted bundles, once the commit and the list behind it are known.
    pub(crate) fn admitted(&self) -> &[Listed] {
        self.list.as_deref().unwrap_or_default()
    }

    /// One explanation for each order, ascending by order; none before the round was cleared.
    pub(crate) fn explain(&self) -> Vec<Explained> {
        let (Some((set, _)), Some(list), Some(opened)) = (&self.commit, &self.list, &self.opened) else {
            return vec![];
        };
        let (Some(result), Some(candidates)) = (&self.result, &self.candidates) else { return vec![] };
        let beacon = self.crypto.beacon(opened);
        let open = |header: &[u8], sealed: &Sealed| self.crypto.open(opened, header, sealed);
        self.clearing(*set, list).explain(candidates, &beacon, open, &result.cleared)
    }
}
