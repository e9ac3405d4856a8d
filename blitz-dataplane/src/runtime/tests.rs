//! One suite for the three drivers, and what only one of them can show.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use super::sim::{Profile, World};
use super::*;
use crate::sys::{net, socket};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flavour {
    Uring,
    Epoll,
    Sim(u64),
}

/// A limit on hanging, long because machines are shared; no test takes a tenth of it.
const HANGING: Duration = Duration::from_secs(60);

const SMALL: Sizes =
    Sizes { submission_entries: 64, completion_entries: 256, pool_slots: 64, pool_slot_bytes: 1024 };

fn runtime(flavour: Flavour, sizes: Sizes) -> Runtime {
    match flavour {
        Flavour::Uring => Runtime::new(IoMode::Uring, sizes).expect("io_uring is needed here"),
        Flavour::Epoll => Runtime::new(IoMode::Epoll, sizes).expect("epoll"),
        Flavour::Sim(seed) => {
            let mut profile = Profile::random(&sim::Rng::new(seed));
            // Resets are the business of the tests that expect them.
            profile.reset_per_mille = 0;
            Runtime::simulated(&World::with_profile(seed, profile))
        }
    }
}

fn listener(handle: &Handle, flavour: Flavour) -> (TcpListener, SocketAddr) {
    if let Flavour::Sim(_) = flavour {
        let address = SocketAddr::from(([10, 0, 0, 2], 80));
        return (TcpListener::simulated(handle, address).unwrap(), address);
    }
    let fd = net::tcp_listener(SocketAddr::from(([127, 0, 0, 1], 0)), false, 1024).unwrap();
    let address = net::local_address(fd.as_raw_fd()).unwrap();
    (TcpListener::adopt(handle, fd).unwrap(), address)
}

