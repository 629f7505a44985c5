//! What a container leaves in the daemons and in the kernel: nothing, however many there were. `scripts/soak` runs more.

use std::path::Path;

use tests::sandbox::is_root;
use tests::soak::{Soak, growth};

#[test]
fn memory_files_cgroups_and_journal_do_not_grow_with_the_number_of_containers() {
    if !is_root() {
        return;
    }
    let mut soak = Soak::start(Path::new("/var/tmp"));
    let samples: Vec<_> = (0..16).map(|_| soak.run(125)).collect();
    soak.finish();
    assert_eq!(growth(&samples), [], "{samples:#?}");
}
