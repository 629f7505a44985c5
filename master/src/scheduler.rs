//! Which waiting job goes to which node, and why a job waits. Pure: knows no clock, no socket, no database.
//!
//! The rule is the original's `spread`: the fitting node with the most free memory. Jobs go in the order they came.
//! The first that could run somewhere but fits nowhere now gets a node reserved; whoever came later may use only
//! what that job will leave over there (reserve, then backfill: A. Mu'alem and D. Feitelson, "Utilization,
//! predictability, workloads, and user runtime estimates in scheduling the IBM SP2 with backfilling", 2001).
//!
//! Cost: jobs that need the same share one queue, and what does not fit once in a turn is not looked at again in that
//! turn; nodes are kept sorted by free memory. So a turn costs by what it places and by how many different needs
//! wait, not by how many jobs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use wire::node::NodeResource;
use wire::{BadInput, CpuAmount, CpuRequest, CpuSet, ImageId, JobId, JobSpec, NodeId};

use crate::job::{Node, NodeState};

/// How much of a node: CPU and memory in MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// CPU time.
    pub cpu: CpuAmount,
    /// Memory in MiB.
    pub mem: u64,
}

impl Amount {
    /// All that a node gives out.
    pub fn total_of(resource: &NodeResource) -> Amount {
        Amount { cpu: resource.cpu_total, mem: resource.mem_total }
    }

    /// What a node says is free.
    pub fn free_of(resource: &NodeResource) -> Amount {
        Amount { cpu: resource.cpu, mem: resource.mem }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Amount) -> Amount {
        Amount { cpu: [self.cpu, other.cpu].into_iter().sum(), mem: self.mem.saturating_add(other.mem) }
    }

    /// What is left without `other`, never below nothing.
    #[must_use]
    pub fn minus(self, other: Amount) -> Amount {
        Amount { cpu: self.cpu.saturating_sub(other.cpu), mem: self.mem.saturating_sub(other.mem) }
    }

    /// The lesser of each.
    #[must_use]
    pub fn at_most(self, other: Amount) -> Amount {
        Amount { cpu: self.cpu.min(other.cpu), mem: self.mem.min(other.mem) }
    }

    /// Whether there is this much in `room`.
    pub fn fits(self, room: Amount) -> bool {
        self.cpu <= room.cpu && self.mem <= room.mem
    }
}

/// What a job needs of its node. Jobs with equal needs are alike to the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Need {
    cpu: CpuRequest,
    mem: u64,
    image: ImageId,
    packages: Vec<String>,
}

impl Need {
    /// What this job needs.
    pub fn of(spec: &JobSpec) -> Need {
        Need {
            cpu: spec.resource.cpu.clone(),
            mem: spec.resource.mem,
            image: spec.image_id.clone(),
            packages: spec.packages().map(str::to_owned).collect(),
        }
    }

    /// How much it takes up.
    pub fn amount(&self) -> Amount {
        Amount { cpu: self.cpu.amount(), mem: self.mem }
    }

    /// Whether an empty node like this could run it.
    pub fn could_run_on(&self, node: &NodeResource) -> bool {
        OBSTACLES.iter().all(|obstacle| (obstacle.passes)(self, node))
    }
}

/// One thing that can keep a job from ever running on a node.
struct Obstacle {
    /// The field of the job that names it.
    field: &'static str,
    passes: fn(&Need, &NodeResource) -> bool,
    /// What to say when it stops the job on every one of these nodes.
    says: fn(&Need, &[&NodeResource]) -> String,
}

