//! Loop devices and their mounts, by system calls.
//!
//! A device detaches itself when its last user is gone, so that a crash between two steps leaves at most a mount, which
//! [`unmount`] finds and takes down.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{WorkspaceError, failed};

const LOOP_CONFIGURE: ioctl::Opcode = 0x4C0A;
const LOOP_CLR_FD: ioctl::Opcode = 0x4C01;
const LOOP_CTL_GET_FREE: ioctl::Opcode = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `_IOR('X', 125, __u32)`, for ext4 as for XFS.
const SHUTDOWN: ioctl::Opcode = 0x8004_587D;
/// Drop what was not yet written.
const SHUTDOWN_WITHOUT_FLUSH: u32 = 2;
const LOOP_MAJOR: u32 = 7;

/// Between asking for a free device and taking it, another process may take it.
const TRIES: u32 = 32;
/// A container that is just gone may hold a mount for another moment.
const UNMOUNT_TRIES: u32 = 40;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(50);

/// The kernel's `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

impl LoopConfig {
    fn of(file: &File, name: &Path) -> Self {
        let mut file_name = [0; 64];
        // Only shown by losetup; what counts is in /sys.
        let text = name.as_os_str().as_encoded_bytes();
        let length = text.len().min(63);
        file_name[..length].copy_from_slice(&text[text.len() - length..]);
        Self {
            fd: file.as_raw_fd() as u32,
            block_size: 0,
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
            reserved: [0; 8],
        }
    }
}

/// Puts a file behind a free loop device. The device lives as long as what is given back, or a mount of it.
fn attach(image: &Path) -> std::io::Result<(OwnedFd, PathBuf)> {
    let file = File::options().read(true).write(true).open(image)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let config = LoopConfig::of(&file, image);
    let mut last = Errno::BUSY;
    for _ in 0..TRIES {
        // SAFETY: the call takes no argument and answers with a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as libc::c_ulong as _) };
        if number < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // SAFETY: the kernel reads one `loop_config`, which lives until the call returns.
        let set = unsafe {
            ioctl::ioctl(&device, ioctl::Setter::<LOOP_CONFIGURE, LoopConfig>::new(LoopConfig { ..config }))
        };
        match set {
            Ok(()) => return Ok((device, path)),
            Err(Errno::BUSY) => last = Errno::BUSY,
            Err(other) => return Err(other.into()),
        }
    }
    Err(last.into())
}

/// Mounts the file system in a file.
pub(super) fn mount(image: &Path, point: &Path) -> Result<(), WorkspaceError> {
    let (device, path) = attach(image).map_err(failed("put a loop device before", image))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    // No zeroing of inode tables in the background, and no waiting for the host's disk: nothing in here has to outlive
    // a power cut, and every fsync of a job becomes cheap.
    let options = c"noinit_itable,nobarrier";
    let mounted = rustix::mount::mount(&path, point, "ext4", flags, Some(options));
    drop(device);
    mounted.map_err(|error| failed("mount a disk at", point)(error.into()))
}

/// Unmounts what is mounted at a place. If it is the file system of `image`, what was not yet written is dropped first:
/// it would only be written to be deleted.
pub(super) fn unmount(point: &Path, image: &Path) -> Result<(), WorkspaceError> {
    let _ = shut_down(point, image);
    for _ in 0..UNMOUNT_TRIES {
        match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
            // INVAL: it is no mount any more.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => std::thread::sleep(UNMOUNT_PAUSE),
            Err(other) => return Err(failed("unmount", point)(other.into())),
        }
    }
    // Whoever still holds it keeps a file system that is shut down, and the device goes with the last of them.
    let detach = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(point, detach).map_err(|error| failed("unmount", point)(error.into()))
}

/// Shuts down the file system of an image, and no other.
///
/// On any other file system this call would be a disaster, hence the care: the folder is opened once, and the device
/// *behind that descriptor* has to be a loop device whose file is ours.
fn shut_down(point: &Path, image: &Path) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(point, flags, Mode::empty())?;
    let device = rustix::fs::fstat(&folder)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    if major != LOOP_MAJOR
        || backing_file(&format!("/sys/dev/block/{major}:{minor}")).as_deref() != Some(image)
    {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads one number, which lives until the call returns.
    unsafe { ioctl::ioctl(&folder, ioctl::Setter::<SHUTDOWN, u32>::new(SHUTDOWN_WITHOUT_FLUSH)) }?;
    Ok(())
}

/// The file behind a loop device, by its folder in /sys.
fn backing_file(device: &str) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("{device}/loop/backing_file")).ok()?;
    Some(PathBuf::from(text.trim_end_matches('\n').trim_end_matches(" (deleted)")))
}

/// Detaches devices that hold a file below `attempts` of an attempt that is not kept, and that nothing mounts.
pub(super) fn detach_orphans(attempts: &Path, keep: &BTreeSet<String>, failures: &mut Vec<String>) {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return };
    for device in devices.flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        let Some(file) = backing_file(&format!("/sys/block/{name}")) else { continue };
        let Ok(below) = file.strip_prefix(attempts) else { continue };
        let attempt = below.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        if attempt.is_some_and(|attempt| keep.contains(&attempt)) {
            continue;
        }
        if let Err(error) = detach(&format!("/dev/{name}")) {
            failures.push(format!("loop device {name}: {error}"));
        }
    }
}

fn detach(device: &str) -> std::io::Result<()> {
    let device = rustix::fs::open(device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the call takes no argument.
    match unsafe { ioctl::ioctl(&device, ioctl::NoArg::<LOOP_CLR_FD>::new()) } {
        // NXIO: it has let go by itself meanwhile.
        Ok(()) | Err(Errno::NXIO) => Ok(()),
        Err(other) => Err(other.into()),
    }
}
