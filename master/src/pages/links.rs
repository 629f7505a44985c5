//! Where things are. Links are built of typed ids and percent-encoded values, never of text as its users wrote it.

use wire::{JobId, Log, NodeId, State};

use super::view::JobQuery;

/// The form of one job, on the home page.
pub const SUBMIT: &str = "/#submit";
/// The node table.
pub const NODES: &str = "/node/table";

/// A job's details.
pub fn details(job: JobId) -> String {
    format!("/job/details/{job}")
}

/// A job's details, not loading themselves anew.
pub fn still_details(job: JobId) -> String {
    format!("/job/details/{job}?live=0")
}

/// What kills a job when posted to, and asks whether to when got.
pub fn kill(job: JobId) -> String {
    format!("/job/kill/{job}")
}

/// The whole of a log.
pub fn output(job: JobId, log: Log) -> String {
    format!("/job/output/{job}/{}", log.as_str())
}

/// A log as it grows, until the job has ended.
pub fn follow(job: JobId, log: Log) -> String {
    format!("{}?follow=1", output(job, log))
}

/// The form of one job, filled in with what this job asked for.
pub fn again(job: JobId) -> String {
    format!("/?again={job}#submit")
}

/// A node's row.
pub fn node(node: NodeId) -> String {
    format!("{NODES}#{}", node_anchor(node))
}

/// What a link to a node's row points at.
pub fn node_anchor(node: NodeId) -> String {
    format!("node-{node}")
}

/// The job table as asked for.
pub fn jobs(query: &JobQuery) -> String {
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    if let Some(status) = query.status {
        pairs.append_pair("status", status.as_str());
    }
    if !query.q.is_empty() {
        pairs.append_pair("q", &query.q);
    }
    if let Some(after) = query.after {
        pairs.append_pair("after", &after.to_string());
    }
    if let Some(limit) = query.limit {
        pairs.append_pair("limit", &limit.to_string());
    }
    if query.live {
        pairs.append_pair("live", "1");
    }
    let pairs = pairs.finish();
    if pairs.is_empty() { "/job/table".to_owned() } else { format!("/job/table?{pairs}") }
}

impl JobQuery {
    /// The newest page of the same search in another state, or in all.
    pub fn in_state(&self, status: Option<State>) -> JobQuery {
        JobQuery { status, after: None, ..self.clone() }
    }

    /// The page that begins after a job, or the newest.
    pub fn from(&self, after: Option<JobId>) -> JobQuery {
        JobQuery { after, ..self.clone() }
    }

    /// The same jobs without the search.
    pub fn without_search(&self) -> JobQuery {
        JobQuery { q: String::new(), after: None, ..self.clone() }
    }

    /// The same page, loading itself anew or not.
    pub fn live(&self, live: bool) -> JobQuery {
        JobQuery { live, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_percent_encoded_and_reads_back_the_same() {
        let query = JobQuery {
            status: Some(State::Assigned),
            q: "a&b=\"<script>\u{202e} %".to_owned(),
            after: Some(JobId(7)),
            limit: Some(20),
            live: true,
        };
        let link = jobs(&query);
        assert!(link.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"'".contains(&byte)), "{link}");
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(link.split_once('?').unwrap().1.as_bytes()).into_owned().collect();
        let expected = [("status", "Pending[A]"), ("q", &query.q), ("after", "7"), ("limit", "20"), ("live", "1")];
        assert_eq!(pairs, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn the_plain_table_has_a_plain_link() {
        assert_eq!(jobs(&JobQuery::default()), "/job/table");
    }
}
