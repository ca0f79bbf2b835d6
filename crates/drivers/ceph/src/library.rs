//! librados and librbd, loaded when they are first needed: a node without Ceph has neither, and starts all the same.
//!
//! The signatures are those of `rados/librados.h` and `rbd/librbd.h` of Ceph 16; no function of theirs has changed since
//! Ceph 14. What is loaded stays for the life of the process.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use dunnage_model::{Error, Kind, Result};
use libloading::Library;

/// `rados_t`.
pub type RawCluster = *mut c_void;
/// `rados_ioctx_t`.
pub type RawPool = *mut c_void;
/// `rados_write_op_t`.
pub type RawWrite = *mut c_void;
/// `rados_read_op_t`.
pub type RawRead = *mut c_void;
/// `rados_xattrs_iter_t`.
pub type RawAttributes = *mut c_void;
/// `rados_list_ctx_t`.
pub type RawListing = *mut c_void;
/// `rados_object_list_cursor`.
pub type RawCursor = *mut c_void;
/// `rados_omap_iter_t`.
pub type RawNames = *mut c_void;
/// `rbd_image_t`.
pub type RawImage = *mut c_void;

/// `rados_watchcb2_t`: argument, id of the notify, handle of the watch, id of the notifier, payload and its length.
pub type OnNotify = extern "C" fn(*mut c_void, u64, u64, u64, *mut c_void, usize);
/// `rados_watcherrcb_t`: argument, handle of the watch, error.
pub type OnLost = extern "C" fn(*mut c_void, u64, c_int);

/// The callback of `rbd_diff_iterate2`: offset, length, whether there is something, argument.
pub type OnDiff = extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// `rados_object_list_item`.
#[repr(C)]
pub struct RawObject {
    pub oid_length: usize,
    pub oid: *mut c_char,
    pub nspace_length: usize,
    pub nspace: *mut c_char,
    pub locator_length: usize,
    pub locator: *mut c_char,
}

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawSpec {
    pub id: *mut c_char,
    pub name: *mut c_char,
}

/// `rbd_image_watcher_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawWatcher {
    pub addr: *mut c_char,
    pub id: i64,
    pub cookie: u64,
}

/// A table of functions, filled from a library.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident: $($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$doc])*
        pub struct $table {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                Ok($table {
                    // SAFETY: the signature is the header's. The pointer stays good, because no library is ever unloaded.
                    $($name: unsafe { *library.get::<unsafe extern "C" fn($($argument),*) $(-> $result)?>(stringify!($name))? },)*
                })
            }
        }
    };
}

