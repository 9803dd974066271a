//! A TCP proxy with every fault a mobile network has, scripted while it runs; it stands between the gateway and a server.
//!
//! Terms: **up** is from the client to the server, **down** the other way. The [`Conditions`] of a connection say what
//! happens to the bytes of each way; the [`Door`] what happens to a client that knocks; a [`Cut`] ends what is there.
//!
//! It is as true as a proxy above TCP can be: a new connection waits one round trip for its handshake, one that begins in
//! a hole comes into being only if its client is still there when the hole closes, and a connection that lost bytes never
//! passes one again. What it cannot do (lost packets, half-open kernels) is done with the kernel's own filter elsewhere.

use std::{
    io,
    net::TcpListener as StdListener,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::free_port;

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks on their way: 64 MiB of full ones, far beyond what any link here carries in its delay.
const CHUNKS_UNDER_WAY_MAX: usize = 4096;
/// After FIN the other side may take so long to close as well.
const HEAR_OUT_MAX: Duration = Duration::from_secs(10);
/// A link with a rate sends so often a second, so that it trickles and does not burst.
const PIECES_PER_S: u32 = 50;

/// What happens to the bytes of one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Way {
    /// Whether they pass.
    pub(crate) flow: Flow,
    /// How long each is under way; it costs no bandwidth.
    pub(crate) delay: Duration,
    /// They arrive in pieces of 1 to so many bytes.
    pub(crate) slice_bytes_max: Option<usize>,
    /// The rate of the link.
    pub(crate) bytes_per_s: Option<u32>,
}

/// Whether bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Flow {
    /// They do.
    #[default]
    Pass,
    /// Nothing passes and nothing is read, as on a dead path: senders' buffers fill. After it all arrives, as TCP has it.
    Hold,
    /// They are taken and thrown away, as by a box in the network that confirms and forgets. A connection that lost bytes
    /// so stays dead.
    Swallow,
}

/// Both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Conditions {
    /// From client to server.
    pub(crate) up: Way,
    /// From server to client.
    pub(crate) down: Way,
}

impl Conditions {
    /// The same both ways.
    pub(crate) const fn both(way: Way) -> Self {
        Self { up: way, down: way }
    }

    /// Nothing but a delay, each way.
    pub(crate) fn delayed(each_way: Duration) -> Self {
        Self::both(Way { delay: each_way, ..Way::default() })
    }

    /// Nothing but this flow, both ways.
    pub(crate) fn flowing(flow: Flow) -> Self {
        Self::both(Way { flow, ..Way::default() })
    }

    fn pass(&self) -> bool {
        self.up.flow == Flow::Pass && self.down.flow == Flow::Pass
    }
}

/// Which connections are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Those there are and those to come.
    All,
    /// Those there are: a NAT forgot them, and new ones work.
    Present,
    /// Those to come.
    Coming,
}

/// What a client meets that connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// It is let through.
    Open,
    /// Nobody listens: connection refused.
    Closed,
    /// It is accepted, and never hears a word.
    Silent,
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// FIN to both sides.
    Fin,
    /// RST to both sides.
    Reset,
    /// FIN to the client after what is under way; the other way stays until another cut.
    Half,
}

/// A running proxy; it ends with this value, and its connections with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) port: u16,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// The server's port.
    server: u16,
    door: watch::Sender<Door>,
    script: Mutex<Script>,
    accepted: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Script {
    /// For connections to come.
    coming: Conditions,
    present: Vec<Handle>,
}

/// The strings of one connection.
#[derive(Debug)]
struct Handle {
    client: u16,
    conditions: watch::Sender<Conditions>,
    orders: mpsc::UnboundedSender<Order>,
}

/// What a connection does once.
#[derive(Debug)]
enum Order {
    Cut(Cut),
    /// Bytes to the client that the server never sent.
    Inject(Vec<u8>),
}

impl Proxy {
    /// Listens on a port of its own and passes everything to this one.
    pub(crate) fn to(server: u16) -> Self {
        let shared = Arc::new(Shared {
            server,
            door: watch::Sender::new(Door::Open),
            script: Mutex::default(),
            accepted: AtomicU64::new(0),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
        });
        let (port, stop) = (free_port(), CancellationToken::new());
        let listener = listen(port).expect("the port was free a moment ago");
        let (inner, stopped) = (shared.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            // Connections end with their runtime.
            runtime.block_on(stopped.run_until_cancelled(serve(port, listener, inner)));
        });
        Self { port, shared, stop, thread: Some(thread) }
    }

    /// What happens to bytes from now on.
    pub(crate) fn set(&self, reach: Reach, conditions: Conditions) {
        let mut script = self.shared.script();
        if reach != Reach::Present {
            script.coming = conditions;
        }
        if reach != Reach::Coming {
            for handle in &script.present {
                handle.conditions.send_replace(conditions);
            }
        }
    }

    /// What happens to clients that connect from now on.
    pub(crate) fn set_door(&self, door: Door) {
        self.shared.door.send_replace(door);
    }

    /// The network is well again; connections that lost bytes stay dead.
    pub(crate) fn heal(&self) {
        self.set(Reach::All, Conditions::default());
        self.set_door(Door::Open);
    }

    /// Ends every connection there is.
    pub(crate) fn cut(&self, cut: Cut) {
        self.order(|| Order::Cut(cut));
    }

    /// Sends bytes to the clients that their server never sent.
    pub(crate) fn inject(&self, bytes: &[u8]) {
        self.order(|| Order::Inject(bytes.to_vec()));
    }

    /// Connections accepted so far, whatever became of them.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections there are.
    pub(crate) fn present(&self) -> usize {
        self.shared.script().present.len()
    }

    /// Their clients' ports.
    pub(crate) fn clients(&self) -> Vec<u16> {
        self.shared.script().present.iter().map(|handle| handle.client).collect()
    }

    /// Bytes that reached the server and the clients so far.
    pub(crate) fn passed_bytes(&self) -> (u64, u64) {
        (self.shared.up_bytes.load(Ordering::SeqCst), self.shared.down_bytes.load(Ordering::SeqCst))
    }

    fn order(&self, order: impl Fn() -> Order) {
        for handle in &self.shared.script().present {
            // It may be ending by itself.
            let _ended = handle.orders.send(order());
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the proxy does not panic");
        }
    }
}

