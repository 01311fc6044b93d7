//! Frames of videos: pictures in a folder, or what ffmpeg takes out of a file.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ocelli_engine::image::{DecodeOptions, PictureSource};
use ocelli_engine::video::Video;

use crate::args::VideoArgs;
use crate::fail::Failure;
use crate::{open, vectors};

/// A folder that is gone when this is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The videos that the arguments name.
pub fn read(args: &VideoArgs, options: &DecodeOptions) -> Result<Vec<Video>, Failure> {
    args.videos.iter().map(|path| one(path, args, options)).collect()
}

fn one(path: &Path, args: &VideoArgs, options: &DecodeOptions) -> Result<Video, Failure> {
    if path.is_dir() {
        return of_folder(path, args, options);
    }
    std::fs::metadata(path).map_err(|error| Failure::new(format!("--video: {}: {error}", path.display())))?;
    let name = format!("ocelli-frames-{}", std::process::id());
    let folder = Folder(std::env::temp_dir().join(name));
    std::fs::create_dir_all(&folder.0)
        .map_err(|error| Failure::new(format!("{}: {error}", folder.0.display())))?;
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-nostdin", "-i"]).arg(path);
    command.arg("-vf").arg(format!("fps={}", args.fps)).arg(folder.0.join("%08d.png"));
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        let name = path.display();
        Failure::new(format!(
            "--video: {name}: frames of a file are taken by ffmpeg, which cannot be run: {error}"
        ))
        .hint("install ffmpeg, or give a folder with the frames as pictures")
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.trim().lines().last().unwrap_or("no reason given").to_owned();
        return Err(Failure::new(format!("--video: {}: ffmpeg: {last}", path.display())));
    }
    of_folder(&folder.0, args, options)
}

/// Pictures of a folder, in order of their names.
fn of_folder(folder: &Path, args: &VideoArgs, options: &DecodeOptions) -> Result<Video, Failure> {
    let paths = vectors::list(&[folder.to_owned()])?;
    let sources: Vec<PictureSource> = paths.into_iter().map(PictureSource::File).collect();
    let frames = open::read_pictures(&sources, options)?;
    Ok(Video::of_frames(frames, args.fps, args.max_frames)?)
}
