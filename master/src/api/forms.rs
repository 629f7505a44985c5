//! What users submit, read from forms and JSON. A refusal names the field as its sender wrote it. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use wire::{BadInput, JobId, JobSpec, OnNodeLoss, Resource, json};

use crate::pages::view::CreateFields;

/// The most jobs of one list.
pub(super) const MAX_BATCH: usize = 10_000;

/// The fields of the original's form, and what a job's JSON calls them.
const FIELDS: [(&str, &str); 8] = [
    ("name", "name"),
    ("cpu", "resource.cpu"),
    ("mem", "resource.mem"),
    ("cmdline", "commandLine"),
    ("pkgpath", "packagePath"),
    ("imgid", "imageId"),
    ("timeout", "timeout"),
    ("onnodeloss", "onNodeLoss"),
];

/// A form's pairs; of a name that comes twice the first counts.
pub(super) fn pairs(body: &[u8]) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(body) {
        pairs.entry(name.into_owned()).or_insert_with(|| value.into_owned());
    }
    pairs
}

/// What the form of one job holds, right or wrong.
pub(super) fn typed(pairs: &BTreeMap<String, String>) -> CreateFields {
    let field = |name: &str| pairs.get(name).cloned().unwrap_or_default();
    CreateFields {
        name: field("name"),
        cpu: field("cpu"),
        mem: field("mem"),
        // Browsers send line ends as CR LF (WHATWG HTML, 4.10.22); a shell wants LF.
        cmdline: field("cmdline").replace("\r\n", "\n"),
        pkgpath: field("pkgpath"),
        imgid: field("imgid"),
        timeout: field("timeout"),
        onnodeloss: field("onnodeloss"),
    }
}

/// The form of one job.
pub(super) fn job_of_form(pairs: &BTreeMap<String, String>) -> Result<JobSpec, BadInput> {
    if let Some(unknown) = pairs.keys().find(|name| !FIELDS.iter().any(|(field, _)| field == name)) {
        return Err(BadInput::new(unknown, "is not a field of this form"));
    }
    let typed = typed(pairs);
    let spec = (|| {
        Ok(JobSpec {
            name: typed.name,
            resource: Resource { cpu: typed.cpu.parse()?, mem: number("resource.mem", &typed.mem)? },
            command_line: typed.cmdline,
            package_path: typed.pkgpath,
            image_id: typed.imgid.trim().parse()?,
            timeout: if typed.timeout.trim().is_empty() { 0 } else { number("timeout", &typed.timeout)? },
            on_node_loss: match typed.onnodeloss.trim() {
                "" => OnNodeLoss::default(),
                choice => choice.parse()?,
            },
        })
    })();
    spec.and_then(|spec| spec.check().map(|()| spec)).map_err(as_the_form_calls_it)
}

/// A whole number, as people type it.
fn number(field: &str, text: &str) -> Result<u64, BadInput> {
    let digits = text.trim();
    let number = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    number.ok_or_else(|| BadInput::new(field, format!("{text:?} is not a whole number in range")))
}

/// The form's name for the field of a job.
pub(super) fn as_the_form_calls_it(bad: BadInput) -> BadInput {
    let name = FIELDS.iter().find(|(_, wire)| *wire == bad.field).map_or(bad.field, |(form, _)| (*form).to_owned());
    BadInput { field: name, message: bad.message }
}

/// The JSON of one job.
pub(super) fn job_of_json(body: &[u8]) -> Result<JobSpec, BadInput> {
    let spec: JobSpec = json::from_slice(body)?;
    spec.check()?;
    Ok(spec)
}

/// A JSON list of jobs; one bad entry refuses all and is named.
pub(super) fn jobs_of_json(body: &[u8]) -> Result<Vec<JobSpec>, BadInput> {
    let specs: Vec<JobSpec> = json::from_slice(body)?;
    if specs.is_empty() {
        return Err(BadInput::new("body", "is an empty list; there is nothing to submit"));
    }
    if specs.len() > MAX_BATCH {
        return Err(BadInput::new(
            "body",
            format!("lists {} jobs; at most {MAX_BATCH} are taken at once", specs.len()),
        ));
    }
    for (index, spec) in specs.iter().enumerate() {
        spec.check().map_err(|bad| bad.in_entry(index))?;
    }
    Ok(specs)
}

/// The form of a list of jobs: its one field, `json`.
pub(super) fn jobs_of_form(pairs: &BTreeMap<String, String>) -> Result<Vec<JobSpec>, BadInput> {
    let text = pairs.get("json").ok_or_else(|| BadInput::new("json", "is missing; it holds a JSON list of jobs"))?;
    jobs_of_json(text.as_bytes()).map_err(|bad| match bad.field.as_str() {
        "body" => BadInput { field: "json".to_owned(), ..bad },
        _ => bad,
    })
}

