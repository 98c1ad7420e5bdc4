//! The other ends of a device's NVLinks.
//!
//! Inputs: what the driver answers for each link, the ends that were read before. Output: PCI addresses, sorted. Invariant: an
//! error that passes changes no set of links, for a device with other links is another one to whoever has its fingerprint.

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

/// More links than any card has.
const MAX_LINKS: u32 = 36;

/// The PCI addresses at the other ends of the links that are up, in order: one for each link.
pub(super) fn nvlink_peers(device: &Device<'_>, before: &[String]) -> Vec<String> {
    let end = |link| {
        let link = device.link_wrapper_for(link);
        if !link.is_active()? {
            return Ok(None);
        }
        match link.remote_pci_info() {
            Ok(pci) => Ok(Some(pci.bus_id)),
            Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(None),
            Err(error) => Err(error),
        }
    };
    peers((0..MAX_LINKS).map(end), before)
}

fn peers(links: impl Iterator<Item = Result<Option<String>, NvmlError>>, before: &[String]) -> Vec<String> {
    let mut peers = vec![];
    for link in links {
        match link {
            Ok(end) => peers.extend(end),
            // Behind the last link, on a card without any, or under a driver that knows none.
            Err(NvmlError::NotSupported | NvmlError::InvalidArg | NvmlError::FailedToLoadSymbol(_)) => break,
            Err(error) => {
                tracing::debug!(%error, "NVLinks are believed to be as they were");
                return before.to_vec();
            }
        }
    }
    peers.sort();
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_passes_changes_no_links() {
        let end = |text: &str| Ok(Some(text.to_owned()));
        let before = ["a".to_owned(), "b".to_owned()];
        let read = |links: Vec<Result<Option<String>, NvmlError>>| peers(links.into_iter(), &before);
        assert_eq!(
            read(vec![end("c"), Ok(None), end("a"), Err(NvmlError::InvalidArg), end("z")]),
            ["a", "c"]
        );
        assert_eq!(read(vec![Err(NvmlError::NotSupported)]), Vec::<String>::new());
        assert_eq!(read(vec![end("c"), Err(NvmlError::Unknown)]), before);
    }
}
