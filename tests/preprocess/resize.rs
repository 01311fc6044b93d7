//! Every tensor of `golden/resize/resize.safetensors` (written by torchvision), to the bit.

use ocelli_engine::image::{Filter, Rgb8Image, resize};
use safetensors::SafeTensors;

fn picture(file: &SafeTensors<'_>, key: &str) -> Rgb8Image {
    let tensor = file.tensor(key).unwrap();
    let &[height, width, 3] = tensor.shape() else { panic!("{key}: shape {:?}", tensor.shape()) };
    Rgb8Image::from_raw(width, height, tensor.data().to_vec()).unwrap()
}

#[test]
fn equal_to_torchvision() {
    let bytes = std::fs::read(crate::golden("resize/resize.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut checked = [0; 3];
    for key in file.names() {
        let [name, from, to] = key.split('.').collect::<Vec<_>>()[..] else { continue };
        let (which, filter) = match name {
            "bilinear" => (0, Filter::Bilinear),
            "bicubic" => (1, Filter::Bicubic),
            "lanczos" => (2, Filter::Lanczos),
            _ => panic!("{key}"),
        };
        let input = picture(&file, &format!("in.{from}"));
        let want = picture(&file, key);
        assert_eq!(to, format!("{}x{}", want.width(), want.height()));
        for threads in [1, 2] {
            let got = resize(&input, want.width(), want.height(), filter, threads).unwrap();
            let wrong = got.data().iter().zip(want.data()).filter(|(a, b)| a != b).count();
            assert_eq!(wrong, 0, "{key}: {wrong} of {} values differ", want.data().len());
        }
        checked[which] += 1;
    }
    assert_eq!(checked, [28; 3], "cases per filter");
}
