//! Watching launches: how `birdie bench` sees what a step consists of.
//!
//! An [`Observer`] is told of every launch that a twin makes on this thread and decides whether and how often it happens: it can count
//! it, time it, repeat it, or leave it out where only the sequence matters. When a twin has made all launches of an operation, the
//! observer is told of the operation's [`Work`]. Without an observer, which is always the case outside of `birdie bench`, a launch
//! costs one look at a thread-local cell.

use std::cell::RefCell;

use anyhow::Result;
use cust::stream::Stream;

use super::Work;
use crate::driver::launch::Parameter;

/// A launch that is about to happen.
pub struct Seen<'a> {
    pub entry: &'a str,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    pub stream: &'a Stream,
    pub parameters: &'a [&'a dyn Parameter],
}

impl Seen<'_> {
    /// Sizes and factors among the parameters, in their order: 32-bit values, and 64-bit ones too small to be an address.
    pub fn scalars(&self) -> Vec<u64> {
        self.words()
            .filter(|&(bytes, value)| bytes == 4 || (1..LEAST_ADDRESS).contains(&value))
            .map(|(_, value)| value)
            .collect()
    }

    /// Which of the 64-bit parameters are not zero: the optional operands that there are.
    pub fn present(&self) -> Vec<bool> {
        self.words()
            .filter(|&(bytes, _)| bytes == 8)
            .map(|(_, value)| value != 0)
            .collect()
    }

    /// Size and value of each parameter of 4 or 8 bytes.
    fn words(&self) -> impl Iterator<Item = (usize, u64)> {
        self.parameters
            .iter()
            .map(|parameter| parameter.bytes())
            .filter(|&(bytes, _)| bytes == 4 || bytes == 8)
            .map(|(bytes, at)| {
                let mut word = [0; 8];
                // SAFETY: a parameter is plain data of the size it names (`Parameter`).
                word[..bytes]
                    .copy_from_slice(unsafe { std::slice::from_raw_parts(at.cast::<u8>(), bytes) });
                (bytes, u64::from_le_bytes(word))
            })
    }
}

/// Device addresses of both drivers lie above this; sizes below.
const LEAST_ADDRESS: u64 = 1 << 36;

/// Told of launches; see the module.
pub trait Observer {
    /// `go` makes the launch; it may be called any number of times.
    fn launch(&mut self, seen: &Seen<'_>, go: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// The launches since the last call were one operation.
    fn done(&mut self, work: Work);
}

thread_local! {
    static OBSERVER: RefCell<Option<Box<dyn Observer>>> = const { RefCell::new(None) };
}

/// Runs `body` with an observer on this thread, and gives it back.
pub fn observed<O: Observer + 'static, T>(
    observer: std::rc::Rc<RefCell<O>>,
    body: impl FnOnce() -> T,
) -> T {
    struct Restore(Option<Box<dyn Observer>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OBSERVER.set(self.0.take());
        }
    }
    let _restore = Restore(OBSERVER.replace(Some(Box::new(Shared(observer)))));
    body()
}

/// The caller keeps a handle to look at what was observed.
struct Shared<O>(std::rc::Rc<RefCell<O>>);

impl<O: Observer> Observer for Shared<O> {
    fn launch(&mut self, seen: &Seen<'_>, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.0.borrow_mut().launch(seen, go)
    }

    fn done(&mut self, work: Work) {
        self.0.borrow_mut().done(work);
    }
}

pub(super) fn launch(seen: &Seen<'_>, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    OBSERVER.with_borrow_mut(|observer| match observer {
        None => go(),
        Some(observer) => observer.launch(seen, go),
    })
}

pub(super) fn done(work: Work) {
    OBSERVER.with_borrow_mut(|observer| {
        if let Some(observer) = observer {
            observer.done(work);
        }
    });
}
