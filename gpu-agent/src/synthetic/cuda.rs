//! A card through the CUDA driver API: `libcuda.so.1`, loaded at run time.
//!
//! * Inputs: the library, a device's UUID. Output: a [`Card`].
//! * Invariants: every pointer that is handed out points to memory of this module that outlives the call; a context is
//!   current on the thread that made it for as long as its [`Cuda`] lives, which is not [`Send`].
//!
//! The crates that bind CUDA panic where there is no driver, and take the library only from the loader's path; two dozen
//! entry points of a stable C interface are less than what it would take to work around that.

// The driver is a C library: its entry points are found and called by hand.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::time::Duration;

use libloading::Library;

use super::measure::{BLOCK, Block, Card, Figures, Memory};

/// What the loader is asked for when no path is given.
pub const LIBRARY: &str = "libcuda.so.1";

/// The kernels, as text that the driver compiles.
const KERNELS: &str = include_str!("kernels.ptx");

/// Threads of a block: four warps, one for each scheduler of a multiprocessor.
const SPIN_THREADS: u32 = 128;

/// Threads of a block that copies, and blocks for each multiprocessor: as many threads as the largest holds.
const COPY_THREADS: u32 = 256;
const COPY_BLOCKS: u32 = 8;

/// Bytes that a thread copies at once.
const UNIT: u64 = 16;

/// `CUresult` values with a meaning of their own here.
pub mod code {
    /// No room.
    pub const OUT_OF_MEMORY: u32 = 2;
    /// Somebody has the device for himself, or nobody may have it.
    pub const DEVICE_UNAVAILABLE: u32 = 46;
}

/// Properties by number of `CU_DEVICE_ATTRIBUTE_*`.
mod attribute {
    use super::c_int;

    pub(super) const CLOCK_RATE_KHZ: c_int = 13;
    pub(super) const MULTIPROCESSORS: c_int = 16;
    pub(super) const MEMORY_CLOCK_RATE_KHZ: c_int = 36;
    pub(super) const MEMORY_BUS_WIDTH: c_int = 37;
}

type Handle = *mut c_void;

/// Why a card cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The library cannot be loaded.
    #[error("load {}: {detail}", library.display())]
    Load {
        /// What was asked of the loader.
        library: PathBuf,
        /// What the loader says.
        detail: String,
    },
    /// The driver cannot be used at all.
    #[error("initialise CUDA: {name} ({code})")]
    Initialise {
        /// CUDA's number.
        code: u32,
        /// CUDA's name for it.
        name: String,
    },
    /// There is no such device.
    #[error("CUDA shows no device {0}")]
    NotVisible(String),
    /// A call failed.
    #[error("{operation}: {name} ({code})")]
    Call {
        /// What was asked.
        operation: &'static str,
        /// CUDA's number.
        code: u32,
        /// CUDA's name for it.
        name: String,
    },
}

macro_rules! entry_points {
    ($( $field:ident = $symbol:literal ($($ty:ty),*); )*) => {
        /// Entry points of the driver, with the types of `cuda.h`.
        struct EntryPoints { $( $field: unsafe extern "C" fn($($ty),*) -> u32, )* }

        impl EntryPoints {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self { $(
                    // SAFETY: the type is that of the function of this name in cuda.h, and the library is never unloaded.
                    $field: *unsafe { library.get::<unsafe extern "C" fn($($ty),*) -> u32>($symbol.as_bytes()) }?,
                )* })
            }
        }
    };
}

