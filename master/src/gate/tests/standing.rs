//! Clients whose answers stand.

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::gate::relay::SAID_A_TURN;

/// Reads until this text has come.
fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let (mut said, mut piece) = (String::new(), vec![0; 65_536]);
    while !said.contains(text) {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "ended before {text:?}: {said}");
        said += &String::from_utf8_lossy(&piece[..count]);
    }
    said
}

fn piece(text: &str) -> Arc<Vec<u8>> {
    Arc::new(text.as_bytes().to_vec())
}

#[test]
fn an_answer_that_stands_holds_no_lane_and_is_gone_on_with_from_elsewhere() {
    let master = Master::start(Limits::default());
    // More than there are lanes and workers.
    let mut standing: Vec<(TcpStream, ConnectionId)> = (0..3 * LANES).map(|_| master.stand()).collect();
    master.assert_others_are_answered();
    for (stream, client) in &mut standing {
        master.say(Say::Piece(*client, piece("..first"), 2));
        assert_eq!(master.news(), News::Ready(*client));
        master.say(Say::End(*client));
        let said = read_until(stream, "0\r\n\r\n");
        assert!(said.ends_with("\r\n\r\n5\r\nfirst\r\n0\r\n\r\n"), "{said}");
        assert!(said.contains("Transfer-Encoding: chunked\r\n") && !said.contains("Content-Length"), "{said}");
        assert!(!said.to_lowercase().contains("berth"), "the word between worker and gate is shown: {said}");
        // The connection is as good as any after that.
        ask(stream, "/hello");
        assert_eq!(read_answer(stream), (200, "hello".into()));
    }
}

#[test]
fn a_client_cannot_make_its_answer_stand() {
    let master = Master::start(Limits::default());
    let said = master.shout("GET /hello HTTP/1.0\r\nX-Berth-Stands: what it follows\r\n\r\n");
    assert!(said.ends_with("\r\n\r\nhello"), "{said}");
    assert!(master.news.try_recv().is_err());
}

#[test]
fn a_head_and_an_old_client_get_what_they_understand_of_an_answer_that_stands() {
    let master = Master::start(Limits::default());
    let mut stream = master.connect();
    stream.write_all(b"HEAD /stand HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 200"));
    ask(&mut stream, "/hello");
    assert_eq!(read_answer(&mut stream), (200, "hello".into()));
    stream.write_all(b"GET /stand HTTP/1.0\r\n\r\n").unwrap();
    let News::Came(client, _) = master.news() else { panic!("no news") };
    master.say(Say::Piece(client, piece("all"), 0));
    master.say(Say::End(client));
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.ends_with("Connection: close\r\n\r\nall"), "{said}");
}

#[test]
fn a_slow_reader_gets_a_bounded_buffer_and_is_ready_again_once_it_has_read() {
    let master = Master::start(Limits::default());
    let (mut stream, client) = master.stand();
    let bytes = Arc::new(vec![b'x'; 64 << 10]);
    let mut said = 0;
    // What the sockets take on both sides, and then what is kept.
    loop {
        master.say(Say::Piece(client, Arc::clone(&bytes), 0));
        said += 1;
        // The gate answers in order, so an answer to another says whether this client is ready.
        master.assert_others_are_answered();
        match master.news.try_recv() {
            Ok(news) => assert_eq!(news, News::Ready(client)),
            Err(_) => break,
        }
        assert!(said < 1000, "no end to what is kept for somebody who does not read");
    }
    let reader = std::thread::spawn(move || {
        let mut read = 0;
        while let Ok(count @ 1..) = stream.read(&mut [0; 65_536]) {
            read += count;
        }
        read
    });
    assert_eq!(master.news(), News::Ready(client));
    master.say(Say::Cut(client));
    assert!(reader.join().unwrap() >= (said - 2) * bytes.len());
}

#[test]
fn a_client_that_leaves_or_never_reads_is_reported_and_closed() {
    let master = Master::start(Limits { write_stall: Duration::from_millis(300), ..Limits::default() });
    let (stream, client) = master.stand();
    drop(stream);
    assert_eq!(master.news(), News::Left(client));
    let (stream, client) = master.stand();
    let bytes = Arc::new(vec![b'x'; 64 << 10]);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        master.say(Say::Piece(client, Arc::clone(&bytes), 0));
        match master.news() {
            News::Ready(ready) => assert_eq!(ready, client),
            News::Left(left) => {
                assert_eq!(left, client);
                drop(stream);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("still there");
}

#[test]
fn only_half_of_all_clients_may_have_answers_that_stand() {
    let master = Master::start(Limits { connections: 20, ..Limits::default() });
    let standing: Vec<_> = (0..10).map(|_| master.stand()).collect();
    assert_eq!(master.get("/stand").0, 503);
    master.assert_others_are_answered();
    drop(standing);
    for _ in 0..10 {
        assert!(matches!(master.news(), News::Left(_)));
    }
    master.stand();
}

#[test]
fn a_gate_that_stops_cuts_answers_that_stand() {
    let mut master = Master::start(Limits::default());
    let (mut stream, client) = master.stand();
    master.say(Say::Piece(client, piece("half"), 0));
    read_until(&mut stream, "half\r\n");
    let begun = Instant::now();
    master.gate.take().unwrap().stop();
    assert!(begun.elapsed() < PATIENCE, "it waited for an answer without an end");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "no end of the body may be said");
}

#[test]
fn a_room_that_has_more_to_say_at_once_keeps_nobody_waiting() {
    /// The room falls silent when the test is over, however it ends: a gate that hears nothing else could not be stopped.
    struct Silence(Arc<AtomicBool>);
    impl Drop for Silence {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let voice: Arc<OnceLock<Voice>> = Arc::default();
    let (silent, said): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
    let room = {
        let (voice, silent, said) = (Arc::clone(&voice), Arc::clone(&silent), Arc::clone(&said));
        move |news| {
            if let (News::Came(client, _) | News::Ready(client), false) = (news, silent.load(Ordering::SeqCst)) {
                said.fetch_add(1, Ordering::SeqCst);
                // Nothing, so that there is always room for it.
                voice.get().unwrap().say([Say::Piece(client, piece(""), 0)]);
            }
        }
    };
    let master = Master::start_with_room(Limits::default(), room);
    let _silent_at_last = Silence(silent);
    assert!(voice.set(master.gate.as_ref().unwrap().voice()).is_ok());
    let mut standing: Vec<TcpStream> = (0..3).map(|_| master.connect()).collect();
    standing.iter_mut().for_each(|stream| ask(stream, "/stand"));
    wait_for(&said, 1000);
    master.assert_others_are_answered();
}

#[test]
fn however_much_is_said_at_once_all_of_it_is_sent() {
    const PIECES: usize = 20 * SAID_A_TURN;
    let master = Master::start(Limits::default());
    // From here on nothing but what is said wakes the gate.
    wait_for(&master.behind.probed, LANES);
    let (mut stream, client) = master.stand();
    let pieces = (0..PIECES).map(|_| Say::Piece(client, piece("x"), 0));
    master.gate.as_ref().unwrap().voice().say(pieces.chain([Say::End(client)]));
    let said = read_until(&mut stream, "0\r\n\r\n");
    assert_eq!(said.matches("1\r\nx\r\n").count(), PIECES);
}
