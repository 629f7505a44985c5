//! Who may call: bearer tokens, and the Host and Origin a browser names.
//!
//! Pure but for reading the token file; knows a request only by its method and headers. Two dangers
//! are met here. Somebody who is not the user: without a token only this machine is listened to, with
//! one every request must carry it. And the user's own browser, lent to a foreign page: DNS rebinding
//! shows in `Host`, a foreign form in `Origin` and `Sec-Fetch-Site` (Fetch Metadata, W3C).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::http::{Headers, Method, Request};
use crate::node::{Refusal, RefusalCode};

/// The cookie a browser carries the token in.
pub const COOKIE: &str = "berth_token";
/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// A token file is one line; nobody means a larger file.
const TOKEN_FILE_BYTES: u64 = 4096;

/// The secret that opens a server. It never shows in a log: its `Debug` is blank.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a token file was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read token file {path}: {cause}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error("token file {path} is open to others than its owner (mode {mode:03o}); hint: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Its first line is no token.
    #[error("token file {path} does not begin with a token: {what}; hint: head -c 24 /dev/urandom | base64 > {path}")]
    NoToken {
        /// Which file.
        path: PathBuf,
        /// What is wrong with the line.
        what: &'static str,
    },
}

impl Token {
    /// Reads the first line of a file that only its owner may open.
    pub fn from_file(path: &Path) -> Result<Token, TokenError> {
        let unreadable = |cause| TokenError::Unreadable { path: path.to_owned(), cause };
        let file = File::open(path).map_err(unreadable)?;
        // Asked of the open file, so that what is checked is what is read.
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(TOKEN_FILE_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        Token::from_line(text.lines().next().unwrap_or_default())
            .map_err(|what| TokenError::NoToken { path: path.to_owned(), what })
    }

    /// A token as it stands in a line; blanks around it are no part of it.
    fn from_line(line: &str) -> Result<Token, &'static str> {
        let token = line.trim();
        // What a cookie can carry (RFC 6265, section 4.1.1).
        let carried = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte);
        match token {
            _ if token.len() < SHORTEST_TOKEN => Err("its first line is shorter than 16 characters"),
            _ if !token.bytes().all(carried) => Err("its first line holds blanks, quotes, commas or the like"),
            _ => Ok(Token(token.to_owned())),
        }
    }

    /// Whether this is the token, found out in a time that says nothing about where it differs.
    pub fn matches(&self, said: &str) -> bool {
        let (known, said) = (self.0.as_bytes(), said.as_bytes());
        let mut difference = u8::from(known.len() != said.len());
        for (index, byte) in known.iter().enumerate() {
            difference |= std::hint::black_box(byte ^ said.get(index).copied().unwrap_or(0));
        }
        std::hint::black_box(difference) == 0
    }

    /// The value of `Authorization` for a request of our own.
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The value of `Set-Cookie` after a login.
    pub fn set_cookie(&self) -> String {
        format!("{COOKIE}={}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Strict", self.0)
    }
}

/// The value of `Set-Cookie` after a logout.
pub fn forget_cookie() -> String {
    format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
}

/// An address that must not be listened on without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot listen on {0} without a token: whoever reaches that address could run commands here; \
     hint: give --token-file FILE, or listen on 127.0.0.1:{port}",
    port = .0.port()
)]
pub struct ListenRefused(pub SocketAddr);

/// Without a token only this machine may be listened to.
pub fn check_listen(addr: SocketAddr, has_token: bool) -> Result<(), ListenRefused> {
    if has_token || addr.ip().to_canonical().is_loopback() { Ok(()) } else { Err(ListenRefused(addr)) }
}

/// Where headers are looked up: the first one of that name, whatever its case.
pub trait HeaderLookup {
    /// Its value.
    fn header(&self, name: &str) -> Option<&str>;
}

impl HeaderLookup for Headers {
    fn header(&self, name: &str) -> Option<&str> {
        self.get(name)
    }
}

