//! Which connection makes room for another when there is none left. Pure.
//!
//! A crowd is paid for by those who came with it: what counts is how many connections an address holds, and one that holds
//! less than the newcomer's loses none. So whoever fills the server, with requests that never become whole or with ones
//! that are answered and kept, shuts out nobody else.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a request may take to become whole before its connection counts as idle.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// A connection for whose peer nobody is at work, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Idler {
    /// It has been answered before.
    pub(super) served: bool,
    /// A part of a request is there.
    pub(super) receiving: bool,
    /// Since when it has been so.
    pub(super) since: Instant,
}

impl Idler {
    /// Not so new that its request may still be on its way.
    fn is_overdue(&self, now: Instant) -> bool {
        self.served && !self.receiving || self.since + FIRST_REQUEST < now
    }
}

/// Whose connections are counted together: an address, or the IPv6 network of 64 bits that one host has to itself.
pub(super) fn holder(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(addr) => (addr & Ipv6Addr::from_bits(u128::MAX << 64)).into(),
        addr @ IpAddr::V4(_) => addr,
    }
}

/// Which of these makes room for a connection of that holder; of one not yet known, it is taken for one of the crowd. All
/// connections are told of by slot and holder, those at work as `None`.
///
/// Of the holder that has most, if that is another, anything that idles goes. Of the newcomer's own, and of holders in
/// between, only what is overdue; of the latter nothing that has begun to ask. What was never answered goes first, then
/// what has idled for longest.
pub(super) fn choose(all: &[(usize, IpAddr, Option<Idler>)], newcomer: Option<IpAddr>, now: Instant) -> Option<usize> {
    let mut held: HashMap<IpAddr, usize> = newcomer.iter().map(|newcomer| (*newcomer, 1)).collect();
    for (_, holder, _) in all {
        *held.entry(*holder).or_default() += 1;
    }
    let most = held.values().copied().max().unwrap_or(0);
    let own = newcomer.map_or(most, |newcomer| held[&newcomer]);
    let goes = |holder: IpAddr, idler: &Idler| match held[&holder] {
        count if count < own => false,
        count if count == most && own < most => true,
        _ if own == most && newcomer.is_none_or(|newcomer| newcomer == holder) => idler.is_overdue(now),
        _ => idler.is_overdue(now) && !idler.receiving,
    };
    let idlers = all.iter().filter_map(|(slot, holder, idler)| Some((*slot, *holder, (*idler)?)));
    idlers
        .filter(|(_, holder, idler)| goes(*holder, idler))
        .max_by_key(|(_, holder, idler)| (held[holder], Reverse((idler.served, idler.since))))
        .map(|(slot, ..)| slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CROWD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const FEW: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const NEW: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

    /// Connections in a room, and what time it is there.
    struct Room {
        now: Instant,
        all: Vec<(usize, IpAddr, Option<Idler>)>,
    }

    impl Room {
        fn new() -> Room {
            Room { now: Instant::now() + Duration::from_secs(1000), all: Vec::new() }
        }

        fn add(&mut self, holder: IpAddr, idler: Option<Idler>) -> usize {
            self.all.push((self.all.len(), holder, idler));
            self.all.len() - 1
        }

        fn at_work(&mut self, holder: IpAddr, count: usize) {
            for _ in 0..count {
                self.add(holder, None);
            }
        }

        /// For so many milliseconds it has kept its connection after an answer.
        fn kept(&mut self, holder: IpAddr, ms: u64) -> usize {
            let since = self.now - Duration::from_millis(ms);
            self.add(holder, Some(Idler { served: true, receiving: false, since }))
        }

        /// For so many milliseconds a first request has been on its way.
        fn asking(&mut self, holder: IpAddr, ms: u64) -> usize {
            let since = self.now - Duration::from_millis(ms);
            self.add(holder, Some(Idler { served: false, receiving: true, since }))
        }

        fn for_one_of(&self, newcomer: IpAddr) -> Option<usize> {
            choose(&self.all, Some(newcomer), self.now)
        }
    }

    #[test]
    fn a_crowd_makes_room_for_others_however_new_it_is_and_they_never_for_it() {
        let mut room = Room::new();
        room.kept(FEW, 20_000);
        room.asking(FEW, 9000);
        let crowd = [2, 3, 1, 1].map(|ms| room.asking(CROWD, ms));
        assert_eq!(room.for_one_of(NEW), Some(crowd[1]));
        assert_eq!(room.for_one_of(FEW), Some(crowd[1]));
        assert_eq!(room.for_one_of(CROWD), None);
        let kept = room.kept(CROWD, 900);
        assert_eq!(room.for_one_of(NEW), Some(crowd[1]));
        assert_eq!(room.for_one_of(CROWD), Some(kept));
    }

    #[test]
    fn those_at_work_stay_and_then_only_those_who_ask_nothing_go() {
        let mut room = Room::new();
        room.at_work(CROWD, 9);
        room.asking(FEW, 9000);
        assert_eq!(room.for_one_of(NEW), None);
        room.kept(FEW, 5);
        let longer = room.kept(FEW, 7);
        assert_eq!(room.for_one_of(NEW), Some(longer));
        assert_eq!(room.for_one_of(CROWD), None, "the crowd makes room for itself");
    }

    #[test]
    fn of_one_address_what_is_overdue_makes_room_and_what_was_never_answered_goes_first() {
        let mut room = Room::new();
        room.at_work(CROWD, 3);
        room.asking(CROWD, 900);
        assert_eq!(room.for_one_of(CROWD), None);
        let kept = room.kept(CROWD, 1);
        assert_eq!(room.for_one_of(CROWD), Some(kept));
        let slow = room.asking(CROWD, 1100);
        assert_eq!(room.for_one_of(CROWD), Some(slow));
        let slower = room.asking(CROWD, 1200);
        assert_eq!(room.for_one_of(CROWD), Some(slower));
    }

    #[test]
    fn one_not_yet_known_is_taken_for_one_of_the_crowd() {
        let mut room = Room::new();
        room.kept(FEW, 20_000);
        let crowd = [room.asking(CROWD, 900), room.asking(CROWD, 1100)];
        assert_eq!(choose(&room.all, None, room.now), Some(crowd[1]));
        room.all.remove(crowd[1]);
        room.asking(CROWD, 5);
        assert_eq!(choose(&room.all, None, room.now), None);
        assert_eq!(choose(&[], None, room.now), None);
    }

    #[test]
    fn an_ipv6_host_is_its_network_and_an_ipv4_host_is_itself_however_it_is_written() {
        let of = |text: &str| holder(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), CROWD);
        assert_ne!(of("::ffff:10.0.0.1"), of("::ffff:10.0.0.2"));
    }
}
