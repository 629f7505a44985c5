//! A master and its nodes in one sandbox, and the promise that nothing of them is left.

use serde_json::Value;

use crate::image;
use crate::job::Job;
use crate::leaks::Footprint;
use crate::master::{Master, MasterPlan};
use crate::netns::{Host, Lan};
use crate::node::{self, Node, NodePlan};
use crate::sandbox::{Sandbox, is_root};

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The master.
    pub master: MasterPlan,
    /// The nodes, numbered from 0.
    pub nodes: Vec<NodePlan>,
    /// Whether each daemon has a host of its own, on one network.
    pub apart: bool,
}

impl Default for Plan {
    /// One master and one ordinary node.
    fn default() -> Plan {
        Plan { master: MasterPlan::default(), nodes: vec![NodePlan::default()], apart: false }
    }
}

impl Plan {
    /// A master that knows no node.
    pub fn without_nodes() -> Plan {
        Plan { nodes: Vec::new(), ..Plan::default() }
    }

    /// A master and these nodes.
    pub fn of_nodes(nodes: impl Into<Vec<NodePlan>>) -> Plan {
        Plan { nodes: nodes.into(), ..Plan::default() }
    }

    /// With a host for each daemon, on one network. They listen there, so they want a token.
    pub fn apart(self) -> Plan {
        Plan { apart: true, ..self }.token("of-hosts-apart-0123456789")
    }

    /// With this token on every daemon.
    pub fn token(mut self, token: &str) -> Plan {
        self.master.token = Some(token.to_owned());
        for node in &mut self.nodes {
            node.token = Some(token.to_owned());
        }
        self
    }

    /// Starts it, runs the test against it, stops it, and checks for leaks. Without root: skips aloud.
    pub fn run(self, test: impl FnOnce(&mut Cluster)) {
        if !is_root() {
            return;
        }
        let mut cluster = Cluster::start(&self);
        test(&mut cluster);
        cluster.finish();
    }
}

/// A running cluster. Its sandbox is dropped last, when nothing runs in it any more.
#[derive(Debug)]
pub struct Cluster {
    /// The master.
    pub master: Master,
    /// The nodes, by number.
    pub nodes: Vec<Node>,
    lan: Option<Lan>,
    hosts: Vec<Host>,
    sandbox: Sandbox,
}

impl Cluster {
    /// Runs a test against one master and one node.
    pub fn small(test: impl FnOnce(&mut Cluster)) {
        Plan::default().run(test);
    }

    /// Starts it; [`Cluster::finish`] ends it.
    pub fn start(plan: &Plan) -> Cluster {
        Cluster::start_in(Sandbox::new(), plan)
    }

    /// [`Cluster::start`] in this sandbox.
    pub fn start_in(sandbox: Sandbox, plan: &Plan) -> Cluster {
        let mut plan = plan.clone();
        let mut lan = plan.apart.then(|| Lan::new(&sandbox));
        if let Some(lan) = &mut lan {
            plan.master.host = Some(lan.add_host());
            for node in &mut plan.nodes {
                node.host = Some(lan.add_host());
            }
        }
        let hosts = plan.nodes.iter().filter_map(|node| node.host.clone()).collect();
        if plan.apart {
            image::make_busybox_with_flock(&sandbox.dir().join(node::BUSYBOX_ROOTFS));
        }
        let start = |(id, plan): (usize, &NodePlan)| Node::start(&sandbox, u32::try_from(id).unwrap_or(u32::MAX), plan);
        let nodes: Vec<Node> = plan.nodes.iter().enumerate().map(start).collect();
        let master = Master::start(&sandbox, &nodes, &plan.master);
        let cluster = Cluster { master, nodes, lan, hosts, sandbox };
        cluster.master.wait_nodes_ready(cluster.nodes.len());
        cluster
    }

    /// The only node, or the first.
    pub fn node(&mut self) -> &mut Node {
        &mut self.nodes[0]
    }

    /// Pulls the cable of that node's host out, in a cluster whose hosts are apart.
    pub fn cut(&self, node: usize) {
        self.lan().cut(&self.hosts[node]);
    }

    /// Plugs it in again.
    pub fn heal(&self, node: usize) {
        self.lan().heal(&self.hosts[node]);
    }

    fn lan(&self) -> &Lan {
        self.lan.as_ref().unwrap_or_else(|| panic!("all daemons of this cluster are on one host"))
    }

    /// Its sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// What of it is on the machine.
    pub fn footprint(&self) -> Footprint {
        Footprint::of(&self.sandbox)
    }

    /// Submits a job and waits for its end.
    #[track_caller]
    pub fn run(&self, job: &Value) -> Job {
        self.master.run(job)
    }

    /// What the job printed on stdout, as it is on the share.
    pub fn stdout(&self, job: &Job) -> String {
        let node = usize::try_from(job.node_id).ok().and_then(|id| self.nodes.get(id));
        let task = u64::try_from(job.task_id).ok();
        node.zip(task).map(|(node, task)| node.stream(task, "task_stdout")).unwrap_or_default()
    }

    /// The master first, so that it places nothing anew; then each node, once it is as it was.
    pub fn finish(&mut self) {
        self.master.daemon().stop();
        for node in &mut self.nodes {
            node.finish();
        }
        self.footprint().wait_until_gone();
    }
}