impl HeaderLookup for Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It names a host that this server does not answer for.
    #[error("this server does not answer for the host {0:?}; hint: use its address, or localhost")]
    ForeignHost(String),
    /// A page of another origin sent it.
    #[error("a page of {0:?} may not change anything here")]
    ForeignOrigin(String),
    /// It carries no token.
    #[error("a token is wanted; hint: -H \"Authorization: Bearer $BERTH_TOKEN\"")]
    NoToken,
    /// It carries another token.
    #[error("the token is wrong")]
    WrongToken,
}

impl From<&Refused> for Refusal {
    /// `Forbidden` (403), or `Unauthorized` (401) where a token would help; a 401 wants a header
    /// `WWW-Authenticate: Bearer` beside it (RFC 9110, section 15.5.2).
    fn from(refused: &Refused) -> Refusal {
        let code = match refused {
            Refused::ForeignHost(_) | Refused::ForeignOrigin(_) => RefusalCode::Forbidden,
            Refused::NoToken | Refused::WrongToken => RefusalCode::Unauthorized,
        };
        Refusal::new(code, refused.to_string())
    }
}

/// Who may call one server.
#[derive(Debug, Clone, Default)]
pub struct Access {
    token: Option<Token>,
    /// Names it answers for beside those of this machine; lower case, without ports.
    hosts: Vec<String>,
}

impl Access {
    /// With a token or, on loopback, without. `hosts`: names beside addresses and `localhost`.
    pub fn new(token: Option<Token>, hosts: impl IntoIterator<Item = String>) -> Access {
        Access { token, hosts: hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect() }
    }

    /// The token, if one is wanted.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Whether a request may be answered: [`check_site`](Access::check_site), then
    /// [`check_token`](Access::check_token).
    pub fn check(&self, method: Method, headers: &impl HeaderLookup) -> Result<(), Refused> {
        self.check_site(method, headers)?;
        self.check_token(headers)
    }

    /// Whether it is meant for this server, and a change is not a foreign page's doing. A login form
    /// is checked by this alone.
    pub fn check_site(&self, method: Method, headers: &impl HeaderLookup) -> Result<(), Refused> {
        let host = headers.header("Host");
        // Only old tools name no host; a browser always does.
        if let Some(host) = host.filter(|host| !self.answers_for(host)) {
            return Err(Refused::ForeignHost(host.to_owned()));
        }
        match method {
            Method::Get | Method::Head => Ok(()),
            Method::Post => check_origin(headers, host.unwrap_or_default()),
        }
    }

    /// Whether it carries the token, as bearer or in the login's cookie.
    pub fn check_token(&self, headers: &impl HeaderLookup) -> Result<(), Refused> {
        let Some(token) = &self.token else { return Ok(()) };
        let said: Vec<&str> = bearer(headers).into_iter().chain(cookies(headers, COOKIE)).collect();
        match said.iter().any(|said| token.matches(said)) {
            true => Ok(()),
            false if said.is_empty() => Err(Refused::NoToken),
            false => Err(Refused::WrongToken),
        }
    }

    /// A name that resolves to this machine wherever it is asked, or one the operator gave. With a
    /// token any address will do: a rebound name is a name.
    fn answers_for(&self, host: &str) -> bool {
        let name = without_port(host).to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        match literal.parse::<IpAddr>() {
            Ok(address) => self.token.is_some() || address.to_canonical().is_loopback() || self.knows(name),
            Err(_) => name == "localhost" || self.knows(name),
        }
    }

    fn knows(&self, name: &str) -> bool {
        self.hosts.iter().any(|known| known == name)
    }
}

