//! What follows from a change of a job: where it is held, who is asked to start or end it, that it is written.

use wire::{JobId, NodeId};

use super::{AFTER_NO_ROOM, Call, Owner};
use crate::life::{self, Change, News};
use crate::nodes::{Member, Now};
use crate::scheduler::Need;

impl Owner {
    /// Applies news to a job: what changes is written, and what follows from it done.
    pub(super) fn change(&mut self, id: JobId, news: News<'_>, now: Now) {
        let Some(active) = self.active.get(&id) else { return };
        let Some(change) = life::change(&active.job, active.kill_asked, news, now.wall) else { return };
        let Some(active) = self.active.get_mut(&id) else { return };
        let before = active.job.placed.map(|placed| placed.node);
        let follow = Follow::of(&change);
        self.turn.changed.insert(id);
        self.turn.durable |= must_be_on_disk(&change);
        active.kill_asked |= change == Change::Dying;
        change.apply(&mut active.job);
        let need = Need::of(&active.job.spec);
        self.turn.touched.extend(before);
        match follow {
            Follow::Place(node) => self.place_on(node, id, &need),
            Follow::Move(node) => self.move_to(before, node, id, &need),
            Follow::Nothing => {}
            Follow::WaitAgain => self.take_back(before, id, need),
            Follow::KillIfAsked => self.call_kill(id),
            Follow::Leave => self.leave(before, id, &need),
        }
    }

    pub(super) fn place_on(&mut self, node: NodeId, id: JobId, need: &Need) {
        if let Some(member) = self.members.get_mut(&node) {
            member.hold(id, need.amount());
        }
        if let Some(active) = self.active.get_mut(&id) {
            active.call = Call::Creating;
            active.inherited = false;
        }
        self.turn.to_create.entry(node).or_default().push(id);
    }

    /// It was there all the while.
    fn move_to(&mut self, from: Option<NodeId>, node: NodeId, id: JobId, need: &Need) {
        match from.map(|from| self.members.get_mut(&from)) {
            Some(Some(member)) => member.release(id),
            Some(None) => {}
            None => self.scheduler.forget(id, need),
        }
        if let Some(member) = self.members.get_mut(&node) {
            member.hold(id, need.amount());
        }
        if let Some(active) = self.active.get_mut(&id) {
            active.call = Call::Idle;
        }
    }

    pub(super) fn take_back(&mut self, from: Option<NodeId>, id: JobId, need: Need) {
        if let Some((node, member)) = from.and_then(|node| Some((node, self.members.get_mut(&node)?))) {
            member.release(id);
            member.turned_us_away();
            self.order_ask(node, AFTER_NO_ROOM);
        }
        self.scheduler.wait(id, need);
    }

    pub(super) fn leave(&mut self, from: Option<NodeId>, id: JobId, need: &Need) {
        match from.map(|node| self.members.get_mut(&node)) {
            Some(Some(member)) => member.release(id),
            // The node is configured no more, and holds nothing.
            Some(None) => {}
            None => self.scheduler.forget(id, need),
        }
        self.scheduler.ended(id);
        self.turn.ended.extend(self.active.remove(&id).map(|active| (id, active)));
    }

    pub(super) fn refresh_rooms(&mut self) {
        for node in std::mem::take(&mut self.turn.touched) {
            match self.members.get(&node).and_then(Member::room) {
                Some((said, free)) => self.scheduler.open(node, said, free),
                None => self.scheduler.close(node),
            }
        }
    }

    pub(super) fn place(&mut self, now: Now) {
        if self.holds_placements() {
            return;
        }
        for (job, node) in self.scheduler.place() {
            self.change(job, News::Placed(node), now);
        }
    }
}

/// What a change obliges us to, apart from writing it down.
#[derive(Debug, Clone, Copy)]
enum Follow {
    Place(NodeId),
    Move(NodeId),
    Nothing,
    WaitAgain,
    KillIfAsked,
    Leave,
}

impl Follow {
    fn of(change: &Change) -> Follow {
        match change {
            Change::Assigned { node, .. } => Follow::Place(*node),
            Change::Found { node, .. } => Follow::Move(*node),
            Change::Counted { .. } => Follow::Nothing,
            Change::Returned => Follow::WaitAgain,
            Change::Numbered { .. } | Change::Started { .. } | Change::Dying => Follow::KillIfAsked,
            Change::Ended(_) => Follow::Leave,
        }
    }
}

/// Whether a change must be on the disk before anybody is told. The others are told again by the node.
fn must_be_on_disk(change: &Change) -> bool {
    match change {
        Change::Assigned { .. } | Change::Found { .. } | Change::Counted { .. } | Change::Dying | Change::Ended(_) => {
            true
        }
        Change::Numbered { .. } | Change::Started { .. } | Change::Returned => false,
    }
}
