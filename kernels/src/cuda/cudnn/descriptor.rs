//! Descriptors of the backend API: made, given attributes, finalised, and destroyed when nobody needs them.

use std::ffi::c_void;
use std::sync::Arc;

use super::library::{Library, Opaque, Status};
use super::names::{Attribute, Code, Kind, Type};

/// What cuDNN did not do.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CudnnError {
    /// A call failed.
    #[error("cuDNN: {call}: {explanation}")]
    Call {
        /// Which call, of which descriptor and attribute.
        call: String,
        /// `cudnnStatus_t`.
        status: i32,
        /// What the status means, and what the library says.
        explanation: String,
    },
    /// No engine runs a graph.
    #[error("cuDNN has no engine for {graph}: {why}")]
    NoEngine {
        /// Which graph.
        graph: String,
        /// What the offered engines lack.
        why: String,
    },
}

pub(crate) type Result<T> = std::result::Result<T, CudnnError>;

/// Turns a status into an error that says which call it was.
pub(crate) fn check(library: &Library, status: Status, call: impl FnOnce() -> String) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(CudnnError::Call { call: call(), status, explanation: library.explain(status) })
}

/// A descriptor that can still be given attributes. [`finalized`](Self::finalized) makes a [`Descriptor`] of it.
#[derive(Debug)]
pub(crate) struct Draft(Descriptor);

/// A descriptor, finalised. It keeps those that it refers to.
#[derive(Debug)]
pub(crate) struct Descriptor {
    raw: Opaque,
    kind: Kind,
    library: &'static Library,
    kept: Vec<Arc<Descriptor>>,
}

// SAFETY: cuDNN ties descriptors to no thread; a finalised one is only read, and a draft has one owner.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once. There is nobody to tell of a failure.
        unsafe { (self.library.destroy_descriptor)(self.raw) };
    }
}

impl Draft {
    /// A descriptor of nothing yet.
    pub(crate) fn new(library: &'static Library, kind: Kind) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a valid place to write the pointer to.
        let status = unsafe { (library.create_descriptor)(kind.0, &raw mut raw) };
        check(library, status, || format!("creating {}", kind.1))?;
        Ok(Self(Descriptor { raw, kind, library, kept: Vec::new() }))
    }

    /// Whole numbers: dimensions, strides, a uid.
    pub(crate) fn i64s(self, attribute: Attribute, values: &[i64]) -> Result<Self> {
        // SAFETY: as many as are said.
        unsafe { self.set(attribute, Type::INT64, values.len(), values.as_ptr().cast()) }
    }

    /// A flag.
    pub(crate) fn bool(self, attribute: Attribute, value: bool) -> Result<Self> {
        // SAFETY: one value; C's `bool` is Rust's.
        unsafe { self.set(attribute, Type::BOOLEAN, 1, (&raw const value).cast()) }
    }

    /// A number in single precision.
    pub(crate) fn f32(self, attribute: Attribute, value: f32) -> Result<Self> {
        // SAFETY: one value of this type.
        unsafe { self.set(attribute, Type::FLOAT, 1, (&raw const value).cast()) }
    }

    /// A number in double precision.
    pub(crate) fn f64(self, attribute: Attribute, value: f64) -> Result<Self> {
        // SAFETY: one value of this type.
        unsafe { self.set(attribute, Type::DOUBLE, 1, (&raw const value).cast()) }
    }

    /// A data type, a mode or another value of an enum.
    pub(crate) fn code(self, attribute: Attribute, value: Code) -> Result<Self> {
        // SAFETY: one value; C's enums are of this size.
        unsafe { self.set(attribute, value.0, 1, (&raw const value.1).cast()) }
    }

    /// Text.
    pub(crate) fn chars(self, attribute: Attribute, value: &[u8]) -> Result<Self> {
        // SAFETY: as many as are said.
        unsafe { self.set(attribute, Type::CHAR, value.len(), value.as_ptr().cast()) }
    }

    /// Addresses on the device (or, of tensors that are passed by value, in the host's memory).
    pub(crate) fn addresses(self, attribute: Attribute, values: &[u64]) -> Result<Self> {
        // SAFETY: as many as are said; pointers are 64 bits wide where CUDA runs.
        unsafe { self.set(attribute, Type::VOID_PTR, values.len(), values.as_ptr().cast()) }
    }

    /// cuDNN's handle.
    pub(crate) fn handle(self, attribute: Attribute, handle: Opaque) -> Result<Self> {
        // SAFETY: one handle.
        unsafe { self.set(attribute, Type::HANDLE, 1, (&raw const handle).cast()) }
    }

