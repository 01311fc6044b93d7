//! What is inside the binary.

use crate::command;

#[test]
fn no_symbols_and_no_folder_of_the_sources() {
    let bytes = std::fs::read(command(&["--version"]).get_program()).unwrap();
    let contains = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    // Three models, and for each instruction set its kernels, those of training too; names and lines would double it.
    assert!(bytes.len() < 62 << 20, "{} bytes", bytes.len());
    for section in [&b".debug_info\0"[..], b".debug_line\0", b".symtab\0"] {
        assert!(!contains(section), "{}", String::from_utf8_lossy(section));
    }
    // Panics name files from the workspace on.
    assert!(contains(b"kernels/src/") && contains(b"engine/src/"));
    let root = ocelli_tests::root();
    assert!(!contains(root.join("kernels").to_str().unwrap().as_bytes()));
    assert!(!contains(root.join("engine").to_str().unwrap().as_bytes()));
}
