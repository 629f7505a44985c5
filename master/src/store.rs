//! The database: its schema, the owner's writes, everybody's reads.
//!
//! It is opened by SQLite's `unix-excl` VFS: the file is locked for this process, and the index of the log is in its memory
//! and not in a mapped file, so that all of it works on a share as well (sqlite.org/vfs.html, sqlite.org/wal.html).
//!
//! [`Store`] is the one connection that writes; the owner of the jobs has it and nobody else. A [`Reader`]
//! only reads, from any thread, and never waits for the writer (WAL). Nothing here decides anything: a job
//! is written as it is given. A durable commit has reached the disk when it returns (synchronous=FULL).

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Statement, params, params_from_iter};
use wire::fault::{Errno, Point};
use wire::{Attempt, BootId, EventNumber, InstanceId, JobId, JobSpec, NodeId, Resource, State, TaskId};

use crate::claim::{Claim, ClaimError};
use crate::fault;
use crate::job::{Job, Lease, Placed};

/// The database file's name in the state dir.
pub const FILE: &str = "master.db";
/// How SQLite locks and maps it.
const VFS: &std::ffi::CStr = c"unix-excl";
/// The schema this version reads and writes (`PRAGMA user_version`).
const SCHEMA_VERSION: i64 = 3;
/// How a database file begins (sqlite.org/fileformat2.html).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The most jobs one page may list.
pub const MAX_PAGE: u32 = 1000;
/// A page ends early when the commands on it are longer than this together.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// `AUTOINCREMENT`, so that a number is never given twice. The counts are kept by triggers, so that a page
/// can show them without counting.
const SCHEMA: &str = "
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        cpu TEXT NOT NULL,
        mem INTEGER NOT NULL,
        command_line TEXT NOT NULL,
        package_path TEXT NOT NULL,
        image_id TEXT NOT NULL,
        timeout_ms INTEGER NOT NULL,
        on_node_loss TEXT NOT NULL DEFAULT 'wait',
        status TEXT NOT NULL,
        kill_asked INTEGER NOT NULL DEFAULT 0,
        cause TEXT,
        exit_code INTEGER,
        node INTEGER,
        task INTEGER,
        attempt INTEGER NOT NULL DEFAULT 0,
        lease_ms INTEGER,
        lease_abandoned INTEGER NOT NULL DEFAULT 0,
        lost_attempts INTEGER NOT NULL DEFAULT 0,
        submitted_ns INTEGER NOT NULL,
        started_ns INTEGER,
        ended_ns INTEGER,
        cpu_ms INTEGER,
        memory_peak_bytes INTEGER
    ) STRICT;
    CREATE INDEX jobs_by_status ON jobs (status, id);
    CREATE TABLE state_counts (status TEXT PRIMARY KEY, jobs INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TRIGGER job_counted AFTER INSERT ON jobs BEGIN
        UPDATE state_counts SET jobs = jobs + 1 WHERE status = NEW.status;
    END;
    CREATE TRIGGER job_recounted AFTER UPDATE OF status ON jobs WHEN OLD.status <> NEW.status BEGIN
        UPDATE state_counts SET jobs = jobs - 1 WHERE status = OLD.status;
        UPDATE state_counts SET jobs = jobs + 1 WHERE status = NEW.status;
    END;
    CREATE TABLE nodes (
        id INTEGER PRIMARY KEY,
        instance TEXT NOT NULL,
        boot TEXT,
        acknowledged INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE master (instance TEXT NOT NULL) STRICT;
    INSERT INTO master (instance) VALUES (lower(hex(randomblob(16))));
";

/// From the schema before the second: what becomes of a job whose node is lost.
const TO_SECOND: &str = "
    ALTER TABLE jobs ADD COLUMN on_node_loss TEXT NOT NULL DEFAULT 'wait';
    ALTER TABLE jobs ADD COLUMN lease_ms INTEGER;
    ALTER TABLE jobs ADD COLUMN lease_abandoned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN lost_attempts INTEGER NOT NULL DEFAULT 0;
";

/// To the third: in which boot of its machine a node was last asked for all it has.
const TO_THIRD: &str = "ALTER TABLE nodes ADD COLUMN boot TEXT;";

const JOB_COLUMNS: &str = "id, name, cpu, mem, command_line, package_path, image_id, timeout_ms, status, kill_asked, \
     cause, exit_code, node, task, attempt, submitted_ns, started_ns, ended_ns, cpu_ms, memory_peak_bytes, \
     on_node_loss, lease_ms, lease_abandoned, lost_attempts";

/// Why the database could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("cannot {doing} in the database: {cause}")]
    Sqlite {
        /// What was being done.
        doing: &'static str,
        /// What SQLite said.
        cause: rusqlite::Error,
    },
    /// It could not be read, or a new one not be made.
    #[error("cannot open or make the database {}: {cause}", .path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The file is not what we left.
    #[error(
        "cannot use the database {}: {what}; hint: put a backup of the whole state dir in its place (no number is given \
         out twice, and the nodes still know what ran), or move the state dir away to start without memory",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another life of this state dir has begun, or nobody can tell.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The file was written by another version.
    #[error(
        "cannot use the database: its schema is version {found}, this berth-master knows {SCHEMA_VERSION}; \
         hint: start the version that wrote it, or give another --state-dir"
    )]
    OtherVersion {
        /// The version in the file.
        found: i64,
    },
}