impl Shared {
    /// The script, without the connections that have ended.
    fn script(&self) -> MutexGuard<'_, Script> {
        let mut script = self.script.lock().expect("no panic while the script is held");
        script.present.retain(|handle| !handle.orders.is_closed());
        script
    }
}

fn listen(port: u16) -> io::Result<StdListener> {
    let listener = StdListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts as the door says.
async fn serve(port: u16, listener: StdListener, shared: Arc<Shared>) {
    let mut listener = Some(TcpListener::from_std(listener).expect("a socket of ours"));
    let mut door = shared.door.subscribe();
    let mut unheard = Vec::new();
    loop {
        let now = *door.borrow_and_update();
        if now == Door::Closed {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::from_std(listen(port).expect("our port is still free")).expect("a socket"));
        }
        if now != Door::Silent {
            unheard.clear();
        }
        let knock = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = door.changed() => changed.expect("the script outlives us"),
            knocked = knock => {
                let Ok((client, from)) = knocked else { continue };
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                if now == Door::Silent {
                    unheard.push(client);
                } else {
                    tokio::spawn(connection(client, shared.clone(), enter(&shared, from.port())));
                }
            }
        }
    }
}

/// What a connection hears from the script.
struct Ears {
    conditions: watch::Receiver<Conditions>,
    orders: mpsc::UnboundedReceiver<Order>,
}

/// Puts a connection into the script.
fn enter(shared: &Shared, client: u16) -> Ears {
    let mut script = shared.script();
    let (conditions, hears_conditions) = watch::channel(script.coming);
    let (orders, hears_orders) = mpsc::unbounded_channel();
    script.present.push(Handle { client, conditions, orders });
    Ears { conditions: hears_conditions, orders: hears_orders }
}

/// One connection, from its handshake to its end. An error of either side is passed on as RST.
async fn connection(mut client: TcpStream, shared: Arc<Shared>, mut ears: Ears) {
    let Some(mut server) = handshake(&client, &shared, &mut ears).await else { return };
    let cut = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let (up, up_queue) = mpsc::channel(CHUNKS_UNDER_WAY_MAX);
        let (down, down_queue) = mpsc::channel(CHUNKS_UNDER_WAY_MAX);
        let conditions = &ears.conditions;
        let up_way = || Watched { conditions: conditions.clone(), way: |c| c.up };
        let down_way = || Watched { conditions: conditions.clone(), way: |c| c.down };
        let both = async {
            tokio::try_join!(
                take(from_client, up, up_way()),
                give(up_queue, to_server, up_way(), &shared.up_bytes),
                take(from_server, down.clone(), down_way()),
                give(down_queue, to_client, down_way(), &shared.down_bytes),
            )
        };
        tokio::pin!(both);
        loop {
            tokio::select! {
                ended = &mut both => break if ended.is_ok() { Cut::Fin } else { Cut::Reset },
                Some(order) = ears.orders.recv() => match order {
                    // A full queue has more to say before its end than any test waits for.
                    Order::Cut(Cut::Half) => drop(down.try_send(Item { due: Instant::now(), part: Part::End })),
                    Order::Cut(cut) => break cut,
                    Order::Inject(bytes) => drop(down.try_send(Item { due: Instant::now(), part: Part::Bytes(bytes) })),
                },
            }
        }
    };
    drop(ears);
    for side in [&mut client, &mut server] {
        // Either side may be gone already.
        let _gone = match cut {
            Cut::Reset => side.set_zero_linger(),
            Cut::Fin | Cut::Half => side.shutdown().await,
        };
    }
    if cut != Cut::Reset {
        tokio::join!(hear_out(client), hear_out(server));
    }
}

/// Reads until the other side closes too: a socket closed with unread bytes sends RST, which is another fault.
async fn hear_out(mut side: TcpStream) {
    let mut buffer = [0; 1024];
    let heard = async { while side.read(&mut buffer).await.is_ok_and(|length| length > 0) {} };
    let _too_late = tokio::time::timeout(HEAR_OUT_MAX, heard).await;
}