/// In the order in which a user would want to hear of them.
const OBSTACLES: [Obstacle; 5] = [
    Obstacle {
        field: "imageId",
        passes: |need, node| node.images.contains(&need.image),
        says: |need, nodes| {
            let known: BTreeSet<&str> = nodes.iter().flat_map(|node| &node.images).map(ImageId::as_str).collect();
            let known = if known.is_empty() { "nothing".to_owned() } else { listed(known) };
            format!("no node has the image {:?}; the nodes have {known}", need.image.as_str())
        },
    },
    Obstacle {
        field: "resource.cpu",
        passes: |need, node| need.cpu.pinned().is_none_or(|pins| pins.is_subset(&node.cpus)),
        says: |need, nodes| {
            let cpus: BTreeSet<String> = nodes.iter().map(|node| node.cpus.to_string()).collect();
            let pins = need.cpu.pinned().map(CpuSet::to_string).unwrap_or_default();
            format!("pins to CPUs {pins}; the nodes have {}", listed(cpus.iter().map(String::as_str)))
        },
    },
    Obstacle {
        field: "packagePath",
        passes: |need, node| need.packages.iter().all(|path| below_a_root(path, node)),
        says: |need, nodes| {
            let stray = need.packages.iter().find(|path| !nodes.iter().any(|node| below_a_root(path, node)));
            let stray = stray.or(need.packages.first()).map_or("", String::as_str);
            let roots: BTreeSet<&str> = nodes.iter().flat_map(|node| &node.package_roots).map(String::as_str).collect();
            let roots = if roots.is_empty() { "none".to_owned() } else { listed(roots) };
            format!("{stray:?} is below no package root of a node; the package roots are: {roots}")
        },
    },
    Obstacle {
        field: "resource.mem",
        passes: |need, node| need.mem <= node.mem_total,
        says: |need, nodes| match nodes.iter().max_by_key(|node| node.mem_total) {
            Some(node) => {
                format!("needs {} MiB; the largest node {} has {} MiB in all", need.mem, node.node_id, node.mem_total)
            }
            None => format!("needs {} MiB and there is no node", need.mem),
        },
    },
    Obstacle {
        field: "resource.cpu",
        passes: |need, node| need.cpu.amount() <= node.cpu_total,
        says: |need, nodes| {
            let cpu = need.cpu.amount();
            match nodes.iter().max_by_key(|node| node.cpu_total) {
                Some(node) => {
                    format!("needs {cpu} CPUs; the largest node {} has {} in all", node.node_id, node.cpu_total)
                }
                None => format!("needs {cpu} CPUs and there is no node"),
            }
        },
    },
];

fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().take(8).collect::<Vec<_>>().join(", ")
}

/// Whether a path lies below a package root by its letters. What it really is, symlinks and all, only the node knows.
fn below_a_root(path: &str, node: &NodeResource) -> bool {
    let parts =
        |path: &str| path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect();
    let path: Vec<String> = parts(path);
    node.package_roots.iter().any(|root| {
        let root: Vec<String> = parts(root);
        path.starts_with(&root)
    })
}

/// What stops the job on every one of these nodes, however empty they were: the first obstacle after which no node
/// is left. `None`: some node could run it.
fn obstacle<'a>(need: &Need, nodes: &[&'a NodeResource]) -> Result<Vec<&'a NodeResource>, (&'static str, String)> {
    let mut left: Vec<&NodeResource> = nodes.to_vec();
    for Obstacle { field, passes, says } in &OBSTACLES {
        let passed: Vec<&NodeResource> = left.iter().copied().filter(|node| passes(need, node)).collect();
        if passed.is_empty() {
            return Err((field, says(need, &left)));
        }
        left = passed;
    }
    Ok(left)
}

/// Refuses a job that none of these nodes could ever run, naming the field. The caller gives all nodes there are.
pub fn check_possible(spec: &JobSpec, nodes: &[&NodeResource]) -> Result<(), BadInput> {
    match obstacle(&Need::of(spec), nodes) {
        Ok(_) => Ok(()),
        Err((field, message)) => Err(BadInput::new(field, message)),
    }
}

/// A node as the scheduler sees it.
#[derive(Debug, Clone)]
struct Room {
    said: Arc<NodeResource>,
    free: Amount,
}

/// The node kept for the first job that fits nowhere now.
#[derive(Debug)]
struct Reservation {
    job: JobId,
    node: NodeId,
    need: Arc<Need>,
    /// The node is gone, and another may be kept.
    gone: bool,
}

/// The waiting jobs, the nodes that take new ones, and what is kept for whom.
#[derive(Debug, Default)]
pub struct Scheduler {
    waiting: HashMap<Arc<Need>, BTreeSet<JobId>>,
    rooms: BTreeMap<NodeId, Room>,
    /// The nodes with anything free, by free memory.
    by_free: BTreeSet<(u64, std::cmp::Reverse<NodeId>)>,
    reserved: Option<Reservation>,
    /// What was placed beside a reservation, and where, until it is over. It must fit next to the job that a node is
    /// reserved for, and next to the one after it: what a reservation was good for does not end with it.
    beside: BTreeMap<JobId, (NodeId, Amount)>,
    /// Whether anything came or became free since the last look.
    stirred: bool,
}