impl StoreError {
    /// Whether the next try to open it may get further: it could not be read or written, and nothing is wrong with it.
    pub fn may_pass(&self) -> bool {
        match self {
            StoreError::Make { .. } | StoreError::Claim(_) => true,
            StoreError::Sqlite { cause, .. } => {
                matches!(cause.sqlite_error_code(), Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen))
            }
            StoreError::Damaged { .. } | StoreError::OtherVersion { .. } => false,
        }
    }

    /// Whether what is on the disk is in doubt: after a failed write or sync the kernel may have dropped the
    /// pages, so trying again could report a success that never happened.
    pub fn is_fatal(&self) -> bool {
        match self {
            StoreError::Sqlite { cause, .. } => matches!(
                cause.sqlite_error_code(),
                Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ),
            StoreError::OtherVersion { .. }
            | StoreError::Damaged { .. }
            | StoreError::Make { .. }
            | StoreError::Claim(_) => true,
        }
    }
}

/// A full disk is SQLITE_FULL; what else the kernel says is SQLITE_IOERR (sqlite.org/rescode.html).
fn as_sqlite_says_it(errno: Errno) -> rusqlite::Error {
    let code = if errno == Errno::ENOSPC { rusqlite::ffi::SQLITE_FULL } else { rusqlite::ffi::SQLITE_IOERR };
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(errno.name().to_owned()))
}

/// Says what was being done when SQLite said no.
fn doing<T>(what: &'static str, result: rusqlite::Result<T>) -> Result<T, StoreError> {
    result.map_err(|cause| StoreError::Sqlite { doing: what, cause })
}

/// A job that has not ended, as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The job.
    pub job: Job,
    /// Whether somebody asked for its end.
    pub kill_asked: bool,
}

/// The same, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct KeptRef<'a> {
    /// The job.
    pub job: &'a Job,
    /// Whether somebody asked for its end.
    pub kill_asked: bool,
}

/// All that one turn has to write.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    /// Jobs nobody has written yet.
    pub added: Vec<KeptRef<'a>>,
    /// Jobs of which something changed.
    pub changed: Vec<KeptRef<'a>>,
    /// Nodes of which more was heard.
    pub nodes: Vec<KeptNode>,
    /// Whether it must survive the machine, not only this process.
    pub durable: bool,
    /// Numbers before this one are never given out again.
    pub next_id: Option<JobId>,
}

impl Changes<'_> {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.nodes.is_empty() && self.next_id.is_none()
    }
}

/// What is kept of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptNode {
    /// Its number.
    pub id: NodeId,
    /// Whose state dir the tasks given to it live in.
    pub instance: InstanceId,
    /// In which boot of its machine all of its tasks were last asked for; `None`: an older version did.
    pub boot: Option<BootId>,
    /// The last of its events that is in the database.
    pub acknowledged: EventNumber,
}

/// The connection that writes.
pub struct Store {
    db: Connection,
    /// What is written is told only as long as it holds.
    claim: Option<Claim>,
}

impl Store {
    /// Opens the database, or makes it. One that is damaged is refused, never taken for an empty one: since it is
    /// made under another name, a file of its name was whole once.
    pub fn open(path: &Path, claim: Claim) -> Result<Store, StoreError> {
        Store::open_unclaimed(path).map(|store| Store { claim: Some(claim), ..store })
    }

