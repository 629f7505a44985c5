//! Answers for a shell: aligned columns, `key   value` lines, logs. Pure.
//!
//! What jobs are called and what they write goes to somebody's terminal here, so control characters are shown as in
//! `cat -v` and never obeyed. A job's number always stands first in its line.

use std::fmt::Write as _;

use wire::Log;
use wire::node::Refusal;

use crate::job::{Job, Node, NodeState};
use crate::jobs::Holds;
use crate::output::{LogError, Piece};

/// The longest cell of a table, in characters; what is longer is cut, with a sign.
const MAX_CELL: usize = 40;

/// `bad_input: resource.mem: ...` as a sentence.
pub(super) fn refusal(refusal: &Refusal) -> String {
    match &refusal.field {
        Some(field) => format!("{}: {}\n", one_line(field), one_line(&refusal.message)),
        None => format!("{}\n", one_line(&refusal.message)),
    }
}

/// The job table.
pub(super) fn job_table(jobs: &[Job]) -> String {
    let head = ["JOB", "STATUS", "NODE", "TASK", "TRY", "CPU", "MEM", "IMAGE", "NAME", "REASON", "COMMAND"];
    let rows = jobs.iter().map(|job| {
        let node = job.placed.map(|placed| placed.node.to_string());
        let task = job.placed.and_then(|placed| placed.task).map(|task| task.to_string());
        [
            job.id.to_string(),
            job.status.to_string(),
            node.unwrap_or_else(dash),
            task.unwrap_or_else(dash),
            if job.attempt.0 > 0 { job.attempt.to_string() } else { dash() },
            job.spec.resource.cpu.to_string(),
            job.spec.resource.mem.to_string(),
            job.spec.image_id.to_string(),
            job.spec.name.clone(),
            job.reason().unwrap_or_else(dash),
            job.spec.command_line.clone(),
        ]
    });
    columns(&head, rows)
}

/// The node table, and below it what there is to say of a node in whole sentences.
pub(super) fn node_table(nodes: &[Node]) -> String {
    let head = ["NODE", "STATE", "ADDRESS", "CPU", "OF", "MEM", "OF", "TASKS", "LEAKS", "IMAGES", "WHY"];
    let rows = nodes.iter().map(|node| {
        let said = node.resource.as_ref();
        let say = |what: Option<String>| what.unwrap_or_else(dash);
        let images = said.map(|said| said.images.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        let why = match &node.state {
            NodeState::Lost { why, .. } => Some(why.clone()),
            NodeState::Unknown | NodeState::Ready => said.and_then(|said| said.closed.clone()),
        };
        [
            node.id.to_string(),
            node.state.as_str().to_owned(),
            node.addr.clone(),
            say(said.map(|said| said.cpu.to_string())),
            say(said.map(|said| said.cpu_total.to_string())),
            say(said.map(|said| said.mem.to_string())),
            say(said.map(|said| said.mem_total.to_string())),
            say(said.map(|said| said.tasks.to_string())),
            say(said.map(|said| said.leaks.to_string())),
            say(images.filter(|images| !images.is_empty())),
            say(why),
        ]
    });
    let mut table = columns(&head, rows);
    for node in nodes {
        for note in &node.notes {
            let _ = writeln!(table, "node {} {}", node.id, one_line(note));
        }
    }
    table
}

/// Everything of one job, a line a field, up to an empty line.
pub(super) fn job(job: &Job, kill_asked: bool, holds: &Holds) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(out, "{}", format!("{key:<16} {}", one_line(value)).trim_end());
    };
    let time = |time: Option<jiff::Timestamp>| time.map_or_else(dash, |time| time.to_string());
    line("jobId", &job.id.to_string());
    line("name", &job.spec.name);
    line("status", job.status.as_str());
    if let Some(reason) = job.reason() {
        line("reason", &reason);
    }
    if kill_asked && !job.status.is_final() {
        line("killAsked", "true");
    }
    if let Some(waits) = &holds.waits {
        line("why", waits);
    }
    if let Some(stuck) = &holds.stuck {
        line("stuck", stuck);
    }
    if let Some(code) = job.exit_code {
        line("exitCode", &code.to_string());
    }
    line("nodeId", &job.placed.map_or_else(dash, |placed| placed.node.to_string()));
    line("taskId", &job.placed.and_then(|placed| placed.task).map_or_else(dash, |task| task.to_string()));
    line("attempt", &job.attempt.to_string());
    line("onNodeLoss", job.spec.on_node_loss.as_str());
    if job.lost_attempts > 0 {
        line("lostAttempts", &job.lost_attempts.to_string());
    }
    line("cpu", &job.spec.resource.cpu.to_string());
    line("mem", &format!("{} MiB", job.spec.resource.mem));
    line("imageId", job.spec.image_id.as_str());
    line("packagePath", &job.spec.package_path);
    line("timeout", &format!("{} ms", job.spec.timeout));
    line("submittedAt", &job.submitted_at.to_string());
    line("startedAt", &time(job.started_at));
    line("endedAt", &time(job.ended_at));
    if let Some(cpu_ms) = job.cpu_ms {
        line("cpuTime", &format!("{cpu_ms} ms"));
    }
    if let Some(peak) = job.memory_peak_bytes {
        line("memoryPeak", &format!("{} KiB", peak >> 10));
    }
    line("commandLine", &job.spec.command_line);
    out
}