/// Runs `test` on each driver, on several simulated networks, and checks that nothing is left over.
fn on_all<F: Future<Output = ()>>(sizes: Sizes, test: impl Fn(Handle, Flavour) -> F) {
    // The simulated ones first: they see at once that nothing can happen any more.
    let sims = (0..24).map(Flavour::Sim);
    for flavour in sims.chain([Flavour::Uring, Flavour::Epoll]) {
        let mut runtime = runtime(flavour, sizes);
        let handle = runtime.handle().clone();
        let main = test(handle.clone(), flavour);
        let guarded = handle.clone();
        let main = async move {
            let mut deadline = Deadline::new(&guarded);
            if !matches!(flavour, Flavour::Sim(_)) {
                deadline.set_after(HANGING);
            }
            assert!(deadline.limit(main).await.is_ok(), "{flavour:?}: it hangs");
        };
        runtime.block_on_stepped(main, |handle| {
            if let Err(broken) = handle.check_invariants() {
                panic!("{flavour:?}: {broken}");
            }
        });
        drop(runtime);
        let stats = handle.stats();
        assert_eq!(stats.operations_outstanding, 0, "{flavour:?}");
        assert_eq!(stats.pool_slots_taken, 0, "{flavour:?}");
        assert_eq!(stats.sockets, 0, "{flavour:?}");
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

async fn read_to_end(stream: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.receive().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    all
}

async fn send_all(stream: &TcpStream, bytes: &[u8]) {
    for piece in bytes.chunks(3000) {
        stream.writable().await.unwrap();
        stream.write_with(|out| out.extend_from_slice(piece)).unwrap();
    }
    stream.shutdown_write();
    stream.flushed().await.unwrap();
}

fn echo_server(handle: &Handle, listener: TcpListener) {
    let spawner = handle.clone();
    handle.spawn(async move {
        while let Ok(stream) = listener.accept().await {
            spawner.spawn(async move {
                while let Ok(Some(chunk)) = stream.receive().await {
                    if stream.writable().await.is_err() || stream.write_chunk(chunk).is_err() {
                        return;
                    }
                }
                stream.shutdown_write();
                let _ = stream.flushed().await;
            });
        }
    });
}

#[test]
fn bytes_come_back_whole_and_in_order_on_many_connections() {
    on_all(SMALL, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        echo_server(&handle, listener);
        let finished = Rc::new(Cell::new(0));
        let count = if matches!(flavour, Flavour::Sim(_)) { 4 } else { 40 };
        let bytes = if matches!(flavour, Flavour::Sim(_)) { 20_000 } else { 300_000 };
        for _ in 0..count {
            let (task_handle, finished) = (handle.clone(), Rc::clone(&finished));
            handle.spawn(async move {
                let stream = Rc::new(TcpStream::connect(&task_handle, address).await.unwrap());
                let sent = pattern(bytes);
                let (writer, copy) = (Rc::clone(&stream), sent.clone());
                task_handle.spawn(async move { send_all(&writer, &copy).await });
                assert!(read_to_end(&stream).await == sent);
                finished.set(finished.get() + 1);
            });
        }
        while finished.get() < count {
            handle.sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_gathered_send_of_many_large_chunks_arrives_in_order() {
    on_all(SMALL, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        let sent = pattern(5000 * 20);
        let copy = sent.clone();
        let spawner = handle.clone();
        handle.spawn(async move {
            let stream = listener.accept().await.unwrap();
            for piece in copy.chunks(5000) {
                stream.writable().await.unwrap();
                stream.write_with(|out| out.push(piece[0])).unwrap();
                stream.write_chunk(Chunk::from_vec(piece[1..].to_vec())).unwrap();
            }
            stream.shutdown_write();
            stream.flushed().await.unwrap();
            spawner.sleep(Duration::from_millis(1)).await;
        });
        let stream = TcpStream::connect(&handle, address).await.unwrap();
        assert!(read_to_end(&stream).await == sent);
    });
}

#[test]
fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    on_all(SMALL, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        let total = if matches!(flavour, Flavour::Sim(_)) { 300_000 } else { 12 << 20 };
        let finished = Rc::new(Cell::new(false));
        let flag = Rc::clone(&finished);
        handle.spawn(async move {
            let stream = listener.accept().await.unwrap();
            send_all(&stream, &pattern(total)).await;
            flag.set(true);
        });
        let stream = TcpStream::connect(&handle, address).await.unwrap();
        let mut all = stream.receive().await.unwrap().unwrap().to_vec();
        // The kernel's own buffers take a few megabytes; twelve do not fit.
        handle.sleep(Duration::from_millis(200)).await;
        assert!(!finished.get(), "the writer was not held back");
        all.extend(read_to_end(&stream).await);
        assert!(all == pattern(total));
    });
}

#[test]
fn a_refused_connection_says_so() {
    on_all(SMALL, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        drop(listener);
        handle.sleep(Duration::from_millis(1)).await;
        let refused = TcpStream::connect(&handle, address).await.err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
    });
}

#[test]
fn an_exhausted_pool_delays_and_loses_nothing() {
    let sizes = Sizes { pool_slots: 4, pool_slot_bytes: 256, ..SMALL };
    on_all(sizes, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        let mut pairs = Vec::new();
        for _ in 0..16 {
            let client = TcpStream::connect(&handle, address).await.unwrap();
            let server = listener.accept().await.unwrap();
            pairs.push((client, server));
        }
        // Arms every receive, and reads nothing although 16 x 2,000 bytes arrive for 1,024 of pool.
        for (client, server) in &pairs {
            poll_fn_once(|cx| server.poll_gone(cx)).await;
            client.write_with(|out| out.extend_from_slice(&pattern(2000))).unwrap();
        }
        handle.sleep(Duration::from_millis(300)).await;
        for (client, server) in &pairs {
            client.shutdown_write();
            assert!(read_to_end(server).await == pattern(2000));
        }
        if !matches!(flavour, Flavour::Sim(_)) {
            assert!(handle.stats().pool_exhausted > 0, "{flavour:?}: the pool never ran empty");
        }
    });
}

#[test]
fn more_connections_than_may_wait_are_all_accepted_in_the_end() {
    let mut runtime = Runtime::simulated(&World::with_profile(1, Profile::CALM));
    let handle = runtime.handle().clone();
    runtime.block_on_stepped(
        async {
            let (listener, address) = listener(&handle, Flavour::Sim(1));
            poll_fn_once(|cx| std::pin::pin!(listener.accept()).poll(cx)).await;
            let mut clients = Vec::new();
            // 1,024 wait at the listener's task, the rest in the backlog; nobody accepts meanwhile.
            for _ in 0..1_100 {
                clients.push(TcpStream::connect(&handle, address).await.unwrap());
            }
            for _ in 0..clients.len() {
                listener.accept().await.unwrap();
            }
        },
        |handle| handle.check_invariants().unwrap(),
    );
}

