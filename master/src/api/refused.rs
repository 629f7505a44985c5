//! Requests that are refused: why, the status that says so, and the form its receiver wants.

use wire::http::Response;
use wire::node::{Refusal, RefusalCode};
use wire::{BadInput, JobId};

use super::text;
use super::wants::Wants;
use crate::pages;
use crate::pages::view::{ErrorPage, LocalPath};
use crate::store::StoreError;

/// Why a request was refused, and the status that says so.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) refusal: Refusal,
    /// What a 405 must say.
    allow: Option<&'static str>,
}

impl Refused {
    /// The path takes other methods.
    pub(super) fn method(allow: &'static str) -> Refused {
        let message = format!("this path takes {allow} only");
        Refused { allow: Some(allow), ..Refusal::new(RefusalCode::MethodNotAllowed, message).into() }
    }

    /// The body is nothing we read.
    pub(super) fn media_type(what: &str) -> Refused {
        let message = format!(
            "a body of type {what:?} is not taken; hint: send application/json, or application/x-www-form-urlencoded"
        );
        Refused { status: 415, ..Refusal::new(RefusalCode::BadInput, message).into() }
    }

    /// There is no such job.
    pub(super) fn no_job(id: JobId) -> Refused {
        Refusal::new(RefusalCode::NotFound, format!("there is no job {id}")).into()
    }

    /// Something broke here; the log says what.
    pub(super) fn internal(message: &str) -> Refused {
        Refusal::new(RefusalCode::Internal, message).into()
    }

    /// Whether this is the master still cannot be told.
    pub(super) fn cut_off() -> Refused {
        let message = "the share with this master's state dir does not answer, and another master may have taken its \
                       place; ask again, or ask the other one";
        Refusal::new(RefusalCode::Busy, message).into()
    }

    /// The refusal as its receiver wants it.
    pub(super) fn answer(self, wants: Wants) -> Response {
        let response = match wants {
            Wants::Json => Response::refusal_as(self.status, &self.refusal),
            Wants::Text => Response::text(self.status, text::refusal(&self.refusal)),
            Wants::Html => {
                let (status, refusal) = (self.status, self.refusal);
                let page = ErrorPage { status, refusal, back: LocalPath::default() };
                Response::html(status, pages::error(&page).into_string())
            }
        };
        match (self.allow, self.status) {
            (Some(allow), _) => response.with_header("Allow", allow),
            (None, 401) => response.with_header("WWW-Authenticate", "Bearer realm=\"berth\""),
            (None, 503) => response.with_header("Retry-After", "1"),
            (None, _) => response,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused { status: refusal.http_status(), refusal, allow: None }
    }
}

impl From<BadInput> for Refused {
    fn from(bad: BadInput) -> Refused {
        Refusal::from(bad).into()
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        log::error!("{error}");
        Refused::internal("the database could not be read; the master's log says why")
    }
}