    fn open_unclaimed(path: &Path) -> Result<Store, StoreError> {
        let path = path.to_owned();
        if !path.exists() {
            make_new(&path)?;
        }
        check_head(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags_and_vfs(&path, flags, VFS).map(|db| Store { db, claim: None });
        let checked = doing("open a file", opened).and_then(|store| {
            // What is refused is left as it is: the log beside it may be all that is whole.
            let leave_the_log = |yes| store.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, yes).map(drop);
            doing("set up", leave_the_log(true))?;
            doing("set up", tune(&store.db, "PRAGMA journal_mode = WAL; PRAGMA cache_size = -1024;"))?;
            store.check(&path)?;
            doing("set up", leave_the_log(false))?;
            doing("take in the log", store.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))?;
            Ok(store)
        });
        checked.map_err(|error| match error {
            error @ StoreError::Sqlite { .. } if error.is_fatal() => {
                StoreError::Damaged { path, what: error.to_string() }
            }
            error => error,
        })
    }

    fn check(&self, path: &Path) -> Result<(), StoreError> {
        let damaged = |what: String| Err(StoreError::Damaged { path: path.to_owned(), what });
        let version = self.db.query_row("PRAGMA user_version", [], |row| row.get(0));
        match doing("read the schema's version", version)? {
            SCHEMA_VERSION => {}
            1 => self.bring_up_to_date(&[TO_SECOND, TO_THIRD])?,
            2 => self.bring_up_to_date(&[TO_THIRD])?,
            0 => return damaged("it is empty".to_owned()),
            found => return Err(StoreError::OtherVersion { found }),
        }
        let said: String = doing("look for damage", self.db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
        if said == "ok" { Ok(()) } else { damaged(said.replace('\n', " ")) }
    }

    /// All of these steps, or nothing.
    fn bring_up_to_date(&self, steps: &[&str]) -> Result<(), StoreError> {
        let steps = steps.concat();
        let sql = format!("BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
        doing("bring the tables up to date", self.db.execute_batch(&sql))
    }

    /// This master's name, born with the database.
    pub fn instance(&self) -> Result<InstanceId, StoreError> {
        let name = self.db.query_row("SELECT instance FROM master", [], |row| row.get(0));
        doing("read the master's name", name).map(InstanceId)
    }

    /// The number of the next job: one more than any job ever had.
    pub fn next_id(&self) -> Result<JobId, StoreError> {
        let last = self.db.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'", [], |row| row.get(0));
        Ok(JobId(from_i64(doing("read the last job's number", last.optional())?.unwrap_or(0)) + 1))
    }

    /// Writes all of a turn, or nothing. What comes back without an error may be told: nobody has claimed the state dir
    /// between the commit and that.
    pub fn write(&self, changes: &Changes<'_>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.check_claim()?;
        self.write_turn(changes)?;
        self.check_claim()
    }

    fn check_claim(&self) -> Result<(), StoreError> {
        Ok(self.claim.as_ref().map_or(Ok(()), Claim::check)?)
    }

    fn write_turn(&self, changes: &Changes<'_>) -> Result<(), StoreError> {
        // Without FULL the log is written but not synced at a commit; a later synced commit takes it along.
        let level =
            if changes.durable { "PRAGMA synchronous = FULL; BEGIN" } else { "PRAGMA synchronous = NORMAL; BEGIN" };
        doing("begin a transaction", self.db.execute_batch(level))?;
        let written = self.write_all(changes).and_then(|()| self.commit());
        if written.is_err() && !self.db.is_autocommit() {
            // After some errors (a full disk, for one) SQLite has rolled back by itself.
            doing("roll back", self.db.execute_batch("ROLLBACK"))?;
        }
        written
    }

    fn commit(&self) -> Result<(), StoreError> {
        fault::moment(Point::CommitHalf);
        doing(
            "commit",
            fault::call(Point::Commit).map_err(as_sqlite_says_it).and_then(|()| self.db.execute_batch("COMMIT")),
        )
    }

    fn write_all(&self, changes: &Changes<'_>) -> Result<(), StoreError> {
        for kept in &changes.added {
            self.add(kept)?;
        }
        for kept in &changes.changed {
            self.save(kept)?;
        }
        for node in &changes.nodes {
            self.save_node(node)?;
        }
        changes.next_id.map_or(Ok(()), |next| self.skip_to(next))
    }

    /// The table is SQLite's own, has no row before the first insert, and may be written (sqlite.org/autoinc.html).
    fn skip_to(&self, next: JobId) -> Result<(), StoreError> {
        let last = to_i64(next.0.saturating_sub(1));
        let updated = self.db.execute("UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'jobs'", [last]);
        if doing("skip used numbers", updated)? == 0 {
            let inserted = self.db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', ?1)", [last]);
            doing("skip used numbers", inserted)?;
        }
        Ok(())
    }

    fn add(&self, kept: &KeptRef<'_>) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO jobs (id, name, cpu, mem, command_line, package_path, image_id, timeout_ms, submitted_ns,
             on_node_loss, status, kill_asked, cause, exit_code, node, task, attempt, started_ns, ended_ns, cpu_ms,
             memory_peak_bytes, lease_ms, lease_abandoned, lost_attempts)
             VALUES (?1, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12,
             ?13, ?14, ?15)";
        let spec = &kept.job.spec;
        let mut insert = doing("add a job", self.db.prepare_cached(sql))?;
        let mut bind = || {
            bind_what_changes(&mut insert, kept)?;
            insert.raw_bind_parameter(16, &spec.name)?;
            insert.raw_bind_parameter(17, spec.resource.cpu.to_string())?;
            insert.raw_bind_parameter(18, to_i64(spec.resource.mem))?;
            insert.raw_bind_parameter(19, &spec.command_line)?;
            insert.raw_bind_parameter(20, &spec.package_path)?;
            insert.raw_bind_parameter(21, spec.image_id.as_str())?;
            insert.raw_bind_parameter(22, to_i64(spec.timeout))?;
            insert.raw_bind_parameter(23, to_ns(kept.job.submitted_at))?;
            insert.raw_bind_parameter(24, spec.on_node_loss.as_str())?;
            insert.raw_execute()
        };
        doing("add a job", bind()).map(drop)
    }

    fn save(&self, kept: &KeptRef<'_>) -> Result<(), StoreError> {
        let sql = "UPDATE jobs SET status = ?2, kill_asked = ?3, cause = ?4, exit_code = ?5, node = ?6, task = ?7,
             attempt = ?8, started_ns = ?9, ended_ns = ?10, cpu_ms = ?11, memory_peak_bytes = ?12,
             lease_ms = ?13, lease_abandoned = ?14, lost_attempts = ?15 WHERE id = ?1";
        let mut update = doing("save a job", self.db.prepare_cached(sql))?;
        let mut bind = || {
            bind_what_changes(&mut update, kept)?;
            update.raw_execute()
        };
        doing("save a job", bind()).map(drop)
    }

    fn save_node(&self, node: &KeptNode) -> Result<(), StoreError> {
        let sql = "INSERT INTO nodes (id, instance, acknowledged, boot) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET instance = ?2, acknowledged = ?3, boot = ?4";
        let mut upsert = doing("save a node", self.db.prepare_cached(sql))?;
        let boot = node.boot.as_ref().map(|boot| &boot.0);
        let row = params![node.id.0, node.instance.0, to_i64(node.acknowledged.0), boot];
        doing("save a node", upsert.execute(row)).map(drop)
    }

    /// Every job that has not ended, oldest first.
    pub fn active(&self) -> Result<Vec<Kept>, StoreError> {
        let sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE status IN (?1, ?2, ?3) ORDER BY id");
        let states = [State::Pending, State::Assigned, State::Running].map(State::as_str);
        let rows = self.db.prepare(&sql).and_then(|mut select| select.query_map(states, to_kept)?.collect());
        doing("read the active jobs", rows)
    }

    /// Every node that was ever heard of.
    pub fn nodes(&self) -> Result<Vec<KeptNode>, StoreError> {
        let rows =
            self.db.prepare("SELECT id, instance, acknowledged, boot FROM nodes ORDER BY id").and_then(|mut select| {
                let node = |row: &Row<'_>| {
                    let (instance, boot) = (InstanceId(row.get(1)?), row.get::<_, Option<String>>(3)?.map(BootId));
                    let acknowledged = EventNumber(from_i64(row.get(2)?));
                    Ok(KeptNode { id: NodeId(row.get(0)?), instance, boot, acknowledged })
                };
                select.query_map([], node)?.collect()
            });
        doing("read the nodes", rows)
    }

    /// One job, ended or not.
    pub fn job(&self, id: JobId) -> Result<Option<Kept>, StoreError> {
        read_job(&self.db, id)
    }
}

