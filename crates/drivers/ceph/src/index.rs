//! A set of names in an object: what a pool has of ours, without a look at all of its objects.

use std::ffi::{CStr, c_char, c_int};

use dunnage_model::{Error, Result};

use crate::fault::failed;
use crate::library::{Rados, RawNames, text};
use crate::pool::{Pool, Read, Write};

/// How many names are asked for at once.
const AT_ONCE: u64 = 1000;

impl Pool {
    /// Adds a name to the set in an object, which is made if need be. Idempotent.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time: it may have been added.
    pub fn add_name(&self, oid: &str, name: &str) -> Result<()> {
        let (write, key) = (Write::new(self.api())?, text("name", name)?);
        let (keys, values, lengths) = ([key.as_ptr()], [c"".as_ptr()], [0]);
        // SAFETY: a live operation, and one string with an empty value, which are copied.
        unsafe { (self.api().rados_write_op_omap_set)(write.raw, keys.as_ptr(), values.as_ptr(), lengths.as_ptr(), 1) }
        match write.operate(self, oid)? {
            code if code < 0 => Err(failed(self.of("change", oid), code)),
            _ => Ok(()),
        }
    }

    /// Takes a name out of the set. Idempotent.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time: it may have been taken out.
    pub fn remove_name(&self, oid: &str, name: &str) -> Result<()> {
        let (write, key) = (Write::new(self.api())?, text("name", name)?);
        let keys = [key.as_ptr()];
        // SAFETY: a live operation and one string, which is copied.
        unsafe { (self.api().rados_write_op_omap_rm_keys)(write.raw, keys.as_ptr(), 1) }
        match write.operate(self, oid)? {
            code if code < 0 && code != -libc::ENOENT => Err(failed(self.of("change", oid), code)),
            _ => Ok(()),
        }
    }

    /// All names of the set, in order.
    ///
    /// # Errors
    /// `platform_unavailable` without an answer in time.
    pub fn names(&self, oid: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().cloned().unwrap_or_default();
            if !self.names_after(oid, &after, &mut names)? {
                return Ok(names);
            }
        }
    }

    /// Adds the next ones, and says whether there are more.
    fn names_after(&self, oid: &str, after: &str, names: &mut Vec<String>) -> Result<bool> {
        let api = self.api();
        let (object, after) = (text("oid", oid)?, text("name", after)?);
        let read = Read::new(api)?;
        let (mut more, mut result): (u8, c_int) = (0, 0);
        let mut found = Names { api, raw: std::ptr::null_mut() };
        // SAFETY: a live operation and a live pool, two strings, and places that outlive rados_read_op_operate, after which nothing is
        // written there any more; the iterator is freed by its guard.
        let code = unsafe {
            (api.rados_read_op_omap_get_keys2)(read.raw, after.as_ptr(), AT_ONCE, &raw mut found.raw, &raw mut more, &raw mut result);
            (api.rados_read_op_operate)(read.raw, self.raw(), object.as_ptr(), 0)
        };
        match if code < 0 { code } else { result } {
            code if code == -libc::ENOENT => return Ok(false),
            code if code < 0 => return Err(failed(self.of("read", oid), code)),
            _ => {}
        }
        while let Some(name) = found.next()? {
            names.push(name);
        }
        Ok(more != 0)
    }
}

struct Names {
    api: &'static Rados,
    raw: RawNames,
}

impl Names {
    fn next(&mut self) -> Result<Option<String>> {
        let (mut key, mut value, mut length): (*mut c_char, *mut c_char, usize) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: a live iterator, and places for two strings that it keeps.
        let code = unsafe { (self.api.rados_omap_get_next)(self.raw, &raw mut key, &raw mut value, &raw mut length) };
        if code < 0 {
            return Err(failed("cannot read a set of names", code));
        }
        if key.is_null() {
            return Ok(None);
        }
        // SAFETY: it gave a string of C, which is good until the iterator ends.
        let name = unsafe { CStr::from_ptr(key) }.to_str();
        name.map(|name| Some(name.to_owned())).map_err(|_| Error::internal("a set of names has one that is not UTF-8"))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the read operation made it, and nothing else frees it.
            unsafe { (self.api.rados_omap_get_end)(self.raw) }
        }
    }
}