/// Whether a browser sent this, or may have: for a GET that does something.
pub fn comes_from_browser(headers: &impl HeaderLookup) -> bool {
    const SIGNS: [&str; 7] =
        ["Cookie", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Sec-Fetch-User", "Sec-Purpose", "Purpose"];
    SIGNS.iter().any(|name| headers.header(name).is_some())
}

fn check_origin(headers: &impl HeaderLookup, host: &str) -> Result<(), Refused> {
    let origin = headers.header("Origin");
    if let Some(origin) = origin.filter(|origin| !is_origin_of(origin, host)) {
        return Err(Refused::ForeignOrigin(origin.to_owned()));
    }
    // Another port of the same machine is "same-site", and another program.
    match headers.header("Sec-Fetch-Site") {
        None | Some("same-origin" | "none") => Ok(()),
        Some(site) => Err(Refused::ForeignOrigin(origin.unwrap_or(site).to_owned())),
    }
}

/// Whether an `Origin` (RFC 6454) names the server the request was sent to. Either scheme will do:
/// in front of us TLS may have been taken off.
fn is_origin_of(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |text: &str| text.strip_suffix(default_port).unwrap_or(text).to_ascii_lowercase();
    !host.is_empty() && bare(authority) == bare(host)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !is_bare_v6(host) => name,
        _ => host,
    }
}

/// `::1` without its brackets: the last colon is no port's.
fn is_bare_v6(host: &str) -> bool {
    !host.starts_with('[') && host.matches(':').count() > 1
}

fn bearer(headers: &impl HeaderLookup) -> Option<&str> {
    let (scheme, token) = headers.header("Authorization")?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim())
}

