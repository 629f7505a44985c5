//! `scripts/berth`, left running, its output in files.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cluster::Cluster;
use crate::daemon::binary;
use crate::wait::until;

/// One call of it.
#[derive(Debug)]
pub struct Client {
    child: Child,
    words: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Client {
    /// `berth WORD...`, which knows of these masters.
    pub fn start(cluster: &Cluster, masters: &[SocketAddr], words: &[&str]) -> Client {
        let script = binary("berth-master").ancestors().nth(3).expect("a workspace").join("scripts/berth");
        let masters: Vec<String> = masters.iter().map(|addr| format!("http://{addr}")).collect();
        let (name, folder) = (words.join(" "), cluster.sandbox().dir());
        let scratch = beside_its_output(folder, &name, "tmp");
        fs::create_dir_all(&scratch).expect("make a folder");
        let mut command = Command::new(script);
        command.args(words).env("BERTH_MASTER", masters.join(" ")).env("TMPDIR", scratch);
        Client::spawn(command, &name, folder)
    }

    /// A command that becomes `berth WORDS`, wherever it runs. Its output goes into that folder.
    pub fn spawn(mut command: Command, words: &str, folder: &Path) -> Client {
        let [stdout, stderr] = ["out", "err"].map(|kind| beside_its_output(folder, words, kind));
        command.stdin(Stdio::null());
        command.stdout(File::create(&stdout).expect("create")).stderr(File::create(&stderr).expect("create"));
        let child = command.spawn().expect("run scripts/berth");
        Client { child, words: words.to_owned(), stdout, stderr }
    }

    /// What it has written so far, broken UTF-8 as U+FFFD.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// The same, byte by byte.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.stdout).expect("its output")
    }

    /// What it has complained of so far.
    pub fn complained(&self) -> String {
        fs::read_to_string(&self.stderr).expect("its errors")
    }

    /// Waits until it has written that.
    pub fn wait_for(&self, text: &str) {
        until(format!("berth {} to say {text:?}", self.words), || {
            let said = self.said();
            if said.contains(text) { Ok(()) } else { Err((said, self.complained())) }
        });
    }

    /// Waits until a master has answered it, if it is one of [`Client::start`]: it keeps the last answer in a folder of
    /// its own.
    pub fn wait_for_an_answer(&self) {
        let scratch = self.stdout.with_extension("tmp");
        until(format!("berth {} to be answered", self.words), || {
            let folders = fs::read_dir(&scratch).into_iter().flatten().flatten();
            let mut answers = folders.filter_map(|folder| fs::metadata(folder.path().join("answer")).ok());
            if answers.any(|answer| answer.len() > 0) { Ok(()) } else { Err(self.complained()) }
        });
    }

    /// Waits for its end; `None`: by a signal.
    pub fn exit_code(&mut self) -> Option<i32> {
        until(format!("berth {} to end", self.words), || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            other => Err((format!("{other:?}"), self.complained())),
        })
    }
}

fn beside_its_output(folder: &Path, words: &str, kind: &str) -> PathBuf {
    folder.join(format!("berth_{}.{kind}", words.replace(' ', "_")))
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended already, but in a failed test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
