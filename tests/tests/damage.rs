//! Files that are not as they were left: a daemon refuses with a sentence that names the file, or goes on from the last
//! whole record and says so. It is never silently empty.

use std::fs;
use std::path::PathBuf;

use tests::cluster::Plan;
use tests::job::job;
use tests::node::Node;

/// The daemon refused, with this in its sentence and no panic.
#[track_caller]
fn assert_refused(tried: Result<(), String>, words: &[&str]) {
    let said = tried.expect_err("it started");
    assert!(words.iter().all(|word| said.contains(word)) && !said.contains("panicked"), "{words:?} in {said}");
}

/// A journal with one task in it that has ended, and no supervisor.
fn journal_left_behind(node: &mut Node) -> (u64, PathBuf) {
    let task = node.create(&job("true"));
    node.wait_final(task);
    node.kill_supervisor();
    (task, node.state_dir().join("journal"))
}

#[test]
fn a_damaged_journal_is_refused_by_its_line_and_a_torn_end_is_cut_off() {
    Node::alone(|node| {
        let (task, path) = journal_left_behind(node);
        let whole = fs::read(&path).expect("the journal");
        let middle = whole.iter().position(|byte| *byte == b'\n').expect("a line") + 5;
        let mut garbage = whole.clone();
        garbage[middle..middle + 8].fill(0);
        let newer = [&whole[..], b"{\"record\":\"ofANewerVersion\",\"essential\":true}\n"].concat();
        for bytes in [garbage, b"garbage".to_vec(), newer] {
            fs::write(&path, &bytes).expect("damage the journal");
            assert_refused(node.daemon().try_restart(), &[path.to_str().expect("UTF-8"), "cannot read line", "hint:"]);
            assert_eq!(fs::read(&path).expect("the journal"), bytes, "a refusal has changed the file");
        }
        fs::write(&path, [&whole[..], b"{\"record\":\"acc"].concat()).expect("tear the journal");
        node.restart();
        assert!(node.log().contains("torn line of 14 bytes"), "{}", node.log());
        assert_eq!(node.info(task)["status"], "Finished");
    });
}

#[test]
fn what_a_newer_version_wrote_into_the_journal_is_skipped_and_counted_and_its_tasks_are_known() {
    Node::alone(|node| {
        let (task, path) = journal_left_behind(node);
        let newer = format!("{{\"record\":\"ofANewerVersion\",\"task\":{task},\"x\":[1]}}\n").repeat(2);
        let whole = fs::read_to_string(&path).expect("the journal");
        fs::write(&path, [whole, newer].concat()).expect("add to the journal");
        node.restart();
        for words in ["they are skipped: 2 \"ofANewerVersion\"", "is rewritten without the 2 lines it skipped"] {
            assert!(node.log().contains(words), "{words:?} in {}", node.log());
        }
        assert_eq!(node.info(task)["status"], "Finished");
        node.kill_supervisor();
        node.restart();
        assert_eq!(node.log().matches("ofANewerVersion").count(), 1, "{}", node.log());
    });
}

#[test]
fn an_emptied_journal_makes_another_node_and_says_so() {
    Node::alone(|node| {
        let instance = node.get("/resource")["instance"].clone();
        node.create(&job("exec sleep 85001"));
        node.footprint().process("sleep 85001");
        node.kill_supervisor();
        fs::write(node.state_dir().join("journal"), "").expect("empty the journal");
        node.restart();
        assert_ne!(node.get("/resource")["instance"], instance);
        assert!(node.log().contains("is empty, though this state dir was used before"), "{}", node.log());
    });
}

#[test]
fn a_damaged_instance_is_refused_and_a_missing_one_is_said() {
    Node::alone(|node| {
        node.kill_supervisor();
        let path = node.state_dir().join("instance");
        fs::write(&path, "not 32 hex digits").expect("damage the instance");
        assert_refused(node.daemon().try_restart(), &[path.to_str().expect("UTF-8"), "hint:"]);
        fs::remove_file(&path).expect("remove the instance");
        node.restart();
        assert!(node.log().contains("the file instance is missing"), "{}", node.log());
    });
}

#[test]
fn a_damaged_database_is_refused_with_its_name_and_what_to_do() {
    Plan::without_nodes().run(|cluster| {
        for _ in 0..50 {
            cluster.master.submit(&job("true"));
        }
        // The next start takes the log in, so that all of it is in the one file.
        cluster.master.daemon().stop();
        cluster.master.daemon().restart();
        cluster.master.daemon().kill();
        let path = cluster.sandbox().folder("master").join("master.db");
        let whole = fs::read(&path).expect("the database");
        let mut holed = whole.clone();
        for page in (8192..whole.len()).step_by(4096) {
            holed[page..page + 512].fill(0xa5);
        }
        let name = path.to_str().expect("UTF-8").to_owned();
        let damages = [Vec::new(), b"garbage".repeat(2000), whole[..whole.len() / 2].to_vec(), holed];
        for bytes in damages {
            fs::write(&path, &bytes).expect("damage the database");
            assert_refused(cluster.master.daemon().try_restart(), &[&name, "hint: put a backup"]);
        }
        let mut newer = whole.clone();
        // The user version: big-endian at offset 60 (sqlite.org/fileformat2.html).
        newer[63] = 99;
        fs::write(&path, newer).expect("age the database");
        assert_refused(cluster.master.daemon().try_restart(), &["schema is version 99", "hint:"]);
        fs::write(&path, whole).expect("put it back");
        cluster.master.daemon().restart();
        assert_eq!(cluster.master.job(50).status, "Pending[ ]");
    });
}
