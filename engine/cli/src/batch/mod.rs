//! `ocelli batch`: answers about many pictures, into a file that survives whatever ends the run.

pub mod args;
pub mod input;
mod output;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use minijinja::{Environment, UndefinedBehavior};
use ocelli_engine::image::{DecodeOptions, PictureSource};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{
    Client, Event, FinishReason, Limits, Media, Picture, Request, Scheduler, Ticket, Worker,
};
use ocelli_engine::store::FeatureStore;
use ocelli_engine::text::Message;
use ocelli_engine::weights::free_memory;
use ocelli_engine::{Error, Phase, Pipeline};
use ocelli_kernels::Backend;
use serde_json::Value;

use args::BatchArgs;
use input::Row;
use output::{Output, Record, beside};
use report::Report;

use crate::fail::{Failure, Outcome, SOME_FAILED, note, print_json};
use crate::form;
use crate::interrupt::{self, Gentle};
use crate::open;
use crate::progress::{Spinner, Steps};

/// Rows about the same picture that are prepared together.
const TOGETHER: usize = 64;

/// A request to come: a row and one of its prompts.
struct Item {
    row: usize,
    /// Number of the prompt, where there are several for each picture.
    prompt: usize,
    id: String,
}

/// What is asked of each row.
struct Questions {
    system: Option<String>,
    /// Sources of templates; none where rows have prompts of their own.
    prompts: Vec<String>,
    column: String,
    params: SamplingParams,
    decode: DecodeOptions,
}

impl Questions {
    /// The prompt of a row.
    fn text(&self, row: &Row, prompt: usize) -> Result<String, Failure> {
        let Some(source) = self.prompts.get(prompt) else {
            return match row.fields.get(&self.column) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(Value::Null) | None => {
                    Err(Failure::new(format!("no prompt: no field `{}`", self.column)))
                }
                Some(other) => Err(Failure::new(format!("{}: expected a text, found {other}", self.column))),
            };
        };
        if !source.contains(['{', '}']) {
            return Ok(source.clone());
        }
        let mut templates = Environment::new();
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        let text = templates.render_str(source, minijinja::value::Serde(&row.fields));
        text.map_err(|error| {
            let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
            let unknown = templates.template_from_str(source).map(|of| of.undeclared_variables(false));
            let mut unknown: Vec<String> = unknown.unwrap_or_default().into_iter().collect();
            unknown.retain(|name| !row.fields.contains_key(name));
            unknown.sort();
            let what = match unknown.is_empty() {
                true => detail,
                false => format!("no field `{}`", unknown.join("`, `")),
            };
            let there: Vec<&str> = row.fields.keys().map(String::as_str).collect();
            Failure::new(format!("--prompt: {what}; the row has {}", there.join(", ")))
        })
    }
}

/// Has items wait for their turn: item N begins once fewer than `count` of those before it are left. So the first that is left never
/// waits, whoever comes before it.
struct Permits {
    count: usize,
    written: Mutex<usize>,
    changed: Condvar,
    closed: AtomicBool,
}

impl Permits {
    fn new(count: usize) -> Self {
        Self { count, written: Mutex::new(0), changed: Condvar::new(), closed: AtomicBool::new(false) }
    }

    /// Waits for the turn of an item; false at the end of all.
    fn take(&self, number: usize) -> bool {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        while number >= *written + self.count && !self.closed.load(Ordering::Relaxed) {
            written = self.changed.wait(written).unwrap_or_else(PoisonError::into_inner);
        }
        !self.closed.load(Ordering::Relaxed)
    }

