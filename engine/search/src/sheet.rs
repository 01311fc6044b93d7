//! What was found, to look at: thumbnails, and one page that needs nothing else.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli_engine::Error;
use ocelli_engine::image::{DecodeOptions, Filter, ImageError, PictureSource, Rgb8Image, resize};
use serde::Serialize;

use crate::index::About;

/// Quality of thumbnails, of 100.
const QUALITY: u8 = 80;

/// A picture as a `data:` address, with sides of at most `side` pixels.
///
/// # Errors
/// If it cannot be read.
pub fn thumbnail(source: &PictureSource, side: usize, options: &DecodeOptions) -> Result<String, Error> {
    let image = source.decode(options)?;
    let longest = image.width().max(image.height());
    let of = |length: usize| (length * side / longest).clamp(1, side);
    let small = match longest > side {
        true => resize(&image, of(image.width()), of(image.height()), Filter::Lanczos, 1)?,
        false => image,
    };
    let bytes = jpeg(&small).ok_or_else(|| {
        let name = "a thumbnail".to_owned();
        ImageError::Io { name, source: std::io::Error::other("it cannot be written as JPEG") }
    })?;
    Ok(format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(bytes)))
}

fn jpeg(image: &Rgb8Image) -> Option<Vec<u8>> {
    let (width, height) = (u16::try_from(image.width()).ok()?, u16::try_from(image.height()).ok()?);
    let mut bytes = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, QUALITY);
    encoder.encode(image.data(), width, height, jpeg_encoder::ColorType::Rgb).ok()?;
    Some(bytes)
}

/// A picture that was found, as results show it.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// Its path, from the folder of the index on.
    pub path: String,
    /// The product of its vector and that of the query.
    pub score: f64,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// The picture, small, as a `data:` address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<String>,
}

/// What was looked for: a text, or a picture by its name with a thumbnail.
#[derive(Clone, Copy, Debug)]
pub enum Query<'a> {
    /// A text.
    Text(&'a str),
    /// A picture: its name, and itself as a `data:` address.
    Picture(&'a str, &'a str),
}

/// A page with all that was found; it asks nobody for anything.
#[must_use]
pub fn page(about: &About, query: Query<'_>, found: &[Found]) -> String {
    let (title, shown) = match query {
        Query::Text(text) => {
            (escaped(text), format!("<p>Pictures for the text <q>{}</q></p>", escaped(text)))
        }
        Query::Picture(name, data) => (
            escaped(name),
            format!(
                "<p>Pictures like {}</p>\n<img class=\"query\" src=\"{data}\" alt=\"the picture that was looked for\">",
                escaped(name)
            ),
        ),
    };
    let cards: String = found
        .iter()
        .map(|found| {
            let path = escaped(&found.path);
            let picture = match &found.thumbnail {
                Some(data) => format!("<img src=\"{data}\" alt=\"\">"),
                None => "<div class=\"none\">cannot be read now</div>".to_owned(),
            };
            format!(
                "<li>{picture}<p class=\"path\">{path}</p><p class=\"facts\">{:.4} · {} × {}</p></li>\n",
                found.score, found.width, found.height
            )
        })
        .collect();
    let (model, kind, root) = (escaped(&about.model), about.kind, escaped(&about.root.display().to_string()));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
         <title>{title} · ocelli search</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n\
         :root {{ color-scheme: light dark; --back: #fbfbf9; --front: #1d1f21; --soft: #5c6166; --line: #d8d9d4; --card: #fff; }}\n\
         @media (prefers-color-scheme: dark) {{ :root {{ --back: #16181a; --front: #e8e9e6; --soft: #a2a8ad; --line: #34383c; --card: #1f2225; }} }}\n\
         body {{ margin: 0; padding: 16px 20px; background: var(--back); color: var(--front); font: 16px/1.5 system-ui, sans-serif; }}\n\
         h1 {{ font-size: 1.15rem; margin: 0; }} p {{ margin: 4px 0; }} .soft, .facts {{ color: var(--soft); font-size: .85rem; }}\n\
         ol {{ list-style: none; margin: 16px 0 0; padding: 0; display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); }}\n\
         li {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px; }}\n\
         li img, .none {{ width: 100%; height: 180px; object-fit: contain; }} .none {{ display: grid; place-items: center; color: var(--soft); }}\n\
         .path {{ overflow-wrap: anywhere; font-size: .9rem; }} .query {{ max-height: 180px; border-radius: 10px; }}\n\
         </style>\n</head>\n<body>\n<h1>ocelli search</h1>\n{shown}\n\
         <p class=\"soft\">{} of {root}, by {kind} of {model}; the number under each is the product of unit vectors.</p>\n\
         <ol>\n{cards}</ol>\n</body>\n</html>\n",
        found.len()
    )
}

/// Text as HTML has it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The pictures at places of a matrix, with thumbnails of at most `side` pixels, or without any if that is 0.
#[must_use]
pub fn shown(
    about: &About,
    matrix: &crate::Matrix,
    hits: &[crate::Hit],
    side: usize,
    options: &DecodeOptions,
    threads: usize,
) -> Vec<Found> {
    let show = |hit: &crate::Hit, _| {
        let path = matrix.path(hit.place);
        let (width, height) = matrix.size(hit.place);
        let source = PictureSource::File(about.root.join(Path::new(path)));
        let thumbnail = (side > 0).then(|| thumbnail(&source, side, options).ok()).flatten();
        let found = Found { path: path.to_owned(), score: hit.score, width, height, thumbnail };
        Ok::<_, std::convert::Infallible>(found)
    };
    ocelli_engine::parallel::try_map(hits, threads, show).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_be_markup() {
        assert_eq!(escaped("<b a='1'>\"&"), "&lt;b a=&#39;1&#39;&gt;&quot;&amp;");
    }
}
