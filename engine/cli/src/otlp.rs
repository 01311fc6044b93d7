//! `--otlp`: spans of tracing for a collector of OpenTelemetry, by OTLP over HTTP with protobuf.
//!
//! A thread of its own sends what has ended every few seconds and at the end. A collector that is not there, or refuses, is told once and
//! does not keep the command from its work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ocelli_serve::Caller;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::fail::Failure;

/// What the collector may take for one request, and for the last ones at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most bytes of a collector's answer that are read.
const ANSWER: u64 = 1 << 20;

/// Spans on their way. Dropping it sends what is left.
pub struct Export {
    provider: SdkTracerProvider,
    level: Level,
}

impl Export {
    /// Sends to the collector at a URL, at `/v1/traces` where that has no path; spans of each pass too with `verbose`.
    ///
    /// # Errors
    /// If it is no URL of HTTP.
    pub fn to(url: &str, verbose: bool) -> Result<Self, Failure> {
        let endpoint = endpoint(url).ok_or_else(|| {
            Failure::usage(format!("--otlp: expected a URL such as http://127.0.0.1:4318, found `{url}`"))
        })?;
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .build();
        let client = Poster { url: endpoint.clone(), agent: agent.into(), told: AtomicBool::new(false) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(endpoint)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| Failure::new(format!("--otlp: {error}")))?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("ocelli");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Self { provider, level: if verbose { Level::DEBUG } else { Level::INFO } })
    }

    /// What hands spans and events of this workspace to it.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let layer = tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("ocelli"))
            .with_location(false)
            .with_tracked_inactivity(false);
        layer.with_filter(Targets::new().with_target("ocelli", self.level))
    }
}

/// Makes a span that has not begun a child of a caller's; where the caller is not sampled, it is not sent.
pub fn adopt(span: &tracing::Span, caller: &Caller) {
    let flags = if caller.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let state = TraceState::from_key_value(caller.state.iter().cloned()).unwrap_or_default();
    let (trace, parent) = (TraceId::from_bytes(caller.trace), SpanId::from_bytes(caller.span));
    let remote = SpanContext::new(trace, parent, flags, true, state);
    // A span that nobody collects has no parent either.
    let _ = span.set_parent(Context::new().with_remote_span_context(remote));
}

impl Drop for Export {
    fn drop(&mut self) {
        // Why nothing could be sent was told.
        let _ = self.provider.shutdown_with_timeout(PATIENCE);
    }
}

/// Where a collector at a URL takes spans.
fn endpoint(url: &str) -> Option<String> {
    let request = Request::post(url).body(()).ok()?;
    let uri = request.uri();
    let of_http = matches!(uri.scheme_str(), Some("http" | "https"));
    uri.host().filter(|host| of_http && !host.is_empty())?;
    match uri.path() {
        "" | "/" if uri.query().is_none() => Some(format!("{}/v1/traces", url.trim_end_matches('/'))),
        _ => Some(url.to_owned()),
    }
}

/// Sends requests, one at a time, from the exporter's own thread, which may wait.
#[derive(Debug)]
struct Poster {
    url: String,
    agent: ureq::Agent,
    told: AtomicBool,
}

impl Poster {
    fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.agent.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = answer.into_parts();
        let body = body.with_config().limit(ANSWER).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }

    fn tell(&self, why: &dyn std::fmt::Display) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("--otlp: {}: {why}; spans are lost", self.url);
        }
    }
}

impl HttpClient for Poster {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let answer = self.post(request);
        match &answer {
            Ok(answer) if !answer.status().is_success() => self.tell(&answer.status()),
            Ok(_) => {}
            Err(error) => self.tell(error),
        }
        Box::pin(std::future::ready(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::endpoint;

    #[test]
    fn where_collectors_take_spans() {
        let taken = |url: &str| endpoint(url);
        assert_eq!(taken("http://127.0.0.1:4318").as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
        assert_eq!(taken("https://a.example/").as_deref(), Some("https://a.example/v1/traces"));
        assert_eq!(taken("http://a.example/x/traces").as_deref(), Some("http://a.example/x/traces"));
        for wrong in ["", "127.0.0.1:4318", "localhost", "grpc://a.example", "http://", "/v1/traces"] {
            assert_eq!(taken(wrong), None, "{wrong}");
        }
    }
}