    /// One more is done.
    fn give(&self) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Nobody's turn comes any more.
    fn close(&self) {
        let _written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

/// What threads that prepare requests tell the one that writes: the number of an item, and what came of it.
enum News {
    Begun(usize, Ticket),
    Event(usize, Event, Duration),
    /// It never began.
    Lost(usize, Failure, Duration),
    /// The model is gone.
    End(Failure),
}

/// Time that preparing took, in nanoseconds.
#[derive(Default)]
struct Prepared {
    decode: AtomicU64,
    resize: AtomicU64,
}

/// What threads that prepare requests share.
struct Feed<'a> {
    rows: &'a [Row],
    /// Items, cut where their pictures change.
    groups: Vec<&'a [Item]>,
    /// Number of each group's first item.
    first: Vec<usize>,
    next: AtomicUsize,
    questions: &'a Questions,
    pipeline: &'a Pipeline,
    permits: &'a Permits,
    client: Client,
    took: &'a Prepared,
}

impl Feed<'_> {
    fn run(&self, news: &Sender<News>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((group, &first)) = self.groups.get(number).zip(self.first.get(number)) else { return };
            if !self.permits.take(first) {
                return;
            }
            let start = Instant::now();
            let seen = tracing::info_span!("row", id = group[0].id);
            let pictures = seen.in_scope(|| self.pictures(&self.rows[group[0].row]));
            for (place, item) in group.iter().enumerate() {
                let number = first + place;
                let _span = match place {
                    0 => seen.clone().entered(),
                    _ => {
                        let span = tracing::info_span!("row", id = item.id);
                        span.follows_from(&seen);
                        span.entered()
                    }
                };
                if place > 0 && !self.permits.take(number) {
                    return;
                }
                let request = match &pictures {
                    Ok(pictures) => self.request(item, pictures),
                    Err(failure) => Err(Failure::new(failure.message())),
                };
                let events = news.clone();
                let sink = move |event| events.send(News::Event(number, event, start.elapsed())).is_ok();
                let told = match request.map(|request| self.client.submit_to(request, sink)) {
                    Ok(Ok(ticket)) => News::Begun(number, ticket),
                    Ok(Err(error)) => News::End(error.into()),
                    Err(failure) => News::Lost(number, failure, start.elapsed()),
                };
                if news.send(told).is_err() {
                    return;
                }
            }
        }
    }

    fn pictures(&self, row: &Row) -> Result<Vec<Arc<Picture>>, Failure> {
        let add = |slot: &AtomicU64, start: Instant| {
            slot.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        };
        // A thread that has ended is told of when the request is handed in.
        let ready = |picture: &_| drop(self.client.expect(picture));
        let sources = row.sources()?;
        let prepare = |source: &PictureSource| {
            let start = Instant::now();
            let picture = Phase::DecodeImage.span().in_scope(|| source.decode(&self.questions.decode));
            add(&self.took.decode, start);
            let (start, picture) = (Instant::now(), picture?);
            let make = || self.pipeline.prepare_one_of(&picture, sources.len(), &ready);
            let prepared = Phase::Resize.span().in_scope(make);
            add(&self.took.resize, start);
            Ok(prepared?)
        };
        sources.iter().map(prepare).collect()
    }

    fn request(&self, item: &Item, pictures: &[Arc<Picture>]) -> Result<Request, Failure> {
        let text = self.questions.text(&self.rows[item.row], item.prompt)?;
        let mark = self.pipeline.processor.image_mark();
        if !mark.is_empty() && text.contains(mark) {
            return Err(Failure::new(format!(
                "the prompt contains `{mark}`, which stands for a picture in this model"
            )));
        }
        let mut messages: Vec<Message> =
            self.questions.system.iter().map(|text| Message::text("system", text.clone())).collect();
        messages.push(Message::user(pictures.len(), text));
        let images: Vec<_> = pictures.iter().map(|picture| &***picture).collect();
        let prompt = self.pipeline.lay_out(&messages, &images)?;
        let media = pictures.iter().cloned().map(Media::Picture).collect();
        Ok(Request { prompt, media, params: self.questions.params.clone() })
    }
}