impl Scheduler {
    /// A job waits from now on.
    pub fn wait(&mut self, job: JobId, need: Need) {
        self.waiting.entry(Arc::new(need)).or_default().insert(job);
        self.stirred = true;
    }

    /// A job waits no more, for another reason than being placed.
    pub fn forget(&mut self, job: JobId, need: &Need) {
        if let Some(alike) = self.waiting.get_mut(need) {
            alike.remove(&job);
            if alike.is_empty() {
                self.waiting.remove(need);
            }
        }
        if self.reserved.as_ref().is_some_and(|reserved| reserved.job == job) {
            self.reserved = None;
            self.stirred = true;
        }
    }

    /// A node takes new jobs, and this much of it is free.
    pub fn open(&mut self, node: NodeId, said: Arc<NodeResource>, free: Amount) {
        self.close(node);
        self.rooms.insert(node, Room { said, free });
        self.index(node, free);
        if let Some(reserved) = self.reserved.as_mut().filter(|reserved| reserved.node == node) {
            reserved.gone = false;
        }
        self.stirred = true;
    }

    /// A node takes no new jobs for a while: it turned one away, missed a poll, is asked for all it has. A reservation
    /// there stays. Were it given up and made again, each time somebody else could be placed in what it has gathered.
    pub fn close(&mut self, node: NodeId) {
        if let Some(room) = self.rooms.remove(&node) {
            self.by_free.remove(&(room.free.mem, std::cmp::Reverse(node)));
        }
    }

    /// A node takes no new jobs, and nobody knows for how long: whoever waits for it may wait for another.
    pub fn lose(&mut self, node: NodeId) {
        self.close(node);
        if let Some(reserved) = self.reserved.as_mut().filter(|reserved| reserved.node == node && !reserved.gone) {
            reserved.gone = true;
            self.stirred = true;
        }
    }

    /// A job placed by us is over, or is not where we placed it.
    pub fn ended(&mut self, job: JobId) {
        self.beside.remove(&job);
    }

    fn index(&mut self, node: NodeId, free: Amount) {
        if free.mem > 0 && free.cpu > CpuAmount::ZERO {
            self.by_free.insert((free.mem, std::cmp::Reverse(node)));
        }
    }

    /// Places whatever can be placed now, oldest first, and takes its room.
    pub fn place(&mut self) -> Vec<(JobId, NodeId)> {
        let mut placements = Vec::new();
        if !std::mem::take(&mut self.stirred) {
            return placements;
        }
        self.drop_a_dead_reservation();
        let mut heads: BTreeMap<JobId, Arc<Need>> =
            self.waiting.iter().filter_map(|(need, jobs)| Some((*jobs.first()?, Arc::clone(need)))).collect();
        while let Some((job, need)) = heads.pop_first() {
            match self.find(job, &need) {
                Some(node) => {
                    self.take(job, &need, node);
                    placements.push((job, node));
                    heads.extend(self.waiting.get(&need).and_then(|jobs| jobs.first()).map(|next| (*next, need)));
                }
                // Rooms only shrink from here on, so no job with the same need fits either.
                None => self.reserve(job, need),
            }
        }
        placements
    }

    fn drop_a_dead_reservation(&mut self) {
        self.reserved.take_if(|reserved| match self.rooms.get(&reserved.node) {
            Some(room) => !reserved.need.could_run_on(&room.said),
            None => reserved.gone,
        });
    }

    /// The fitting node with the most free memory; of equals the one with the least number.
    fn find(&self, job: JobId, need: &Need) -> Option<NodeId> {
        let amount = need.amount();
        let enough = self.by_free.range((amount.mem, std::cmp::Reverse(NodeId(u32::MAX)))..).rev();
        enough.map(|(_, node)| node.0).find(|node| {
            self.rooms.get(node).is_some_and(|room| {
                amount.fits(room.free) && need.could_run_on(&room.said) && self.leaves_the_reserved(job, amount, *node)
            })
        })
    }

