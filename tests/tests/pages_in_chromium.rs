//! What jobs write is shown as what it is, by a real browser.

use serde_json::json;
use tests::chromium::dump_dom;
use tests::cluster::Cluster;
use tests::job::job_with;

/// A name and a command that try to become a part of the page.
const HOSTILE_NAME: &str =
    "</td></table><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;";

/// Prints markup, control characters, broken UTF-8, a text that runs right to left, and one line of a MiB.
const HOSTILE_COMMAND: &str = "echo '</pre><script>document.title=\"owned\"</script><b>bold</b> &lt;'; \
    printf 'esc:\\033[31mred\\033[0m nul:\\000 bel:\\007 cr:a\\rb bad:\\377\\376 rtl:\\342\\200\\256evil\\n'; \
    echo '<i>on stderr</i>' >&2; head -c 1048576 /dev/zero | tr '\\0' 'x'; echo; echo the last line";

#[test]
fn hostile_names_and_outputs_are_text_and_nothing_else() {
    Cluster::small(|cluster| {
        let hostile = job_with(HOSTILE_COMMAND, &[("name", json!(HOSTILE_NAME))]);
        let ended = cluster.run(&hostile);
        assert_eq!(ended.outcome(), "Finished");
        let profile = cluster.sandbox().folder("chromium");
        for path in ["/".to_owned(), "/job/table".to_owned(), format!("/job/details/{}", ended.job_id)] {
            let Some(dom) = dump_dom(&format!("http://{}{path}", cluster.master.addr()), &profile) else { return };
            assert!(
                !dom.contains("<script") && !dom.contains("<img src=\"x\"") && !dom.contains("<b>bold"),
                "{path}: {dom}"
            );
            assert!(!dom.contains("<title>owned"), "{path} ran a script of a job");
            assert!(dom.contains("&lt;script&gt;document.title='owned'"), "{path} does not show the name as it is");
            assert!(!dom.contains('\u{1b}') && !dom.contains('\u{7}'), "{path} passes control characters on");
            assert!(dom.contains("Finished"), "{path}: {dom}");
        }
    });
}

#[test]
fn the_details_page_shows_the_end_of_a_long_output() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job_with(HOSTILE_COMMAND, &[]));
        let profile = cluster.sandbox().folder("chromium");
        let url = format!("http://{}/job/details/{}", cluster.master.addr(), ended.job_id);
        let Some(dom) = dump_dom(&url, &profile) else { return };
        assert!(dom.contains("the last line"), "the tail is missing");
        assert!(dom.contains("&lt;i&gt;on stderr&lt;/i&gt;"), "stderr is missing");
        assert!(dom.len() < 2 << 20, "a page of {} bytes", dom.len());
    });
}

#[test]
fn broken_utf_8_and_control_characters_survive_in_the_json() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job_with("printf 'a\\000b\\377c\\033d'", &[]));
        let stdout = cluster.master.details(ended.job_id).task_stdout;
        assert!(stdout.starts_with('a') && stdout.ends_with('d'), "{stdout:?}");
        let text = cluster.master.text(&format!("/job/details/{}", ended.job_id));
        assert!(!text.contains('\u{1b}'), "an escape sequence reaches the terminal: {text:?}");
    });
}
