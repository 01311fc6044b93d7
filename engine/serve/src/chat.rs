//! `/v1/chat/completions`, `/v1/completions` and `/tokenize`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::Response;
use ocelli_engine::kv::PAGE;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Limits, Request};
use ocelli_engine::text::{Content, Conversation, Message, Part, RenderOptions, Tokenizer};
use ocelli_engine::{Error, Pipeline};
use serde_json::{Value as Json, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::answer::{Answers, Before};
use crate::app::App;
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, is_nothing, unlike};
use crate::forms;
use crate::likely;
use crate::pictures::{self, Found};
use crate::shape::Shape;
use crate::stream::{stream, whole};
use crate::tools::{self, Tools};

/// Most answers to one prompt, and most prompts of a request.
const MOST: u64 = 128;
/// Most texts that end an answer.
const STOPS: usize = 16;

/// How answers are asked for.
struct Wish {
    how: How,
    n: usize,
    stream: bool,
    usage: bool,
}

/// How each of the answers is made.
#[derive(Clone)]
struct How {
    params: SamplingParams,
    /// The limit of tokens that the request names.
    max_tokens: Option<usize>,
    form: Option<forms::Asked>,
}

/// Takes what chats and texts have in common, in OpenAI's words and in ours.
fn wish(fields: &mut Fields, chat: bool) -> Result<Wish, ApiError> {
    let default = SamplingParams::default();
    let stop = fields.texts("stop")?.unwrap_or_default();
    if stop.len() > STOPS {
        let found = stop.len();
        return Err(ApiError::field("stop", format!("expected at most {STOPS} texts, found {found}")));
    }
    let seed = match fields.any("seed") {
        None => None,
        Some(seed) => {
            let number = seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned));
            Some(number.ok_or_else(|| unlike("seed", "a whole number", &seed))?)
        }
    };
    let top_k = fields.whole("top_k")?.map_or(Ok(default.top_k), u32::try_from);
    let params = SamplingParams {
        // What the protocol says where nothing is asked for.
        temperature: fields.number("temperature")?.unwrap_or(1.0),
        top_p: fields.number("top_p")?.unwrap_or(default.top_p),
        top_k: top_k.map_err(|_| ApiError::field("top_k", "expected a smaller number"))?,
        min_p: fields.number("min_p")?.unwrap_or(default.min_p),
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(default.repetition_penalty),
        seed: seed.unwrap_or_else(chance),
        stop_token_ids: fields.ids("stop_token_ids")?.unwrap_or_default(),
        stop,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(default.ignore_eos),
        speculate: fields
            .whole("speculate")?
            .map_or(default.speculate, |most| usize::try_from(most).unwrap_or(usize::MAX)),
        max_tokens: default.max_tokens,
        logprobs: if chat { logprobs_of_chat(fields)? } else { logprobs_of_text(fields)? },
        ..default
    };
    params.validate().map_err(|error| ApiError::engine(&Error::Param(error), "messages"))?;
    let old = fields.whole("max_tokens")?;
    let max_tokens = match fields.whole("max_completion_tokens")? {
        Some(0) => return Err(ApiError::field("max_completion_tokens", "expected 1 or more, found 0")),
        None if old == Some(0) => return Err(ApiError::field("max_tokens", "expected 1 or more, found 0")),
        new => new.or(old).map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
    };
    let n = fields.whole("n")?.unwrap_or(1);
    if n == 0 || n > MOST {
        return Err(ApiError::field("n", format!("expected 1 to {MOST}, found {n}")));
    }
    let stream = fields.flag("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?.unwrap_or_default();
    let usage = match options.get("include_usage") {
        None | Some(Json::Null) => false,
        Some(Json::Bool(usage)) => *usage,
        Some(other) => return Err(unlike("stream_options.include_usage", "true or false", other)),
    };
    for name in ["frequency_penalty", "presence_penalty", "logit_bias"] {
        fields.refuse(name, is_nothing, "not supported; repetition_penalty is")?;
    }
    let form = forms::take(fields)?;
    if let (Some(asked), true) = (&form, params.ignore_eos) {
        return Err(ApiError::field(
            "ignore_eos",
            format!("expected false with {}, found true", asked.field),
        ));
    }
    Ok(Wish { how: How { params, max_tokens, form }, n: n as usize, stream, usage })
}