    /// Whether the job that has this node reserved will fit beside `amount`.
    fn leaves_the_reserved(&self, job: JobId, amount: Amount, node: NodeId) -> bool {
        let Some(reserved) = self.reserved.as_ref().filter(|reserved| reserved.node == node) else { return true };
        let Some(room) = self.rooms.get(&node) else { return true };
        reserved.job >= job
            || self.beside(reserved).plus(amount).plus(reserved.need.amount()).fits(Amount::total_of(&room.said))
    }

    /// What is on the reserved node of jobs that came later and were let in.
    fn beside(&self, reserved: &Reservation) -> Amount {
        let later = self.beside.range(reserved.job..).filter(|(_, (node, _))| *node == reserved.node);
        later.fold(Amount::default(), |sum, (_, (_, amount))| sum.plus(*amount))
    }

    fn take(&mut self, job: JobId, need: &Need, node: NodeId) {
        let amount = need.amount();
        if let Some(room) = self.rooms.get_mut(&node) {
            self.by_free.remove(&(room.free.mem, std::cmp::Reverse(node)));
            room.free = room.free.minus(amount);
            let free = room.free;
            self.index(node, free);
        }
        if self.reserved.as_ref().is_some_and(|reserved| reserved.node == node) {
            self.beside.insert(job, (node, amount));
        }
        self.forget(job, need);
    }

    /// Keeps a node for `job` if it is the first that fits nowhere: the one with the most free memory of those that
    /// could run it. It keeps the same one until it runs, or what it gathers there would be given away again.
    fn reserve(&mut self, job: JobId, need: Arc<Need>) {
        if self.reserved.as_ref().is_some_and(|reserved| reserved.job <= job) {
            return;
        }
        // Of those with anything free the freest, else the first: neither looks at more nodes than it must.
        let by_free = self.by_free.iter().rev().map(|(_, node)| node.0);
        let able = |node: &NodeId| self.rooms.get(node).is_some_and(|room| need.could_run_on(&room.said));
        if let Some(node) = by_free.chain(self.rooms.keys().copied()).find(able) {
            self.reserved = Some(Reservation { job, node, need, gone: false });
        }
    }

    /// Why a job waits, in a sentence somebody can act on. `nodes` are all nodes there are.
    pub fn why_waiting(&self, job: JobId, spec: &JobSpec, nodes: &[Node]) -> String {
        let need = Need::of(spec);
        let answering: Vec<&NodeResource> = nodes
            .iter()
            .filter(|node| node.state == NodeState::Ready)
            .filter_map(|node| node.resource.as_ref())
            .collect();
        if answering.is_empty() {
            return nobody_answers(nodes);
        }
        match obstacle(&need, &answering) {
            Err((_, sentence)) if answering.len() < nodes.len() => format!("{sentence} ({})", nobody_else(nodes)),
            Err((_, sentence)) => sentence,
            Ok(able) => self.why_not_now(job, &need, &able),
        }
    }

    fn why_not_now(&self, job: JobId, need: &Need, able: &[&NodeResource]) -> String {
        let amount = need.amount();
        let rooms: Vec<(&NodeResource, Amount)> =
            able.iter().filter_map(|node| Some((*node, self.rooms.get(&node.node_id)?.free))).collect();
        let Some((node, free)) = rooms.iter().max_by_key(|(_, free)| free.mem) else {
            let closed = able.iter().find_map(|node| Some((node.node_id, node.closed.as_ref()?)));
            if let Some((id, why)) = closed {
                return format!("node {id} takes nothing new: {why}");
            }
            return "the nodes that could run it take nothing new just now".to_owned();
        };
        if amount.mem > free.mem {
            let (id, total) = (node.node_id, node.mem_total);
            return format!("needs {} MiB, the largest free node {id} has {} of {total} MiB", amount.mem, free.mem);
        }
        let roomy = rooms.iter().filter(|(_, free)| amount.mem <= free.mem);
        match roomy.max_by_key(|(_, free)| free.cpu) {
            Some((node, free)) if amount.cpu > free.cpu => {
                let (id, total) = (node.node_id, node.cpu_total);
                format!("needs {} CPUs, the freest node {id} has {} of {total}", amount.cpu, free.cpu)
            }
            Some(_) | None => self.behind_whom(job),
        }
    }