functions! {
    /// What we call of librados.
    Rados:
    rados_create2(*mut RawCluster, *const c_char, *const c_char, u64) -> c_int;
    rados_conf_read_file(RawCluster, *const c_char) -> c_int;
    rados_conf_set(RawCluster, *const c_char, *const c_char) -> c_int;
    rados_connect(RawCluster) -> c_int;
    rados_shutdown(RawCluster);
    rados_cluster_fsid(RawCluster, *mut c_char, usize) -> c_int;
    rados_getaddrs(RawCluster, *mut *mut c_char) -> c_int;
    rados_get_instance_id(RawCluster) -> u64;
    rados_pool_list(RawCluster, *mut c_char, usize) -> c_int;
    rados_pool_lookup(RawCluster, *const c_char) -> i64;
    rados_mon_command(
        RawCluster,
        *mut *const c_char,
        usize,
        *const c_char,
        usize,
        *mut *mut c_char,
        *mut usize,
        *mut *mut c_char,
        *mut usize
    ) -> c_int;
    rados_buffer_free(*mut c_char);
    rados_wait_for_latest_osdmap(RawCluster) -> c_int;
    rados_ioctx_create(RawCluster, *const c_char, *mut RawPool) -> c_int;
    rados_ioctx_destroy(RawPool);
    rados_set_pool_full_try(RawPool);
    rados_create_write_op() -> RawWrite;
    rados_release_write_op(RawWrite);
    rados_write_op_create(RawWrite, c_int, *const c_char);
    rados_write_op_cmpxattr(RawWrite, *const c_char, u8, *const c_char, usize);
    rados_write_op_setxattr(RawWrite, *const c_char, *const c_char, usize);
    rados_write_op_write_full(RawWrite, *const c_char, usize);
    rados_write_op_remove(RawWrite);
    rados_write_op_omap_set(RawWrite, *const *const c_char, *const *const c_char, *const usize, usize);
    rados_write_op_omap_rm_keys(RawWrite, *const *const c_char, usize);
    rados_write_op_operate(RawWrite, RawPool, *const c_char, *mut libc::time_t, c_int) -> c_int;
    rados_create_read_op() -> RawRead;
    rados_release_read_op(RawRead);
    rados_read_op_stat(RawRead, *mut u64, *mut libc::time_t, *mut c_int);
    rados_read_op_getxattrs(RawRead, *mut RawAttributes, *mut c_int);
    rados_read_op_read(RawRead, u64, usize, *mut c_char, *mut usize, *mut c_int);
    rados_read_op_operate(RawRead, RawPool, *const c_char, c_int) -> c_int;
    rados_read_op_omap_get_keys2(RawRead, *const c_char, u64, *mut RawNames, *mut u8, *mut c_int);
    rados_omap_get_next(RawNames, *mut *mut c_char, *mut *mut c_char, *mut usize) -> c_int;
    rados_omap_get_end(RawNames);
    rados_getxattrs_next(RawAttributes, *mut *const c_char, *mut *const c_char, *mut usize) -> c_int;
    rados_getxattrs_end(RawAttributes);
    rados_nobjects_list_open(RawPool, *mut RawListing) -> c_int;
    rados_nobjects_list_next(RawListing, *mut *const c_char, *mut *const c_char, *mut *const c_char) -> c_int;
    rados_nobjects_list_close(RawListing);
    rados_object_list_begin(RawPool) -> RawCursor;
    rados_object_list_end(RawPool) -> RawCursor;
    rados_object_list_cursor_free(RawPool, RawCursor);
    rados_object_list_slice(RawPool, RawCursor, RawCursor, usize, usize, *mut RawCursor, *mut RawCursor);
    rados_object_list(RawPool, RawCursor, RawCursor, usize, *const c_char, usize, *mut RawObject, *mut RawCursor) -> c_int;
    rados_object_list_free(usize, *mut RawObject);
    rados_watch3(RawPool, *const c_char, *mut u64, OnNotify, OnLost, u32, *mut c_void) -> c_int;
    rados_watch_check(RawPool, u64) -> c_int;
    rados_unwatch2(RawPool, u64) -> c_int;
    rados_watch_flush(RawCluster) -> c_int;
    rados_notify2(RawPool, *const c_char, *const c_char, c_int, u64, *mut *mut c_char, *mut usize) -> c_int;
    rados_notify_ack(RawPool, *const c_char, u64, u64, *const c_char, c_int) -> c_int;
}

functions! {
    /// What we call of librbd.
    Rbd:
    rbd_create2(RawPool, *const c_char, u64, u64, *mut c_int) -> c_int;
    rbd_list2(RawPool, *mut RawSpec, *mut usize) -> c_int;
    rbd_image_spec_list_cleanup(*mut RawSpec, usize);
    rbd_remove(RawPool, *const c_char) -> c_int;
    rbd_rename(RawPool, *const c_char, *const c_char) -> c_int;
    rbd_open(RawPool, *const c_char, *mut RawImage, *const c_char) -> c_int;
    rbd_open_read_only(RawPool, *const c_char, *mut RawImage, *const c_char) -> c_int;
    rbd_open_by_id_read_only(RawPool, *const c_char, *mut RawImage, *const c_char) -> c_int;
    rbd_close(RawImage) -> c_int;
    rbd_get_size(RawImage, *mut u64) -> c_int;
    rbd_diff_iterate2(RawImage, *const c_char, u64, u64, u8, u8, OnDiff, *mut c_void) -> c_int;
    rbd_get_features(RawImage, *mut u64) -> c_int;
    rbd_get_id(RawImage, *mut c_char, usize) -> c_int;
    rbd_resize(RawImage, u64) -> c_int;
    rbd_read(RawImage, u64, usize, *mut c_char) -> isize;
    rbd_write(RawImage, u64, usize, *const c_char) -> isize;
    rbd_flush(RawImage) -> c_int;
    rbd_watchers_list(RawImage, *mut RawWatcher, *mut usize) -> c_int;
    rbd_watchers_list_cleanup(*mut RawWatcher, usize);
    rbd_metadata_set(RawImage, *const c_char, *const c_char) -> c_int;
    rbd_metadata_list(RawImage, *const c_char, u64, *mut c_char, *mut usize, *mut c_char, *mut usize) -> c_int;
}