/// How many of the likeliest tokens are to be named beside each of a chat.
fn logprobs_of_chat(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let (asked, top) = (fields.flag("logprobs")?.unwrap_or(false), fields.whole("top_logprobs")?);
    match top {
        Some(top) if top > likely::MOST => {
            Err(ApiError::field("top_logprobs", format!("expected at most {}, found {top}", likely::MOST)))
        }
        Some(1..) if !asked => {
            Err(ApiError::field("top_logprobs", "expected `logprobs` to be true beside it"))
        }
        top => Ok(asked.then_some(top.unwrap_or(0) as u32)),
    }
}

/// The same of a text.
fn logprobs_of_text(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    match fields.whole("logprobs")? {
        Some(top) if top > likely::MOST => {
            Err(ApiError::field("logprobs", format!("expected at most {}, found {top}", likely::MOST)))
        }
        top => Ok(top.map(|top| top as u32)),
    }
}

/// A seed for who asks for none.
pub(crate) fn chance() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Refuses what would change a chat's answer and is not obeyed.
fn refuse_in_chats(fields: &mut Fields) -> Result<(), ApiError> {
    let text = |value: &Json| value == &json!(["text"]);
    fields.refuse("modalities", text, "answers are text alone")?;
    for name in ["audio", "prediction", "web_search_options", "verbosity"] {
        fields.refuse(name, is_nothing, "not supported")?;
    }
    Ok(())
}

/// A conversation with its pictures, and how it is rendered.
struct Chat {
    messages: Vec<Message>,
    options: RenderOptions,
    pictures: Vec<String>,
    places: Vec<String>,
}

/// Takes the conversation.
fn chat(fields: &mut Fields, pipeline: &Pipeline) -> Result<Chat, ApiError> {
    let messages = fields.any("messages");
    let messages =
        messages.ok_or_else(|| ApiError::field("messages", "expected a list of messages, found nothing"))?;
    if !messages.is_array() {
        return Err(unlike("messages", "a list of messages", &messages));
    }
    let read = Conversation::from_json("messages", messages);
    let read = read.map_err(|error| ApiError::engine(&Error::Text(error), "messages"))?;
    let mut options = pipeline.options.clone();
    options.extra.extend(fields.object("chat_template_kwargs")?.unwrap_or_default());
    if let Some(effort) = fields.text("reasoning_effort")? {
        let name = "reasoning_effort";
        if !pipeline.template.as_ref().is_some_and(|template| template.reads(name)) {
            return Err(ApiError::unsupported(name, "the model's chat template does not read it"));
        }
        options.extra.insert(name.into(), json!(effort));
    }
    let reads = |name: &str| pipeline.template.as_ref().is_some_and(|template| template.reads(name));
    if let Some(name) = options.extra.keys().find(|name| !reads(name)) {
        let place = format!("chat_template_kwargs.{name}");
        return Err(ApiError::unsupported(place, "the model's chat template does not read it"));
    }
    for (number, message) in read.messages.iter().enumerate() {
        let texts: Vec<&str> = match &message.content {
            Content::Text(text) => vec![text],
            Content::Parts(parts) => parts.iter().filter_map(Part::text).collect(),
        };
        texts
            .into_iter()
            .try_for_each(|text| no_mark(text, &format!("messages[{number}].content"), pipeline))?;
    }
    Ok(Chat { messages: read.messages, options, pictures: read.pictures, places: read.places })
}

/// Errors if a text has what stands for a picture.
fn no_mark(text: &str, place: &str, pipeline: &Pipeline) -> Result<(), ApiError> {
    let mark = pipeline.processor.image_mark();
    if mark.is_empty() || !text.contains(mark) {
        return Ok(());
    }
    Err(ApiError::field(place, format!("contains `{mark}`, which stands for a picture in this model")))
}

/// What one prompt is made of.
enum Source {
    Chat(Vec<Message>, RenderOptions),
    Text(String),
}