#[test]
fn a_receive_that_found_the_pool_empty_goes_on_when_its_reader_returns_the_slots() {
    let sizes = Sizes { pool_slots: 4, pool_slot_bytes: 256, ..SMALL };
    on_all(sizes, |handle, flavour| async move {
        if matches!(flavour, Flavour::Sim(_)) {
            // Its pool is as large as its profile says.
            return;
        }
        let (listener, address) = listener(&handle, flavour);
        let mut pairs = Vec::new();
        for _ in 0..5 {
            let client = TcpStream::connect(&handle, address).await.unwrap();
            pairs.push((client, listener.accept().await.unwrap()));
        }
        let mut held = Vec::new();
        for (client, server) in &pairs[..4] {
            client.write_with(|out| out.push(1)).unwrap();
            held.push(server.receive().await.unwrap().unwrap());
        }
        let (client, server) = &pairs[4];
        client.write_with(|out| out.push(2)).unwrap();
        let mut deadline = Deadline::new(&handle);
        deadline.set_after(Duration::from_millis(200));
        assert!(deadline.limit(server.receive()).await.is_err(), "every slot is held");
        // Nothing else happens from here on: no timer, no completion.
        deadline.clear();
        drop(deadline);
        handle.spawn(async move { drop(held) });
        assert_eq!(*server.receive().await.unwrap().unwrap(), [2]);
    });
}

#[test]
fn tiny_pieces_that_nobody_reads_hold_few_slots() {
    let sizes = Sizes { pool_slots: 256, ..SMALL };
    on_all(sizes, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        let client = TcpStream::connect(&handle, address).await.unwrap();
        let server = listener.accept().await.unwrap();
        poll_fn_once(|cx| server.poll_gone(cx)).await;
        for _ in 0..100 {
            client.write_with(|out| out.push(b'x')).unwrap();
            client.flushed().await.unwrap();
            handle.sleep(Duration::from_millis(1)).await;
        }
        handle.sleep(Duration::from_millis(50)).await;
        let taken = handle.stats().pool_slots_taken;
        assert!(taken <= 2 * 16, "{taken} slots hold a byte each");
        client.shutdown_write();
        assert_eq!(read_to_end(&server).await.len(), 100);
    });
}

async fn poll_fn_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) {
    std::future::poll_fn(|cx| {
        let _ = poll(cx);
        Poll::Ready(())
    })
    .await;
}

