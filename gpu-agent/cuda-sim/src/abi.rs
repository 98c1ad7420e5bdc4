//! The exported C functions.
//!
//! All go through [`exports!`], which catches panics and turns a typed result into a `CUresult`. Invariant: nothing is
//! written through a pointer before it was checked for NULL.

// A C library's entry points take raw pointers from callers that no compiler checks.
#![allow(unsafe_code, non_snake_case)]

use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use vendue_gpu_sim::machine::Moment;

use crate::device::{Driver, Kernel, Result, claimed_bytes, code};

/// Opaque handles: contexts, modules, functions, events and streams.
type Handle = *mut c_void;

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local! {
    /// The thread's current context.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

fn guard(body: impl FnOnce() -> Result<()>) -> u32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => code::UNKNOWN,
    }
}

/// Runs `body` on the driver that `cuInit` opened.
fn driver<T>(body: impl FnOnce(&mut Driver) -> Result<T>) -> Result<T> {
    // A panic under the lock leaves at most a simulated time that was not advanced.
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    body(driver.as_mut().ok_or(code::NOT_INITIALIZED)?)
}

/// Runs `body` on the driver and the thread's context.
fn current<T>(body: impl FnOnce(&mut Driver, usize) -> Result<T>) -> Result<T> {
    driver(|d| {
        let context = CURRENT.get().ok_or(code::INVALID_CONTEXT)?;
        d.context_device(context)?;
        body(d, context)
    })
}

/// Writes one value through a pointer that may be NULL.
unsafe fn put<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: not NULL; the caller promises room for one T.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes text into a buffer, cut to its length, with a terminating zero.
unsafe fn put_text(out: *mut c_char, length: c_int, text: &str) -> Result<()> {
    let room = usize::try_from(length).unwrap_or(0);
    if out.is_null() || room == 0 {
        return Err(code::INVALID_VALUE);
    }
    let count = text.len().min(room - 1);
    // SAFETY: not NULL, and `count` bytes with a zero fit into the `length` bytes that the caller promises.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), count);
        out.add(count).write(0);
    }
    Ok(())
}

fn handle(id: usize) -> Handle {
    std::ptr::without_provenance_mut(id)
}

/// Work goes to the default stream; there are no others.
fn default_stream(stream: Handle) -> Result<()> {
    if stream.is_null() { Ok(()) } else { Err(code::INVALID_HANDLE) }
}

fn length(bytes: usize) -> Result<u64> {
    u64::try_from(bytes).map_err(|_| code::INVALID_VALUE)
}

macro_rules! exports {
    ($( $(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block )*) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
            guard(move || unsafe { $body })
        }
    )* };
}