/// Runs the command.
pub fn batch(args: &BatchArgs) -> Outcome {
    let begun = Instant::now();
    let mut params = args.sampling.params();
    params.validate().map_err(Error::from)?;
    params.adapter = args.model.one_adapter()?;
    let form = args.form.read()?;
    check(args)?;
    let rows = input::read(&args.inputs, &args.columns)?;
    let asks = |row: &Row| !row.fields.get(&args.columns.prompt_column).is_none_or(Value::is_null);
    if args.prompts.is_empty() && !rows.is_empty() && !rows.iter().any(asks) {
        let column = &args.columns.prompt_column;
        return Err(Failure::usage(format!("no prompt: no row has a field `{column}`"))
            .hint("--prompt TEXT asks the same of each, --prompt-column NAME names another field"));
    }
    let mut items = items(args, &rows);
    let captions = captions(args, &rows, &items)?;
    Output::check(args)?;

    let (device, precision) = open::device(&args.device)?;
    let spinner = Spinner::new("loading the model");
    let files = open::files(args.model.model.as_deref())?;
    let (mut pipeline, mut cx) = open::pipeline_of(&files, &args.model.setup(), &*device, precision)?;
    for argument in &args.template_args {
        pipeline
            .options
            .assign(argument)
            .map_err(|error| Failure::usage(format!("--chat-template-arg: {error}")))?;
    }
    params.grammar = form::compile(form.as_ref(), &pipeline)?;
    params.validate().map_err(Error::from)?;
    // Not before all that can be refused was.
    let (mut output, done) = Output::open(args)?;
    items.retain(|item| !done.ids.contains(&item.id));
    let info = pipeline.model.info().clone();
    params.max_tokens = params.max_tokens.min(info.max_positions);
    // Pictures are prepared beside the device; the CPU has its threads for the model.
    let beside_device = device.caps().backend != Backend::Cpu;
    let threads = if beside_device { pipeline.threads } else { pipeline.threads.div_ceil(4) };
    pipeline.threads = 1;
    let per_token = info.kv.bytes_per_token(cx.kv_dtype()).max(1);
    let memory = match args.kv_memory {
        Some(megabytes) => megabytes as u64 * 1_000_000,
        None => free_memory().map_or(u64::MAX, |free| free / 4),
    };
    let default = Limits::default();
    let most = args.parallel.saturating_mul(info.max_positions);
    let limits = Limits {
        seqs: args.parallel,
        kv_tokens: most.min(default.kv_tokens).min((memory / per_token) as usize).max(16),
        ..default.remembering()
    };
    let mut scheduler = Scheduler::new(&mut cx, pipeline.model.clone(), pipeline.tokenizer.clone(), limits)?;
    if let Some(dir) = &args.cache_dir {
        let of = args.model.setup().features(device.caps().backend)?;
        scheduler.set_store(FeatureStore::open(dir, &files, precision, &of)?);
    }
    drop(spinner);
    let worker = Worker::spawn(move || Ok((cx, scheduler)))?;

    let decode = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    let questions = Questions {
        system: args.system.clone(),
        prompts: args.prompts.clone(),
        column: args.columns.prompt_column.clone(),
        params,
        decode,
    };
    let loaded = begun.elapsed();
    let run = Run {
        args,
        rows: &rows,
        items: &items,
        captions,
        questions: &questions,
        pipeline: &pipeline,
        threads,
    };
    let (ended, mut report) = run.run(&worker, &mut output)?;
    report.load_s = loaded.as_secs_f64();
    report.resumed = done.ids.len();
    let complete = matches!(ended, Ended::All);
    output.finish(complete)?;
    report.total_s = begun.elapsed().as_secs_f64();
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    match args.json {
        true => print_json(&report)?,
        false => note(&report.to_string()),
    }
    match ended {
        Ended::All if report.failed == 0 => Ok(ExitCode::SUCCESS),
        Ended::All => {
            Failure::new(format!("{} of {} rows failed", report.failed, report.rows)).tell();
            Ok(ExitCode::from(SOME_FAILED))
        }
        Ended::Interrupted => {
            let (rows, left) = (report.rows, items.len() - report.rows);
            Failure::interrupted(format!("interrupted: {rows} rows are done, {left} are not"))
                .hint("--resume goes on")
                .tell();
            Ok(ExitCode::from(interrupt::code()))
        }
        Ended::TooMany => Err(Failure::new(format!("{} rows failed, more than --max-errors", report.failed))
            .hint("the rows so far are in the file of results; --resume --retry-errors tries them again")),
    }
}

/// Errors in arguments that do not go together.
fn check(args: &BatchArgs) -> Result<(), Failure> {
    if let Some(end) = &args.sidecar {
        if args.prompts.len() > 1 {
            return Err(Failure::usage(
                "--sidecar: a picture has one caption, but --prompt is given several times",
            ));
        }
        if end.is_empty() || end.contains(['/', '\\']) {
            return Err(Failure::usage(format!(
                "--sidecar: expected an end of a name such as txt, found `{end}`"
            )));
        }
    }
    if let Some(folder) =
        args.out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
    {
        return Err(Failure::new(format!("--out: {}: no such folder", folder.display())));
    }
    Ok(())
}

/// The requests of this part of the work, in the order of the input.
fn items(args: &BatchArgs, rows: &[Row]) -> Vec<Item> {
    let (part, of) = args.shard.unwrap_or((0, 1));
    let prompts = args.prompts.len().max(1);
    let mine = rows.iter().enumerate().filter(|(number, _)| number % of == part);
    mine.flat_map(|(row, fields)| {
        (0..prompts).map(move |prompt| {
            let id = if prompts == 1 { fields.id.clone() } else { format!("{}#{}", fields.id, prompt + 1) };
            Item { row, prompt, id }
        })
    })
    .collect()
}

