//! Pairings: of two signatures with their keys, and the secret that a seal is made of.

use super::{G1, G2};
use blst::*;
use zeroize::Zeroizing;

/// Whether e(generator of G1, signature) = e(key, message).
pub(crate) fn pairings_agree(signature: &G2, key: &G1, message: &G2) -> bool {
    // SAFETY: the generator is a static of blst.
    let generator = unsafe { *blst_p1_affine_generator() };
    let left = blst_fp12::miller_loop(&signature.0, &generator);
    let right = blst_fp12::miller_loop(&message.0, &key.0);
    blst_fp12::finalverify(&left, &right)
}

/// A public point of G2 prepared for many pairings.
pub(crate) struct Lines(Vec<blst_fp6>);

/// Lines of one Miller loop.
const LINES: usize = 68;

impl Lines {
    pub(crate) fn of(q: &G2) -> Self {
        let mut lines = vec![blst_fp6::default(); LINES];
        // SAFETY: blst writes exactly 68 lines; `q` is a live value.
        unsafe { blst_precompute_lines(lines.as_mut_ptr(), &q.0) };
        Self(lines)
    }

    /// The pairing of a point with this one, in canonical bytes.
    pub(crate) fn pairing(&self, p: &G1) -> Zeroizing<[u8; 576]> {
        let mut out = blst_fp12::default();
        // SAFETY: `of` has written as many lines as are read; the other two are live values.
        unsafe { blst_miller_loop_lines(&mut out, self.0.as_ptr(), &p.0) };
        Zeroizing::new(out.final_exp().to_bendian())
    }
}

/// The pairing of two points, in canonical bytes.
pub(crate) fn pairing(p: &G1, q: &G2) -> Zeroizing<[u8; 576]> {
    Zeroizing::new(blst_fp12::miller_loop(&q.0, &p.0).final_exp().to_bendian())
}
