//! The page at `/`: files inside the binary.

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;

/// Files of the page: name, type, content.
const FILES: &[(&str, &str, &str)] = &[
    ("index.html", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("search.html", "text/html; charset=utf-8", include_str!("page/search.html")),
    ("search.css", "text/css; charset=utf-8", include_str!("page/search.css")),
    ("search.js", "text/javascript; charset=utf-8", include_str!("page/search.js")),
    ("app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
];

/// The page asks this server alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn send(name: &str) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|(known, ..)| *known == name);
    let (_, kind, text) = file.ok_or_else(|| ApiError::not_found("there is nothing at this address"))?;
    let headers = [
        (header::CONTENT_TYPE, *kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, *text).into_response())
}

pub(crate) async fn index() -> Result<Response, ApiError> {
    send("index.html")
}

pub(crate) async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    send(&name)
}