exports! {
    /// Opens the driver; the flags must be 0. Later calls change nothing.
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(code::INVALID_VALUE);
        }
        let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
        if driver.is_none() {
            *driver = Some(Driver::open(library_dir())?);
        }
        Ok(())
    }

    /// CUDA's version: 1000 times major plus 10 times minor.
    fn cuDriverGetVersion(version: *mut c_int) { put(version, driver(Driver::cuda_version)?) }

    /// Number of visible devices.
    fn cuDeviceGetCount(count: *mut c_int) {
        put(count, c_int::try_from(driver(Driver::devices)?.len()).map_err(|_| code::UNKNOWN)?)
    }

    /// A device by number; the handle is the number.
    fn cuDeviceGet(device: *mut c_int, number: c_int) {
        driver(|d| d.on_device(number, |_| Ok(())))?;
        put(device, number)
    }

    /// A device by PCI address.
    fn cuDeviceGetByPCIBusId(device: *mut c_int, id: *const c_char) {
        if id.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let id = CStr::from_ptr(id).to_str().map_err(|_| code::INVALID_VALUE)?;
        let found = driver(|d| {
            let matches = |m: &Moment<'_>| {
                Ok(id.eq_ignore_ascii_case(&m.device.pci.long()) || id.eq_ignore_ascii_case(&m.device.pci.legacy()))
            };
            let count = c_int::try_from(d.devices()?.len()).map_err(|_| code::UNKNOWN)?;
            (0..count).find(|n| d.on_device(*n, matches) == Ok(true)).ok_or(code::INVALID_DEVICE)
        })?;
        put(device, found)
    }

    /// PCI address of a device.
    fn cuDeviceGetPCIBusId(id: *mut c_char, length: c_int, device: c_int) {
        let text = driver(|d| d.on_device(device, |m| Ok(m.device.pci.legacy())))?;
        put_text(id, length, &text)
    }

    /// Name that a device claims.
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) {
        let text = driver(|d| d.on_device(device, |m| Ok(m.profile.product_name.clone())))?;
        put_text(name, length, &text)
    }

    /// UUID of a device, as 16 bytes.
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) { put(uuid, uuid_of(device)?) }

    /// Older name.
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) { put(uuid, uuid_of(device)?) }

    /// Memory that a device claims, in bytes.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        let claimed = driver(|d| d.on_device(device, |m| Ok(claimed_bytes(m))))?;
        put(bytes, usize::try_from(claimed).map_err(|_| code::UNKNOWN)?)
    }

    /// A property that a device claims.
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) {
        let found = driver(|d| d.on_device(device, |m| attribute_of(m, attribute)))?;
        put(value, found)
    }

    /// A new context, which becomes the thread's.
    fn cuCtxCreate_v2(context: *mut Handle, _flags: c_uint, device: c_int) {
        if context.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let id = driver(|d| d.create_context(device))?;
        CURRENT.set(Some(id));
        put(context, handle(id))
    }

    /// Ends a context with its memory and events.
    fn cuCtxDestroy_v2(context: Handle) {
        driver(|d| d.destroy_context(context.addr()))?;
        if CURRENT.get() == Some(context.addr()) {
            CURRENT.set(None);
        }
        Ok(())
    }

    /// Makes a context the thread's; NULL leaves it without one.
    fn cuCtxSetCurrent(context: Handle) {
        if !context.is_null() {
            driver(|d| d.context_device(context.addr()))?;
        }
        CURRENT.set((!context.is_null()).then_some(context.addr()));
        Ok(())
    }

    /// The thread's context.
    fn cuCtxGetCurrent(context: *mut Handle) { put(context, CURRENT.get().map_or(std::ptr::null_mut(), handle)) }

    /// Waits for the context's work, which is done as soon as it is ordered.
    fn cuCtxSynchronize() { current(|_, _| Ok(())) }

    /// Free and whole memory of the context's device.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (left, all) = current(Driver::memory_info)?;
        if total.is_null() {
            return Err(code::INVALID_VALUE);
        }
        put(free, usize::try_from(left).map_err(|_| code::UNKNOWN)?)?;
        put(total, usize::try_from(all).map_err(|_| code::UNKNOWN)?)
    }

    /// Allocates device memory.
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        if address.is_null() {
            return Err(code::INVALID_VALUE);
        }
        put(address, current(|d, c| d.allocate(c, length(bytes)?))?)
    }

    /// Frees device memory.
    fn cuMemFree_v2(address: u64) { current(|d, _| d.free(address)) }

    /// Fills device memory with a word.
    fn cuMemsetD32_v2(address: u64, word: c_uint, count: usize) {
        current(|d, c| d.fill(c, address, word, length(count)?.checked_mul(4).ok_or(code::INVALID_VALUE)?))
    }

    /// The same, ordered on a stream.
    fn cuMemsetD32Async(address: u64, word: c_uint, count: usize, stream: Handle) {
        default_stream(stream)?;
        current(|d, c| d.fill(c, address, word, length(count)?.checked_mul(4).ok_or(code::INVALID_VALUE)?))
    }

    /// Copies within device memory.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) { current(|d, c| d.copy(c, to, from, length(bytes)?)) }

    /// The same, ordered on a stream.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        default_stream(stream)?;
        current(|d, c| d.copy(c, to, from, length(bytes)?))
    }

    /// Copies to device memory.
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        if from.is_null() {
            return Err(code::INVALID_VALUE);
        }
        current(|d, c| d.write(c, to, std::slice::from_raw_parts(from.cast(), bytes)))
    }

    /// Copies from device memory.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        if to.is_null() {
            return Err(code::INVALID_VALUE);
        }
        current(|d, c| d.read(c, from, std::slice::from_raw_parts_mut(to.cast(), bytes)))
    }

    /// A new event.
    fn cuEventCreate(event: *mut Handle, _flags: c_uint) {
        if event.is_null() {
            return Err(code::INVALID_VALUE);
        }
        put(event, handle(current(Driver::create_event)?))
    }

    /// Ends an event.
    fn cuEventDestroy_v2(event: Handle) { driver(|d| d.destroy_event(event.addr())) }

    /// Notes the simulated time of the work ordered so far.
    fn cuEventRecord(event: Handle, stream: Handle) {
        default_stream(stream)?;
        driver(|d| d.record_event(event.addr()))
    }

    /// Waits for an event, which has happened.
    fn cuEventSynchronize(event: Handle) { driver(|d| d.event_happened(event.addr())) }

    /// Whether an event has happened: yes.
    fn cuEventQuery(event: Handle) { driver(|d| d.event_happened(event.addr())) }

    /// Simulated time between two events, in milliseconds.
    fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) {
        put(milliseconds, driver(|d| d.elapsed_ms(start.addr(), end.addr()))?)
    }

    /// Newer name.
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: Handle, end: Handle) {
        put(milliseconds, driver(|d| d.elapsed_ms(start.addr(), end.addr()))?)
    }

    /// Loads code; what it is does not matter, because only its function's name is understood.
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) {
        if module.is_null() {
            return Err(code::INVALID_VALUE);
        }
        if image.is_null() {
            return Err(code::INVALID_IMAGE);
        }
        put(module, handle(current(Driver::load_module)?))
    }

    /// Unloads code.
    fn cuModuleUnload(module: Handle) { driver(|d| d.unload_module(module.addr())) }

    /// A function of loaded code, by name.
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        if function.is_null() || name.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| code::NOT_FOUND)?;
        put(function, handle(driver(|d| d.function(module.addr(), name))?))
    }

    /// Runs a function; its arguments are 64-bit numbers.
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        _shared_bytes: c_uint,
        stream: Handle,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        default_stream(stream)?;
        if [grid_x, grid_y, grid_z, block_x, block_y, block_z].contains(&0) || arguments.is_null() || !extra.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let argument = |n: usize| {
            let at = arguments.add(n).read();
            if at.is_null() { Err(code::INVALID_VALUE) } else { Ok(at.cast::<u64>().read_unaligned()) }
        };
        current(|d, c| match d.kernel(function.addr())? {
            Kernel::Spin => d.spin(c, argument(0)?),
            Kernel::Copy => d.copy_units(c, argument(0)?, argument(1)?, argument(2)?),
        })
    }

    /// Name of a result.
    fn cuGetErrorName(result: c_uint, name: *mut *const c_char) { put(name, error(result)?.0.as_ptr()) }

    /// Text of a result.
    fn cuGetErrorString(result: c_uint, text: *mut *const c_char) { put(text, error(result)?.1.as_ptr()) }
}

