//! What a job's packages bring into /workspace, and which paths are refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::job::job_with;
use tests::node::Node;

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().expect("a parent")).expect("make the folder");
    fs::write(file, text).expect("write the file");
}

fn with_packages(command: &str, packages: &[&Path]) -> Value {
    let list: Vec<String> = packages.iter().map(|package| package.display().to_string()).collect();
    job_with(command, &[("packagePath", json!(list.join(";")))])
}

#[test]
fn a_folders_content_and_a_file_appear_in_workspace() {
    Node::alone(|node| {
        let (folder, file) = (node.packages().join("data"), node.packages().join("model.bin"));
        write(&folder.join("a"), "A");
        write(&folder.join("deep/er/b"), "B");
        write(&file, "M");
        let seen = node.run(&with_packages("cat /workspace/a deep/er/b model.bin", &[&folder, &file]));
        assert_eq!(seen, "ABM");
    });
}

#[test]
fn a_package_that_is_one_file_appears_under_its_own_name() {
    Node::alone(|node| {
        let file = node.packages().join("run me.sh");
        write(&file, "echo ran");
        assert_eq!(node.run(&with_packages("sh './run me.sh'", &[&file])), "ran\n");
    });
}

#[test]
fn what_a_task_writes_does_not_change_the_package() {
    Node::alone(|node| {
        let (folder, file) = (node.packages().join("data"), node.packages().join("single"));
        write(&folder.join("a"), "A");
        write(&folder.join("gone"), "G");
        write(&file, "S");
        node.run(&with_packages("echo changed > a; rm gone; echo new > c; echo changed > single", &[&folder, &file]));
        let read = |path: &Path| fs::read_to_string(path).expect("the package's file");
        assert_eq!(
            (read(&folder.join("a")), read(&folder.join("gone")), read(&file)),
            ("A".into(), "G".into(), "S".into())
        );
        assert!(!folder.join("c").exists());
    });
}

#[test]
fn two_packages_merge_and_the_first_wins() {
    Node::alone(|node| {
        let (first, second) = (node.packages().join("first"), node.packages().join("second"));
        write(&first.join("both"), "first");
        write(&first.join("one"), "1");
        write(&second.join("both"), "second");
        write(&second.join("two"), "2");
        assert_eq!(node.run(&with_packages("cat both one two", &[&first, &second])), "first12");
        assert_eq!(node.run(&with_packages("cat both one two", &[&second, &first])), "second12");
    });
}

#[test]
fn a_relative_symlink_inside_a_package_works() {
    Node::alone(|node| {
        let folder = node.packages().join("data");
        write(&folder.join("real"), "R");
        symlink("real", folder.join("link")).expect("symlink");
        assert_eq!(node.run(&with_packages("cat link", &[&folder])), "R");
    });
}

/// A package a node must not bring in: refused by its name when asked for, or, where only a look at a
/// share that may hang could tell, when the task is launched.
#[track_caller]
fn is_never_brought_in(node: &Node, package: &str) {
    let answer = node.post("/task/create", &job_with("ls -A", &[("packagePath", json!(package))]));
    if answer["code"] == 1 {
        assert_eq!(answer["error"]["field"], "packagePath", "{package}: {answer:#}");
        return;
    }
    let task = answer["data"]["taskId"].as_u64().unwrap_or_else(|| panic!("neither taken nor refused: {answer:#}"));
    let ended = node.wait_final(task);
    let reason = ended["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("launch failed: ") && reason.contains(package), "{package}: {ended:#}");
    assert_eq!(node.stream(task, "task_stdout"), "", "{package}");
}

#[test]
fn a_package_outside_the_roots_is_refused() {
    Node::alone(|node| {
        let root = node.packages().display().to_string();
        symlink("/etc", node.packages().join("out")).expect("symlink");
        symlink("/etc/passwd", node.packages().join("file")).expect("symlink");
        symlink("..", node.packages().join("up")).expect("symlink");
        for package in ["/etc", "/etc/passwd", "relative/path"] {
            is_never_brought_in(node, package);
        }
        for package in ["/../node0", "/out", "/out/ssl", "/file", "/up/node0", "-evil", "/not-there"] {
            is_never_brought_in(node, &format!("{root}{package}"));
        }
    });
}

#[test]
fn a_symlink_in_a_package_cannot_show_the_hosts_files() {
    Node::alone(|node| {
        let folder = node.packages().join("data");
        write(&node.packages().join("secret"), "S");
        fs::create_dir_all(&folder).expect("make the folder");
        symlink(node.packages().join("secret"), folder.join("absolute")).expect("symlink");
        symlink("../secret", folder.join("relative")).expect("symlink");
        let seen = node.run(&with_packages("cat absolute relative 2>/dev/null; true", &[&folder]));
        assert_eq!(seen, "", "a file beside the package was shown");
    });
}

#[test]
fn a_device_or_fifo_as_a_package_is_refused() {
    Node::alone(|node| {
        let fifo = node.packages().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("mkfifo");
        is_never_brought_in(node, fifo.to_str().expect("UTF-8"));
    });
}

#[test]
fn the_master_passes_packages_on_and_a_wrong_one_is_not_lost() {
    Cluster::small(|cluster| {
        let folder = cluster.node().packages().join("data");
        write(&folder.join("a"), "A");
        let ended = cluster.run(&with_packages("cat a", &[&folder]));
        assert_eq!((ended.outcome().as_str(), cluster.stdout(&ended).as_str()), ("Finished", "A"));
        let refused = cluster.master.try_submit(&job_with("true", &[("packagePath", json!("/etc"))]));
        if refused.status == 201 {
            let id = refused.json()["jobId"].as_u64().expect("jobId");
            let ended = cluster.master.wait_final(id);
            assert!(ended.outcome().starts_with("Failed: ") && ended.outcome().contains("/etc"), "{}", ended.outcome());
        } else {
            assert_eq!(refused.expect(400).refused_field(), "packagePath");
        }
    });
}
