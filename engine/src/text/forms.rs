//! In which form a template is given the content of each message.
//!
//! transformers passes what the caller wrote: a string, or a list of parts. Templates read one of them or both, and some
//! print a system message as it is but go through the parts of the others. So the messages are rendered once with a mark
//! in every text and in every part: a message is shown well if its text's mark is in the prompt and no part was printed
//! as a Python list or as JSON.

use minijinja::Error;
use serde_json::{Value as Json, json};

use super::TextError;
use super::template::{Content, Inner, Message, Part, RenderOptions, is_raised, pair};

/// How a message of text alone is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A string or a list of parts, as the caller wrote it.
    Given,
    Text,
    Parts,
}

/// Digits alone: neither case nor escapes change them.
const TEXT_MARK: &str = "9081726354";
const PART_MARK: &str = "3627180945";

/// Marks of a message.
struct Marks {
    text: String,
    part: String,
}

impl Marks {
    fn of(i: usize) -> Self {
        Self { text: format!("{TEXT_MARK}{i:06}"), part: format!("{PART_MARK}{i:06}") }
    }
}

/// The contents to render with.
pub(super) fn choose(
    template: &Inner,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Vec<Json>, TextError> {
    let mut errors: Vec<(usize, Error)> = Vec::new();
    let mut best: Option<(usize, Vec<Form>, Vec<bool>)> = None;
    for forms in candidates(messages) {
        let probe: Vec<Json> = (0..messages.len())
            .map(|i| content(&messages[i].content, forms[i], Some(&Marks::of(i))))
            .collect();
        let rendered = template.render(pair(messages, probe), options);
        match rendered.result {
            Ok(prompt) => {
                let shown: Vec<bool> =
                    messages.iter().enumerate().map(|(i, message)| is_shown(&prompt, i, message)).collect();
                let count = shown.iter().filter(|shown| **shown).count();
                let better = best.as_ref().is_none_or(|(most, ..)| count > *most);
                if better {
                    best = Some((count, forms, shown));
                }
                if count == messages.len() {
                    break;
                }
            }
            Err(e) => errors.push((rendered.written, e)),
        }
    }
    let places_images = |shown: &[bool]| messages.iter().zip(shown).all(|(m, shown)| *shown || !m.shows());
    match best {
        Some((_, forms, shown)) if places_images(&shown) => {
            Ok((0..messages.len()).map(|i| content(&messages[i].content, forms[i], None)).collect())
        }
        best => match flattened(template, messages, options) {
            // The template itself says why it does not take them.
            _ if best.is_none() && errors.iter().any(|(_, e)| is_raised(e)) => {
                Err(template.error(&worst(errors)))
            }
            Some(contents) if options.image_text.is_some() => Ok(contents),
            Some(_) => Err(template.no_images()),
            None => match best {
                Some((_, forms, _)) => {
                    Ok((0..messages.len()).map(|i| content(&messages[i].content, forms[i], None)).collect())
                }
                None => Err(template.error(&worst(errors))),
            },
        },
    }
}

/// The error to report: what the template itself raised, else that of the rendering which came furthest.
fn worst(errors: Vec<(usize, Error)>) -> Error {
    let missing = || Error::new(minijinja::ErrorKind::InvalidOperation, "there is nothing to render");
    let raised = errors.iter().position(|(_, e)| is_raised(e));
    let furthest = || (0..errors.len()).rev().max_by_key(|&i| errors[i].0);
    let at = raised.or_else(furthest);
    at.and_then(|at| errors.into_iter().nth(at)).map_or_else(missing, |(_, e)| e)
}

/// Strings for all messages, where the template shows them and there are images to take out.
fn flattened(template: &Inner, messages: &[Message], options: &RenderOptions) -> Option<Vec<Json>> {
    if !messages.iter().any(Message::shows) {
        return None;
    }
    let image = options.image_text.as_deref().unwrap_or_default();
    let texts: Vec<String> = messages.iter().map(|message| message.content.plain(image, "")).collect();
    let probe = texts.iter().enumerate().map(|(i, text)| Json::from(text.clone() + &Marks::of(i).text));
    let prompt = template.render(pair(messages, probe.collect()), options).result.ok()?;
    let shown = |i: usize| !messages[i].shows() || prompt.contains(&Marks::of(i).text);
    (0..messages.len()).all(shown).then(|| texts.into_iter().map(Json::from).collect())
}

/// Forms to try: as given, then with one or more roles' messages of text alone in another form.
fn candidates(messages: &[Message]) -> Vec<Vec<Form>> {
    let mut roles: Vec<(&str, Vec<Form>)> = Vec::new();
    for message in messages.iter().filter(|message| !message.shows()) {
        let other = match message.content {
            Content::Text(_) => Form::Parts,
            Content::Parts(_) => Form::Text,
        };
        let place = roles.iter().position(|(role, _)| *role == message.role).unwrap_or_else(|| {
            roles.push((&message.role, vec![Form::Given]));
            roles.len() - 1
        });
        if !roles[place].1.contains(&other) {
            roles[place].1.push(other);
        }
    }
    // Conversations have three or four roles; more of them are not worth all combinations.
    roles.truncate(4);
    let mut chosen: Vec<Vec<Form>> = vec![Vec::new()];
    for (_, forms) in &roles {
        chosen = chosen
            .iter()
            .flat_map(|start| forms.iter().map(|form| start.iter().copied().chain([*form]).collect()))
            .collect();
    }
    chosen.sort_by_key(|forms| forms.iter().filter(|form| **form != Form::Given).count());
    let of_message = |forms: &[Form], message: &Message| {
        let place = roles.iter().position(|(role, _)| *role == message.role);
        place.filter(|_| !message.shows()).map_or(Form::Given, |place| forms[place])
    };
    chosen.iter().map(|forms| messages.iter().map(|message| of_message(forms, message)).collect()).collect()
}

/// A content as JSON, with the marks in its texts and in each of its parts.
fn content(content: &Content, form: Form, marks: Option<&Marks>) -> Json {
    let text_mark = marks.map_or("", |marks| marks.text.as_str());
    let one_text = |text: &str| Part::Text { text: text.to_owned() };
    let parts = match (content, form) {
        (Content::Text(text), Form::Given | Form::Text) => return Json::from(text.clone() + text_mark),
        (Content::Parts(_), Form::Text) => return Json::from(content.plain("", "") + text_mark),
        (Content::Text(text), Form::Parts) => &vec![one_text(text)],
        (Content::Parts(parts), _) => parts,
    };
    let part = |part: &Part| {
        let mut part = match part {
            Part::Image => json!({"type": "image"}),
            Part::Video => json!({"type": "video"}),
            Part::Text { text } => json!({"type": "text", "text": text.clone() + text_mark}),
        };
        if let (Some(marks), Some(map)) = (marks, part.as_object_mut()) {
            map.insert(marks.part.clone(), Json::Bool(true));
        }
        part
    };
    parts.iter().map(part).collect()
}

/// Whether the prompt of a probe shows the text of a message, and none of its parts as they are.
fn is_shown(prompt: &str, i: usize, message: &Message) -> bool {
    let marks = Marks::of(i);
    let has_text = match &message.content {
        Content::Text(_) => true,
        Content::Parts(parts) => parts.iter().any(|part| matches!(part, Part::Text { .. })),
    };
    !prompt.contains(&marks.part) && (!has_text || prompt.contains(&marks.text))
}