#[cfg(test)]
impl Store {
    /// The one in that folder, whoever else may have it.
    pub fn open_in(dir: &Path) -> Result<Store, StoreError> {
        Store::open_unclaimed(&dir.join(FILE))
    }

    /// From now on no job can be read, or all can be again.
    pub fn forbid_reads(&self, forbidden: bool) {
        let (from, to) = if forbidden { ("jobs", "hidden") } else { ("hidden", "jobs") };
        self.db.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
    }

    /// From now on every write fails, or works again.
    pub fn forbid_writes(&self, forbidden: bool) {
        self.db.pragma_update(None, "query_only", forbidden).unwrap();
    }
}

/// Which jobs a page lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobQuery {
    /// Only those in this state.
    pub status: Option<State>,
    /// Only those with this text in their name or command line, or with this number.
    pub text: String,
    /// Only those older than this one.
    pub after: Option<JobId>,
    /// At most so many.
    pub limit: u32,
}

/// A page of the job table, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Where the next page begins: `after` of its query, if there is one.
    pub next: Option<JobId>,
}

/// How many jobs are in each state, in the order of [`State::ALL`].
pub type StateCounts = Vec<(State, u64)>;

/// A connection that only reads.
pub struct Reader {
    db: Connection,
}

impl Reader {
    /// Opens the database that a [`Store`] has made.
    pub fn open(path: &Path) -> Result<Reader, StoreError> {
        // A read-only file would be locked to read by this process, which would give up its lock to write (fcntl(2)).
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = doing("open a file to read", Connection::open_with_flags_and_vfs(path, flags, VFS))?;
        doing("set up", tune(&db, "PRAGMA query_only = 1; PRAGMA cache_size = -256;"))?;
        Ok(Reader { db })
    }

    /// One job, ended or not.
    pub fn job(&self, id: JobId) -> Result<Option<Kept>, StoreError> {
        read_job(&self.db, id)
    }

    /// A page of jobs. Its cost is that of the rows it looks at, not of the pages before it.
    pub fn page(&self, query: &JobQuery) -> Result<JobPage, StoreError> {
        let limit = query.limit.clamp(1, MAX_PAGE);
        let (sql, values) = page_sql(query, limit + 1);
        let read = || -> rusqlite::Result<JobPage> {
            let mut select = self.db.prepare_cached(&sql)?;
            let mut page = JobPage::default();
            let mut bytes = 0;
            for kept in select.query_map(params_from_iter(values), to_kept)? {
                let job = kept?.job;
                let full = page.jobs.len() == limit as usize || (bytes > MAX_PAGE_BYTES && !page.jobs.is_empty());
                if full {
                    page.next = page.jobs.last().map(|job: &Job| job.id);
                    break;
                }
                bytes += job.spec.command_line.len() + job.spec.package_path.len();
                page.jobs.push(job);
            }
            Ok(page)
        };
        doing("read a page of jobs", read())
    }