/// Waits until both ways pass and a round trip is over, and connects to the server. `None` if the client gave up before,
/// or the server is not there.
async fn handshake(client: &TcpStream, shared: &Shared, ears: &mut Ears) -> Option<TcpStream> {
    client.set_nodelay(true).ok()?;
    let passing = async {
        ears.conditions.wait_for(Conditions::pass).await.ok()?;
        let Conditions { up, down } = *ears.conditions.borrow_and_update();
        sleep(up.delay + down.delay).await;
        Some(())
    };
    tokio::select! {
        passing = passing => passing?,
        () = left(client) => return None,
        _ = ears.orders.recv() => return None,
    }
    let server = TcpStream::connect(("127.0.0.1", shared.server)).await.ok()?;
    server.set_nodelay(true).ok()?;
    Some(server)
}

/// Ends when the client has closed or reset its side, without reading what it said before.
async fn left(client: &TcpStream) {
    loop {
        match client.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => sleep(Duration::from_millis(5)).await,
            Ok(_) | Err(_) => return,
        }
    }
}

/// A part of the stream and when it may arrive.
#[derive(Debug)]
struct Item {
    due: Instant,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    /// FIN.
    End,
    /// RST. What was said before it has arrived.
    Broken(io::Error),
}

/// One way of a connection's conditions, and their changes.
struct Watched {
    conditions: watch::Receiver<Conditions>,
    way: fn(&Conditions) -> Way,
}

impl Watched {
    fn now(&mut self) -> Way {
        (self.way)(&self.conditions.borrow_and_update())
    }

    async fn changed(&mut self) {
        if self.conditions.changed().await.is_err() {
            std::future::pending::<()>().await; // the proxy ends, and everything with it
        }
    }
}

/// Reads what one side says, and stamps it.
async fn take(mut from: ReadHalf<'_>, queue: mpsc::Sender<Item>, mut watched: Watched) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut lost = false;
    loop {
        let Way { flow, .. } = watched.now();
        if flow == Flow::Hold {
            watched.changed().await;
            continue;
        }
        let length = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = watched.changed() => continue,
        };
        // What was read while the conditions changed is treated by the new ones.
        let Way { flow, delay, .. } = watched.now();
        lost |= flow == Flow::Swallow;
        if lost {
            if matches!(length, Ok(0) | Err(_)) {
                return std::future::pending().await; // nobody hears of the end either
            }
            continue;
        }
        let part = match length {
            Ok(0) => Part::End,
            Ok(length) => Part::Bytes(buffer[..length].to_vec()),
            Err(e) => Part::Broken(e),
        };
        let last = !matches!(part, Part::Bytes(_));
        if queue.send(Item { due: Instant::now() + delay, part }).await.is_err() || last {
            return Ok(()); // nobody takes it after a half cut
        }
    }
}

/// Writes to the other side what is due.
async fn give(
    mut queue: mpsc::Receiver<Item>,
    mut to: WriteHalf<'_>,
    mut watched: Watched,
    passed: &AtomicU64,
) -> io::Result<()> {
    let mut lost = false;
    let mut free_at = Instant::now();
    while let Some(Item { due, part }) = queue.recv().await {
        sleep_until(due).await;
        let mut left = if let Part::Bytes(bytes) = &part { bytes.as_slice() } else { &[] };
        loop {
            let Way { flow, slice_bytes_max, bytes_per_s, .. } = watched.now();
            lost |= flow == Flow::Swallow;
            if lost {
                break;
            }
            if flow == Flow::Hold {
                watched.changed().await;
                continue;
            }
            if left.is_empty() {
                break;
            }
            let sliced = slice_bytes_max.map_or(left.len(), |most| fastrand::usize(1..=most.max(1)));
            let paced = bytes_per_s.map_or(left.len(), |rate| (rate / PIECES_PER_S).max(1) as usize);
            let piece = &left[..sliced.min(paced).min(left.len())];
            let written = tokio::select! {
                biased;
                () = watched.changed() => continue,
                written = async {
                    sleep_until(free_at).await;
                    to.write(piece).await
                } => written,
            };
            let written = match written {
                Ok(length) => length,
                Err(e) => {
                    // Who is gone says so against the stream; that does not pass a hole either.
                    let _proxy_ends = watched.conditions.wait_for(Conditions::pass).await;
                    return Err(e);
                }
            };
            if let Some(rate) = bytes_per_s {
                free_at = Instant::now().max(free_at) + Duration::from_secs(1) * written as u32 / rate.max(1);
            }
            passed.fetch_add(written as u64, Ordering::SeqCst);
            left = &left[written..];
            if slice_bytes_max.is_some() {
                tokio::task::yield_now().await; // the reader gets its chance to see this piece alone
            }
        }
        match part {
            Part::End if !lost => return to.shutdown().await,
            Part::Broken(e) if !lost => return Err(e),
            Part::Bytes(_) | Part::End | Part::Broken(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