entry_points! {
    init = "cuInit" (c_uint);
    error_name = "cuGetErrorName" (u32, *mut *const c_char);
    count = "cuDeviceGetCount" (*mut c_int);
    device = "cuDeviceGet" (*mut c_int, c_int);
    uuid = "cuDeviceGetUuid" (*mut [u8; 16], c_int);
    attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    create_context = "cuCtxCreate_v2" (*mut Handle, c_uint, c_int);
    destroy_context = "cuCtxDestroy_v2" (Handle);
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    allocate = "cuMemAlloc_v2" (*mut u64, usize);
    release = "cuMemFree_v2" (u64);
    fill = "cuMemsetD32_v2" (u64, c_uint, usize);
    read = "cuMemcpyDtoH_v2" (*mut c_void, u64, usize);
    load_module = "cuModuleLoadData" (*mut Handle, *const c_void);
    function = "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    launch = "cuLaunchKernel" (
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
    create_event = "cuEventCreate" (*mut Handle, c_uint);
    destroy_event = "cuEventDestroy_v2" (Handle);
    record_event = "cuEventRecord" (Handle, Handle);
    wait_event = "cuEventSynchronize" (Handle);
    elapsed = "cuEventElapsedTime" (*mut f32, Handle, Handle);
}

/// A device with a context on this thread. Dropping it returns the device's memory.
pub struct Cuda {
    calls: EntryPoints,
    context: Handle,
    spin: Handle,
    copy: Handle,
    multiprocessors: u32,
    figures: Figures,
}

impl Cuda {
    /// Loads `library`, or what the loader finds, and opens the device with this UUID (`GPU-...`).
    ///
    /// # Errors
    /// When there is no driver, no such device, or a call fails.
    pub fn open(library: Option<&Path>, uuid: &str) -> Result<Self, CudaError> {
        let calls = load(library.unwrap_or(Path::new(LIBRARY)))?;
        // SAFETY: takes a number.
        let code = unsafe { (calls.init)(0) };
        if code != 0 {
            return Err(CudaError::Initialise { code, name: calls.name(code) });
        }
        let device = calls.find_device(uuid)?;
        let attribute = |which| calls.attribute_of(device, which);
        let mhz = |khz: u64| khz / 1_000;
        let figures = Figures {
            sm_clock_mhz: mhz(attribute(attribute::CLOCK_RATE_KHZ)?),
            memory_clock_mhz: mhz(attribute(attribute::MEMORY_CLOCK_RATE_KHZ)?),
            memory_bus_bits: attribute(attribute::MEMORY_BUS_WIDTH)?,
        };
        let multiprocessors = u32::try_from(attribute(attribute::MULTIPROCESSORS)?).unwrap_or(u32::MAX);
        let mut context = null_mut();
        // SAFETY: the pointer is to our own variable.
        calls.check("open the device", unsafe { (calls.create_context)(&mut context, 0, device) })?;
        // From here on dropping it ends the context.
        let mut cuda = Self { calls, context, spin: null_mut(), copy: null_mut(), multiprocessors, figures };
        (cuda.spin, cuda.copy) = cuda.load_kernels()?;
        Ok(cuda)
    }

    fn load_kernels(&self) -> Result<(Handle, Handle), CudaError> {
        let failed = |_| CudaError::Call {
            operation: "read the kernels",
            code: 0,
            name: "a zero in the text".to_owned(),
        };
        let text = CString::new(KERNELS).map_err(failed)?;
        let mut module = null_mut();
        // SAFETY: a zero-terminated text, which the driver reads before it returns, and our own variable.
        let code = unsafe { (self.calls.load_module)(&mut module, text.as_ptr().cast()) };
        self.calls.check("compile the kernels", code)?;
        let function = |name: &CStr| {
            let mut function = null_mut();
            // SAFETY: the module is loaded, the name zero-terminated, the variable our own.
            let code = unsafe { (self.calls.function)(&mut function, module, name.as_ptr()) };
            self.calls.check("find a kernel", code).map(|()| function)
        };
        Ok((function(c"vendue_spin_cycles")?, function(c"vendue_copy_units")?))
    }