#[test]
fn dropped_streams_give_everything_back_whatever_was_in_flight() {
    let piece = pattern(60_000);
    on_all(SMALL, |handle, flavour| {
        let piece = piece.clone();
        async move {
            let (listener, address) = listener(&handle, flavour);
            for round in 0..20 {
                let client = TcpStream::connect(&handle, address).await.unwrap();
                let server = listener.accept().await.unwrap();
                // A receive in flight, a send that cannot finish, a connect that nobody waits for.
                poll_fn_once(|cx| server.poll_receive(cx)).await;
                for _ in 0..100 {
                    client.write_chunk(Chunk::from_vec(piece.clone())).unwrap();
                }
                if round % 2 == 0 {
                    yield_now().await;
                }
                if round % 3 == 0 {
                    handle.sleep(Duration::from_millis(1)).await;
                }
                drop(TcpStream::connect(&handle, address));
                let mut abandoned = Box::pin(TcpStream::connect(&handle, address));
                poll_fn_once(|cx| abandoned.as_mut().poll(cx)).await;
                drop((client, server, abandoned));
            }
            handle.sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_late_completion_does_not_reach_the_next_tenant_of_its_slot() {
    on_all(SMALL, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        for round in 0..50u8 {
            let client = TcpStream::connect(&handle, address).await.unwrap();
            let server = listener.accept().await.unwrap();
            poll_fn_once(|cx| server.poll_receive(cx)).await;
            client.write_with(|out| out.push(round)).unwrap();
            // Dropped while the byte is under way; the slot is reused at once.
            yield_now().await;
            drop(server);
            let next_client = TcpStream::connect(&handle, address).await.unwrap();
            let next = listener.accept().await.unwrap();
            next_client.write_with(|out| out.push(200)).unwrap();
            next_client.shutdown_write();
            assert_eq!(read_to_end(&next).await, [200]);
        }
    });
}

#[test]
fn connections_that_nobody_takes_any_more_are_closed() {
    on_all(SMALL, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(TcpStream::connect(&handle, address).await.unwrap());
        }
        // Accepting begins and ends in one turn, while they wait: some are accepted behind the cancel.
        let mut accepting = Box::pin(listener.accept());
        poll_fn_once(|cx| accepting.as_mut().poll(cx)).await;
        drop(accepting);
        drop(listener);
        let mut deadline = Deadline::new(&handle);
        for client in clients {
            deadline.set_after(Duration::from_secs(5));
            let end = deadline.limit(client.receive()).await;
            assert!(matches!(end, Ok(Ok(None) | Err(_))), "{flavour:?}: the client waits for ever");
        }
    });
}

#[test]
fn a_panicking_task_ends_alone() {
    on_all(SMALL, |handle, _| async move {
        let before = handle.stats().panics;
        let reached = Rc::new(Cell::new(false));
        let flag = Rc::clone(&reached);
        handle.spawn(async { std::panic::resume_unwind(Box::new("one connection's bug")) });
        handle.spawn(async move { flag.set(true) });
        handle.sleep(Duration::from_millis(1)).await;
        assert!(reached.get());
        assert_eq!(handle.stats().panics, before + 1);
    });
}

#[test]
fn deadlines_fire_in_order_and_a_finished_wait_does_not() {
    on_all(SMALL, |handle, _| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        for ms in [90u64, 10, 50] {
            let (sleeper, order) = (handle.clone(), Rc::clone(&order));
            handle.spawn(async move {
                sleeper.sleep(Duration::from_millis(ms)).await;
                order.borrow_mut().push(ms);
            });
        }
        let mut deadline = Deadline::new(&handle);
        deadline.set_after(Duration::from_secs(3600));
        let pause = handle.sleep(Duration::from_millis(150));
        assert_eq!(deadline.limit(pause).await, Ok(()));
        deadline.set_after(Duration::from_millis(20));
        assert_eq!(deadline.limit(std::future::pending::<()>()).await, Err(Expired));
        assert_eq!(*order.borrow(), [10, 50, 90]);
    });
}