    /// How many jobs are in each state.
    pub fn counts(&self) -> Result<StateCounts, StoreError> {
        let count = |state: State| {
            let mut select = self.db.prepare_cached("SELECT jobs FROM state_counts WHERE status = ?1")?;
            let jobs = select.query_row([state.as_str()], |row| row.get(0)).optional()?;
            Ok((state, from_i64(jobs.unwrap_or(0))))
        };
        doing("count the jobs", State::ALL.into_iter().map(count).collect())
    }
}

/// The query of a page: by the primary key, or by (status, id), always from `after` downwards.
fn page_sql(query: &JobQuery, limit: u32) -> (String, Vec<rusqlite::types::Value>) {
    let mut sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id < ?1");
    let below = query.after.map_or(i64::MAX, |id| to_i64(id.0));
    let mut values: Vec<rusqlite::types::Value> = vec![below.into(), i64::from(limit).into()];
    if let Some(state) = query.status {
        values.push(state.as_str().to_owned().into());
        let _ = write!(sql, " AND status = ?{}", values.len());
    }
    if !query.text.is_empty() {
        values.push(format!("%{}%", escape_like(&query.text)).into());
        let like = values.len();
        let number = query.text.parse().map_or(-1, |id: JobId| to_i64(id.0));
        values.push(number.into());
        let id = values.len();
        let _ =
            write!(sql, " AND (name LIKE ?{like} ESCAPE '\\' OR command_line LIKE ?{like} ESCAPE '\\' OR id = ?{id})");
    }
    sql.push_str(" ORDER BY id DESC LIMIT ?2");
    (sql, values)
}

/// `%` and `_` are what the user typed, not patterns.
fn escape_like(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

fn tune(db: &Connection, pragmas: &str) -> rusqlite::Result<()> {
    db.busy_timeout(Duration::from_secs(5))?;
    db.execute_batch(pragmas)
}

/// SQLite takes an empty file for a new database, and throws away the log beside it.
fn check_head(path: &Path) -> Result<(), StoreError> {
    let mut head = [0; MAGIC.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    match read {
        Ok(()) if head == *MAGIC => Ok(()),
        Err(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => {
            Err(StoreError::Make { path: path.into(), cause })
        }
        Ok(()) | Err(_) => Err(StoreError::Damaged { path: path.into(), what: "it is not a database".to_owned() }),
    }
}

/// Makes an empty database, and only then gives it its name.
fn make_new(path: &Path) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = dir.join(format!("{name}.new"));
    if dir.join(format!("{name}-wal")).exists() {
        return Err(StoreError::Damaged { path: path.into(), what: "it is missing, and its log is there".to_owned() });
    }
    let made = |result: io::Result<()>| result.map_err(|cause| StoreError::Make { path: path.into(), cause });
    for left in [fresh.clone(), dir.join(format!("{name}.new-journal"))] {
        made(std::fs::remove_file(left).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }))?;
    }
    let db = doing("make a file", Connection::open_with_flags_and_vfs(&fresh, OpenFlags::default(), VFS))?;
    doing("make the tables", db.execute_batch(&first_schema()))?;
    doing("close the new file", db.close().map_err(|(_, cause)| cause))?;
    made(std::fs::rename(&fresh, path).and_then(|()| std::fs::File::open(dir)?.sync_all()))?;
    log::info!("made a new database in {}", dir.display());
    Ok(())
}

