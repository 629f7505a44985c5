//! Which union filesystem a node uses, and what it says when it has none.

use std::fs;

use tests::daemon::{binary, run_to_end};
use tests::node::{Node, SUPERVISOR, supervisor};

#[test]
fn a_union_that_this_kernel_lacks_is_refused_at_start_with_a_sentence() {
    let filesystems = fs::read_to_string("/proc/filesystems").expect("the kernel's list");
    if filesystems.contains("aufs") {
        eprintln!("SKIPPED: this kernel has aufs");
        return;
    }
    Node::alone(|node| {
        let state_dir = node.state_dir().join("other").display().to_string();
        let refused = supervisor(&["--state-dir", &state_dir, "--union", "aufs", "--listen", "127.0.0.1:0"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains("this kernel has no aufs filesystem; hint: modprobe aufs"), "{said}");
    });
}

#[test]
fn a_folder_that_cannot_hold_a_writable_layer_is_refused_at_start_with_the_step_that_failed() {
    Node::alone(|node| {
        // A state dir on a union of its own: overlayfs takes no writable layer on another overlay.
        let inside = "mkdir -p low up work all && mount -t overlay -o lowerdir=low,upperdir=up,workdir=work o all && \
            exec \"$0\" --state-dir all/state --listen 127.0.0.1:0";
        let place = node.packages().to_owned();
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", inside]).arg(binary(SUPERVISOR)).current_dir(place);
        let refused = run_to_end(&mut command);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains("cannot unite layers with overlay in"), "{said}");
        assert!(said.contains("cannot mount it: ") && said.contains("--state-dir"), "{said}");
    });
}

#[test]
fn the_doctor_says_which_union_filesystem_it_tried_and_leaves_nothing_of_the_trial() {
    Node::alone(|node| {
        let state_dir = node.state_dir().display().to_string();
        let entries = |node: &Node| fs::read_dir(node.state_dir()).expect("the state dir").count();
        let before = entries(node);
        let said = supervisor(&["doctor", "--state-dir", &state_dir]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let line = said.lines().find(|line| line.starts_with("state dir")).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains("good") && line.contains("tried with "), "{line}");
        assert_eq!(entries(node), before);
    });
}