/// Decodes pictures and makes the request of a prompt, with the times that both took. To be run on a thread that may wait.
fn make(app: &App, source: &Source, found: &[Found], how: How) -> Result<(Request, [Duration; 2]), ApiError> {
    let (pipeline, client, limits) = app.answers()?;
    let How { mut params, max_tokens, form } = how;
    params.grammar = form.map(|asked| asked.compile(pipeline)).transpose()?;
    let start = Instant::now();
    let images = tracing::info_span!("decode_image", count = found.len())
        .in_scope(|| pictures::decode(found, &app.config))?;
    let decoded = Instant::now();
    let made = tracing::info_span!("resize").in_scope(|| {
        let text = match source {
            Source::Chat(messages, options) => &pipeline.render_with(messages, options)?,
            Source::Text(text) => text,
        };
        // A thread that has ended is told of when the request is handed in.
        pipeline.request_rendered(text, &images, params, &|picture| drop(client.expect(picture)))
    });
    let field = if matches!(source, Source::Text(_)) { "prompt" } else { "messages" };
    let mut request = made.map_err(|error| ApiError::engine(&error, field))?;
    let most = longest(pipeline, limits);
    let found = request.prompt.len();
    if found >= most {
        let error = Error::PromptTooLong { limit: most.saturating_sub(1), found };
        return Err(ApiError::engine(&error, field));
    }
    request.params.max_tokens = max_tokens.unwrap_or(usize::MAX).min(most - found);
    let times = [decoded - start, decoded.elapsed()];
    app.metrics.pictures.add(times[0]);
    app.metrics.prepare.add(times[1]);
    Ok((request, times))
}

/// Most tokens of prompt and answer.
pub(crate) fn longest(pipeline: &Pipeline, limits: &Limits) -> usize {
    pipeline.model.info().max_positions.min(limits.kv_tokens / PAGE * PAGE)
}

/// The same request with seeds of their own.
fn copies(request: Request, n: usize) -> impl Iterator<Item = Request> {
    (0..n as u64).map(move |number| {
        let mut copy = request.clone();
        copy.params.seed = copy.params.seed.wrapping_add(number);
        copy
    })
}

/// Unix time in seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Runs requests and writes their answers.
async fn answer(
    app: &Arc<App>,
    requests: Vec<Request>,
    places: OwnedSemaphorePermit,
    before: Before,
    wish: &Wish,
    shape: Shape,
) -> Result<Response, ApiError> {
    let count = requests.len();
    let answers = Answers::begin(app, requests, places, before, wish.n)?;
    if wish.stream {
        return stream(answers, shape, count, wish.usage).await;
    }
    Ok(json_response(StatusCode::OK, &whole(answers, shape, count).await?))
}

/// What names tokens, where their log probabilities are asked for.
fn words(wish: &Wish, pipeline: &Pipeline) -> Option<Tokenizer> {
    wish.how.params.logprobs.map(|_| pipeline.tokenizer.clone())
}

/// `/v1/chat/completions`.
pub(crate) async fn chat_completions(
    State(app): State<Arc<App>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    let body = app.body(request).await?;
    chat_of(&app, &body).await
}

/// The same of a body.
pub(crate) async fn chat_of(app: &Arc<App>, body: &[u8]) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut fields = Fields::read(body)?;
    let (pipeline, ..) = app.answers()?;
    let adapter = app.adapter(fields.text("model")?.as_deref())?;
    let mut wish = wish(&mut fields, true)?;
    wish.how.params.adapter.clone_from(&adapter);
    refuse_in_chats(&mut fields)?;
    let Tools { shown, read, form } = tools::take(&mut fields, pipeline)?;
    if let (true, Some(asked)) = (read, &wish.how.form) {
        return Err(ApiError::field(asked.field.clone(), "not together with `tools`"));
    }
    wish.how.form = wish.how.form.or(form);
    let Chat { messages, mut options, pictures, places: at } = chat(&mut fields, pipeline)?;
    options.extra.extend(shown.map(|tools| ("tools".to_owned(), tools)));
    fields.end()?;
    let places = app.places(wish.n)?;
    let start = Instant::now();
    let found = pictures::find(app, pictures, at).await?;
    let fetched = start.elapsed();
    let (shared, how) = (app.clone(), wish.how.clone());
    let work = move || make(&shared, &Source::Chat(messages, options), &found, how);
    let (request, times) = app.work(work).await?;
    let before = Before { arrived, pictures: fetched + times[0], prepare: times[1] };
    let shape = Shape {
        chat: true,
        id: app.id("chatcmpl"),
        created: now(),
        model: adapter.map_or_else(|| app.config.name.clone(), |adapter| adapter.to_string()),
        echo: Vec::new(),
        words: words(&wish, pipeline),
        tools: read,
    };
    answer(app, copies(request, wish.n).collect(), places, before, &wish, shape).await
}

