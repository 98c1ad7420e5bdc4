//! Initialisation, versions, error texts and process names.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{code, exports, put, put_text, session, sys, text_argument};
use sys::nvmlReturn_t;

exports! {
    /// Initialises, counting calls.
    fn nvmlInit_v2() { session::init() }

    /// Older name.
    fn nvmlInit() { session::init() }

    /// Initialises; the flags (no GPUs, no attach) change nothing here.
    fn nvmlInitWithFlags(_flags: c_uint) { session::init() }

    /// Ends one initialisation.
    fn nvmlShutdown() { session::shutdown() }

    /// Version of the kernel driver.
    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        put_text(version, length, &session::snapshot()?.machine.state().driver.version)
    }

    /// Version of this library.
    fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) {
        put_text(version, length, &session::snapshot()?.machine.state().driver.nvml_version())
    }

    /// CUDA version that the driver supports.
    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) {
        put(version, session::snapshot()?.machine.state().driver.cuda_version)
    }

    /// Older name.
    fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) {
        put(version, session::snapshot()?.machine.state().driver.cuda_version)
    }

    /// Name of a process on this machine.
    fn nvmlSystemGetProcessName(pid: c_uint, name: *mut c_char, length: c_uint) {
        session::snapshot()?;
        if name.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| code::NOT_FOUND)?;
        let first = command.split(|b| *b == 0).next().unwrap_or_default();
        put_text(name, length, std::str::from_utf8(first).map_err(|_| code::NOT_FOUND)?)
    }

    /// Number of host interface cards: none.
    fn nvmlSystemGetHicVersion(count: *mut c_uint, _entries: *mut sys::nvmlHwbcEntry_t) {
        session::snapshot()?;
        put(count, 0)
    }

    /// Handle by serial number.
    fn nvmlDeviceGetHandleBySerial(serial: *const c_char, device: *mut sys::nvmlDevice_t) {
        session::initialised()?;
        let serial = text_argument(serial)?;
        super::identity::find(device, |m| m.device.serial == serial)
    }
}

/// Text of a return code. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    error_text(result).as_ptr()
}

fn error_text(result: nvmlReturn_t) -> &'static CStr {
    match result {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        8 => c"Insufficient External Power",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        11 => c"Interrupt Request Issue",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        14 => c"Corrupted infoROM",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        17 => c"GPU access blocked by the operating system",
        18 => c"Driver/library version mismatch",
        19 => c"In use by another client",
        20 => c"Insufficient Memory",
        21 => c"No data",
        22 => c"vgpu_ecc_not_supported",
        23 => c"Insufficient Resources",
        24 => c"Frequency Not Supported",
        25 => c"Argument version mismatch",
        26 => c"Deprecated",
        27 => c"Not Ready",
        28 => c"GPU not found",
        29 => c"Invalid state",
        30 => c"Reset type not supported",
        _ => c"Unknown Error",
    }
}

/// Folder of the file that this code was loaded from.
pub(super) fn library_dir() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let address: *const () = (nvmlErrorString as extern "C" fn(nvmlReturn_t) -> *const c_char) as *const ();
    // SAFETY: the address is one of our own functions, and `info` has room for the answer.
    let info = unsafe {
        if libc::dladdr(address.cast(), info.as_mut_ptr()) == 0 {
            return None;
        }
        info.assume_init()
    };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gives a zero-terminated name that lives as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Path::new(OsStr::from_bytes(name.to_bytes())).parent().map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_text() {
        assert_eq!(error_text(code::GPU_IS_LOST), c"GPU is lost");
        assert_eq!(error_text(31), c"Unknown Error");
        assert_eq!(error_text(code::UNKNOWN), c"Unknown Error");
    }

    #[test]
    fn finds_its_own_folder() {
        let exe = std::env::current_exe().expect("path of the test");
        assert_eq!(library_dir().expect("folder").canonicalize().ok().as_deref(), exe.parent());
    }
}
