//! The exported C functions.
//!
//! Each file holds one group; all go through [`exports!`], which catches panics and turns a typed result into NVML's
//! return code. Layouts come from `nvml-wrapper-sys`, so they are the real library's.
//!
//! Invariant: nothing is written through a pointer before it was checked for NULL and, for buffers, for room.

// A C library's entry points take raw pointers from callers that no compiler checks.
#![allow(unsafe_code, non_snake_case)]

mod events;
mod fields;
mod gpm;
mod health;
mod identity;
mod link;
mod mig;
mod modes;
mod process;
mod sensors;
mod session;
mod system;

use std::ffi::{CStr, c_char, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlDevice_t, nvmlReturn_t};

/// NVML's return codes under short names.
pub(crate) mod code {
    use super::sys;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH as VERSION_MISMATCH;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED as DRIVER_NOT_LOADED;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST as GPU_IS_LOST;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES as INSUFFICIENT_RESOURCES;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE as INSUFFICIENT_SIZE;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID_ARGUMENT;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH as LIB_RM_VERSION_MISMATCH;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION as NO_PERMISSION;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND as NOT_FOUND;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED as NOT_SUPPORTED;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT as TIMEOUT;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED as UNINITIALIZED;
    pub(crate) use sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN as UNKNOWN;
    pub(crate) use sys::nvmlReturn_enum_NVML_SUCCESS as SUCCESS;
}

/// `Err` holds the code that the caller gets.
type Outcome = Result<(), nvmlReturn_t>;

/// Runs an entry point's body; a panic must not cross into C.
fn guard(body: impl FnOnce() -> Outcome) -> nvmlReturn_t {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => code::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => code::UNKNOWN,
    }
}

/// Defines exported functions that return an NVML code. Bodies are `Outcome` blocks and may call the unsafe helpers
/// below: the contract with the C caller (pointers valid or NULL, lengths true) is NVML's own.
macro_rules! exports {
    ($( $(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block )*) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $crate::abi::sys::nvmlReturn_t {
            $crate::abi::guard(move || unsafe { $body })
        }
    )* };
}
pub(crate) use exports;

/// Writes one value through a pointer that may be NULL.
unsafe fn put<T>(out: *mut T, value: T) -> Outcome {
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not NULL; the caller promises room for one T.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes a string with its terminating zero into a buffer of `length` bytes.
unsafe fn put_text(out: *mut c_char, length: c_uint, text: &str) -> Outcome {
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    let room = usize::try_from(length).unwrap_or(usize::MAX);
    if text.len() >= room {
        return Err(code::INSUFFICIENT_SIZE);
    }
    // SAFETY: not NULL, and text plus zero fit into the `length` bytes that the caller promises.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// Answers the two-call dance: `count` holds the room, gets the number of items; too little room is an error that
/// says how much is needed.
unsafe fn put_list<T: Copy>(count: *mut c_uint, out: *mut T, items: &[T]) -> Outcome {
    if count.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not NULL; the caller promises one readable and writable number.
    let room = unsafe { count.read() };
    let needed = c_uint::try_from(items.len()).map_err(|_| code::UNKNOWN)?;
    // SAFETY: as above.
    unsafe { count.write(needed) };
    if room < needed {
        return Err(code::INSUFFICIENT_SIZE);
    }
    if needed == 0 {
        return Ok(());
    }
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not NULL, and the caller promises room for `room >= needed` items.
    unsafe { out.copy_from_nonoverlapping(items.as_ptr(), items.len()) };
    Ok(())
}

/// Reads a C string argument.
unsafe fn text_argument<'a>(text: *const c_char) -> Result<&'a str, nvmlReturn_t> {
    if text.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not NULL; the caller promises a terminating zero.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| code::INVALID_ARGUMENT)
}

/// Fills a fixed-size character array, cutting what does not fit, always with a terminating zero.
fn text_array<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (slot, byte) in array.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *slot = c_char::from_ne_bytes([byte]);
    }
    array
}

/// `sizeof | version << 24`, by which NVML marks its versioned structs.
fn struct_version<T>(version: c_uint) -> c_uint {
    c_uint::try_from(size_of::<T>()).unwrap_or(c_uint::MAX) | version << 24
}

