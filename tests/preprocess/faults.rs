//! Damaged and unusual pictures that the reference opens: pixels have to be equal.

use ocelli_engine::image::{DecodeOptions, decode_file};

/// Names of the pictures in `golden/faults` that have a reference beside them.
fn names() -> Vec<String> {
    let files = std::fs::read_dir(crate::golden("faults")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter_map(|name| name.strip_suffix(".ref.png").map(str::to_owned)).collect();
    names.sort();
    names
}

/// Compares those pictures of one format whose names start with one of `groups`; there are at least `least`.
fn compare(groups: &[&str], extension: &str, least: usize) {
    let options = DecodeOptions::default();
    let all = names();
    let chosen: Vec<_> = all
        .iter()
        .filter(|name| name.ends_with(extension) && groups.iter().any(|group| name.starts_with(group)))
        .collect();
    assert!(chosen.len() >= least, "{} of {groups:?} in {extension}", chosen.len());
    let mut wrong = Vec::new();
    for name in chosen {
        let want = decode_file(&crate::golden("faults").join(format!("{name}.ref.png")), &options).unwrap();
        match decode_file(&crate::golden("faults").join(name), &options) {
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(got) if (got.width(), got.height()) != (want.width(), want.height()) => {
                let size = (got.width(), got.height(), want.width(), want.height());
                wrong.push(format!(
                    "{name}: {} x {} pixels, expected {} x {}",
                    size.0, size.1, size.2, size.3
                ));
            }
            Ok(got) => {
                let differ = got.data().iter().zip(want.data()).filter(|(a, b)| a != b).count();
                if differ > 0 {
                    wrong.push(format!("{name}: {differ} of {} levels differ", got.data().len()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} pictures:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn exif_turns_pictures() {
    compare(&["exif"], ".jpg", 15);
    compare(&["exif", "raw_profile"], ".png", 8);
    compare(&["exif"], ".webp", 5);
}

#[test]
fn xmp_turns_pictures_without_exif() {
    compare(&["xmp"], ".jpg", 5);
    compare(&["xmp"], ".png", 10);
    compare(&["xmp"], ".webp", 6);
}

#[test]
fn webp_containers_that_do_not_fit_their_content() {
    compare(&["trailing_junk", "junk", "long_metadata", "unknown_chunk"], ".webp", 12);
    compare(&["alpha_flag", "flags"], ".webp", 14);
    compare(&["part"], ".webp", 8);
}

#[test]
fn jpegs_that_stop_too_soon() {
    compare(&["cut", "scans"], ".jpg", 25);
}

#[test]
fn jpegs_with_other_markers() {
    compare(&["rst", "stray_app"], ".jpg", 45);
}

#[test]
fn jpegs_with_damaged_data() {
    compare(&["bad"], ".jpg", 10);
}

#[test]
fn jpegs_without_tables_or_with_odd_headers() {
    compare(&["mjpeg", "no_dht", "ids", "sequential_zeros"], ".jpg", 11);
}

#[test]
fn pngs_without_end_or_checksums() {
    compare(&["crc", "no_", "half_iend", "split", "idat", "junk", "unknown_critical"], ".png", 25);
}

#[test]
fn palettes_that_are_too_short() {
    compare(&["palette", "grey_trns"], ".png", 7);
    compare(&["beyond", "no_palette"], ".gif", 9);
}

#[test]
fn bmps_with_odd_headers() {
    compare(&["bmp", "offset", "planes", "last_padding"], ".bmp", 12);
}

#[test]
fn every_picture_is_compared() {
    let groups = [
        "alpha_flag",
        "bad",
        "beyond",
        "bmp",
        "crc",
        "cut",
        "exif",
        "flags",
        "grey_trns",
        "half_iend",
        "idat",
        "ids",
        "junk",
        "last_padding",
        "long_metadata",
        "mjpeg",
        "no_",
        "offset",
        "palette",
        "part",
        "planes",
        "raw_profile",
        "rst",
        "scans",
        "sequential_zeros",
        "split",
        "stray_app",
        "trailing_junk",
        "unknown",
        "xmp",
    ];
    for name in names() {
        assert!(groups.iter().any(|group| name.starts_with(group)), "{name}");
    }
}