fn cookies<'a>(headers: &'a impl HeaderLookup, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = headers.header("Cookie").unwrap_or_default().split(';');
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(known, _)| *known == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in pairs {
            headers.push(name, *value);
        }
        headers
    }

    fn open() -> Access {
        Access::new(None, ["Berth.Example".to_owned()])
    }

    fn locked() -> Access {
        Access::new(Some(Token::from_line(SECRET).unwrap()), [])
    }

    fn get(access: &Access, pairs: &[(&str, &str)]) -> Result<(), Refused> {
        access.check(Method::Get, &headers(pairs))
    }

    fn post(access: &Access, pairs: &[(&str, &str)]) -> Result<(), Refused> {
        access.check(Method::Post, &headers(pairs))
    }

    #[test]
    fn a_server_without_a_token_listens_on_loopback_only() {
        for addr in ["127.0.0.1:5000", "127.9.9.9:1", "[::1]:5000", "[::ffff:127.0.0.1]:5000"] {
            assert!(check_listen(addr.parse().unwrap(), false).is_ok(), "{addr}");
        }
        for addr in ["0.0.0.0:5000", "192.168.0.1:5000", "[::]:5000", "[::ffff:10.0.0.1]:5000"] {
            let addr = addr.parse().unwrap();
            let said = check_listen(addr, false).unwrap_err().to_string();
            assert!(said.contains("without a token") && said.contains("hint: give --token-file"), "{said}");
            assert!(check_listen(addr, true).is_ok());
        }
    }

    #[test]
    fn a_rebound_name_is_refused() {
        for host in ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1:1", "127.3.2.1", "[::1]:80", "[::1]"] {
            assert_eq!(get(&open(), &[("Host", host)]), Ok(()), "{host}");
        }
        assert_eq!(get(&open(), &[("Host", "berth.example:8080")]), Ok(()));
        assert_eq!(get(&open(), &[]), Ok(()));
        for host in ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "10.0.0.1", "", ":80", "[::2]", "0.0.0.0"]
        {
            assert_eq!(get(&open(), &[("Host", host)]), Err(Refused::ForeignHost(host.into())), "{host}");
        }
    }

    #[test]
    fn with_a_token_any_address_will_do_but_no_foreign_name() {
        let bearer = ("Authorization", "Bearer 0123456789abcdef");
        assert_eq!(get(&locked(), &[("Host", "10.0.0.1:8080"), bearer]), Ok(()));
        assert_eq!(get(&locked(), &[("Host", "[2001:db8::1]:8080"), bearer]), Ok(()));
        assert!(matches!(get(&locked(), &[("Host", "evil.com"), bearer]), Err(Refused::ForeignHost(_))));
    }

    #[test]
    fn the_token_comes_as_bearer_or_cookie() {
        let said = |name: &str, value: &str| get(&locked(), &[("Host", "localhost"), (name, value)]);
        assert_eq!(said("Authorization", "bearer 0123456789abcdef"), Ok(()));
        assert_eq!(said("Cookie", "a=b; berth_token=0123456789abcdef"), Ok(()));
        assert_eq!(said("Cookie", "berth_token=stale; berth_token=0123456789abcdef"), Ok(()));
        assert_eq!(said("X", "y"), Err(Refused::NoToken));
        assert_eq!(said("Authorization", "Basic 0123456789abcdef"), Err(Refused::NoToken));
        for wrong in ["0123456789abcdeF", "0123456789abcde", "0123456789abcdef0", "", "x"] {
            assert_eq!(said("Authorization", &format!("Bearer {wrong}")), Err(Refused::WrongToken), "{wrong:?}");
        }
        assert_eq!(said("Cookie", "xberth_token=0123456789abcdef"), Err(Refused::NoToken));
    }

    #[test]
    fn a_foreign_page_cannot_change_anything() {
        let host = ("Host", "localhost:8080");
        assert_eq!(post(&open(), &[host]), Ok(()));
        assert_eq!(post(&open(), &[host, ("Origin", "http://localhost:8080")]), Ok(()));
        assert_eq!(post(&open(), &[host, ("Sec-Fetch-Site", "same-origin")]), Ok(()));
        for origin in ["http://evil.com", "null", "http://localhost:3000", "http://localhost", "file://localhost:8080"]
        {
            assert_eq!(post(&open(), &[host, ("Origin", origin)]), Err(Refused::ForeignOrigin(origin.into())));
            assert_eq!(get(&open(), &[host, ("Origin", origin)]), Ok(()));
        }
        for site in ["cross-site", "same-site"] {
            assert!(matches!(post(&open(), &[host, ("Sec-Fetch-Site", site)]), Err(Refused::ForeignOrigin(_))));
        }
        assert!(post(&open(), &[("Origin", "http://localhost")]).is_err());
        assert_eq!(post(&open(), &[("Host", "localhost:80"), ("Origin", "http://localhost")]), Ok(()));
        assert_eq!(post(&open(), &[("Host", "localhost"), ("Origin", "https://localhost:443")]), Ok(()));
    }

    #[test]
    fn a_browser_shows_by_its_cookies_and_fetch_metadata() {
        assert!(!comes_from_browser(&headers(&[("User-Agent", "curl/8"), ("Accept", "*/*")])));
        assert!(comes_from_browser(&headers(&[("cookie", "a=b")])));
        assert!(comes_from_browser(&headers(&[("Sec-Fetch-Mode", "navigate")])));
        assert!(comes_from_browser(&headers(&[("Sec-Purpose", "prefetch")])));
    }

    #[test]
    fn a_token_file_must_be_private_and_begin_with_a_token() {
        let path = std::env::temp_dir().join(format!("berth-token-{}", std::process::id()));
        let read = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Token::from_file(&path)
        };
        assert!(read(" 0123456789abcdef \nnotes\n", 0o600).unwrap().matches(SECRET));
        assert!(read("0123456789abcdef", 0o400).is_ok());
        let said = read("0123456789abcdef", 0o640).unwrap_err().to_string();
        assert!(said.contains("mode 640") && said.contains("hint: chmod 600"), "{said}");
        assert!(matches!(read("0123456789abcde", 0o600), Err(TokenError::NoToken { .. })));
        assert!(matches!(read("\n0123456789abcdef", 0o600), Err(TokenError::NoToken { .. })));
        assert!(matches!(read("0123456789 abcdef", 0o600), Err(TokenError::NoToken { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Token::from_file(&path), Err(TokenError::Unreadable { .. })));
    }

    #[test]
    fn a_token_does_not_show_when_printed() {
        assert!(!format!("{:?}", locked()).contains(SECRET));
    }
}
