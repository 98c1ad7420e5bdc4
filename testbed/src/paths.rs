//! Where things lie: the checkout's own files, the cache and the run folders.
//!
//! Run folders are inside the cache, because image stores are cloned by links and those must stay on
//! one file system.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Unix socket paths end at 107 bytes; the longest one below a cluster's folder takes about 60.
const LONGEST_CACHE: usize = 48;

/// The folders the test bed works in.
#[derive(Clone, Debug)]
pub struct Paths {
    cache: PathBuf,
    checkout: PathBuf,
}

/// The checkout that cargo runs this crate from, else the one that it was built from. The two differ where checkouts
/// share one target folder: cargo may find a binary fresh that another checkout has built.
fn built_from() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .filter(|_| std::env::var_os("CARGO_PKG_NAME").is_some_and(|name| name == env!("CARGO_PKG_NAME")))
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().unwrap_or(Path::new("/")).to_path_buf()
}

impl Paths {
    /// Cache from `VENDUE_CACHE`, `XDG_CACHE_HOME` or the home folder; the checkout is the one this crate
    /// was built from, or `VENDUE_CHECKOUT`.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = var("VENDUE_CACHE")
            .or_else(|| var("XDG_CACHE_HOME"))
            .or_else(|| var("HOME").map(|home| home.join(".cache")))
            .ok_or_else(|| Error::Machine("no cache folder: set HOME or VENDUE_CACHE".into()))?
            .join("vendue");
        Self::new(cache, var("VENDUE_CHECKOUT").unwrap_or_else(built_from))
    }

    /// Given folders, for tests.
    pub fn new(cache: PathBuf, checkout: PathBuf) -> Result<Self> {
        if !cache.is_absolute() || cache.as_os_str().len() > LONGEST_CACHE {
            return Err(Error::Machine(format!(
                "cache folder {} must be an absolute path of at most {LONGEST_CACHE} characters (socket paths below it \
                 are limited): set VENDUE_CACHE to a shorter one",
                cache.display()
            )));
        }
        Ok(Self { cache, checkout })
    }

    /// Root of the cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Root of the checkout.
    pub fn checkout(&self) -> &Path {
        &self.checkout
    }

    /// Modules that pin the Go tools.
    pub fn tool_modules(&self) -> PathBuf {
        self.checkout.join("testbed/tools")
    }

    /// Recipes of the images.
    pub fn image_recipes(&self) -> PathBuf {
        self.checkout.join("images")
    }

    /// Logs of the set-up steps.
    pub fn setup_logs(&self) -> PathBuf {
        self.cache.join("logs")
    }

    /// Folder of all markets.
    pub fn runs(&self) -> PathBuf {
        self.cache.join("run")
    }

    /// Folder of one market.
    pub fn run(&self, market: &str) -> PathBuf {
        self.runs().join(market)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_or_relative_cache_is_refused_with_the_fix() {
        for cache in ["relative".to_string(), format!("/{}", "x".repeat(80))] {
            let error = Paths::new(cache.into(), "/".into()).unwrap_err().to_string();
            assert!(error.contains("VENDUE_CACHE"), "{error}");
        }
    }
}