fn first_schema() -> String {
    let mut sql = format!("BEGIN IMMEDIATE; {SCHEMA}");
    for state in State::ALL {
        let _ = write!(sql, "INSERT INTO state_counts VALUES ('{state}', 0);");
    }
    let _ = write!(sql, "PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
    sql
}

fn read_job(db: &Connection, id: JobId) -> Result<Option<Kept>, StoreError> {
    let sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?1");
    let row = db.prepare_cached(&sql).and_then(|mut select| select.query_row([to_i64(id.0)], to_kept).optional());
    doing("read a job", row)
}

fn to_kept(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let resource = Resource { cpu: parsed(row, 2)?, mem: from_i64(row.get(3)?) };
    let spec = JobSpec {
        name: row.get(1)?,
        resource,
        command_line: row.get(4)?,
        package_path: row.get(5)?,
        image_id: parsed(row, 6)?,
        timeout: from_i64(row.get(7)?),
        // A choice of a newer version: this one can but wait.
        on_node_loss: row.get::<_, String>(20)?.parse().unwrap_or_default(),
    };
    let task = row.get::<_, Option<i64>>(13)?.map(|task| TaskId(from_i64(task)));
    let abandoned = row.get(22)?;
    let lease =
        row.get::<_, Option<i64>>(21)?.map(|ms| Lease { length: Duration::from_millis(from_i64(ms)), abandoned });
    let job = Job {
        id: JobId(from_i64(row.get(0)?)),
        spec,
        status: parsed(row, 8)?,
        // A reason that a newer version wrote stays a reason: `Reason::Unknown`.
        cause: row.get::<_, Option<String>>(10)?.and_then(|cause| serde_json::from_str(&cause).ok()),
        exit_code: row.get(11)?,
        placed: row.get::<_, Option<u32>>(12)?.map(|node| Placed { node: NodeId(node), task }),
        attempt: Attempt(row.get(14)?),
        lease,
        lost_attempts: row.get(23)?,
        submitted_at: from_ns(row.get(15)?),
        started_at: row.get::<_, Option<i64>>(16)?.map(from_ns),
        ended_at: row.get::<_, Option<i64>>(17)?.map(from_ns),
        cpu_ms: row.get::<_, Option<i64>>(18)?.map(from_i64),
        memory_peak_bytes: row.get::<_, Option<i64>>(19)?.map(from_i64),
    };
    Ok(Kept { job, kill_asked: row.get(9)? })
}

/// The parameters 1 to 15 of an insert and of an update.
fn bind_what_changes(statement: &mut Statement<'_>, kept: &KeptRef<'_>) -> rusqlite::Result<()> {
    let job = kept.job;
    statement.raw_bind_parameter(1, to_i64(job.id.0))?;
    statement.raw_bind_parameter(2, job.status.as_str())?;
    statement.raw_bind_parameter(3, kept.kill_asked)?;
    statement.raw_bind_parameter(4, job.cause.as_ref().and_then(|cause| serde_json::to_string(cause).ok()))?;
    statement.raw_bind_parameter(5, job.exit_code)?;
    statement.raw_bind_parameter(6, job.placed.map(|placed| placed.node.0))?;
    statement.raw_bind_parameter(7, job.placed.and_then(|placed| placed.task).map(|task| to_i64(task.0)))?;
    statement.raw_bind_parameter(8, job.attempt.0)?;
    statement.raw_bind_parameter(9, job.started_at.map(to_ns))?;
    statement.raw_bind_parameter(10, job.ended_at.map(to_ns))?;
    statement.raw_bind_parameter(11, job.cpu_ms.map(to_i64))?;
    statement.raw_bind_parameter(12, job.memory_peak_bytes.map(to_i64))?;
    statement.raw_bind_parameter(13, job.lease.map(|lease| to_ms(lease.length)))?;
    statement.raw_bind_parameter(14, job.is_abandoned())?;
    statement.raw_bind_parameter(15, job.lost_attempts)
}

/// Reads a column that one of our words prints.
fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|bad: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(bad))
    })
}