/// Checks the `version` field with which a versioned struct begins.
unsafe fn check_version(field: *const c_uint, version: c_uint) -> Outcome {
    if field.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not NULL; the caller promises a struct that begins with its version.
    if unsafe { field.read() } == version { Ok(()) } else { Err(code::VERSION_MISMATCH) }
}

/// Handles are opaque to callers: a tag, so that a stray pointer is noticed, the device's index on the bus and, for a
/// MIG device, its GPU instance.
const HANDLE_TAG: usize = 0x5644_4e56 << 16;

/// What a device handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handle {
    device: u32,
    instance: Option<u32>,
}

impl Handle {
    fn of(device: nvmlDevice_t) -> Result<Self, nvmlReturn_t> {
        let address = device.addr();
        let bits = u32::try_from(address & 0xFFFF).map_err(|_| code::INVALID_ARGUMENT)?;
        if address & !0xFFFF_usize != HANDLE_TAG {
            return Err(code::INVALID_ARGUMENT);
        }
        Ok(Self { device: bits & 0xFF, instance: (bits >> 8).checked_sub(1) })
    }

    fn pointer<T>(self, tag: usize) -> *mut T {
        let bits = self.device & 0xFF | (self.instance.map_or(0, |id| id + 1) & 0xFF) << 8;
        std::ptr::without_provenance_mut(tag | usize::try_from(bits).unwrap_or(0xFFFF))
    }
}

fn handle(device: u32) -> nvmlDevice_t {
    Handle { device, instance: None }.pointer(HANDLE_TAG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_needs_room_for_its_zero() {
        let mut buffer = [7; 4];
        // SAFETY: the buffer has the lengths given.
        unsafe {
            assert_eq!(put_text(buffer.as_mut_ptr(), 3, "abc"), Err(code::INSUFFICIENT_SIZE));
            assert_eq!(buffer, [7; 4], "nothing is written when it does not fit");
            assert_eq!(put_text(buffer.as_mut_ptr(), 4, "abc"), Ok(()));
            assert_eq!(put_text(std::ptr::null_mut(), 4, "abc"), Err(code::INVALID_ARGUMENT));
        }
        assert_eq!(buffer, [97, 98, 99, 0]);
        assert_eq!(text_array::<3>("abc"), [97, 98, 0]);
    }

    #[test]
    fn lists_follow_the_two_call_dance() {
        let (mut count, mut out) = (0, [0u8; 2]);
        // SAFETY: pointers are valid or NULL, and the count is the array's length.
        unsafe {
            assert_eq!(put_list(&mut count, std::ptr::null_mut::<u8>(), &[]), Ok(()));
            assert_eq!(put_list(&mut count, std::ptr::null_mut(), &[5, 6]), Err(code::INSUFFICIENT_SIZE));
            assert_eq!(count, 2);
            assert_eq!(put_list(&mut count, std::ptr::null_mut(), &[5, 6]), Err(code::INVALID_ARGUMENT));
            assert_eq!(put_list(&mut count, out.as_mut_ptr(), &[5, 6]), Ok(()));
            assert_eq!(put_list(std::ptr::null_mut(), out.as_mut_ptr(), &[5]), Err(code::INVALID_ARGUMENT));
        }
        assert_eq!((count, out), (2, [5, 6]));
    }

    #[test]
    fn stray_handles_are_refused_and_panics_become_codes() {
        for wanted in [None, Some(0), Some(13)].map(|instance| Handle { device: 63, instance }) {
            assert_eq!(Handle::of(wanted.pointer(HANDLE_TAG)), Ok(wanted));
        }
        assert_eq!(Handle::of(std::ptr::null_mut()), Err(code::INVALID_ARGUMENT));
        assert_eq!(Handle::of(std::ptr::without_provenance_mut(0xdead_beef)), Err(code::INVALID_ARGUMENT));
        assert_eq!(guard(|| panic!("must not reach C")), code::UNKNOWN);
    }

    #[test]
    fn struct_versions_are_those_of_nvml_h() {
        assert_eq!(struct_version::<sys::nvmlMemory_v2_t>(2), 0x0200_0028);
        assert_eq!(struct_version::<sys::nvmlProcessesUtilizationInfo_v1_t>(1), 0x0100_0018);
    }
}
