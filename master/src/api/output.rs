//! `GET /job/output/<id>/<stream>`: the bytes of a log, those there are or all that will be.

use wire::http::Response;
use wire::node::{Refusal, RefusalCode};
use wire::{BadInput, JobId, Log};

use super::answer::Answer;
use super::asked::Asked;
use super::refused::Refused;
use super::{Api, LOGS, number};
use crate::followers::Follow;
use crate::gate;
use crate::job::Job;
use crate::output::{LogError, LogOf, Whence};

impl Api {
    pub(super) fn output(&self, asked: &Asked, id: JobId, log: &str) -> Result<Answer, Refused> {
        let Some(log) = LOGS.into_iter().find(|known| known.as_str() == log) else {
            let message = format!("there is no log {log:?}; there are stdout, stderr and monitor");
            return Err(Refusal::new(RefusalCode::NotFound, message).into());
        };
        let offset = number(asked, "offset")?.unwrap_or(0);
        let job = self.find(id)?.job;
        match asked.query.get("follow") {
            None | Some("" | "0") => {}
            Some("1") => return self.follow(asked, &job, log, offset),
            Some(other) => return Err(BadInput::new("follow", format!("{other:?} is neither 0 nor 1")).into()),
        }
        let empty = || Response::bytes(200, "text/plain; charset=utf-8", Vec::new()).with_header("X-Berth-Size", "0");
        let Some((node, task)) = job.placed.and_then(|placed| Some((placed.node, placed.task?))) else {
            return Ok(empty().into());
        };
        match self.shared.logs.open(LogOf { node, task, log }, offset) {
            Ok(stream) => Ok(Answer::Log(stream)),
            Err(LogError::Missing) if !job.status.is_final() => Ok(empty().into()),
            Err(LogError::Missing) => Err(no_log(id, log)),
            Err(error) => Err(Refusal::new(RefusalCode::Busy, error.to_string()).into()),
        }
    }

    /// The head of an answer that the followers' room goes on with: no worker waits for a log to grow.
    fn follow(&self, asked: &Asked, job: &Job, log: Log, offset: u64) -> Result<Answer, Refused> {
        let attempt = asked.query.get("attempt").filter(|text| !text.is_empty()).map(str::parse).transpose()?;
        if attempt.is_some_and(|attempt| attempt != job.attempt) {
            return Err(BadInput::new("attempt", format!("job {} is at attempt {}", job.id, job.attempt)).into());
        }
        if let Some(written) = self.written(job, log, offset)?
            && offset > written
        {
            let message = format!("{offset} is beyond the {written} bytes written so far");
            return Err(BadInput::new("offset", message).into());
        }
        let head = Response::bytes(200, "text/plain; charset=utf-8", Vec::new());
        let head = head.with_header("X-Berth-Offset", offset.to_string());
        Ok(head.with_header(gate::STANDS, Follow { job: job.id, log, offset, attempt }.to_string()).into())
    }

    /// How long the log is by now, where that decides anything. `None`: it does not, or nobody can say. A follower waits
    /// for what cannot be read now.
    fn written(&self, job: &Job, log: Log, offset: u64) -> Result<Option<u64>, Refused> {
        let Some((node, task)) = job.placed.and_then(|placed| Some((placed.node, placed.task?))) else {
            return Ok(Some(0));
        };
        if offset == 0 && !job.status.is_final() {
            return Ok(None);
        }
        let size = |whence| self.shared.logs.size(LogOf { node, task, log }, whence);
        match size(Whence::Anywhere) {
            // A share may show less than a follower has been sent already.
            Ok(written) if offset > written => Ok(Some(size(Whence::Node).unwrap_or(written))),
            Ok(written) => Ok(Some(written)),
            Err(LogError::Missing) if job.status.is_final() => Err(no_log(job.id, log)),
            Err(LogError::Missing) => Ok(Some(0)),
            Err(_) => Ok(None),
        }
    }
}

fn no_log(job: JobId, log: Log) -> Refused {
    Refusal::new(RefusalCode::NotFound, format!("job {job} has no {log} log")).into()
}