/// `/v1/completions`.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    let body = app.body(request).await?;
    completions_of(&app, &body).await
}

/// The same of a body.
pub(crate) async fn completions_of(app: &Arc<App>, body: &[u8]) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut fields = Fields::read(body)?;
    let (pipeline, ..) = app.answers()?;
    let adapter = app.adapter(fields.text("model")?.as_deref())?;
    let mut wish = wish(&mut fields, false)?;
    wish.how.params.adapter.clone_from(&adapter);
    // What the protocol says where nothing is asked for.
    wish.how.max_tokens = wish.how.max_tokens.or(Some(16));
    let prompts = fields.texts("prompt")?;
    let prompts = prompts.ok_or_else(|| ApiError::field("prompt", "expected a text, found nothing"))?;
    if prompts.is_empty() || prompts.len() > MOST as usize {
        let found = prompts.len();
        return Err(ApiError::field("prompt", format!("expected 1 to {MOST} texts, found {found}")));
    }
    prompts.iter().try_for_each(|prompt| no_mark(prompt, "prompt", pipeline))?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    if echo && wish.how.params.logprobs.is_some() {
        return Err(ApiError::unsupported(
            "echo",
            "not together with `logprobs`: those of prompts are not given",
        ));
    }
    fields.refuse("suffix", is_nothing, "texts are continued at their end alone")?;
    let n = wish.n as u64;
    fields.refuse(
        "best_of",
        |value| value.as_u64() == Some(n),
        "expected as many as `n`, all of which are given",
    )?;
    fields.end()?;
    let places = app.places(wish.n * prompts.len())?;
    let (shared, how, n) = (app.clone(), wish.how.clone(), wish.n);
    let work = move || {
        let (mut requests, mut echoes, mut prepare) = (Vec::new(), Vec::new(), Duration::ZERO);
        for prompt in prompts {
            let source = Source::Text(prompt);
            let (request, times) = make(&shared, &source, &[], how.clone())?;
            prepare += times[1];
            requests.extend(copies(request, n));
            if let (true, Source::Text(prompt)) = (echo, source) {
                echoes.extend(std::iter::repeat_n(prompt, n));
            }
        }
        Ok((requests, echoes, prepare))
    };
    let (requests, echo, prepare) = app.work(work).await?;
    let before = Before { arrived, pictures: Duration::ZERO, prepare };
    let (id, created) = (app.id("cmpl"), now());
    let model = adapter.map_or_else(|| app.config.name.clone(), |adapter| adapter.to_string());
    let words = words(&wish, pipeline);
    let shape = Shape { chat: false, id, created, model, echo, words, tools: false };
    answer(app, requests, places, before, &wish, shape).await
}

/// `/tokenize`: the tokens of `prompt`, or of `messages` as they would be asked about.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(&app.body(request).await?)?;
    let (pipeline, _, limits) = app.answers()?;
    let most = longest(pipeline, limits);
    app.adapter(fields.text("model")?.as_deref())?;
    let prompt = fields.text("prompt")?;
    let (source, found) = match prompt {
        Some(prompt) => (Err((prompt, fields.flag("add_special_tokens")?.unwrap_or(true))), Vec::new()),
        None => {
            let Chat { messages, options, pictures, places } = chat(&mut fields, pipeline)?;
            (Ok(Source::Chat(messages, options)), pictures::find(&app, pictures, places).await?)
        }
    };
    fields.end()?;
    let _place = app.places(1)?;
    let shared = app.clone();
    let work = move || match source {
        Ok(source) => {
            let how = How { params: SamplingParams::default(), max_tokens: None, form: None };
            Ok(make(&shared, &source, &found, how)?.0.prompt.tokens)
        }
        Err((prompt, special)) => {
            let tokenizer = &shared.answers()?.0.tokenizer;
            let tokens = if special { tokenizer.encode(&prompt) } else { tokenizer.encode_plain(&prompt) };
            tokens.map_err(|error| ApiError::engine(&Error::Text(error), "prompt"))
        }
    };
    let tokens = app.work(work).await?;
    let value = json!({"count": tokens.len(), "max_model_len": most, "tokens": tokens});
    Ok(json_response(StatusCode::OK, &value))
}
