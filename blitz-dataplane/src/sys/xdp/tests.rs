//! On a real kernel: the parts that need no XDP program. What comes in is tested end to end (`tests/`).

use std::os::fd::FromRawFd as _;

use super::*;

/// Runs `work` in a network of its own, whose loopback interface is up; not where this user may not make one.
fn in_own_network(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: a plain integer. Only this thread changes its network.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                let error = io::Error::last_os_error();
                assert!(std::env::var_os("BLITZ_REQUIRE_ALL").is_none(), "no network of our own: {error}");
                eprintln!("skipped: no network of our own: {error}");
                return;
            }
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("ip can be executed").success());
            work();
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn socket() -> OwnedFd {
    // SAFETY: plain integers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "no AF_XDP socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

const SHAPE: Shape = Shape { frames: 64, frame_bytes: 2048 };

/// The loopback interface: one queue, and generic XDP.
const LOOPBACK: u32 = 1;

#[test]
fn frames_go_out_and_come_back_around_the_rings() {
    in_own_network(|| {
        let mut socket = XdpSocket::register(socket(), SHAPE).expect("registered");
        let full = Account { receiving: 32, ..Account::default() };
        assert_eq!(socket.receiver.account(), full, "all are lent");
        socket.bind(LOOPBACK, 0, Copying::Always).expect("bound");
        assert!(!socket.is_zero_copy().expect("told"));
        assert_eq!(socket.receiver.receive(64, |_| panic!("nobody redirects to it")).expect("sound"), 0);

        // An Ethernet frame of a type for experiments, which nobody takes.
        let mut frame = [0; 60];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        let build = |room: &mut [u8]| {
            room.get_mut(..60)?.copy_from_slice(&frame);
            Some(60)
        };
        let sender = &mut socket.sender;
        let mut sent = 0;
        for round in 0..20 {
            while sender.send(build).expect("sound") {
                sent += 1;
            }
            assert_eq!(sender.room(), 0, "every frame was used");
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while sender.room() < 32 {
                let _kicks = sender.wake().expect("the interface is up");
                let _reaped = sender.reap().expect("sound");
                assert!(std::time::Instant::now() < deadline, "round {round}: {:?}", sender.account());
            }
            assert_eq!(sender.account(), Account { free: 32, ..Account::default() });
        }
        assert_eq!((sent, sender.nonsense()), (20 * 32, 0));
        assert_eq!(socket.receiver.statistics().expect("told"), Statistics::default());
    });
}

/// As when it has found no frame just before there were some: nothing comes then that would make us look.
#[test]
fn a_driver_that_asks_for_frames_is_told_without_any_coming() {
    in_own_network(|| {
        let socket = XdpSocket::register(socket(), SHAPE).expect("registered");
        socket.bind(LOOPBACK, 0, Copying::Always).expect("bound");
        assert!(!socket.receiver.wake_if_asked().expect("the interface is up"), "no copying driver asks");
        socket.receiver.fill.ask();
        assert!(socket.receiver.wake_if_asked().expect("the interface is up"));
    });
}

#[test]
fn a_queue_has_one_socket_and_its_successor_waits_for_the_close() {
    in_own_network(|| {
        let registered = || XdpSocket::register(socket(), SHAPE).expect("registered");
        let (first, second) = (registered(), registered());
        first.bind(LOOPBACK, 0, Copying::IfNeeded).expect("bound");
        let refused = second.bind(LOOPBACK, 0, Copying::Always).expect_err("the queue is taken");
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
        drop(first);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while let Err(error) = second.bind(LOOPBACK, 0, Copying::Always) {
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let error = registered().bind(LOOPBACK, 77, Copying::Always).expect_err("no such queue");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let error = registered().bind(LOOPBACK, 0, Copying::Never).expect_err("no driver without copying");
        assert!(matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)), "{error}");
    });
}
