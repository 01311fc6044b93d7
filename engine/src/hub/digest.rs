use std::io::Read;
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// What the hub says of a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    /// SHA-256 of the content, of files in its large file storage.
    Sha256(String),
    /// Git's name of the content, of files in the repository itself. It covers the length.
    Git(String),
}

impl Hash {
    /// A SHA-256, if the text is one.
    pub fn sha256(text: &str) -> Option<Self> {
        is_hex(text, 64).then(|| Self::Sha256(text.to_ascii_lowercase()))
    }

    /// A name of Git's, if the text is one.
    pub fn git(text: &str) -> Option<Self> {
        is_hex(text, 40).then(|| Self::Git(text.to_ascii_lowercase()))
    }

    fn value(&self) -> &str {
        match self {
            Self::Sha256(value) | Self::Git(value) => value,
        }
    }

    /// Kind and value, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Sha256(value) => format!("SHA-256 {value}"),
            Self::Git(value) => format!("Git hash {value}"),
        }
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The hash of a file while it arrives.
pub(super) struct Hasher {
    expected: Option<Hash>,
    size: Option<u64>,
    context: Option<Context>,
    /// Bytes that went in.
    hashed: u64,
}

impl Hasher {
    /// For a file of `size` bytes, which Git's names need.
    pub fn new(expected: Option<Hash>, size: Option<u64>) -> Self {
        let expected = expected.filter(|hash| size.is_some() || matches!(hash, Hash::Sha256(_)));
        let mut hasher = Self { expected, size, context: None, hashed: 0 };
        hasher.reset();
        hasher
    }

    fn reset(&mut self) {
        self.hashed = 0;
        self.context = self.expected.as_ref().map(|hash| match hash {
            Hash::Sha256(_) => Context::new(&SHA256),
            Hash::Git(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {}\0", self.size.unwrap_or(0)).as_bytes());
                context
            }
        });
    }

    /// Makes it the hash of the first `present` bytes of `part`.
    pub fn resume(&mut self, part: &Path, present: u64) -> std::io::Result<()> {
        if self.hashed == present {
            return Ok(());
        }
        self.reset();
        if self.context.is_none() || present == 0 {
            self.hashed = present;
            return Ok(());
        }
        let mut file = std::fs::File::open(part)?.take(present);
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.update(&buffer[..n]),
            }
        }
    }

    /// How many bytes went in.
    pub const fn hashed(&self) -> u64 {
        self.hashed
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.hashed += bytes.len() as u64;
        if let Some(context) = &mut self.context {
            context.update(bytes);
        }
    }

    /// What was expected and what was found, where they differ.
    pub fn mismatch(&self) -> Option<(String, String)> {
        let expected = self.expected.as_ref()?;
        let digest = self.context.clone()?.finish();
        let found: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        (found != expected.value()).then(|| (expected.describe(), found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    // `printf abc | git hash-object --stdin`
    const GIT_OF_ABC: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";

    #[test]
    fn hashes_of_parts() {
        let part = std::env::temp_dir().join(format!("ocelli-digest-{}", std::process::id()));
        std::fs::write(&part, "abx").unwrap();
        let upper = SHA256_OF_ABC.to_uppercase();
        for hash in [Hash::sha256(&upper), Hash::git(GIT_OF_ABC)] {
            let mut hasher = Hasher::new(hash.clone(), Some(3));
            hasher.update(b"ab");
            hasher.update(b"c");
            assert_eq!(hasher.mismatch(), None);
            hasher.resume(&part, 2).unwrap();
            hasher.update(b"c");
            assert_eq!(hasher.mismatch(), None);
            hasher.resume(&part, 3).unwrap();
            assert_eq!(hasher.mismatch(), None, "nothing to read again");
            hasher.resume(&part, 0).unwrap();
            let (expected, _) = hasher.mismatch().expect("of nothing");
            assert_eq!(expected, hash.unwrap().describe());
            hasher.resume(&part, 3).unwrap();
            assert!(hasher.mismatch().is_some());
        }
        std::fs::remove_file(&part).unwrap();
        assert_eq!(Hasher::new(Hash::git(GIT_OF_ABC), None).mismatch(), None, "not known without the size");
        assert_eq!(Hasher::new(None, Some(3)).mismatch(), None);
        for bad in ["", "0", &SHA256_OF_ABC[1..], &format!("g{}", &SHA256_OF_ABC[1..])] {
            assert_eq!((Hash::sha256(bad), Hash::git(bad)), (None, None));
        }
    }
}