/// The files of captions beside pictures, by row.
fn captions(args: &BatchArgs, rows: &[Row], items: &[Item]) -> Result<HashMap<usize, PathBuf>, Failure> {
    let Some(end) = &args.sidecar else { return Ok(HashMap::new()) };
    let mut all = HashMap::with_capacity(items.len());
    let mut seen = HashSet::with_capacity(items.len());
    for item in items {
        let row = &rows[item.row];
        let Some(file) = row.file() else {
            return Err(Failure::new(format!(
                "--sidecar: row `{}` is not about one picture in a file",
                item.id
            )));
        };
        let caption = file.with_extension(end.trim_start_matches('.'));
        if caption == file || !seen.insert(caption.clone()) {
            return Err(Failure::new(format!(
                "--sidecar: {}: would be written twice, or over a picture",
                caption.display()
            )));
        }
        if caption.exists() && !args.overwrite && !args.resume {
            return Err(Failure::new(format!("--sidecar: {}: is there already", caption.display()))
                .hint("--overwrite replaces captions"));
        }
        all.insert(item.row, caption);
    }
    Ok(all)
}

/// How a run ended.
enum Ended {
    All,
    Interrupted,
    TooMany,
}

struct Run<'a> {
    args: &'a BatchArgs,
    rows: &'a [Row],
    items: &'a [Item],
    captions: HashMap<usize, PathBuf>,
    questions: &'a Questions,
    pipeline: &'a Pipeline,
    threads: usize,
}

impl Run<'_> {
    fn run(&self, worker: &Worker, output: &mut Output) -> Result<(Ended, Report), Failure> {
        let (groups, first) = self.groups();
        // Beside those that are answered, each thread has one at hand.
        let permits = Permits::new(self.args.parallel + 2 * self.threads);
        let took = Prepared::default();
        let feed = Feed {
            rows: self.rows,
            groups,
            first,
            next: AtomicUsize::new(0),
            questions: self.questions,
            pipeline: self.pipeline,
            permits: &permits,
            client: worker.client(),
            took: &took,
        };
        let (gentle, bar) = (Gentle::begin(), Steps::new("rows", self.items.len()));
        let start = Instant::now();
        let mut report = Report::default();
        let (sender, news) = channel();
        let ended = std::thread::scope(|scope| {
            for _ in 0..self.threads {
                let (feed, sender) = (&feed, sender.clone());
                scope.spawn(move || feed.run(&sender));
            }
            drop(sender);
            let mut writing = Writing {
                run: self,
                output,
                report: &mut report,
                bar: &bar,
                held: BTreeMap::new(),
                next: 0,
                tickets: HashMap::new(),
                early: HashSet::new(),
            };
            let mut ended = Ok(Ended::All);
            while writing.next < self.items.len() {
                let came = match news.recv_timeout(Duration::from_millis(100)) {
                    Ok(came) => Some(came),
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                        ended = Err(worker.client().error().into());
                        break;
                    }
                };
                if let Some(came) = came {
                    match writing.take(came, &permits) {
                        Ok(ControlFlow::Continue(())) => {}
                        Ok(ControlFlow::Break(())) => ended = Ok(Ended::TooMany),
                        Err(failure) => ended = Err(failure),
                    }
                }
                if gentle.asked() {
                    ended = Ok(Ended::Interrupted);
                }
                if !matches!(ended, Ok(Ended::All)) {
                    break;
                }
            }
            if ended.is_ok() {
                // What has come meanwhile is an answer too.
                for came in news.try_iter() {
                    if let Err(failure) = writing.take(came, &permits) {
                        ended = Err(failure);
                        break;
                    }
                }
            }
            writing.tickets.values().for_each(Ticket::cancel);
            permits.close();
            drop(news);
            ended
        });
        let load = worker.client().load();
        report.measure(
            start.elapsed(),
            &load,
            self.threads,
            [&took.decode, &took.resize].map(|ns| ns.load(Ordering::Relaxed)),
        );
        drop(bar);
        Ok((ended?, report))
    }

    /// Neighbouring items about the same pictures, so that these are read once.
    fn groups(&self) -> (Vec<&[Item]>, Vec<usize>) {
        let pictures = |item: &Item| (&self.rows[item.row].pictures, &self.rows[item.row].folder);
        let groups: Vec<&[Item]> = self
            .items
            .chunk_by(|a, b| !pictures(a).0.is_empty() && pictures(a) == pictures(b))
            .flat_map(|group| group.chunks(TOGETHER))
            .collect();
        let first = groups.iter().scan(0, |sum, group| {
            let first = *sum;
            *sum += group.len();
            Some(first)
        });
        let first = first.collect();
        (groups, first)
    }
}

