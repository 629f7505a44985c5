//! What follows from a change of a job: where it is held, who is asked to start or end it, that it is written.

use std::time::Duration;

use wire::{JobId, NodeId, OnNodeLoss};

use super::{AFTER_NO_ROOM, Call, Owner};
use crate::life::{self, Change, Given, News};
use crate::nodes::Now;
use crate::scheduler::Need;

impl Owner {
    /// Applies news to a job: what changes is written, and what follows from it done.
    pub(super) fn change(&mut self, id: JobId, news: News<'_>, now: Now) {
        let Some(active) = self.active.get(&id) else { return };
        let (kill_asked, in_doubt) = (active.kill_asked, self.is_in_doubt(id));
        let given = Given { kill_asked, in_doubt, most_lost: self.nodes.most_lost, now: now.wall };
        let Some(change) = life::change(&active.job, given, news) else { return };
        let Some(active) = self.active.get_mut(&id) else { return };
        let before = active.job.placed.map(|placed| placed.node);
        let follow = Follow::of(&change);
        self.turn.changed.insert(id);
        self.turn.durable |= must_be_on_disk(&change);
        self.turn.lost |= change == Change::Lost;
        active.kill_asked |= change == Change::Dying;
        change.apply(&mut active.job);
        let need = Need::of(&active.job.spec);
        self.turn.touched.extend(before);
        match follow {
            Follow::Place(node) => self.place_on(node, id, &need, now),
            Follow::Move(node) => self.move_to(before, node, id, &need),
            Follow::Nothing => {}
            Follow::WaitAgain => self.take_back(before, id, need),
            Follow::TryElsewhere => self.try_elsewhere(before, id, need),
            Follow::KillIfAsked => self.call_kill(id),
            Follow::Leave => self.leave(before, id, &need),
        }
    }

    pub(super) fn place_on(&mut self, node: NodeId, id: JobId, need: &Need, now: Now) {
        if let Some(member) = self.members.get_mut(&node) {
            member.hold(id, need.amount());
        }
        if let Some(active) = self.active.get_mut(&id) {
            active.call = Call::Creating;
            active.inherited = false;
            active.placed_at = Some(now);
            active.unheard = false;
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
        self.scheduler.ended(id);
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
        if let Some(active) = self.active.get_mut(&id) {
            active.stuck = None;
        }
        self.scheduler.ended(id);
        self.scheduler.wait(id, need);
    }

    /// Whatever was asked of the node for this attempt is asked no more.
    pub(super) fn try_elsewhere(&mut self, from: Option<NodeId>, id: JobId, need: Need) {
        if let Some(member) = from.and_then(|node| self.members.get_mut(&node)) {
            member.release(id);
        }
        if let Some(active) = self.active.get_mut(&id) {
            active.call = Call::Idle;
            active.stuck = None;
        }
        self.scheduler.ended(id);
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
            let Some(member) = self.members.get(&node) else { continue };
            match member.room() {
                Some((said, free)) => self.scheduler.open(node, said, free),
                // Until its disk has room again, or somebody has started it, may be for long.
                None if member.is_lost() || member.is_closed() => self.scheduler.lose(node),
                None => self.scheduler.close(node),
            }
        }
    }

    pub(super) fn place(&mut self, now: Now) {
        if self.holds_placements() {
            return;
        }
        for (job, node) in self.scheduler.place() {
            let lease = self.lease_on(job, node);
            self.change(job, News::Placed(node, lease), now);
        }
    }
}

impl Owner {
    /// The lease a job is to run under there. A node that does not stamp what it says is an older one and would keep to none.
    fn lease_on(&self, job: JobId, node: NodeId) -> Option<Duration> {
        let waits = self.active.get(&job).is_none_or(|active| active.job.spec.on_node_loss == OnNodeLoss::Wait);
        let stamps = self.members.get(&node).is_some_and(|member| member.stamp().is_some());
        (!waits && stamps).then_some(self.nodes.lease)
    }
}

/// What a change obliges us to, apart from writing it down.
#[derive(Debug, Clone, Copy)]
enum Follow {
    Place(NodeId),
    Move(NodeId),
    Nothing,
    WaitAgain,
    TryElsewhere,
    KillIfAsked,
    Leave,
}

impl Follow {
    fn of(change: &Change) -> Follow {
        match change {
            Change::Assigned { node, .. } => Follow::Place(*node),
            Change::Found { node, .. } => Follow::Move(*node),
            Change::Counted { .. } | Change::Abandoned => Follow::Nothing,
            Change::Returned => Follow::WaitAgain,
            Change::Lost => Follow::TryElsewhere,
            Change::Numbered { .. } | Change::Started { .. } | Change::Reclaimed | Change::Dying => Follow::KillIfAsked,
            Change::Ended(_) => Follow::Leave,
        }
    }
}

/// Whether a change must be on the disk before anybody is told. The others are told again by the node.
fn must_be_on_disk(change: &Change) -> bool {
    match change {
        Change::Assigned { .. }
        | Change::Found { .. }
        | Change::Counted { .. }
        | Change::Lost
        | Change::Abandoned
        | Change::Reclaimed
        | Change::Dying
        | Change::Ended(_) => true,
        Change::Numbered { .. } | Change::Started { .. } | Change::Returned => false,
    }
}