/// The end of a log, below its name.
pub(super) fn log(log: Log, tail: &Result<Piece, LogError>) -> String {
    let name = log.as_str();
    match tail {
        Err(error) => format!("\n==> {name}: {error}\n"),
        Ok(piece) if piece.total > piece.bytes.len() as u64 => {
            let (shown, total) = (piece.bytes.len(), piece.total);
            format!("\n==> {name}, the last {shown} of {total} bytes\n{}", lines(&piece.bytes))
        }
        Ok(piece) => format!("\n==> {name}\n{}", lines(&piece.bytes)),
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// Cells below each other. The last column is as wide as it likes; no line ends in blanks.
fn columns<const N: usize>(head: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let head = head.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(head).chain(rows).map(|row| row.map(|cell| cell_of(&cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let line = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
            let _ = write!(line, "{cell:<width$}  ");
            line
        });
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn cell_of(text: &str) -> String {
    let line = one_line(text);
    if line.chars().count() <= MAX_CELL {
        return line;
    }
    line.chars().take(MAX_CELL - 1).chain(std::iter::once('…')).collect()
}

/// On one line, with nothing a terminal would obey.
fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        push_visible(&mut out, char);
        out
    })
}

/// As lines, ended by one. What is not UTF-8 becomes U+FFFD.
fn lines(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 1);
    for char in String::from_utf8_lossy(bytes).chars() {
        if matches!(char, '\n' | '\t') { out.push(char) } else { push_visible(&mut out, char) }
    }
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// Control characters as in `cat -v`; those that turn, join or hide others by their number.
fn push_visible(out: &mut String, char: char) {
    match char {
        '\u{7f}' => out.push_str("^?"),
        '\0'..='\u{1f}' => {
            out.push('^');
            out.push(char::from(char as u8 + 64));
        }
        '\u{80}'..='\u{9f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}' => {
            let _ = write!(out, "<U+{:04X}>", u32::from(char));
        }
        _ => out.push(char),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::spec;
    use wire::{JobId, JobSpec};

    fn named(id: u64, name: &str) -> Job {
        let spec = JobSpec { name: name.into(), ..spec() };
        Job::submitted(JobId(id), spec, jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn columns_are_aligned_and_a_jobs_number_comes_first() {
        let table = job_table(&[named(1000, "long name"), named(7, "a")]);
        expect_test::expect![[r#"
            JOB   STATUS      NODE  TASK  TRY  CPU  MEM  IMAGE    NAME       REASON  COMMAND
            1000  Pending[ ]  -     -     -    x1   64   busybox  long name  -       sleep 5
            7     Pending[ ]  -     -     -    x1   64   busybox  a          -       sleep 5
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn nothing_a_job_is_called_reaches_the_terminal_as_a_command() {
        let hostile = "a\nb\x1b[31mred\u{9b}x\u{202e}evil\x7f";
        let table = job_table(&[named(1, hostile)]);
        assert!(table.contains("a^Jb^[[31mred<U+009B>x<U+202E>evil^?"), "{table}");
        assert_eq!(table.lines().count(), 2);
        let holds = Holds { waits: Some("waits\nlong".into()), stuck: Some("stuck\nfast".into()) };
        let text = job(&named(1, hostile), false, &holds);
        assert!(text.contains("stuck            stuck^Jfast\n"), "{text}");
        assert!(text.contains("why              waits^Jlong\n"), "{text}");
        let piece = Piece { bytes: b"a\0b\xffc\x1bd".to_vec(), total: 7 };
        assert_eq!(log(Log::Stdout, &Ok(piece)), "\n==> stdout\na^@b\u{fffd}c^[d\n");
    }

    #[test]
    fn a_cut_log_says_how_much_of_it_is_shown() {
        let piece = Piece { bytes: b"end\n".to_vec(), total: 100 };
        assert_eq!(log(Log::Stderr, &Ok(piece)), "\n==> stderr, the last 4 of 100 bytes\nend\n");
        assert_eq!(log(Log::Stderr, &Err(LogError::Missing)), "\n==> stderr: there is no such log\n");
    }

    #[test]
    fn a_long_cell_is_cut_with_a_sign() {
        let table = job_table(&[named(1, &"ä".repeat(100))]);
        assert!(table.contains(&format!("{}…  ", "ä".repeat(39))), "{table}");
    }
}