#[test]
fn a_reset_is_an_error_and_not_an_end() {
    on_all(SMALL, |handle, flavour| async move {
        let (listener, address) = listener(&handle, flavour);
        let client = TcpStream::connect(&handle, address).await.unwrap();
        let server = listener.accept().await.unwrap();
        client.reset_on_close();
        drop(client);
        let outcome = loop {
            match server.receive().await {
                Ok(Some(_)) => {}
                other => break other.map(|_| ()).map_err(|error| error.kind()),
            }
        };
        assert_eq!(outcome, Err(io::ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_reset_that_a_send_meets_first_is_no_end_either() {
    for flavour in [Flavour::Epoll, Flavour::Uring] {
        let mut runtime = runtime(flavour, SMALL);
        let handle = runtime.handle().clone();
        runtime.block_on(async {
            let (listener, address) = listener(&handle, flavour);
            for is_watched in [true, false] {
                let client = TcpStream::connect(&handle, address).await.unwrap();
                let server = listener.accept().await.unwrap();
                // What is written now leaves when this task waits, and by then the kernel knows of the reset.
                client.reset_on_close();
                drop(client);
                yield_now().await;
                server.write_with(|out| out.extend_from_slice(b"to nobody")).unwrap();
                let mut deadline = Deadline::new(&handle);
                deadline.set_after(HANGING);
                let reset = Err(Some(libc::ECONNRESET));
                if is_watched {
                    let gone = deadline.limit(poll_fn(|cx| server.poll_gone(cx))).await.unwrap();
                    assert_eq!(gone.map_err(|error| error.raw_os_error()), reset, "{flavour:?}");
                }
                let received = deadline.limit(server.receive()).await.unwrap();
                assert_eq!(
                    received
                        .map(|chunk| chunk.map(|chunk| chunk.len()))
                        .map_err(|error| error.raw_os_error()),
                    Err(Some(libc::ECONNRESET)),
                    "{flavour:?}"
                );
            }
        });
    }
}

#[test]
fn a_full_completion_queue_loses_nothing() {
    let sizes = Sizes { submission_entries: 4, completion_entries: 8, pool_slots: 256, pool_slot_bytes: 256 };
    let mut runtime = runtime(Flavour::Uring, sizes);
    let handle = runtime.handle().clone();
    runtime.block_on(async {
        let (listener, address) = listener(&handle, Flavour::Uring);
        let mut pairs = Vec::new();
        for _ in 0..64 {
            let client = std::net::TcpStream::connect(address).unwrap();
            let server = listener.accept().await.unwrap();
            poll_fn_once(|cx| server.poll_receive(cx)).await;
            pairs.push((client, server));
        }
        yield_now().await;
        // All at once, with nobody at the completion queue.
        for (client, _) in &mut pairs {
            io::Write::write_all(client, &pattern(200)).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        for (_, server) in &pairs {
            assert!(read_to_end(server).await == pattern(200));
        }
        assert!(handle.stats().completion_overflows > 0, "the completion queue never overflowed");
    });
}

#[test]
fn readiness_of_an_event_descriptor_wakes_the_loop_from_another_thread() {
    for flavour in [Flavour::Uring, Flavour::Epoll] {
        let mut runtime = runtime(flavour, SMALL);
        let handle = runtime.handle().clone();
        let (reader, mut writer) = std::io::pipe().unwrap();
        net::set_nonblocking(reader.as_raw_fd(), true).unwrap();
        let thread = std::thread::spawn(move || {
            for byte in 0..3u8 {
                std::thread::sleep(Duration::from_millis(20));
                io::Write::write_all(&mut writer, &[byte]).unwrap();
            }
        });
        runtime.block_on(async {
            let mut readiness = handle.readiness(reader.as_raw_fd());
            let mut seen = 0;
            while seen < 3 {
                readiness.ready().await.unwrap();
                let mut buffer = [0; 16];
                while let Ok(count) = io::Read::read(&mut &reader, &mut buffer) {
                    if count == 0 {
                        break;
                    }
                    seen += count;
                }
            }
        });
        thread.join().unwrap();
    }
}

#[test]
fn datagrams_travel_with_addresses_and_segments() {
    let addresses = [
        (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 5])),
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
    ];
    for (flavour, (bound, other)) in
        [Flavour::Uring, Flavour::Epoll].into_iter().flat_map(|flavour| addresses.map(|pair| (flavour, pair)))
    {
        let mut runtime = runtime(flavour, SMALL);
        let handle = runtime.handle().clone();
        let open = |ip: IpAddr| {
            let fd = socket::datagram(SocketAddr::new(ip, 0), socket::Share::Alone).unwrap();
            UdpSocket::adopt(&handle, fd, 2).unwrap()
        };
        // On every address of the host, and asked for an answer from the one that was written to.
        let unspecified = if other.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
        let (one, two) = (open(bound), open(unspecified));
        let to = SocketAddr::new(other, two.local_address().unwrap().port());
        runtime.block_on(async {
            let sent = pattern(1200 * 9 + 300);
            let mut buffer = sent.clone().into_boxed_slice();
            let transmit = Transmit { to, from: None, segment: Some(1200) };
            one.start_send(1, &mut buffer, sent.len(), transmit).unwrap();
            assert!(buffer.is_empty(), "the lane has had none before");
            assert!(one.start_send(1, &mut buffer, 0, transmit).is_err(), "{flavour:?}: the lane is busy");
            assert_eq!(poll_fn(|cx| one.poll_sent(1, cx)).await.unwrap(), sent.len());
            let mut room = ReceiveBuffer::new();
            let mut received = Vec::new();
            while received.len() < sent.len() {
                let what = poll_fn(|cx| two.poll_receive(cx, &mut room)).await.unwrap();
                assert_eq!(
                    (what.source, what.destination),
                    (one.local_address().ok(), Some(other)),
                    "{flavour:?}"
                );
                for datagram in room.datagrams(&what) {
                    assert!(datagram.len() <= 1200, "{flavour:?}: {what:?}");
                    received.extend_from_slice(datagram);
                }
            }
            assert!(received == sent);
            let back = Transmit { to: one.local_address().unwrap(), from: Some(other), segment: None };
            two.start_send(0, &mut vec![7; 9].into_boxed_slice(), 5, back).unwrap();
            assert_eq!(poll_fn(|cx| two.poll_sent(0, cx)).await.unwrap(), 5);
            let what = poll_fn(|cx| one.poll_receive(cx, &mut room)).await.unwrap();
            assert_eq!((what.source, what.destination, what.len), (Some(to), Some(bound), 5), "{flavour:?}");
        });
    }
}

/// Runs the named test again in a process of its own, where limits can be lowered.
fn in_own_process(name: &str, body: impl FnOnce()) {
    const MARK: &str = "BLITZ_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "the test did not run: {text}");
}

#[test]
fn running_out_of_descriptors_pauses_accepting_and_recovers() {
    in_own_process("runtime::tests::running_out_of_descriptors_pauses_accepting_and_recovers", || {
        for flavour in [Flavour::Uring, Flavour::Epoll] {
            let mut runtime = runtime(flavour, SMALL);
            let handle = runtime.handle().clone();
            runtime.block_on(async {
                let (listener, address) = listener(&handle, flavour);
                let limit = libc::rlimit { rlim_cur: 40, rlim_max: 20_000 };
                let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: getrlimit writes one live structure.
                unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) };
                let limit = libc::rlimit { rlim_max: before.rlim_max, ..limit };
                // SAFETY: setrlimit reads one live structure.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
                let mut kept = Vec::new();
                let mut clients = Vec::new();
                while let Ok(client) = std::net::TcpStream::connect(address) {
                    clients.push(client);
                    if clients.len() % 2 == 0 {
                        let mut deadline = Deadline::new(&handle);
                        deadline.set_after(Duration::from_millis(20));
                        if let Ok(Ok(stream)) = deadline.limit(listener.accept()).await {
                            kept.push(stream);
                        }
                    }
                }
                handle.sleep(Duration::from_millis(100)).await;
                assert!(
                    handle.stats().accept_errors.descriptors > 0,
                    "{flavour:?}: descriptors never ran out"
                );
                assert!(
                    handle.stats().accept_errors.descriptors < 50,
                    "{flavour:?}: accepting did not pause"
                );
                kept.clear();
                let total = clients.len();
                clients.truncate(total / 2);
                let mut deadline = Deadline::new(&handle);
                deadline.set_after(Duration::from_secs(5));
                let next = deadline.limit(listener.accept()).await;
                assert!(matches!(next, Ok(Ok(_))), "{flavour:?}: accepting did not go on");
                // SAFETY: setrlimit reads one live structure.
                unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const before) };
            });
        }
    });
}

#[test]
fn a_multishot_that_ended_is_armed_again_without_a_reader() {
    let profile = Profile { multishot_end_per_mille: 1000, ..Profile::CALM };
    let mut runtime = Runtime::simulated(&World::with_profile(1, profile));
    let handle = runtime.handle().clone();
    runtime.block_on(async {
        let (listener, address) = listener(&handle, Flavour::Sim(1));
        let client = TcpStream::connect(&handle, address).await.unwrap();
        let server = listener.accept().await.unwrap();
        poll_fn_once(|cx| server.poll_gone(cx)).await;
        client.write_with(|out| out.push(1)).unwrap();
        handle.sleep(Duration::from_millis(20)).await;
        // The byte lay there: taking it arms nothing.
        assert_eq!(server.receive().await.unwrap().as_deref(), Some(&[1][..]));
        drop(client);
        handle.sleep(Duration::from_millis(20)).await;
        assert!(server.has_news(), "nobody noticed that the peer has gone");
    });
}
