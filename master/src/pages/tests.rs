//! What must hold of every page, and of each.

use std::collections::BTreeSet;

use maud::Markup;
use wire::{JobId, State};

use super::samples::{self, SCRIPT};
use super::view::{
    BatchForm, ConfirmKill, CreateFields, CreateForm, Details, ErrorPage, Home, JobQuery, JobTable, LocalPath, LogTail,
    Login,
};
use super::{confirm_kill, details, error, home, job_table, login, node_table};

/// Every page with the ugliest there is in it.
fn every_page() -> Vec<(&'static str, String)> {
    let evil_query = JobQuery { q: format!("\"{SCRIPT}\u{202e}"), live: true, ..JobQuery::default() };
    let evil = samples::refusal(SCRIPT, SCRIPT);
    let wrong_list = BatchForm { typed: SCRIPT.to_owned(), error: Some(evil.clone()) };
    let kill = |status| {
        let mut job = samples::job(7, status);
        job.spec.name = SCRIPT.to_owned();
        confirm_kill(&ConfirmKill { job, back: LocalPath::or_home("/job/table?q=%3Cb"), now: samples::now() })
    };
    let older = JobTable { older: Some(JobId(1)), ..samples::table(samples::ugly_jobs(), evil_query.clone()) };
    let broken = ErrorPage { status: 500, refusal: evil, back: LocalPath::default() };
    let pages: Vec<(&str, Markup)> = vec![
        ("home", home(&samples::home())),
        ("empty home", home(&samples::empty_home())),
        ("refused form", home(&samples::refused_home("imageId", SCRIPT))),
        ("refused list", home(&Home { batch: wrong_list, ..samples::home() })),
        ("job table", job_table(&older)),
        ("empty job table", job_table(&samples::empty_table(evil_query))),
        ("node table", node_table(&samples::nodes())),
        ("hostile details", details(&samples::hostile_details())),
        ("running details", details(&samples::details(samples::job(7, State::Running)))),
        ("confirm kill", kill(State::Running)),
        ("nothing to kill", kill(State::Killed)),
        ("login", login(&Login { error: Some(SCRIPT.to_owned()), ..Login::default() })),
        ("error", error(&broken)),
    ];
    pages.into_iter().map(|(name, page)| (name, page.into_string())).collect()
}

/// The tags of a page, without what is between them.
fn tags(page: &str) -> impl Iterator<Item = &str> {
    page.split('<').skip(1).map(|tag| tag.split_once('>').unwrap().0)
}

/// The values of an attribute, on every tag that has it.
fn values<'a>(page: &'a str, attribute: &str) -> Vec<&'a str> {
    let opening = format!(" {attribute}=\"");
    tags(page).filter_map(|tag| Some(tag.split_once(&opening)?.1.split_once('"').unwrap().0)).collect()
}

#[test]
fn a_script_in_a_job_name_is_text() {
    for (name, page) in every_page() {
        assert!(!page.contains("<script"), "{name}");
    }
    let page = home(&samples::home()).into_string();
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
}

#[test]
fn no_page_needs_more_than_its_own_origin_and_its_stylesheet() {
    for (name, page) in every_page() {
        for tag in tags(&page) {
            let without_values: String = tag.split('"').step_by(2).collect();
            for attribute in [" style=", " on", " src="] {
                assert!(!without_values.contains(attribute), "{name}: <{tag}>");
            }
        }
        for link in ["href", "action"].into_iter().flat_map(|attribute| values(&page, attribute)) {
            let local = (link.starts_with('/') && !link.starts_with("//")) || link.starts_with('#');
            assert!(local && link.bytes().all(|byte| byte.is_ascii_graphic()), "{name}: {link}");
        }
    }
}

#[test]
fn whatever_points_at_an_element_finds_exactly_one() {
    for (name, page) in every_page() {
        let ids = values(&page, "id");
        let known: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(known.len(), ids.len(), "{name} has an id twice");
        let pointers = ["for", "aria-describedby", "aria-labelledby"];
        for id in pointers.into_iter().flat_map(|pointer| values(&page, pointer)).flat_map(str::split_whitespace) {
            assert!(known.contains(id), "{name}: nothing has the id {id}");
        }
        for anchor in values(&page, "href").into_iter().filter_map(|link| link.strip_prefix('#')) {
            assert!(known.contains(anchor), "{name}: nothing has the id {anchor}");
        }
    }
}

#[test]
fn a_finished_job_has_no_kill_button() {
    for status in State::ALL {
        let job = samples::job(7, status);
        let pages = [
            job_table(&samples::table(vec![job.clone()], JobQuery::default())),
            details(&samples::details(job.clone())),
            confirm_kill(&ConfirmKill { job, back: LocalPath::default(), now: samples::now() }),
        ];
        for page in pages {
            let page = page.into_string();
            assert_eq!(page.contains("action=\"/job/kill/7\""), !status.is_final(), "{status}: {page}");
        }
    }
}