/// `{"jobId":7}`.
pub(super) fn job_id_of_json(body: &[u8]) -> Result<JobId, BadInput> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Which {
        job_id: JobId,
    }
    json::from_slice(body).map(|which: Which| which.job_id)
}

/// The field `jobId` of a form.
pub(super) fn job_id_of_form(pairs: &BTreeMap<String, String>) -> Result<JobId, BadInput> {
    pairs.get("jobId").ok_or_else(|| BadInput::new("jobId", "is missing"))?.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name=a&cpu=x0.5&mem=64&cmdline=echo+1%0D%0Aecho+2&pkgpath=&imgid=busybox&timeout=";

    fn of_form(body: &str) -> Result<JobSpec, BadInput> {
        job_of_form(&pairs(body.as_bytes()))
    }

    #[test]
    fn the_originals_form_is_a_job() {
        let spec = of_form(GOOD).unwrap();
        assert_eq!((spec.name.as_str(), spec.resource.mem, spec.timeout), ("a", 64, 0));
        assert_eq!(spec.command_line, "echo 1\necho 2");
        assert_eq!(spec.resource.cpu.to_string(), "x0.5");
        assert_eq!(spec.on_node_loss, OnNodeLoss::Wait);
        assert_eq!(of_form(&format!("{GOOD}&onnodeloss=retry")).unwrap().on_node_loss, OnNodeLoss::Retry);
    }

    #[test]
    fn a_wrong_form_is_refused_with_the_forms_own_name_of_the_field() {
        for (field, wrong) in [
            ("name", ""),
            ("cpu", "one"),
            ("cpu", ""),
            ("mem", "lots"),
            ("mem", "-1"),
            ("mem", "+1"),
            ("mem", "1e3"),
            ("mem", ""),
            ("mem", "99999999999999999999"),
            ("cmdline", ""),
            ("pkgpath", "relative"),
            ("imgid", "../etc"),
            ("imgid", ""),
            ("timeout", "soon"),
            ("timeout", "-5"),
            ("onnodeloss", "panic"),
            ("nice", "10"),
        ] {
            let mut fields = pairs(GOOD.as_bytes());
            fields.insert(field.to_owned(), wrong.to_owned());
            assert_eq!(job_of_form(&fields).unwrap_err().field, field, "{wrong:?}");
        }
        assert_eq!(of_form("").unwrap_err().field, "cpu");
    }

    #[test]
    fn a_list_is_refused_with_its_entry_and_field() {
        let good = r#"{"name":"a","resource":{"cpu":"0","mem":64},"commandLine":"true","imageId":"b"}"#;
        let field = |list: &str| jobs_of_json(list.as_bytes()).unwrap_err().field;
        assert_eq!(jobs_of_json(format!("[{good},{good}]").as_bytes()).unwrap().len(), 2);
        assert_eq!(field(&format!("[{good},{}]", good.replace("64", "0"))), "[1].resource.mem");
        assert_eq!(field(&format!("[{good},{}]", good.replace("true", ""))), "[1].commandLine");
        assert_eq!(field("[1]"), "[0]");
        assert_eq!(field("[]"), "body");
        assert_eq!(field("{}"), "body");
        assert_eq!(field(&format!("[{}]", vec![good; MAX_BATCH + 1].join(","))), "body");
    }

    #[test]
    fn the_form_of_a_list_names_its_own_field() {
        let field = |body: &str| jobs_of_form(&pairs(body.as_bytes())).unwrap_err().field;
        assert_eq!(
            (field("json="), field("json=nonsense"), field("other=[]")),
            ("json".into(), "json".into(), "json".into())
        );
        assert_eq!(field("json=[{}]"), "[0].name");
    }

    #[test]
    fn a_kill_names_its_job_in_either_form() {
        assert_eq!(job_id_of_json(b"{\"jobId\":7}").unwrap(), JobId(7));
        for bad in ["{}", r#"{"jobId":"1"}"#, r#"{"jobId":-1}"#, r#"{"jobId":null}"#] {
            assert_eq!(job_id_of_json(bad.as_bytes()).unwrap_err().field, "jobId", "{bad}");
        }
        assert_eq!(job_id_of_form(&pairs(b"jobId=7")).unwrap(), JobId(7));
        assert_eq!(job_id_of_form(&pairs(b"jobId=x")).unwrap_err().field, "jobId");
        assert_eq!(job_id_of_form(&pairs(b"")).unwrap_err().field, "jobId");
    }
}