/// librados.
pub fn rados() -> Result<&'static Rados> {
    static LOADED: OnceLock<Rados> = OnceLock::new();
    once(&LOADED, || load("librados.so.2", "librados2", Rados::find))
}

/// librbd.
pub fn rbd() -> Result<&'static Rbd> {
    static LOADED: OnceLock<Rbd> = OnceLock::new();
    once(&LOADED, || load("librbd.so.1", "librbd1", Rbd::find))
}

/// Only a success is remembered: what is missing may be installed while we run.
fn once<T>(cell: &'static OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&'static T> {
    match cell.get() {
        Some(loaded) => Ok(loaded),
        None => make().map(|loaded| cell.get_or_init(|| loaded)),
    }
}

fn load<T>(file: &str, package: &str, find: fn(&Library) -> Result<T, libloading::Error>) -> Result<T> {
    // SAFETY: it is a library of the system, found where the linker finds them; what it does when it is loaded is what it
    // does in every program that is linked with it.
    let library = unsafe { Library::new(file) }.map_err(|e| {
        let kind = Kind::PlatformUnavailable;
        Error::new(
            kind,
            format!("Ceph's library {file} cannot be loaded: {}", why(&e)),
            format!("install the package {package} on this node"),
        )
    })?;
    let table = find(&library).map_err(|e| {
        let detail = format!("Ceph's library {file} is too old: {}", why(&e));
        Error::unavailable(detail, format!("install a package {package} of Ceph 14 or newer on this node"))
    })?;
    // Its threads may run for ever.
    std::mem::forget(library);
    Ok(table)
}

/// What the linker said: libloading's own words are only which call failed.
fn why(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A string for C. `key` says what it is in the error that a zero byte is.
pub fn text(key: &str, value: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(value).map_err(|_| Error::invalid(key, "there is a zero byte in it", "leave it out"))
}

/// A string that a library made, freed with the value.
pub struct Buffer {
    api: &'static Rados,
    start: *mut c_char,
}

impl Buffer {
    pub fn empty(api: &'static Rados) -> Self {
        Buffer { api, start: std::ptr::null_mut() }
    }

    /// Where the library is to put its pointer.
    pub fn out(&mut self) -> *mut *mut c_char {
        &raw mut self.start
    }

    /// What is in it, when the library said how long it is.
    ///
    /// # Safety
    /// The library has put at least `length` bytes there, or nothing.
    pub unsafe fn bytes(&self, length: usize) -> &[u8] {
        if self.start.is_null() || length == 0 {
            return &[];
        }
        // SAFETY: the caller says so, and it is freed with us only.
        unsafe { std::slice::from_raw_parts(self.start.cast(), length) }
    }

    /// What is in it, up to its zero byte.
    ///
    /// # Safety
    /// The library has put a string of C there, or nothing.
    pub unsafe fn string(&self) -> String {
        if self.start.is_null() {
            return String::new();
        }
        // SAFETY: the caller says so.
        unsafe { CStr::from_ptr(self.start) }.to_string_lossy().into_owned()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: librados made it, and nobody else frees it.
            unsafe { (self.api.rados_buffer_free)(self.start) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error_with_the_package_that_brings_it() {
        let error = load("librados-that-nobody-has.so.2", "librados2", Rados::find).map(|_| ()).expect_err("nobody has it");
        assert_eq!(error.word(), "platform_unavailable");
        assert!(error.to_string().contains("librados-that-nobody-has.so.2"), "{error}");
        assert!(error.next.contains("install the package librados2"), "{error}");
    }

    #[test]
    fn a_library_without_our_functions_is_an_error_and_no_crash() {
        let error = load("libc.so.6", "librbd1", Rbd::find).map(|_| ()).expect_err("libc has no rbd_create2");
        assert!(error.to_string().contains("too old") && error.to_string().contains("rbd_create2"), "{error}");
    }
}
