//! The proxy's own faults would be everybody's: each thing it can do, seen from both of its sides.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::AtomicUsize,
    time::Instant,
};

use super::*;
use crate::support::{PATIENCE, until};

/// Long enough to have heard what passes, on any machine worth a test; a slower one would only miss a fault.
const A_WHILE: Duration = Duration::from_millis(300);

/// A server that says back what it hears.
struct Echo {
    port: u16,
    heard_bytes: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Echo {
    fn start() -> Self {
        let listener = StdListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let echo = Self { port, heard_bytes: Arc::default(), connections: Arc::default() };
        let (heard_bytes, connections) = (echo.heard_bytes.clone(), echo.connections.clone());
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                connections.fetch_add(1, Ordering::SeqCst);
                let heard_bytes = heard_bytes.clone();
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        heard_bytes.fetch_add(length, Ordering::SeqCst);
                        if stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        echo
    }

    fn heard(&self, bytes: usize) {
        until("the server hears it", || self.heard_bytes.load(Ordering::SeqCst) == bytes);
    }
}

fn client(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port)).expect("the door is open");
    stream.set_nodelay(true).expect("a socket of ours");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
    stream
}

fn says_and_hears(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).expect("it can be sent");
    hears(stream, word);
}

fn hears(stream: &mut TcpStream, word: &[u8]) {
    let mut heard = vec![0; word.len()];
    stream.read_exact(&mut heard).expect("an answer");
    assert_eq!(heard, word);
}

fn hears_nothing(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(A_WHILE)).expect("a socket of ours");
    let heard = stream.read(&mut [0; 16]);
    assert!(heard.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{heard:?}");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
}

fn set(proxy: &Proxy, up: Flow, down: Flow) {
    let way = |flow| Way { flow, ..Way::default() };
    proxy.set(Reach::All, Conditions { up: way(up), down: way(down) });
}

#[test]
fn a_delay_is_paid_once_and_not_for_every_message() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    proxy.set(Reach::All, Conditions::delayed(Duration::from_millis(50)));
    let began = Instant::now();
    let mut stream = client(&proxy);
    says_and_hears(&mut stream, b"first");
    assert!(began.elapsed() >= Duration::from_millis(200), "a round trip of the handshake and one of the word");
    let began = Instant::now();
    let words = vec![b'x'; 2_000];
    for word in words.chunks(4) {
        stream.write_all(word).expect("it can be sent");
    }
    hears(&mut stream, &words);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(100), "{took:?}");
    assert!(took < Duration::from_secs(5), "500 words one after the other would take 50 s: {took:?}");
    assert_eq!(proxy.passed_bytes(), (2_005, 2_005));
}

#[test]
fn what_is_held_comes_after_all_and_what_is_swallowed_never() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    let mut stream = client(&proxy);
    says_and_hears(&mut stream, b"well");
    set(&proxy, Flow::Hold, Flow::Hold);
    stream.write_all(b"held").expect("the kernel takes it");
    hears_nothing(&mut stream);
    proxy.heal();
    hears(&mut stream, b"held");
    set(&proxy, Flow::Swallow, Flow::Swallow);
    stream.write_all(b"gone").expect("the proxy takes it");
    hears_nothing(&mut stream);
    proxy.heal();
    stream.write_all(b"more").expect("the proxy takes it");
    hears_nothing(&mut stream);
    says_and_hears(&mut client(&proxy), b"a new connection works");
    assert_eq!(echo.heard_bytes.load(Ordering::SeqCst), 8 + 22);
}

#[test]
fn one_way_can_be_dead_alone() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    let mut stream = client(&proxy);
    says_and_hears(&mut stream, b"well");
    set(&proxy, Flow::Pass, Flow::Hold);
    stream.write_all(b"heard").expect("it can be sent");
    echo.heard(9);
    hears_nothing(&mut stream);
    set(&proxy, Flow::Hold, Flow::Pass);
    hears(&mut stream, b"heard");
    stream.write_all(b"unheard").expect("the kernel takes it");
    hears_nothing(&mut stream);
    assert_eq!(echo.heard_bytes.load(Ordering::SeqCst), 9);
}