    fn behind_whom(&self, job: JobId) -> String {
        match self.reserved.as_ref().filter(|reserved| reserved.job < job) {
            Some(Reservation { job, node, .. }) => {
                format!("waits for jobs before it: node {node} is kept free for job {job}")
            }
            None => "waits for jobs before it".to_owned(),
        }
    }
}

fn nobody_answers(nodes: &[Node]) -> String {
    if nodes.is_empty() {
        return "there is no node; hint: start berth-master with --node ID=ADDRESS".to_owned();
    }
    format!("no node answers: {}", silent(nodes))
}

fn nobody_else(nodes: &[Node]) -> String {
    format!("no answer from {}", silent(nodes))
}

fn silent(nodes: &[Node]) -> String {
    let silent = nodes.iter().filter_map(|node| match &node.state {
        NodeState::Ready => None,
        NodeState::Unknown => Some(format!("node {} at {}: not heard of yet", node.id, node.addr)),
        NodeState::Lost { why, .. } => Some(format!("node {} at {}: {why}", node.id, node.addr)),
    });
    let mut sentences: Vec<String> = silent.collect();
    let more = sentences.len().saturating_sub(3);
    sentences.truncate(3);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    sentences.join("; ") + &more
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use arbtest::arbitrary::Unstructured;
    use wire::{BootId, InstanceId};

    /// A node with `cpus` CPUs and `mem` MiB, all free.
    pub fn resource(id: u32, cpus: u16, mem: u64) -> NodeResource {
        NodeResource {
            cpu: CpuAmount::whole(cpus.into()),
            mem,
            cpu_total: CpuAmount::whole(cpus.into()),
            mem_total: mem,
            cpus: CpuSet::new(0..cpus).unwrap(),
            node_id: NodeId(id),
            instance: InstanceId(format!("{id:032x}")),
            boot_id: BootId("boot".into()),
            uptime_ms: None,
            tasks: 0,
            load: [0.0; 3],
            images: vec!["busybox".parse().unwrap()],
            package_roots: vec!["/srv/packages".into()],
            version: "0.1.0".into(),
            kernel: "6.18".into(),
            cgroups: "hybrid".into(),
            union: "overlay".into(),
            leaks: 0,
            stamp: None,
            closed: None,
        }
    }

    fn spec(cpu: &str, mem: u64) -> JobSpec {
        let mut spec = crate::job::tests::spec();
        spec.resource.cpu = cpu.parse().unwrap();
        spec.resource.mem = mem;
        spec
    }

    fn open(scheduler: &mut Scheduler, node: NodeResource) {
        let free = Amount::free_of(&node);
        scheduler.open(node.node_id, Arc::new(node), free);
    }

    fn ready(resource: NodeResource) -> Node {
        let (id, addr) = (resource.node_id, format!("127.0.0.1:{}", 5000 + resource.node_id.0));
        Node { id, addr, state: NodeState::Ready, resource: Some(resource), notes: Vec::new() }
    }

    #[test]
    fn jobs_spread_to_the_node_with_the_most_free_memory_in_the_order_they_came() {
        let mut scheduler = Scheduler::default();
        open(&mut scheduler, resource(0, 4, 1000));
        open(&mut scheduler, resource(1, 4, 900));
        for id in 1..=3 {
            scheduler.wait(JobId(id), Need::of(&spec("x1", 200)));
        }
        let placed = scheduler.place();
        assert_eq!(placed, [(JobId(1), NodeId(0)), (JobId(2), NodeId(1)), (JobId(3), NodeId(0))]);
    }

    #[test]
    fn cpu_and_memory_are_both_subtracted() {
        let mut scheduler = Scheduler::default();
        open(&mut scheduler, resource(0, 2, 1000));
        for (id, cpu) in [(1, "x1.5"), (2, "0"), (3, "x1")] {
            scheduler.wait(JobId(id), Need::of(&spec(cpu, 10)));
        }
        assert_eq!(scheduler.place(), [(JobId(1), NodeId(0))]);
    }

    #[test]
    fn a_job_goes_only_where_its_image_its_cpus_and_its_packages_are() {
        let mut scheduler = Scheduler::default();
        open(&mut scheduler, NodeResource { images: vec![], ..resource(0, 8, 9000) });
        open(&mut scheduler, NodeResource { cpus: CpuSet::new([4, 5]).unwrap(), ..resource(1, 8, 8000) });
        open(&mut scheduler, NodeResource { package_roots: vec!["/srv/pack".into()], ..resource(2, 8, 7000) });
        open(&mut scheduler, resource(3, 8, 1000));
        let mut job = spec("0-1", 10);
        job.package_path = "/srv/packages/tool;/srv//packages/./data".into();
        scheduler.wait(JobId(1), Need::of(&job));
        assert_eq!(scheduler.place(), [(JobId(1), NodeId(3))]);
    }

    #[test]
    fn a_large_job_at_the_head_is_not_starved_by_small_ones_behind_it() {
        let mut scheduler = Scheduler::default();
        let node = Arc::new(resource(0, 8, 1000));
        scheduler.open(NodeId(0), Arc::clone(&node), Amount { cpu: CpuAmount::whole(8), mem: 500 });
        scheduler.wait(JobId(1), Need::of(&spec("x1", 900)));
        for id in 2..=9 {
            scheduler.wait(JobId(id), Need::of(&spec("x1", 60)));
        }
        assert_eq!(scheduler.place(), [(JobId(2), NodeId(0))], "60 MiB are left beside 900 of 1000, 120 are not");
        scheduler.open(NodeId(0), Arc::clone(&node), Amount { cpu: CpuAmount::whole(7), mem: 940 });
        assert_eq!(scheduler.place(), [(JobId(1), NodeId(0))]);
    }

    #[test]
    fn what_was_backfilled_and_ended_makes_place_for_more() {
        let mut scheduler = Scheduler::default();
        let node = Arc::new(resource(0, 8, 1000));
        let half = Amount { cpu: CpuAmount::whole(8), mem: 500 };
        scheduler.open(NodeId(0), Arc::clone(&node), half);
        scheduler.wait(JobId(1), Need::of(&spec("x1", 900)));
        scheduler.wait(JobId(2), Need::of(&spec("x1", 60)));
        scheduler.wait(JobId(3), Need::of(&spec("x1", 60)));
        assert_eq!(scheduler.place(), [(JobId(2), NodeId(0))]);
        scheduler.ended(JobId(2));
        scheduler.open(NodeId(0), node, half);
        assert_eq!(scheduler.place(), [(JobId(3), NodeId(0))]);
    }

    #[test]
    fn a_job_no_node_could_ever_run_holds_nobody_up() {
        let mut scheduler = Scheduler::default();
        open(&mut scheduler, resource(0, 2, 1000));
        scheduler.wait(JobId(1), Need::of(&spec("x1", 9000)));
        scheduler.wait(JobId(2), Need::of(&spec("x2", 1000)));
        assert_eq!(scheduler.place(), [(JobId(2), NodeId(0))]);
    }

    #[test]
    fn a_reservation_goes_with_its_job_and_with_its_node() {
        let mut scheduler = Scheduler::default();
        let (large, small) = (Need::of(&spec("x2", 1000)), Need::of(&spec("x1", 500)));
        let half = Amount { cpu: CpuAmount::whole(1), mem: 500 };
        scheduler.open(NodeId(0), Arc::new(resource(0, 2, 1000)), half);
        scheduler.wait(JobId(1), large.clone());
        scheduler.wait(JobId(2), small);
        assert_eq!(scheduler.place(), []);
        scheduler.lose(NodeId(0));
        scheduler.open(NodeId(1), Arc::new(resource(1, 2, 1000)), half);
        assert_eq!(scheduler.place(), [], "the reservation moved to node 1");
        scheduler.forget(JobId(1), &large);
        assert_eq!(scheduler.place(), [(JobId(2), NodeId(1))]);
    }

    #[test]
    fn a_node_that_is_closed_for_a_while_stays_reserved_and_what_was_let_in_there_is_not_forgotten() {
        for lost in [false, true] {
            let mut scheduler = Scheduler::default();
            let (here, other) = (Arc::new(resource(0, 8, 1000)), Arc::new(resource(1, 8, 1000)));
            let gap = |mem| Amount { cpu: CpuAmount::whole(8), mem };
            scheduler.open(NodeId(0), Arc::clone(&here), gap(500));
            scheduler.wait(JobId(1), Need::of(&spec("x1", 900)));
            scheduler.wait(JobId(2), Need::of(&spec("x1", 60)));
            assert_eq!(scheduler.place(), [(JobId(2), NodeId(0))]);
            scheduler.wait(JobId(3), Need::of(&spec("x1", 60)));
            if lost {
                scheduler.lose(NodeId(0));
            } else {
                scheduler.close(NodeId(0));
                scheduler.open(NodeId(1), Arc::clone(&other), gap(50));
            }
            assert_eq!(scheduler.place(), []);
            scheduler.open(NodeId(0), Arc::clone(&here), gap(440));
            assert_eq!(scheduler.place(), [], "the gap beside job 1 is taken");
            scheduler.ended(JobId(2));
            scheduler.open(NodeId(0), here, gap(500));
            assert_eq!(scheduler.place(), [(JobId(3), NodeId(0))]);
        }
    }

    #[test]
    fn every_waiting_job_can_say_why() {
        let mut scheduler = Scheduler::default();
        let said = resource(0, 2, 1536);
        scheduler.open(NodeId(0), Arc::new(said.clone()), Amount { cpu: CpuAmount::from_milli(500), mem: 512 });
        let nodes = [ready(said)];
        let why = |job: JobSpec, nodes: &[Node]| scheduler.why_waiting(JobId(9), &job, nodes);
        assert_eq!(why(spec("x1", 1024), &nodes), "needs 1024 MiB, the largest free node 0 has 512 of 1536 MiB");
        assert_eq!(why(spec("x1", 64), &nodes), "needs 1 CPUs, the freest node 0 has 0.5 of 2");
        assert_eq!(why(spec("x0.5", 64), &nodes), "waits for jobs before it");
        assert_eq!(why(spec("x1", 2048), &nodes), "needs 2048 MiB; the largest node 0 has 1536 MiB in all");
        assert_eq!(why(spec("x4", 64), &nodes), "needs 4 CPUs; the largest node 0 has 2 in all");
        assert_eq!(why(spec("4-5", 64), &nodes), "pins to CPUs 4-5; the nodes have 0-1");
        let mut job = spec("x1", 64);
        job.image_id = "x".parse().unwrap();
        assert_eq!(why(job, &nodes), "no node has the image \"x\"; the nodes have busybox");
        let mut job = spec("x1", 64);
        job.package_path = "/etc".into();
        let said = "\"/etc\" is below no package root of a node; the package roots are: /srv/packages";
        assert_eq!(why(job, &nodes), said);
        let lost = NodeState::Lost { since: jiff::Timestamp::UNIX_EPOCH, why: "connection refused".into() };
        let dark =
            Node { id: NodeId(0), addr: "127.0.0.1:5000".into(), state: lost, resource: None, notes: Vec::new() };
        let said = "no node answers: node 0 at 127.0.0.1:5000: connection refused";
        assert_eq!(why(spec("x1", 64), &[dark]), said);
    }

    #[test]
    fn what_no_node_could_ever_run_is_refused_with_the_fields_name() {
        let node = resource(0, 2, 1536);
        let field = |spec: &JobSpec| check_possible(spec, &[&node]).map_err(|bad| bad.field);
        assert_eq!(field(&spec("0-1", 1536)), Ok(()));
        assert_eq!(field(&spec("x1", 1537)), Err("resource.mem".into()));
        assert_eq!(field(&spec("x3", 64)), Err("resource.cpu".into()));
        assert_eq!(field(&spec("2", 64)), Err("resource.cpu".into()));
        assert_eq!(field(&JobSpec { image_id: "x".parse().unwrap(), ..spec("x1", 64) }), Err("imageId".into()));
        assert_eq!(field(&JobSpec { package_path: "/srv".into(), ..spec("x1", 64) }), Err("packagePath".into()));
    }

    fn any_need(u: &mut Unstructured<'_>) -> arbtest::arbitrary::Result<Need> {
        let cpu = *u.choose(&["x0.5", "x1", "x2", "0", "0-1", "2-3"])?;
        Ok(Need::of(&spec(cpu, u.int_in_range(1..=12)? * 100)))
    }

    #[test]
    fn whatever_comes_no_node_is_overcommitted_and_no_job_is_placed_where_it_cannot_run() {
        arbtest::arbtest(|u| {
            let mut scheduler = Scheduler::default();
            let mut nodes: BTreeMap<NodeId, (Arc<NodeResource>, Amount)> = BTreeMap::new();
            for id in 0..u.int_in_range(1..=4)? {
                let said = Arc::new(resource(id, u.int_in_range(1..=4)?, u.int_in_range(1..=20)? * 100));
                nodes.insert(NodeId(id), (said, Amount::default()));
            }
            let mut needs: BTreeMap<JobId, Need> = BTreeMap::new();
            let mut running: BTreeMap<JobId, NodeId> = BTreeMap::new();
            for step in 1..=u.int_in_range(1..=40)? {
                if u.ratio(2, 3)? {
                    let need = any_need(u)?;
                    scheduler.wait(JobId(step), need.clone());
                    needs.insert(JobId(step), need);
                } else if let Some((job, node)) = running.pop_first() {
                    let used = &mut nodes.get_mut(&node).unwrap().1;
                    *used = used.minus(needs[&job].amount());
                    scheduler.ended(job);
                }
                for (id, (said, used)) in &nodes {
                    scheduler.open(*id, Arc::clone(said), Amount::total_of(said).minus(*used));
                }
                for (job, node) in scheduler.place() {
                    let (said, used) = nodes.get_mut(&node).unwrap();
                    *used = used.plus(needs[&job].amount());
                    assert!(used.fits(Amount::total_of(said)), "node {node} holds {used:?}");
                    assert!(needs[&job].could_run_on(said));
                    assert_eq!(running.insert(job, node), None, "job {job} was placed twice");
                }
            }
            Ok(())
        });
    }

    #[test]
    fn whatever_comes_the_head_runs_once_what_was_before_it_has_ended() {
        arbtest::arbtest(|u| {
            let mut scheduler = Scheduler::default();
            let said = Arc::new(resource(0, 4, 2000));
            let head = any_need(u)?;
            let before = Amount { cpu: CpuAmount::whole(4), mem: 2000 };
            scheduler.open(NodeId(0), Arc::clone(&said), Amount::default());
            scheduler.wait(JobId(1), head.clone());
            assert_eq!(scheduler.place(), []);
            let mut used = Amount::default();
            // Another node, which the head fits on but never gets: whoever was there before it stays.
            let other = Arc::new(resource(1, 4, 2000));
            let mut other_is_open = false;
            let mut needs: BTreeMap<JobId, Need> = BTreeMap::new();
            for id in 2..=u.int_in_range(2..=30)? {
                let need = any_need(u)?;
                scheduler.wait(JobId(id), need.clone());
                needs.insert(JobId(id), need);
                // Some, not yet all, of what ran before has ended: never enough for the head.
                let short = Amount { cpu: head.amount().cpu.saturating_sub(CpuAmount::from_milli(1)), mem: 2000 };
                let free = before.at_most(short).minus(used);
                // Now and then it takes nothing for a while.
                match u.int_in_range(0..=3)? {
                    0 => scheduler.close(NodeId(0)),
                    _ => scheduler.open(NodeId(0), Arc::clone(&said), free),
                }
                if u.ratio(1, 4)? {
                    other_is_open = !other_is_open;
                    match other_is_open {
                        true => scheduler.open(NodeId(1), Arc::clone(&other), Amount::default()),
                        false => scheduler.lose(NodeId(1)),
                    }
                }
                for (job, node) in scheduler.place() {
                    assert_eq!((job > JobId(1), node), (true, NodeId(0)));
                    used = used.plus(needs[&job].amount());
                }
            }
            scheduler.open(NodeId(0), Arc::clone(&said), before.minus(used));
            assert_eq!(scheduler.place().first(), Some(&(JobId(1), NodeId(0))));
            Ok(())
        });
    }
}
