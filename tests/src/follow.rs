//! Those who follow a log over HTTP: they read an answer that grows.

use crate::http::{Connection, Response};

/// One of them.
#[derive(Debug)]
pub struct Follower {
    /// Its connection to the master.
    pub connection: Connection,
    /// The head of the answer.
    pub head: Response,
    /// What has come by now.
    pub bytes: Vec<u8>,
}

impl Follower {
    /// One who has asked, and reads the answer's head.
    #[track_caller]
    pub fn of(mut connection: Connection) -> Follower {
        let head = connection.head().unwrap_or_else(|error| panic!("no head: {error}")).expect(200);
        Follower { connection, head, bytes: Vec::new() }
    }

    /// Reads until this text has come.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.bytes).contains(text) {
            let chunk = self.connection.chunk().unwrap_or_else(|error| panic!("before {text:?}: {error}"));
            assert!(!chunk.is_empty(), "it ended before {text:?}: {}", String::from_utf8_lossy(&self.bytes));
            self.bytes.extend(chunk);
        }
    }

    /// Everything up to the end, which must be one.
    #[track_caller]
    pub fn read_to_the_end(mut self) -> Vec<u8> {
        loop {
            let chunk = self.connection.chunk().unwrap_or_else(|error| panic!("neither more nor the end: {error}"));
            if chunk.is_empty() {
                return self.bytes;
            }
            self.bytes.extend(chunk);
        }
    }

    /// Reads until the connection is cut, without the end having been said.
    pub fn read_until_cut(mut self) -> Vec<u8> {
        while let Ok(chunk) = self.connection.chunk() {
            assert!(!chunk.is_empty(), "a cut connection looks like the end");
            self.bytes.extend(chunk);
        }
        self.bytes
    }
}