/// SQLite's integers are signed. Everything we count stays far below; what does not is kept as the largest.
fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_i64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn to_ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970: every time until 2262.
fn to_ns(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

fn from_ns(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::spec;
    use crate::state_dir::Scratch;
    use wire::{OnNodeLoss, Reason};

    fn opened() -> (Scratch, Store, Reader) {
        let dir = Scratch::new();
        let store = Store::open_in(dir.path()).unwrap();
        let reader = Reader::open(&dir.path().join(FILE)).unwrap();
        (dir, store, reader)
    }

    fn job(store: &Store, name: &str) -> Job {
        let spec = JobSpec { name: name.into(), on_node_loss: OnNodeLoss::Retry, ..spec() };
        Job::submitted(store.next_id().unwrap(), spec, Timestamp::UNIX_EPOCH)
    }

    fn add(store: &Store, name: &str) -> Job {
        let job = job(store, name);
        let added = vec![KeptRef { job: &job, kill_asked: false }];
        store.write(&Changes { added, durable: true, ..Changes::default() }).unwrap();
        job
    }

    fn save(store: &Store, job: &Job, kill_asked: bool) {
        let changed = vec![KeptRef { job, kill_asked }];
        store.write(&Changes { changed, ..Changes::default() }).unwrap();
    }

    fn names(page: &JobPage) -> Vec<&str> {
        page.jobs.iter().map(|job| job.spec.name.as_str()).collect()
    }

    fn query(text: &str) -> JobQuery {
        JobQuery { text: text.into(), limit: 10, ..JobQuery::default() }
    }

    #[test]
    fn a_job_comes_back_as_it_was_saved() {
        let (_dir, store, reader) = opened();
        let mut job = add(&store, "a");
        job.status = State::Failed;
        job.cause = Some(Reason::OutOfMemory { peak_mib: 64, limit_mib: 64 });
        job.exit_code = Some(137);
        job.placed = Some(Placed { node: NodeId(3), task: Some(TaskId(9)) });
        job.attempt = Attempt(2);
        job.lease = Some(Lease { length: Duration::from_secs(60), abandoned: true });
        job.lost_attempts = 1;
        job.started_at = Some("2026-11-22T09:00:00.123456789Z".parse().unwrap());
        job.ended_at = Some("2026-11-22T09:00:01Z".parse().unwrap());
        job.cpu_ms = Some(12);
        job.memory_peak_bytes = Some(64 << 20);
        save(&store, &job, true);
        assert_eq!(reader.job(job.id).unwrap().unwrap(), Kept { job, kill_asked: true });
    }

    #[test]
    fn a_jobs_number_is_never_given_twice_not_even_after_a_restart_or_a_deletion() {
        let (dir, store, _reader) = opened();
        let first = add(&store, "a").id;
        drop(store);
        let store = Store::open_in(dir.path()).unwrap();
        let second = add(&store, "b").id;
        assert_eq!((first, second), (JobId(1), JobId(2)));
        store.db.execute("DELETE FROM jobs", []).unwrap();
        assert_eq!(add(&store, "c").id, JobId(3));
    }

    #[test]
    fn numbers_that_were_skipped_are_never_given_out_before_the_first_job_and_after_it() {
        let (dir, store, _reader) = opened();
        let skip = |store: &Store, next| {
            store.write(&Changes { next_id: Some(JobId(next)), durable: true, ..Changes::default() }).unwrap();
        };
        skip(&store, 50);
        assert_eq!(add(&store, "a").id, JobId(50));
        skip(&store, 40);
        assert_eq!(add(&store, "b").id, JobId(51));
        skip(&store, 60);
        drop(store);
        assert_eq!(Store::open_in(dir.path()).unwrap().next_id().unwrap(), JobId(60));
    }

    #[test]
    fn the_masters_name_is_32_hex_digits_and_stays() {
        let (dir, store, _reader) = opened();
        let name = store.instance().unwrap();
        assert_eq!(name.0.len(), 32);
        assert!(name.0.bytes().all(|b| b.is_ascii_hexdigit()));
        drop(store);
        assert_eq!(Store::open_in(dir.path()).unwrap().instance().unwrap(), name);
    }

    #[test]
    fn a_database_of_a_newer_version_is_refused_and_untouched() {
        let (dir, store, _reader) = opened();
        store.db.execute_batch("PRAGMA user_version = 99").unwrap();
        drop(store);
        assert!(matches!(Store::open_in(dir.path()), Err(StoreError::OtherVersion { found: 99 })));
    }

    fn refusal(dir: &Scratch) -> String {
        Store::open_in(dir.path()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_damaged_database_is_refused_with_its_path_and_a_hint_and_never_taken_for_an_empty_one() {
        let (dir, store, reader) = opened();
        (0..200).for_each(|_| drop(add(&store, "a")));
        drop((store, reader));
        let file = dir.path().join(FILE);
        let whole = std::fs::read(&file).unwrap();
        let mut holed = whole.clone();
        for page in (8192..whole.len()).step_by(4096) {
            holed[page..page + 512].fill(0xa5);
        }
        let garbage: Vec<u8> = whole.iter().map(|byte| byte ^ 0x5a).collect();
        let damages =
            [("empty", vec![]), ("half", whole[..whole.len() / 2].to_vec()), ("holed", holed), ("garbage", garbage)];
        for (damage, bytes) in damages {
            std::fs::write(&file, bytes).unwrap();
            let said = refusal(&dir);
            assert!(said.contains(file.to_str().unwrap()) && said.contains("hint: put a backup"), "{damage}: {said}");
        }
        std::fs::remove_file(&file).unwrap();
        std::fs::write(dir.path().join(format!("{FILE}-wal")), "left behind").unwrap();
        assert!(refusal(&dir).contains("it is missing"), "{}", refusal(&dir));
        std::fs::remove_file(dir.path().join(format!("{FILE}-wal"))).unwrap();
        std::fs::write(dir.path().join(format!("{FILE}.new")), "half made").unwrap();
        assert_eq!(Store::open_in(dir.path()).unwrap().next_id().unwrap(), JobId(1));
    }

    #[test]
    fn a_database_of_an_older_version_is_brought_up_to_date_with_all_that_is_in_it() {
        let leases = ["on_node_loss", "lease_ms", "lease_abandoned", "lost_attempts"];
        is_brought_up_to_date(1, &[leases.as_slice(), &["boot"]].concat());
        is_brought_up_to_date(2, &["boot"]);
    }

    /// `added`: the columns that came after that version.
    fn is_brought_up_to_date(version: i64, added: &[&str]) {
        let dir = Scratch::new();
        let db = Connection::open(dir.path().join(FILE)).unwrap();
        let older: String = SCHEMA
            .split_inclusive('\n')
            .filter(|line| !added.iter().any(|name| line.trim_start().starts_with(&format!("{name} "))))
            .collect();
        db.execute_batch(&older).unwrap();
        db.execute_batch(&format!(
            "INSERT INTO state_counts VALUES ('Running', 0);
             INSERT INTO jobs (name, cpu, mem, command_line, package_path, image_id, timeout_ms, status, submitted_ns)
             VALUES ('old', 'x1', 64, 'true', '', 'busybox', 0, 'Running', 7);
             INSERT INTO nodes (id, instance, acknowledged) VALUES (3, 'a', 9); PRAGMA user_version = {version};"
        ))
        .unwrap();
        drop(db);
        for _ in 0..2 {
            let store = Store::open_in(dir.path()).unwrap();
            let job = store.job(JobId(1)).unwrap().unwrap().job;
            assert_eq!((job.spec.name.as_str(), job.spec.on_node_loss), ("old", OnNodeLoss::Wait));
            assert_eq!((job.lease, job.lost_attempts), (None, 0));
            let (instance, acknowledged) = (InstanceId("a".into()), EventNumber(9));
            assert_eq!(store.nodes().unwrap(), [KeptNode { id: NodeId(3), instance, boot: None, acknowledged }]);
        }
        let store = Store::open_in(dir.path()).unwrap();
        assert_eq!(add(&store, "new").id, JobId(2));
    }

    #[test]
    fn a_turn_is_written_whole_or_not_at_all() {
        let (_dir, store, reader) = opened();
        let first = add(&store, "a");
        let (second, twice) = (job(&store, "b"), first.clone());
        let added = [&second, &twice].map(|job| KeptRef { job, kill_asked: false }).to_vec();
        let error = store.write(&Changes { added, durable: true, ..Changes::default() }).unwrap_err();
        assert!(!error.is_fatal(), "{error}");
        assert_eq!(reader.job(second.id).unwrap(), None);
        assert_eq!(add(&store, "c").id, second.id, "nobody has heard of that number");
        assert_eq!(reader.job(second.id).unwrap().unwrap().job.spec.name, "c");
    }

    #[test]
    fn the_counts_follow_every_change_of_state() {
        let (_dir, store, reader) = opened();
        let (mut a, _b) = (add(&store, "a"), add(&store, "b"));
        a.status = State::Killed;
        save(&store, &a, true);
        save(&store, &a, true);
        let counts: Vec<_> = reader.counts().unwrap().into_iter().filter(|(_, jobs)| *jobs > 0).collect();
        assert_eq!(counts, [(State::Pending, 1), (State::Killed, 1)]);
    }

    #[test]
    fn only_jobs_that_have_not_ended_are_active() {
        let (_dir, store, _reader) = opened();
        for (index, status) in State::ALL.into_iter().enumerate() {
            let mut job = add(&store, &index.to_string());
            job.status = status;
            save(&store, &job, false);
        }
        let active: Vec<State> = store.active().unwrap().into_iter().map(|kept| kept.job.status).collect();
        assert_eq!(active, [State::Pending, State::Assigned, State::Running]);
    }

    #[test]
    fn pages_go_from_the_newest_down_and_each_says_where_the_next_begins() {
        let (_dir, store, reader) = opened();
        for name in ["a", "b", "c", "d", "e"] {
            add(&store, name);
        }
        let mut query = JobQuery { limit: 2, ..JobQuery::default() };
        let mut seen = Vec::new();
        loop {
            let page = reader.page(&query).unwrap();
            seen.push(names(&page).join(""));
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["ed", "cb", "a"]);
    }

    #[test]
    fn a_search_finds_names_commands_and_numbers_and_takes_wildcards_literally() {
        let (_dir, store, reader) = opened();
        for name in ["100% sure", "100 sure", "a_b", "axb", r"back\slash"] {
            add(&store, name);
        }
        assert_eq!(names(&reader.page(&query("100%")).unwrap()), ["100% sure"]);
        assert_eq!(names(&reader.page(&query("A_B")).unwrap()), ["a_b"]);
        assert_eq!(names(&reader.page(&query(r"k\s")).unwrap()), [r"back\slash"]);
        assert_eq!(names(&reader.page(&query("4")).unwrap()), ["axb"]);
        assert_eq!(reader.page(&query(&spec().command_line)).unwrap().jobs.len(), 5);
        assert_eq!(reader.page(&query("' OR 1=1 --")).unwrap().jobs.len(), 0);
    }

    #[test]
    fn no_page_is_found_by_walking_or_sorting_the_whole_table() {
        let (_dir, _store, reader) = opened();
        for (status, index) in [(None, "INTEGER PRIMARY KEY"), (Some(State::Running), "jobs_by_status")] {
            let (sql, values) = page_sql(&JobQuery { status, ..JobQuery::default() }, 50);
            let explain = format!("EXPLAIN QUERY PLAN {sql}");
            let plan: Vec<String> = reader
                .db
                .prepare(&explain)
                .and_then(|mut steps| steps.query_map(params_from_iter(values), |row| row.get(3))?.collect())
                .unwrap();
            let plan = plan.join("; ");
            assert!(plan.starts_with("SEARCH") && plan.contains(index), "{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
    }

    #[test]
    fn one_whose_place_is_taken_writes_nothing_more_and_what_it_wrote_meanwhile_is_not_told() {
        let dir = Scratch::new();
        let stake = || Claim::stake(dir.path(), "a test", std::time::SystemTime::now()).unwrap();
        let store = Store::open(&dir.path().join(FILE), stake()).unwrap();
        let first = add(&store, "a");
        stake();
        let late = job(&store, "b");
        let added = vec![KeptRef { job: &late, kill_asked: false }];
        let error = store.write(&Changes { added, durable: true, ..Changes::default() }).unwrap_err();
        assert!(error.is_fatal() && matches!(error, StoreError::Claim(ClaimError::Superseded { .. })), "{error}");
        assert_eq!(store.active().unwrap().iter().map(|kept| kept.job.id).collect::<Vec<_>>(), [first.id]);
    }
}