    /// Other descriptors, which this one keeps.
    pub(crate) fn descriptors(mut self, attribute: Attribute, values: &[Arc<Descriptor>]) -> Result<Self> {
        let raw: Vec<Opaque> = values.iter().map(|value| value.raw).collect();
        self.0.kept.extend(values.iter().cloned());
        // SAFETY: as many as are said, all alive as long as this one.
        unsafe { self.set(attribute, Type::BACKEND_DESCRIPTOR, raw.len(), raw.as_ptr().cast()) }
    }

    /// # Safety
    /// `values` are `count` elements of `of`.
    unsafe fn set(self, attribute: Attribute, of: Type, count: usize, values: *const c_void) -> Result<Self> {
        let library = self.0.library;
        // SAFETY: the caller's promise; the descriptor is alive.
        let status = unsafe { (library.set_attribute)(self.0.raw, attribute.0, of.0, count as i64, values) };
        check(library, status, || format!("setting {} of {}", attribute.1, self.0.kind.1))?;
        Ok(self)
    }

    /// Ready for use.
    pub(crate) fn finalized(self) -> Result<Arc<Descriptor>> {
        // SAFETY: the descriptor is alive.
        let status = unsafe { (self.0.library.finalize)(self.0.raw) };
        check(self.0.library, status, || format!("finalising {}", self.0.kind.1))?;
        Ok(Arc::new(self.0))
    }
}

impl Descriptor {
    /// The library's pointer; valid as long as `self`.
    pub(crate) fn raw(&self) -> Opaque {
        self.raw
    }

    /// How many elements an attribute has.
    pub(crate) fn count(&self, attribute: Attribute, of: Type) -> Result<usize> {
        let mut count = 0;
        // SAFETY: nothing is asked for but the number.
        unsafe { self.get(attribute, of, 0, &mut count, std::ptr::null_mut()) }?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// One whole number.
    pub(crate) fn i64(&self, attribute: Attribute) -> Result<i64> {
        let (mut count, mut value) = (0, 0i64);
        // SAFETY: room for one.
        unsafe { self.get(attribute, Type::INT64, 1, &mut count, (&raw mut value).cast()) }?;
        Ok(value)
    }

    /// Values of an enum, at most `most`.
    pub(crate) fn codes(&self, attribute: Attribute, of: Type, most: usize) -> Result<Vec<i32>> {
        let (mut count, mut values) = (0, vec![-1i32; most]);
        // SAFETY: room for as many as are asked for.
        unsafe { self.get(attribute, of, most, &mut count, values.as_mut_ptr().cast()) }?;
        values.truncate(usize::try_from(count).unwrap_or(0));
        Ok(values)
    }

    /// Text, at most `most` bytes.
    pub(crate) fn chars(&self, attribute: Attribute, most: usize) -> Result<Option<Vec<u8>>> {
        let mut count = 0;
        let size = self.count(attribute, Type::CHAR)?;
        if size == 0 || size > most {
            return Ok(None);
        }
        let mut text = vec![0u8; size];
        // SAFETY: room for as many as are asked for.
        unsafe { self.get(attribute, Type::CHAR, size, &mut count, text.as_mut_ptr().cast()) }?;
        text.truncate(usize::try_from(count).unwrap_or(0));
        Ok(Some(text))
    }

    /// Descriptors of `kind`, at most `most`.
    pub(crate) fn descriptors(
        &self,
        attribute: Attribute,
        kind: Kind,
        most: usize,
    ) -> Result<Vec<Arc<Self>>> {
        let drafts: Vec<Draft> = (0..most).map(|_| Draft::new(self.library, kind)).collect::<Result<_>>()?;
        let mut raw: Vec<Opaque> = drafts.iter().map(|draft| draft.0.raw).collect();
        let mut count = 0;
        // SAFETY: room for as many as are asked for, each a descriptor that the library fills.
        unsafe { self.get(attribute, Type::BACKEND_DESCRIPTOR, most, &mut count, raw.as_mut_ptr().cast()) }?;
        let count = usize::try_from(count).unwrap_or(0);
        Ok(drafts.into_iter().take(count).map(|draft| Arc::new(draft.0)).collect())
    }

    /// # Safety
    /// `to` has room for `most` elements of `of`.
    unsafe fn get(
        &self,
        attribute: Attribute,
        of: Type,
        most: usize,
        count: &mut i64,
        to: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise; the descriptor is alive.
        let status =
            unsafe { (self.library.get_attribute)(self.raw, attribute.0, of.0, most as i64, count, to) };
        check(self.library, status, || format!("getting {} of {}", attribute.1, self.kind.1))
    }
}
