//! What is asked: the conversation of `ocelli run` with its pictures.

use std::io::Read;
use std::path::Path;

use ocelli_engine::Pipeline;
use ocelli_engine::image::PictureSource;
use ocelli_engine::text::{Content, Conversation, Message, Part, RenderOptions};

use crate::args::RunArgs;
use crate::fail::Failure;
use crate::open;

/// Most bytes of a prompt, or of messages.
const MAX_PROMPT: u64 = 16 << 20;
/// Most bytes of messages in a file, which may have pictures in them.
const MAX_MESSAGES: u64 = 1 << 30;

/// A conversation with its pictures, and how the chat template is rendered.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    /// The messages.
    pub messages: Vec<Message>,
    /// Their pictures, in order.
    pub pictures: Vec<PictureSource>,
    /// Variables of the chat template.
    pub render: RenderOptions,
}

impl Chat {
    /// The conversation that the arguments ask for: that of `--messages`, then a user's message of pictures and prompt.
    pub fn read(args: &RunArgs) -> Result<Self, Failure> {
        args.images.iter().try_for_each(|path| open::is_file_name(path))?;
        let mut chat = Self::default();
        if let Some(path) = &args.messages {
            chat.add_messages(path)?;
        }
        chat.messages.extend(args.system.iter().map(|text| Message::text("system", text.clone())));
        let prompt = args.prompt.as_deref().map(read_prompt).transpose()?;
        if let Some(prompt) = prompt {
            if prompt.trim().is_empty() && args.images.is_empty() && args.video.videos.is_empty() {
                return Err(Failure::usage("the prompt is empty and there is no picture")
                    .hint("say something, or give --image FILE"));
            }
            let mut message = Message::user(args.images.len(), prompt);
            if let Content::Parts(parts) = &mut message.content {
                let places = vec![Part::Video; args.video.videos.len()];
                parts.splice(args.images.len()..args.images.len(), places);
            }
            chat.messages.push(message);
            chat.pictures.extend(args.images.iter().cloned().map(PictureSource::File));
        } else if !args.images.is_empty() || !args.video.videos.is_empty() {
            return Err(Failure::usage("--image, --video: expected a prompt about it, found none")
                .hint("pictures of --messages are named in that file"));
        } else if chat.messages.last().is_some_and(|message| message.role == "assistant") {
            return Err(Failure::usage(
                "--messages: expected a last message to answer, found the assistant's own",
            )
            .hint("a prompt behind the arguments becomes the user's next message"));
        }
        for argument in &args.template_args {
            chat.render
                .assign(argument)
                .map_err(|error| Failure::usage(format!("--chat-template-arg: {error}")))?;
        }
        if chat.render.extra.contains_key("messages") {
            return Err(Failure::usage("--chat-template-arg: `messages` are those that are asked about"));
        }
        Ok(chat)
    }

    fn add_messages(&mut self, path: &Path) -> Result<(), Failure> {
        let name = path.display().to_string();
        let failed = |error| Failure::new(format!("--messages: {name}: {error}"));
        let from_stdin = name == "-";
        let mut json = Vec::new();
        match from_stdin {
            true => std::io::stdin().take(MAX_MESSAGES).read_to_end(&mut json).map_err(failed)?,
            false => std::fs::File::open(path)
                .and_then(|file| file.take(MAX_MESSAGES).read_to_end(&mut json))
                .map_err(failed)?,
        };
        let name = if from_stdin { "standard input".to_owned() } else { name };
        let conversation = Conversation::read(&name, &json).map_err(ocelli_engine::Error::from)?;
        let folder = path.parent().filter(|_| !from_stdin).unwrap_or(Path::new(""));
        for address in &conversation.pictures {
            let source = PictureSource::at(address, folder)?;
            if let PictureSource::File(path) = &source {
                open::is_picture_name(&name, address, path)?;
            }
            self.pictures.push(source);
        }
        self.messages = conversation.messages;
        self.render.extra.extend(conversation.variables);
        Ok(())
    }

    /// Errors if a text has what stands for a picture in the model; warns of variables that its template does not read.
    pub fn check(&self, args: &RunArgs, pipeline: &Pipeline) -> Result<(), Failure> {
        let mark = pipeline.processor.image_mark();
        let video =
            pipeline.processor.video().filter(|_| !args.video.videos.is_empty()).map(|video| video.mark());
        let texts: Vec<&str> = self
            .messages
            .iter()
            .flat_map(|message| match &message.content {
                Content::Text(text) => vec![text.as_str()],
                Content::Parts(parts) => parts.iter().filter_map(Part::text).collect(),
            })
            .collect();
        if !mark.is_empty() && texts.iter().any(|text| text.contains(mark)) {
            return Err(Failure::usage(format!(
                "the prompt contains `{mark}`, which stands for a picture in this model"
            ))
            .hint("give pictures with --image FILE; they come before the prompt, in the order given"));
        }
        if let Some(mark) = video.filter(|mark| texts.iter().any(|text| text.contains(*mark))) {
            return Err(Failure::usage(format!(
                "the prompt contains `{mark}`, which stands for a video in this model"
            ))
            .hint("give videos with --video; they come before the prompt, in the order given"));
        }
        for name in self.render.extra.keys() {
            match &pipeline.template {
                Some(template) if template.reads(name) => {}
                Some(_) => tracing::warn!("the model's chat template does not read `{name}`"),
                None => tracing::warn!("`{name}` is not read: the model has no chat template"),
            }
        }
        Ok(())
    }
}

fn read_prompt(text: &str) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut prompt = String::new();
    std::io::stdin()
        .take(MAX_PROMPT)
        .read_to_string(&mut prompt)
        .map_err(|error| Failure::new(format!("standard input: {error}")))?;
    Ok(prompt.trim_end_matches(['\n', '\r']).to_owned())
}