#[test]
fn a_kill_comes_back_to_the_page_it_was_pressed_on() {
    let query = JobQuery { status: Some(State::Running), q: "a b".to_owned(), ..JobQuery::default() };
    let page = job_table(&samples::table(vec![samples::job(7, State::Running)], query)).into_string();
    let back = values(&page, "value").into_iter().find(|value| value.starts_with('/')).unwrap().replace("&amp;", "&");
    assert_eq!(back, "/job/table?status=Running&q=a+b");
    assert_eq!(LocalPath::or_home(&back).as_str(), back);
}

#[test]
fn filter_and_search_survive_paging_links() {
    let query =
        JobQuery { status: Some(State::Failed), q: "a&b".to_owned(), after: Some(JobId(90)), ..JobQuery::default() };
    let view = JobTable { older: Some(JobId(40)), ..samples::table(samples::ugly_jobs(), query) };
    let page = job_table(&view).into_string();
    assert!(page.contains("rel=\"next\" href=\"/job/table?status=Failed&amp;q=a%26b&amp;after=40\""), "{page}");
    assert!(page.contains("href=\"/job/table?status=Failed&amp;q=a%26b\">⇤ Newest"));
    assert!(page.contains("href=\"/job/table?status=Running&amp;q=a%26b\""), "another state keeps the search");
}

#[test]
fn the_last_page_has_no_link_to_older_jobs() {
    let page = job_table(&samples::table(samples::ugly_jobs(), JobQuery::default())).into_string();
    assert!(!page.contains("rel=\"next\"") && !page.contains("Newest"));
}

#[test]
fn every_state_is_a_filter_spelled_as_in_the_contract_with_its_count() {
    let query = JobQuery { status: Some(State::Assigned), ..JobQuery::default() };
    let page = job_table(&samples::table(samples::ugly_jobs(), query)).into_string();
    for (state, count) in State::ALL.into_iter().zip([38, 4, 27, 103_902, 12, 219, 28]) {
        assert!(page.contains(&format!(">{state} <span class=\"count\">{count}</span>")), "{state}");
    }
    assert!(page.contains(">All <span class=\"count\">104230</span>"));
    assert!(page.contains("status=Pending%5BA%5D\" aria-current=\"true\">Pending[A]"));
}

#[test]
fn a_failed_job_says_why_in_words() {
    let job = samples::job(7, State::Failed);
    let table = job_table(&samples::table(vec![job.clone()], JobQuery::default())).into_string();
    let page = details(&samples::details(job)).into_string();
    assert!(table.contains(">exit code 3</span>") && page.contains("exit code 3"));
}

#[test]
fn a_waiting_job_says_why_it_waits() {
    let waits = Some("needs 4 CPUs; node 0 has 2 free".to_owned());
    let page = details(&Details { waits, ..samples::details(samples::job(7, State::Pending)) }).into_string();
    assert!(page.contains("needs 4 CPUs; node 0 has 2 free") && page.contains("Waiting for"));
}

#[test]
fn a_job_that_was_asked_to_end_says_so_until_it_has() {
    for status in State::ALL {
        let asked = Details { kill_asked: true, ..samples::details(samples::job(7, status)) };
        let says_so = |view: &Details| details(view).into_string().contains("Stopping: ");
        assert_eq!(says_so(&asked), !status.is_final(), "{status}");
        assert!(!says_so(&Details { kill_asked: false, ..asked }), "{status}");
    }
}

#[test]
fn only_a_live_page_with_an_unfinished_job_loads_itself_anew() {
    let refreshes = |page: Markup| page.into_string().contains("http-equiv=\"refresh\"");
    for status in State::ALL {
        let view = samples::details(samples::job(7, status));
        assert_eq!(refreshes(details(&view)), !status.is_final());
        assert!(!refreshes(details(&Details { live: false, ..view })));
        for live in [true, false] {
            let table = samples::table(vec![samples::job(7, status)], JobQuery { live, ..JobQuery::default() });
            assert_eq!(refreshes(job_table(&table)), live && !status.is_final());
            assert!(!refreshes(home(&Home { jobs: table, ..samples::home() })), "a form on it would lose its text");
        }
    }
}

#[test]
fn a_refused_form_comes_back_with_what_was_typed_and_the_error_at_its_field() {
    let page = home(&samples::refused_home("resource.mem", "is no number")).into_string();
    let mem = tags(&page).find(|tag| tag.starts_with("input id=\"mem\"")).unwrap();
    assert!(
        mem.contains("value=\"lots\"") && mem.contains("aria-invalid=\"true\"") && mem.contains(" autofocus"),
        "{mem}"
    );
    assert!(mem.contains("aria-describedby=\"mem-error mem-hint\""), "{mem}");
    assert!(page.contains("<p class=\"wrong\" id=\"mem-error\"><bdi>is no number</bdi></p>"));
    assert!(page.contains("<option value=\"no-such-image\" selected>"));
    assert_eq!(page.matches("aria-invalid").count(), 1);
}

#[test]
fn what_was_typed_keeps_its_first_newline() {
    // The parser drops one newline after <textarea> and <pre>; a second one is the user's.
    let page = home(&samples::refused_home("name", "is taken")).into_string();
    assert!(page.contains(">\n\necho &quot;&lt;/textarea&gt;&quot;\nsleep 5</textarea>"));
    assert!(details(&samples::hostile_details()).into_string().contains("<pre>\n\nset -e\n"));
}

