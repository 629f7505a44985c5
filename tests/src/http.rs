//! A tiny blocking HTTP/1.1 client: whole requests for those who behave, raw bytes for those who do not.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use serde_json::Value;

use crate::netns;
use crate::wait::PATIENCE;

/// A request in the making.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A whole answer.
#[derive(Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and their values, as they came.
    pub headers: Vec<(String, String)>,
    /// The body, its transfer coding undone.
    pub body: Vec<u8>,
}

impl Request {
    /// Any method on any path.
    pub fn new(method: &str, path: &str) -> Request {
        Request { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// `GET path`.
    pub fn get(path: &str) -> Request {
        Request::new("GET", path)
    }

    /// `POST path`.
    pub fn post(path: &str) -> Request {
        Request::new("POST", path)
    }

    /// With one more header. A `Host` given here replaces the one `send` would write.
    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this `Accept`.
    pub fn accept(self, mime: &str) -> Request {
        self.header("Accept", mime)
    }

    /// As a browser that follows a link or sends a form of our own page would.
    pub fn browser(self) -> Request {
        self.accept("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
            .header("Sec-Fetch-Site", "same-origin")
            .header("Sec-Fetch-Mode", "navigate")
            .header("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0")
    }

    /// With a bearer token.
    pub fn bearer(self, token: &str) -> Request {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// With a body of that type.
    pub fn body(mut self, mime: &str, body: impl Into<Vec<u8>>) -> Request {
        self.body = body.into();
        self.header("Content-Type", mime)
    }

    /// With a JSON body.
    pub fn json(self, value: &Value) -> Request {
        self.body("application/json", value.to_string())
    }

    /// With a form as browsers send it.
    pub fn form(self, fields: &[(&str, &str)]) -> Request {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.body("application/x-www-form-urlencoded", body)
    }

    /// The request as bytes, with `Host`, `Content-Length` and `Connection: close` where nothing else was said.
    fn bytes(&self, addr: SocketAddr) -> Vec<u8> {
        let has = |name: &str| self.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !has("host") {
            head += &format!("Host: {addr}\r\n");
        }
        if !has("connection") {
            head += "Connection: close\r\n";
        }
        if !self.body.is_empty() || self.method == "POST" {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        [head.as_bytes(), b"\r\n", &self.body].concat()
    }

    /// Sends it; the answer is still to come.
    pub fn ask(&self, addr: SocketAddr) -> io::Result<Connection> {
        let mut connection = Connection::open(addr)?;
        connection.send(&self.bytes(addr))?;
        Ok(connection)
    }

    /// Sends it and reads the whole answer.
    pub fn try_send(&self, addr: SocketAddr) -> io::Result<Response> {
        self.ask(addr)?.response()
    }

    /// [`Request::try_send`] to a server that must be there.
    #[track_caller]
    pub fn send(&self, addr: SocketAddr) -> Response {
        self.try_send(addr).unwrap_or_else(|error| panic!("{} {} at {addr}: {error}", self.method, self.path))
    }
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text; broken UTF-8 is shown as U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The same answer, if its status is `status`.
    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// `error.field` of a refusal, in the master's and in the node's envelope.
    #[track_caller]
    pub fn refused_field(&self) -> String {
        let field = self.json()["error"]["field"].as_str().map(str::to_owned);
        field.unwrap_or_else(|| panic!("the refusal names no field: {self:?}"))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "HTTP {}", self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        let text = self.text();
        let start: String = text.chars().take(2000).collect();
        write!(f, "\n{start}{}", if start.len() < text.len() { " ..." } else { "" })
    }
}

/// One TCP connection, on which anything can be said.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// What was read beyond the last answer.
    ahead: Vec<u8>,
}

impl Connection {
    /// Connects. Every read and write gives up after [`PATIENCE`].
    pub fn open(addr: SocketAddr) -> io::Result<Connection> {
        Connection::over(netns::connect(addr)?)
    }

    /// [`Connection::open`] as a client with this address of our own.
    pub fn open_from(own: Ipv4Addr, addr: SocketAddr) -> io::Result<Connection> {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddr::from((own, 0)))?;
        connect(&socket, &addr)?;
        Connection::over(TcpStream::from(socket))
    }

    fn over(stream: TcpStream) -> io::Result<Connection> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, ahead: Vec::new() })
    }

    /// The socket, for what this type does not offer.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Says these bytes, whatever they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.stream.write_all(bytes) {
            // Refused in the middle of our request: the answer is already on its way to us.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            sent => sent,
        }
    }

    /// Reads one whole answer, of a known length, chunked, or up to the end.
    pub fn response(&mut self) -> io::Result<Response> {
        let mut response = self.head()?;
        response.body = self.body(&response)?;
        Ok(response)
    }

    /// Reads the head of an answer alone: its body is still to come.
    pub fn head(&mut self) -> io::Result<Response> {
        let head = loop {
            if let Some(end) = find(&self.ahead, b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.ahead[..end]).into_owned();
                self.ahead.drain(..end + 4);
                break head;
            }
            self.read_more()?;
        };
        let (status, headers) = parse_head(&head)?;
        Ok(Response { status, headers, body: Vec::new() })
    }

    fn body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        if response.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return self.chunks();
        }
        match response.header("content-length").map(str::parse) {
            Some(Ok(length)) => self.take(length),
            Some(Err(_)) => Err(io::Error::other("the answer's Content-Length is not a number")),
            None if matches!(response.status, 204 | 304) => Ok(Vec::new()),
            None => self.rest(),
        }
    }

    /// Reads one more chunk of a chunked answer; empty is the last.
    pub fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = loop {
            if let Some(end) = find(&self.ahead, b"\r\n") {
                let line = String::from_utf8_lossy(&self.ahead[..end]).into_owned();
                self.ahead.drain(..end + 2);
                break usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
                    .map_err(|_| io::Error::other(format!("chunk size {line:?}")))?;
            }
            self.read_more()?;
        };
        let chunk = self.take(size)?;
        self.take(2)?;
        Ok(chunk)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend(chunk);
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < length {
            self.read_more()?;
        }
        Ok(self.ahead.drain(..length).collect())
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.read_more() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.ahead));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            // signal(7): a read with a time-out is interrupted even by a mere stop and continue.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up")),
            Ok(read) => {
                self.ahead.extend_from_slice(&buffer[..read]);
                Ok(())
            }
        }
    }
}

/// Says `bytes` on a connection of its own and reads the first answer. `None`: hung up on without one.
pub fn raw(addr: SocketAddr, bytes: &[u8]) -> Option<Response> {
    let mut connection = Connection::open(addr).unwrap_or_else(|error| panic!("connect to {addr}: {error}"));
    connection.send(bytes).unwrap_or_else(|error| panic!("send to {addr}: {error}"));
    match connection.response() {
        Ok(response) => Some(response),
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => None,
        Err(error) => panic!("{addr} neither answered nor hung up on {:?}: {error}", String::from_utf8_lossy(bytes)),
    }
}

fn parse_head(head: &str) -> io::Result<(u16, Vec<(String, String)>)> {
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status =
        status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("status line {status_line:?}")))?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("header {line:?}")))?;
        Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    Ok((status, lines.map(header).collect::<io::Result<_>>()?))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