    /// Runs a kernel on the default stream.
    fn launch(
        &self,
        kernel: Handle,
        blocks: u32,
        threads: u32,
        arguments: &mut [u64],
    ) -> Result<(), CudaError> {
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|a| (&raw mut *a).cast()).collect();
        // SAFETY: the kernel takes as many 64-bit arguments as there are pointers; both are copied before the call returns.
        let code = unsafe {
            (self.calls.launch)(
                kernel,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                null_mut(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        };
        self.calls.check("run a kernel", code)
    }

    /// Time on the card that the work which `order` orders takes.
    fn timed(&self, order: impl FnOnce() -> Result<(), CudaError>) -> Result<Duration, CudaError> {
        let (start, end) = (self.event()?, self.event()?);
        start.record()?;
        order()?;
        end.record()?;
        // SAFETY: the event lives.
        self.calls.check("wait for the card", unsafe { (self.calls.wait_event)(end.handle) })?;
        let mut milliseconds = 0.0;
        // SAFETY: both events live and were recorded; the variable is our own.
        let code = unsafe { (self.calls.elapsed)(&mut milliseconds, start.handle, end.handle) };
        self.calls.check("read the time", code)?;
        Ok(Duration::try_from_secs_f32(milliseconds / 1_000.0).unwrap_or(Duration::MAX))
    }

    fn event(&self) -> Result<Event<'_>, CudaError> {
        let mut handle = null_mut();
        // SAFETY: the variable is our own, and a context is current.
        self.calls.check("make an event", unsafe { (self.calls.create_event)(&mut handle, 0) })?;
        Ok(Event { calls: &self.calls, handle })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: the context was made by `open` and is ended once. What it says no longer matters.
        unsafe { (self.calls.destroy_context)(self.context) };
    }
}

impl Card for Cuda {
    type Error = CudaError;

    fn figures(&self) -> Figures {
        self.figures
    }

    fn memory(&mut self) -> Result<Memory, CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both variables are our own.
        self.calls
            .check("ask for free memory", unsafe { (self.calls.memory_info)(&mut free, &mut total) })?;
        Ok(Memory { free: free as u64, total: total as u64 })
    }

    fn allocate(&mut self) -> Result<Option<Block>, CudaError> {
        let mut address = 0;
        // SAFETY: the variable is our own.
        match unsafe { (self.calls.allocate)(&mut address, bytes(BLOCK)) } {
            code::OUT_OF_MEMORY => Ok(None),
            code => self.calls.check("take memory", code).map(|()| Some(Block { address })),
        }
    }

    fn release(&mut self, block: Block) -> Result<(), CudaError> {
        // SAFETY: no memory of this process is touched; the driver checks the address.
        self.calls.check("return memory", unsafe { (self.calls.release)(block.address) })
    }

    fn fill(&mut self, block: Block, word: u32) -> Result<(), CudaError> {
        // SAFETY: no memory of this process is touched; the driver checks the card's.
        self.calls.check("fill memory", unsafe { (self.calls.fill)(block.address, word, bytes(BLOCK / 4)) })
    }

    fn read(&mut self, block: Block, position: u64) -> Result<u32, CudaError> {
        let mut word = 0_u32;
        let address = block.address.saturating_add(position.saturating_mul(4));
        // SAFETY: four bytes go to a variable of four bytes, and have arrived when the call returns.
        let code = unsafe { (self.calls.read)((&raw mut word).cast(), address, 4) };
        self.calls.check("read memory", code).map(|()| word)
    }

    fn time_copies(&mut self, to: Block, from: Block, count: u32) -> Result<Duration, CudaError> {
        let blocks = self.multiprocessors.saturating_mul(COPY_BLOCKS);
        self.timed(|| {
            (0..count).try_for_each(|_| {
                let arguments = &mut [to.address, from.address, BLOCK / UNIT];
                self.launch(self.copy, blocks, COPY_THREADS, arguments)
            })
        })
    }

    fn time_cycles(&mut self, cycles: u64) -> Result<Duration, CudaError> {
        self.timed(|| self.launch(self.spin, self.multiprocessors, SPIN_THREADS, &mut [cycles]))
    }
}

/// An event, until it is dropped.
struct Event<'a> {
    calls: &'a EntryPoints,
    handle: Handle,
}

