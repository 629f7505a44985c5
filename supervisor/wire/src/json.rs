//! Reading JSON so that a refusal names the field.

use serde::de::DeserializeOwned;

use crate::failure::BadInput;

/// Reads one JSON value; a wrong one is refused with the path of the field that is wrong.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadInput> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        refusal(&path, error.inner())
    })?;
    reader.end().map_err(|error| refusal(".", &error))?;
    Ok(value)
}

/// serde says "missing field `x`" of the object around it and gives an unknown key a place of its
/// own; a sender wants the field itself in both cases.
fn refusal(path: &str, error: &serde_json::Error) -> BadInput {
    let message = error.to_string();
    // "?" stands where the text ended before its place was known.
    let around = path.trim_end_matches('?').trim_end_matches('.');
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    let field = match missing {
        Some(name) if around.is_empty() => name.to_owned(),
        Some(name) => format!("{around}.{name}"),
        None if around.is_empty() => "body".to_owned(),
        None => around.to_owned(),
    };
    BadInput { field, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobSpec;

    fn field_of(text: &str) -> String {
        from_slice::<Vec<JobSpec>>(text.as_bytes()).unwrap_err().field
    }

    #[test]
    fn a_refusal_names_the_field_and_the_entry() {
        let job = |rest: &str| format!(r#"[{{"name":"a","commandLine":"true","imageId":"b"{rest}}}]"#);
        assert_eq!(field_of(&job("")), "[0].resource");
        assert_eq!(field_of(&job(r#","resource":{"cpu":"0"}"#)), "[0].resource.mem");
        assert_eq!(field_of(&job(r#","resource":{"cpu":"0","mem":-1}"#)), "[0].resource.mem");
        assert_eq!(field_of(&job(r#","resource":{"cpu":{},"mem":1}"#)), "[0].resource.cpu");
        assert_eq!(field_of(&job(r#","resource":{"cpu":"0","mem":1},"nice":1"#)), "[0].nice");
        assert_eq!(field_of("[1]"), "[0]");
        assert_eq!(field_of("{"), "body");
        assert_eq!(field_of("[] []"), "body");
        assert_eq!(from_slice::<JobSpec>(b"{").unwrap_err().field, "body");
        assert_eq!(field_of(r#"[{"resource":{"#), "[0].resource");
    }
}