#[test]
fn a_forgotten_flow_is_dead_and_a_new_one_is_not() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    let mut old = client(&proxy);
    says_and_hears(&mut old, b"well");
    proxy.set(Reach::Present, Conditions::flowing(Flow::Hold));
    old.write_all(b"held").expect("the kernel takes it");
    says_and_hears(&mut client(&proxy), b"well");
    hears_nothing(&mut old);
}

#[test]
fn who_gave_up_in_a_hole_was_never_there() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    set(&proxy, Flow::Hold, Flow::Pass);
    let mut impatient = client(&proxy);
    impatient.write_all(b"hello").expect("the kernel takes it");
    let mut patient = client(&proxy);
    patient.write_all(b"hello").expect("the kernel takes it");
    until("both knocked", || proxy.accepted() == 2 && proxy.present() == 2);
    drop(impatient);
    until("one left", || proxy.present() == 1);
    proxy.heal();
    hears(&mut patient, b"hello");
    assert_eq!(echo.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn connections_end_as_ordered() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    let mut stream = client(&proxy);
    says_and_hears(&mut stream, b"well");
    proxy.cut(Cut::Reset);
    assert_eq!(stream.read(&mut [0; 16]).expect_err("RST").kind(), ErrorKind::ConnectionReset);

    let mut stream = client(&proxy);
    says_and_hears(&mut stream, b"well");
    proxy.cut(Cut::Fin);
    assert_eq!(stream.read(&mut [0; 16]).expect("FIN, not RST"), 0);

    let mut stream = client(&proxy);
    says_and_hears(&mut stream, b"well");
    proxy.cut(Cut::Half);
    assert_eq!(stream.read(&mut [0; 16]).expect("FIN"), 0);
    stream.write_all(b"still").expect("this way is open");
    echo.heard(12 + 5);
    stream.shutdown(Shutdown::Both).expect("a socket of ours");
    until("nobody is left", || proxy.present() == 0);
}

#[test]
fn the_door_can_be_closed_and_can_be_silent() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    let mut inside = client(&proxy);
    says_and_hears(&mut inside, b"well");
    proxy.set_door(Door::Closed);
    let refused =
        || TcpStream::connect(("127.0.0.1", proxy.port)).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    until("it is refused", refused);
    says_and_hears(&mut inside, b"who is in stays in");
    proxy.set_door(Door::Silent);
    until("it is accepted", || TcpStream::connect(("127.0.0.1", proxy.port)).is_ok());
    let mut stream = client(&proxy);
    stream.write_all(b"hello").expect("the kernel takes it");
    hears_nothing(&mut stream);
    proxy.heal();
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)), "its silence ends with its connection");
    says_and_hears(&mut client(&proxy), b"well");
}

#[test]
fn a_slow_link_has_its_rate_and_a_sliced_one_its_pieces() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    let way = Way { bytes_per_s: Some(40_000), ..Way::default() };
    proxy.set(Reach::All, Conditions { up: way, down: Way::default() });
    let mut stream = client(&proxy);
    let began = Instant::now();
    says_and_hears(&mut stream, &[7; 20_000]);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(450), "20 kB at 40 kB/s: {took:?}");

    let sliced = Way { slice_bytes_max: Some(3), ..Way::default() };
    proxy.set(Reach::All, Conditions::both(sliced));
    stream.write_all(&[7; 3_000]).expect("it can be sent");
    let length = stream.read(&mut [0; 3_000]).expect("the first piece");
    assert!(length < 3_000, "{length} bytes at once");
    hears(&mut stream, &vec![7; 3_000 - length]);
}

#[test]
fn garbage_comes_to_the_client_alone() {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    let mut stream = client(&proxy);
    says_and_hears(&mut stream, b"well");
    proxy.inject(&[0, 255, 0]);
    hears(&mut stream, &[0, 255, 0]);
    says_and_hears(&mut stream, b"well");
    assert_eq!(echo.heard_bytes.load(Ordering::SeqCst), 8);
}
