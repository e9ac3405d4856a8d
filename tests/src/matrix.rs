//! One behaviour, tested on both engines and in both modes.

use std::fmt;

use crate::{require, sys};

/// How workers run (`--mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Workers are processes.
    Mp,
    /// Workers are threads.
    Sp,
}

/// What workers wait with (`--io`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The value of `--io`.
    pub io: Io,
    /// The value of `--mode`.
    pub mode: Mode,
}

impl Cell {
    /// The combination, or `None` with the reason recorded when this machine cannot run it.
    pub fn available(io: Io, mode: Mode) -> Option<Self> {
        if io == Io::Uring && !sys::has_io_uring() {
            require::skip("the kernel or the container refuses io_uring");
            return None;
        }
        Some(Self { io, mode })
    }

    /// The gateway's flags for this combination.
    pub fn flags(self) -> [&'static str; 4] {
        let io = if self.io == Io::Uring { "uring" } else { "epoll" };
        let mode = if self.mode == Mode::Mp { "mp" } else { "sp" };
        ["--io", io, "--mode", mode]
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.flags().join(" "))
    }
}

/// Makes four tests of each function that takes a [`Cell`]: `name::uring_mp`, `name::uring_sp`,
/// `name::epoll_mp`, `name::epoll_sp`. With `mp only:` in front, the two of mode mp.
#[macro_export]
macro_rules! matrix {
    (mp only: $($(#[$meta:meta])* fn $name:ident($cell:ident) $body:block)+) => { $(
        $(#[$meta])*
        fn $name($cell: $crate::Cell) $body
        mod $name {
            $crate::matrix!(@test $name uring_mp Uring Mp);
            $crate::matrix!(@test $name epoll_mp Epoll Mp);
        }
    )+ };
    (@test $name:ident $test:ident $io:ident $mode:ident) => {
        #[test]
        fn $test() {
            if let Some(cell) = $crate::Cell::available($crate::Io::$io, $crate::Mode::$mode) {
                super::$name(cell);
            }
        }
    };
    ($($(#[$meta:meta])* fn $name:ident($cell:ident) $body:block)+) => { $(
        $(#[$meta])*
        fn $name($cell: $crate::Cell) $body
        mod $name {
            $crate::matrix!(@test $name uring_mp Uring Mp);
            $crate::matrix!(@test $name uring_sp Uring Sp);
            $crate::matrix!(@test $name epoll_mp Epoll Mp);
            $crate::matrix!(@test $name epoll_sp Epoll Sp);
        }
    )+ };
}
