//! The pictures of a request, from the addresses that stand for them.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_engine::image::{DecodeOptions, ImageError, PictureSource, Rgb8Image};

use crate::app::{App, Config};
use crate::error::ApiError;
use crate::remote;

/// A picture that can be read, with the field that it came from.
pub(crate) struct Found {
    place: String,
    origin: Origin,
}

enum Origin {
    /// A `data:` address, or the name of a file.
    Here(String),
    /// What was fetched.
    Fetched(PictureSource),
}

/// Finds the pictures at `addresses`, of the fields `places`; what is far away is fetched.
pub(crate) async fn find(
    app: &Arc<App>,
    addresses: Vec<String>,
    places: Vec<String>,
) -> Result<Vec<Found>, ApiError> {
    let most = app.config.max_images;
    if addresses.len() > most {
        let (place, found) = (places[most].clone(), addresses.len());
        let why = format!("expected at most {most} pictures in a request, found {found}");
        return Err(ApiError::field(place, why).code("too_many_images"));
    }
    let mut all = Vec::with_capacity(addresses.len());
    for (address, place) in addresses.into_iter().zip(places) {
        let origin = match remote::is_remote(&address) {
            true => Origin::Fetched(fetch(app, &address, &place).await?),
            false => Origin::Here(address),
        };
        all.push(Found { place, origin });
    }
    Ok(all)
}

async fn fetch(app: &Arc<App>, address: &str, place: &str) -> Result<PictureSource, ApiError> {
    let refused = |why: String| ApiError::field(place, why).code("image_not_fetched");
    // The semaphore is never closed.
    let permit = app.fetches.clone().acquire_owned().await.ok();
    let (app, address_of) = (app.clone(), address.to_owned());
    let work = move || {
        let _permit = permit;
        remote::fetch(&app.config.remote, &address_of, app.config.max_body)
    };
    let fetched = tokio::task::spawn_blocking(work).await;
    let bytes =
        fetched.unwrap_or_else(|_| Err("the picture could not be fetched".into())).map_err(refused)?;
    Ok(PictureSource::Bytes(address.chars().take(200).collect(), bytes.into()))
}

/// A file below the folder that pictures may be taken from, wherever links lead.
fn file(config: &Config, address: &str, place: &str) -> Result<PictureSource, ApiError> {
    let Some(root) = &config.media_root else {
        let shown: String = address.chars().take(80).collect();
        let why = format!(
            "expected a data: address, found `{shown}`; files are read where the server was started with --media-root"
        );
        return Err(ApiError::field(place, why).code("image_not_allowed"));
    };
    // What is not there and what may not be read are told apart to nobody.
    let path = below(root, address).ok_or_else(|| {
        ApiError::field(place, "there is no such file below the server's --media-root")
            .code("image_not_found")
    })?;
    let name: String = address.chars().take(200).collect();
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(&path)?.take(config.max_body as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() > config.max_body => {
            let limit = config.max_body as u64;
            Err(ApiError::picture(place, &ImageError::FileTooLarge { name, limit }))
        }
        Ok(bytes) => Ok(PictureSource::Bytes(name, bytes.into())),
        Err(source) => Err(ApiError::picture(place, &ImageError::Io { name, source })),
    }
}

/// The file at a path or `file:` address, if it lies below `root`, which is canonical.
fn below(root: &Path, address: &str) -> Option<PathBuf> {
    let name = match address.strip_prefix("file://") {
        Some(rest) => unescaped(rest.strip_prefix("localhost").unwrap_or(rest))?,
        None => address.to_owned(),
    };
    let path = root.join(name).canonicalize().ok()?;
    (path.starts_with(root) && path.is_file()).then_some(path)
}

/// Text with `%20` and the like made what they stand for.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Reads and decodes them, to no more pixels together than the configuration allows. To be run on a thread that may wait.
pub(crate) fn decode(found: &[Found], config: &Config) -> Result<Vec<Rgb8Image>, ApiError> {
    let max_pixels = config.max_pixels;
    let mut left = max_pixels;
    let mut images = Vec::with_capacity(found.len());
    for Found { place, origin } in found {
        let source = match origin {
            Origin::Fetched(source) => source.clone(),
            Origin::Here(address) if address.starts_with("data:") => {
                PictureSource::at(address, Path::new("")).map_err(|error| ApiError::picture(place, &error))?
            }
            Origin::Here(address) => file(config, address, place)?,
        };
        let options = DecodeOptions { max_pixels: left, ..DecodeOptions::default() };
        let image = source.decode(&options).map_err(|error| match error {
            ImageError::TooManyPixels { width, height, .. } => {
                let why = format!("{width} x {height}: expected at most {max_pixels} pixels in a request's pictures together, found more");
                ApiError::field(place.as_str(), why).code("too_many_pixels")
            }
            error => ApiError::picture(place, &error),
        })?;
        left = left.saturating_sub(image.width() as u64 * image.height() as u64);
        images.push(image);
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_the_root() {
        let base = std::env::temp_dir().join(format!("ocelli-media-{}", std::process::id()));
        let root = base.join("root");
        std::fs::create_dir_all(root.join("a b")).unwrap();
        std::fs::write(base.join("secret.png"), "s").unwrap();
        std::fs::write(root.join("a b/x.png"), "x").unwrap();
        let root = root.canonicalize().unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(base.join("secret.png"), root.join("link.png")).unwrap();
        let inside = root.join("a b/x.png");
        let absolute = format!("file://{}", root.display());
        for (address, expected) in [
            ("a b/x.png", true),
            ("./a b/../a b/x.png", true),
            (&*format!("{absolute}/a%20b/x.png"), true),
            (&*format!("file://localhost{}/a%20b/x.png", root.display()), true),
            ("../secret.png", false),
            ("link.png", false),
            ("a b", false),
            ("", false),
            ("/etc/passwd", false),
            ("file:///etc/passwd", false),
            (&*format!("{absolute}/%2e%2e/secret.png"), false),
            ("file:///%", false),
        ] {
            let found = below(&root, address);
            assert_eq!(found, expected.then(|| inside.clone()), "{address}");
        }
        std::fs::remove_dir_all(base).unwrap();
    }
}
