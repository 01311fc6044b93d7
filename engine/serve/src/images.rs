//! `/v1/images/generations`: what models draw.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli_engine::drawing::{self, Drawing, DrawingParams, Guide};
use ocelli_engine::image::png;
use ocelli_engine::{Ctx, Error};
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;

use crate::app::App;
use crate::chat::{chance, now};
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, is_nothing, unlike};

/// Most pictures of a request.
const MOST: u64 = 10;

/// Ends the drawing once nobody waits for it any more.
struct Asks(Arc<AtomicBool>);

impl Drop for Asks {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `/v1/images/generations`. The scheduler's thread draws a token after each step of answers.
pub(crate) async fn generations(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(&app.body(request).await?)?;
    let (pipeline, client, _) = app.answers()?;
    app.is_model(fields.text("model")?.as_deref())?;
    let canvas = drawing::painter(&*pipeline.model).map(drawing::Painter::canvas);
    let canvas = canvas.map_err(|error| ApiError::engine(&error, "model"))?;
    let prompt = fields.text("prompt")?;
    let prompt = prompt.ok_or_else(|| ApiError::field("prompt", "expected a text, found nothing"))?;
    let count = fields.whole("n")?.unwrap_or(1);
    if count == 0 || count > MOST {
        return Err(ApiError::field("n", format!("expected 1 to {MOST}, found {count}")));
    }
    let own = format!("{}x{}", canvas.width, canvas.height);
    if let Some(size) = fields.any("size").filter(|size| *size != "auto" && *size != own.as_str()) {
        return Err(unlike("size", &format!("`{own}`, the model's own, or `auto`"), &size));
    }
    let is = |names: &'static [&'static str]| {
        move |value: &Json| is_nothing(value) || value.as_str().is_some_and(|name| names.contains(&name))
    };
    fields.refuse("response_format", is(&["b64_json"]), "pictures are given as b64_json")?;
    fields.refuse("output_format", is(&["png"]), "pictures are given as png")?;
    for name in ["quality", "background", "style", "moderation", "output_compression", "partial_images"] {
        fields.refuse(name, is(&["auto", "standard"]), "there is no choice here")?;
    }
    fields.refuse("stream", is_nothing, "pictures are given once they are done")?;
    let default = &pipeline.drawing;
    let top_k = fields.whole("top_k")?.map_or(Ok(default.top_k), u32::try_from);
    let params = DrawingParams {
        guidance: fields.number("guidance")?.unwrap_or(default.guidance),
        temperature: fields.number("temperature")?.unwrap_or(default.temperature),
        top_k: top_k.map_err(|_| ApiError::field("top_k", "expected a smaller number"))?,
        top_p: fields.number("top_p")?.unwrap_or(default.top_p),
        seed: fields.whole("seed")?.unwrap_or_else(chance),
        count: count as usize,
    };
    params.validate().map_err(|error| ApiError::engine(&Error::Param(error), "prompt"))?;
    fields.end()?;
    let place = app.places(1)?;
    let guide = pipeline.guide(&prompt).map_err(|error| ApiError::engine(&error, "prompt"))?;
    let tokens = (guide.with.len(), canvas.tokens * params.count);

    let (reply, drawn) = oneshot::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let _asks = Asks(ended.clone());
    let mut easel = Easel {
        app: app.clone(),
        guide,
        params,
        ended: ended.clone(),
        drawing: None,
        codes: None,
        files: Vec::new(),
    };
    let mut reply = Some((reply, place));
    let work = move |cx: &mut Ctx| {
        let done = match easel.go_on(cx) {
            Ok(false) => return ControlFlow::Continue(()),
            Ok(true) => Ok(std::mem::take(&mut easel.files)),
            Err(error) => Err(error),
        };
        if let Some((reply, _place)) = reply.take() {
            let _ = reply.send(done);
        }
        ControlFlow::Break(())
    };
    client.run(work).map_err(|error| ApiError::engine(&error, "prompt"))?;
    let drawn = tokio::time::timeout(app.config.timeout, drawn)
        .await
        .map_err(|_| ApiError::timeout(app.config.timeout.as_secs()))?
        .map_err(|_| ApiError::draining())?
        .map_err(|error| ApiError::engine(&error, "prompt"))?;
    let data: Vec<Json> =
        drawn.into_iter().map(|png| json!({"b64_json": BASE64_STANDARD.encode(png)})).collect();
    let usage =
        json!({"input_tokens": tokens.0, "output_tokens": tokens.1, "total_tokens": tokens.0 + tokens.1});
    let value = json!({
        "created": now(), "data": data, "size": own, "output_format": "png", "usage": usage,
    });
    Ok(json_response(StatusCode::OK, &value))
}

/// Pictures on their way: a part of the work after each step of answers.
struct Easel {
    app: Arc<App>,
    guide: Guide,
    params: DrawingParams,
    ended: Arc<AtomicBool>,
    drawing: Option<Drawing>,
    /// Those of the pictures that are not files yet, the last one first.
    codes: Option<Vec<Vec<u32>>>,
    /// PNG files.
    files: Vec<Vec<u8>>,
}

impl Easel {
    /// Does one more part: a token of all pictures, or the file of one. True at the end.
    fn go_on(&mut self, cx: &mut Ctx) -> Result<bool, Error> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let Ok((pipeline, ..)) = self.app.answers() else { return Ok(true) };
        let Some(codes) = &mut self.codes else {
            let mut drawing = match self.drawing.take() {
                Some(drawing) => drawing,
                None => Drawing::new(cx, pipeline.model.clone(), self.guide.clone(), self.params.clone())?,
            };
            match drawing.advance(cx)? {
                false => self.drawing = Some(drawing),
                true => self.codes = Some(drawing.into_drawn().codes.into_iter().rev().collect()),
            }
            return Ok(false);
        };
        let painter = drawing::painter(&*pipeline.model)?;
        if let (Some(processor), Some(codes)) = (pipeline.processor.drawing(), codes.pop()) {
            let values = drawing::pixels(cx, painter, &codes)?;
            self.files.push(png(&processor.picture(&values, painter.canvas().width)?)?);
        }
        Ok(codes.is_empty())
    }
}