/// What the thread that writes keeps.
struct Writing<'a> {
    run: &'a Run<'a>,
    output: &'a mut Output,
    report: &'a mut Report,
    bar: &'a Steps,
    /// Rows that have ended before their turn.
    held: BTreeMap<usize, Record>,
    /// Rows that were written; with `--ordered` also the number of the next.
    next: usize,
    tickets: HashMap<usize, Ticket>,
    /// Requests that have ended before it was told that they began.
    early: HashSet<usize>,
}

impl Writing<'_> {
    /// Takes news; breaks when too many rows have failed.
    fn take(&mut self, news: News, permits: &Permits) -> Result<ControlFlow<()>, Failure> {
        let (number, answer, took) = match news {
            News::Begun(number, ticket) => {
                if !self.early.remove(&number) {
                    self.tickets.insert(number, ticket);
                }
                return Ok(ControlFlow::Continue(()));
            }
            News::End(failure) => return Err(failure),
            News::Event(_, Event::Text { .. }, _) => return Ok(ControlFlow::Continue(())),
            News::Event(number, Event::Done { answer, .. }, took) => (number, Ok(answer), took),
            News::Event(number, Event::Failed { error, .. }, took) => {
                (number, Err(Failure::from(error)), took)
            }
            News::Lost(number, failure, took) => {
                self.early.insert(number);
                (number, Err(failure), took)
            }
        };
        let item = &self.run.items[number];
        let row = &self.run.rows[item.row];
        let mut record = Record {
            id: item.id.clone(),
            image: match &row.pictures[..] {
                [] => Value::Null,
                [one] => shown(one).into(),
                all => all.iter().map(|one| shown(one)).collect::<Vec<_>>().into(),
            },
            prompt: (self.run.args.prompts.len() > 1).then(|| self.run.args.prompts[item.prompt].clone()),
            ms: Some((took.as_secs_f64() * 1e4).round() / 10.0),
            ..Record::default()
        };
        match answer {
            Ok(answer) if answer.finish_reason == FinishReason::Cancelled => {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(answer) => {
                self.report.tokens += answer.token_ids.len();
                self.report.pictures += row.pictures.len();
                record.finish_reason =
                    Some(if answer.finish_reason == FinishReason::Stop { "stop" } else { "length" }.into());
                record.tokens = Some(answer.token_ids.len() as i64);
                record.reasoning = answer.reasoning;
                record.text = Some(answer.text);
            }
            Err(failure) => {
                self.report.failed += 1;
                record.ms = None;
                record.error = Some(failure.message().to_owned());
                self.bar.pause(|| tracing::warn!("{}: {}", item.id, failure.message()));
            }
        }
        // The end of a request may be told before its beginning; who never began has none.
        if self.tickets.remove(&number).is_none() && !self.early.remove(&number) {
            self.early.insert(number);
        }
        if self.run.args.ordered {
            self.held.insert(number, record);
            while let Some(record) = self.held.remove(&self.next) {
                self.write(self.next, &record, permits)?;
            }
        } else {
            self.write(number, &record, permits)?;
        }
        let too_many = self.run.args.max_errors.is_some_and(|most| self.report.failed > most);
        Ok(if too_many { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn write(&mut self, number: usize, record: &Record, permits: &Permits) -> Result<(), Failure> {
        if let (Some(text), Some(path)) = (&record.text, self.run.captions.get(&self.run.items[number].row)) {
            let new = beside(path, "new");
            let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
            written.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        }
        // Last, so that a row that is there has its caption.
        self.output.write(record)?;
        self.next += 1;
        self.report.rows += 1;
        self.bar.advance(1);
        permits.give();
        Ok(())
    }
}

/// A picture's name as results show it: not all of its data.
fn shown(picture: &str) -> String {
    match picture.starts_with("data:") {
        true => picture.chars().take(30).collect::<String>() + "...",
        false => picture.to_owned(),
    }
}
