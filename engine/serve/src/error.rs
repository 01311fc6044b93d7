//! What clients are told when a request cannot be answered, in the shape of OpenAI's errors.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ocelli_engine::Error;
use ocelli_engine::image::ImageError;
use ocelli_engine::text::TextError;
use serde_json::{Value as Json, json};

/// Why a request is not answered.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// The field that is at fault.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which it may be tried again.
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A request that is wrong.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field that is wrong; the message begins with its name.
    pub fn field(name: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let name = name.into();
        Self { param: Some(name.clone()), ..Self::bad(format!("{name}: {why}")) }
    }

    /// A field that nothing here obeys.
    pub fn unsupported(name: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(name, why) }
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    /// A path that is there with another method.
    pub fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "this address is asked by another method",
        )
    }

    /// No key, or a wrong one.
    pub fn key(message: &str) -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
        }
    }

    /// Something that this client may not do.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// More than the limit of bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the body: expected at most {limit} bytes, found more");
        Self {
            code: Some("body_too_large"),
            ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
        }
    }

    /// A body that does not come.
    pub fn slow(seconds: u64) -> Self {
        let message = format!("the body: nothing came for {seconds} s");
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// No room to wait.
    pub fn busy(retry_after: u64) -> Self {
        let message = "too many requests wait already; try again later";
        Self {
            code: Some("queue_full"),
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// The time limit is over.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("the answer took longer than {seconds} s, the server's limit");
        Self { code: Some("timeout"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message) }
    }

    /// The server ends.
    pub fn draining() -> Self {
        Self {
            code: Some("shutting_down"),
            retry_after: Some(5),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the server is shutting down")
        }
    }

    /// The engine is gone, or something here is wrong.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The request may be answered elsewhere, or later.
    fn unavailable(error: &Error) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", error.to_string())
    }

    /// With the name of the field at fault.
    #[must_use]
    pub fn at(self, name: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..self }
    }

    /// With a code that programs know it by.
    #[must_use]
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The object that clients get.
    pub fn json(&self) -> Json {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }

    /// What went wrong at the place of a picture.
    pub fn picture(place: &str, error: &ImageError) -> Self {
        let hint = match error {
            ImageError::TooManyPixels { .. } | ImageError::NotAFile { .. } => None,
            other => other.hint(),
        };
        let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        Self::field(place, format!("{error}{hint}")).code("invalid_image")
    }

    /// An error of the engine about the `field` that holds the prompt.
    pub fn engine(error: &Error, field: &'static str) -> Self {
        match error {
            Error::PromptTooLong { .. } => {
                Self::bad(error.to_string()).at(field).code("context_length_exceeded")
            }
            Error::Text(TextError::Conversation { reason, .. }) => {
                let place = reason.split_once(": ").map_or(field, |(place, _)| place);
                Self::bad(reason.clone()).at(place)
            }
            Error::Text(TextError::File(_) | TextError::Tokenizer { .. }) => {
                Self::internal(error.to_string())
            }
            Error::Param(error) => Self::bad(error.to_string()).at(error.name),
            Error::Text(_) | Error::Request(_) | Error::Image(_) => Self::bad(error.to_string()).at(field),
            Error::Worker(_) | Error::Cancelled => Self::unavailable(error),
            error if error.ends_device() => Self::unavailable(error).code("device_lost"),
            error if error.is_out_of_memory() => Self::internal(error.to_string()).code("out_of_memory"),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.json());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self.status.as_u16(), 408 | 413) {
            // What is left of the body is not read.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// An answer of JSON.
pub(crate) fn json_response(status: StatusCode, value: &Json) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_has_a_code() {
        let gone = ApiError::engine(&Error::DeviceGone("a GPU: no answer".into()), "messages");
        assert_eq!((gone.status.as_u16(), gone.code), (503, Some("device_lost")));
        assert!(gone.message.contains("a GPU: no answer"), "{}", gone.message);
        let other = ApiError::engine(&Error::Worker("it was stopped".into()), "messages");
        assert_eq!((other.status.as_u16(), other.code), (503, None));
    }
}