#[test]
fn an_error_of_no_field_of_the_form_is_shown_at_its_button() {
    let page = home(&samples::refused_home("priority", "is not a field of a job")).into_string();
    assert!(page.contains("<p class=\"wrong\"><code>priority</code>: <bdi>is not a field of a job</bdi></p>"));
}

#[test]
fn a_bad_entry_of_a_list_is_named_and_the_list_comes_back() {
    let batch = BatchForm { typed: "[{}]".to_owned(), error: Some(samples::refusal("[0].name", "is missing")) };
    let page = home(&Home { batch, ..samples::home() }).into_string();
    assert!(page.contains("<code>[0].name</code>: <bdi>is missing</bdi>") && page.contains(">\n[{}]</textarea>"));
}

#[test]
fn a_job_submitted_again_asks_for_the_same() {
    let spec = samples::job(7, State::Failed).spec;
    let typed = CreateFields::from(&spec);
    assert_eq!(typed.cpu.parse::<wire::CpuRequest>().unwrap(), spec.resource.cpu);
    let create = CreateForm { typed, error: None };
    let page = home(&Home { create, ..samples::home() }).into_string();
    assert!(page.contains("value=\"train-7\"") && page.contains("value=\"x2\"") && page.contains("value=\"600000\""));
    assert!(page.contains("<option value=\"busybox\" selected>"));
}

#[test]
fn an_image_that_only_some_nodes_have_says_so() {
    let page = home(&samples::home()).into_string();
    assert!(page.contains("<option value=\"debian-12.5\">debian-12.5 (on 2 of 3 nodes)</option>"), "{page}");
    assert!(home(&samples::empty_home()).into_string().contains("<input id=\"imgid\""));
}

#[test]
fn an_empty_table_says_what_to_do() {
    let page = |query| job_table(&samples::empty_table(query)).into_string();
    assert!(page(JobQuery::default()).contains("Submit the first one"));
    assert!(page(JobQuery { status: Some(State::Timeout), ..JobQuery::default() }).contains("Show all jobs"));
    assert!(page(JobQuery { q: "x".into(), ..JobQuery::default() }).contains("Clear the search"));
    assert!(page(JobQuery { after: Some(JobId(1)), ..JobQuery::default() }).contains("Back to the newest"));
    assert!(home(&samples::empty_home()).into_string().contains("--node 0=127.0.0.1:5000"));
}

#[test]
fn a_cut_log_says_how_much_of_it_is_shown_and_links_to_the_whole() {
    let view = Details { stdout: samples::tail(b"end\n", 2048), ..samples::details(samples::job(7, State::Running)) };
    let page = details(&view).into_string();
    assert!(page.contains("the last 4 B of 2.0 KiB") && page.contains("href=\"/job/output/7/stdout\""));
}

#[test]
fn a_job_that_has_not_ended_can_be_followed_and_its_page_loads_itself_anew() {
    for (state, grows) in [(State::Pending, true), (State::Running, true), (State::Finished, false)] {
        let page = details(&samples::details(samples::job(7, state))).into_string();
        assert_eq!(page.contains("href=\"/job/output/7/stdout?follow=1\""), grows, "{state}");
        assert_eq!(page.contains("http-equiv=\"refresh\""), grows, "{state}");
    }
}

#[test]
fn a_log_that_cannot_be_read_says_why() {
    let stderr = LogTail::Unavailable("node 0 does not answer".to_owned());
    let page = details(&Details { stderr, ..samples::details(samples::job(7, State::Running)) }).into_string();
    assert!(page.contains("node 0 does not answer"));
}

#[test]
fn a_lost_node_says_since_when_and_why() {
    let page = node_table(&samples::nodes()).into_string();
    assert!(page.contains("<span class=\"pill lost\">lost</span>") && page.contains("connection refused"));
    assert!(page.contains("datetime=\"2026-11-22T09:15:53.000Z\""));
}

#[test]
fn a_login_never_shows_the_token_and_keeps_where_to_go() {
    let view = Login { next: LocalPath::or_home("/job/details/7"), error: Some("That is not the token.".to_owned()) };
    let page = login(&view).into_string();
    assert!(page.contains("name=\"next\" value=\"/job/details/7\"") && page.contains("role=\"alert\""));
    let token = tags(&page).find(|tag| tag.contains("name=\"token\"")).unwrap();
    assert!(token.contains("type=\"password\"") && !token.contains("value="), "{token}");
}

#[test]
fn the_stylesheet_is_found_by_a_link_that_changes_with_it() {
    let page = error(&ErrorPage { status: 404, refusal: samples::refusal("jobId", "no"), back: LocalPath::default() });
    assert!(values(&page.into_string(), "href").contains(&super::style_link().as_str()));
    assert_ne!(super::fnv1a(b"a"), super::fnv1a(b"b"));
    assert_eq!(super::fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c, "draft-eastlake-fnv, appendix C");
}