fn error(result: c_uint) -> Result<(&'static CStr, &'static CStr)> {
    Ok(match result {
        0 => (c"CUDA_SUCCESS", c"no error"),
        code::INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        code::OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        code::NOT_INITIALIZED => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        code::DEVICE_UNAVAILABLE => (c"CUDA_ERROR_DEVICE_UNAVAILABLE", c"device busy or unavailable"),
        code::NO_DEVICE => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        code::INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        code::INVALID_IMAGE => (c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid"),
        code::INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        code::INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        code::NOT_FOUND => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        code::NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        code::DRIVER_MISMATCH => {
            (c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", c"driver and library versions differ")
        }
        code::UNKNOWN => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
        _ => return Err(code::INVALID_VALUE),
    })
}

fn uuid_of(device: c_int) -> Result<[u8; 16]> {
    driver(|d| {
        d.on_device(device, |m| {
            let digits: String = m.condition().uuid.chars().skip(4).filter(|c| *c != '-').collect();
            u128::from_str_radix(&digits, 16).map(u128::to_be_bytes).map_err(|_| code::UNKNOWN)
        })
    })
}

/// Properties by number of `CU_DEVICE_ATTRIBUTE_*`. Clocks are in kHz.
fn attribute_of(moment: &Moment<'_>, attribute: c_uint) -> Result<c_int> {
    let p = moment.profile;
    let number = |value: u32| c_int::try_from(value).map_err(|_| code::UNKNOWN);
    match attribute {
        1 => Ok(1024), // MAX_THREADS_PER_BLOCK
        10 => Ok(32),  // WARP_SIZE
        13 => number(p.max_sm_clock_mhz.saturating_mul(1000)),
        16 => number(p.multiprocessors),
        32 => Ok(1), // ECC_ENABLED
        33 => number(moment.device.pci.bus),
        34 => number(moment.device.pci.device),
        36 => number(p.memory_clock_mhz.saturating_mul(1000)),
        37 => number(p.memory_bus_width),
        50 => number(moment.device.pci.domain),
        75 => Ok(p.compute_capability[0]),
        76 => Ok(p.compute_capability[1]),
        _ => Err(code::INVALID_VALUE),
    }
}

/// Folder of the file that this code was loaded from.
fn library_dir() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let address: *const () = (cuInit as unsafe extern "C" fn(c_uint) -> u32) as *const ();
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