impl Event<'_> {
    fn record(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives; the stream is the default one.
        self.calls.check("record an event", unsafe { (self.calls.record_event)(self.handle, null_mut()) })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: the event was made and is ended once.
        unsafe { (self.calls.destroy_event)(self.handle) };
    }
}

fn load(library: &Path) -> Result<EntryPoints, CudaError> {
    let failed =
        |error: libloading::Error| CudaError::Load { library: library.into(), detail: error.to_string() };
    // SAFETY: what a driver runs when it is loaded is as trusted as the driver. It stays loaded, for it starts threads of
    // its own.
    let loaded = ManuallyDrop::new(unsafe { Library::new(library) }.map_err(failed)?);
    EntryPoints::find(&loaded).map_err(failed)
}

impl EntryPoints {
    fn check(&self, operation: &'static str, code: u32) -> Result<(), CudaError> {
        match code {
            0 => Ok(()),
            code => Err(CudaError::Call { operation, code, name: self.name(code) }),
        }
    }

    fn name(&self, code: u32) -> String {
        let mut name = std::ptr::null();
        // SAFETY: the variable is our own.
        let known = unsafe { (self.error_name)(code, &mut name) } == 0 && !name.is_null();
        // SAFETY: a known code's name is a zero-terminated text of the library's, which is never unloaded.
        let name = known.then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
        name.unwrap_or_else(|| "unknown error".to_owned())
    }

    fn find_device(&self, uuid: &str) -> Result<c_int, CudaError> {
        let mut count = 0;
        // SAFETY: the variable is our own.
        self.check("count devices", unsafe { (self.count)(&mut count) })?;
        for number in 0..count {
            let (mut device, mut found) = (0, [0_u8; 16]);
            // SAFETY: the variables are our own, and a UUID has 16 bytes.
            self.check("get a device", unsafe { (self.device)(&mut device, number) })?;
            self.check("read the UUID of a device", unsafe { (self.uuid)(&mut found, device) })?;
            if is_named(found, uuid) {
                return Ok(device);
            }
        }
        Err(CudaError::NotVisible(uuid.to_owned()))
    }

    fn attribute_of(&self, device: c_int, which: c_int) -> Result<u64, CudaError> {
        let mut value = 0;
        // SAFETY: the variable is our own.
        self.check("read a property", unsafe { (self.attribute)(&mut value, which, device) })?;
        Ok(u64::try_from(value).unwrap_or(0))
    }
}

/// Whether these are the bytes of NVML's `GPU-xxxxxxxx-xxxx-...`.
fn is_named(bytes: [u8; 16], uuid: &str) -> bool {
    let digits: String = uuid.trim_start_matches("GPU-").chars().filter(|c| *c != '-').collect();
    digits.len() == 32 && u128::from_str_radix(&digits, 16) == Ok(u128::from_be_bytes(bytes))
}

/// Addresses of a GPU and of this process are as wide.
fn bytes(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_compared_by_their_bytes() {
        let mut bytes = [0; 16];
        (bytes[0], bytes[15]) = (0xAB, 0x01);
        assert!(is_named(bytes, "GPU-ab000000-0000-0000-0000-000000000001"));
        assert!(!is_named(bytes, "GPU-ab000000-0000-0000-0000-000000000002"));
        assert!(!is_named(bytes, "GPU-") && !is_named([0; 16], ""));
    }

    #[test]
    fn a_library_that_is_missing_or_is_another_is_named() {
        let Err(error) = Cuda::open(Some(Path::new("/nowhere/libcuda.so.1")), "GPU-1") else {
            panic!("there is none");
        };
        assert!(error.to_string().starts_with("load /nowhere/libcuda.so.1: "), "{error}");
        let Err(error) = Cuda::open(Some(Path::new("libc.so.6")), "GPU-1") else { panic!("no CUDA") };
        assert!(error.to_string().contains("cuInit"), "{error}");
    }
}
