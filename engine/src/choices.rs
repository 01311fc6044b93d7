//! Measured choices of variants, which come before estimates, as a file of the cache directory:
//! `tune/<backend>-<device>.json`.
//!
//! A table holds for one device, as far as the times of kernels depend on it, and for one state of the kernels' sources.

use std::io::Write;
use std::path::{Path, PathBuf};

use ocelli_kernels::{Backend, BackendOp, Caps, OpVisitor, Picks, for_each_op, spec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The version of [`Table`]'s form.
pub const SCHEMA: &str = "ocelli.tune.v1";

/// The choice for one op at one spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The op.
    pub op: String,
    /// Its spec in the text form.
    pub spec: String,
    /// The fastest variant.
    pub variant: String,
    /// Microseconds that it takes.
    pub us: f64,
    /// The variant that the estimates pick.
    pub estimated: String,
    /// Microseconds that this one takes.
    pub estimated_us: f64,
    /// Variants that were timed.
    pub candidates: usize,
}

impl Choice {
    /// How many times as fast the choice is as the estimates' pick.
    #[must_use]
    pub fn gain(&self) -> f64 {
        self.estimated_us / self.us
    }
}

/// The choices of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// [`SCHEMA`].
    pub schema: String,
    /// The device with its driver and its limits.
    pub device: Value,
    /// Version of the program.
    pub version: String,
    /// Digest of the kernels' sources.
    pub digest: String,
    /// The choices.
    pub rows: Vec<Choice>,
}

/// What lies at the place of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Loaded {
    /// No file.
    Absent,
    /// A table of something else: what differs.
    Stale(String),
    /// No table, or one that cannot be read: why.
    Corrupt(String),
    /// A table of this device and these kernels.
    Fits(Table),
}

/// What a device's times depend on.
fn identity(caps: &Caps) -> Value {
    match caps.backend {
        Backend::Cpu => json!({
            "backend": caps.backend, "name": caps.device, "isa": caps.isa.name(), "int8_dot": caps.int8_dot,
            "bf16_dot": caps.bf16_dot, "amx": caps.amx, "threads": caps.units,
        }),
        _ => json!({
            "backend": caps.backend, "name": caps.device, "api": caps.api, "driver": caps.driver,
            "limits": caps.wgpu,
        }),
    }
}

impl Table {
    /// An empty table of a device.
    #[must_use]
    pub fn new(caps: &Caps) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            device: identity(caps),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            digest: ocelli_kernels::DIGEST.to_owned(),
            rows: vec![],
        }
    }

    /// Where the table of a device lies below the cache directory.
    #[must_use]
    pub fn path(cache: &Path, caps: &Caps) -> PathBuf {
        let slug: String = caps
            .device
            .to_lowercase()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join("-");
        // Names of devices come from drivers and may be of any length.
        let slug: String = slug.chars().take(80).collect();
        let slug = if slug.is_empty() { "device".to_owned() } else { slug };
        cache.join("tune").join(format!("{}-{slug}.json", caps.backend))
    }

    /// Reads the table at `path` and checks that it holds for a device and for these kernels.
    #[must_use]
    pub fn load(path: &Path, caps: &Caps) -> Loaded {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Loaded::Absent,
            Err(error) => return Loaded::Corrupt(error.to_string()),
        };
        let value: Value = match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(error) => return Loaded::Corrupt(error.to_string()),
        };
        let now = Self::new(caps);
        let checks = [
            ("schema", json!(now.schema)),
            ("version", json!(now.version)),
            ("digest", json!(now.digest)),
            ("device", now.device),
        ];
        for (field, expected) in checks {
            match value.get(field) {
                None => return Loaded::Corrupt(format!("no field `{field}`")),
                Some(found) if *found != expected => {
                    return Loaded::Stale(format!("{field}: expected {expected}, found {found}"));
                }
                Some(_) => {}
            }
        }
        match serde_json::from_value(value) {
            Ok(table) => Loaded::Fits(table),
            Err(error) => Loaded::Corrupt(error.to_string()),
        }
    }

    /// Adds choices; those for the same op and spec replace the former ones.
    pub fn merge(&mut self, choices: &[Choice]) {
        let same = |a: &Choice, b: &Choice| a.op == b.op && a.spec == b.spec;
        self.rows.retain(|old| !choices.iter().any(|new| same(old, new)));
        self.rows.extend_from_slice(choices);
    }

    /// Writes the table: whoever reads sees the old file or the new one, whole.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&temporary)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        };
        write().inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })
    }

    /// Adds the choices to what comes before estimates, and tells how many there are. Rows that name no op, spec or variant
    /// of this build are left out.
    pub fn apply(&self, picks: &mut Picks) -> usize {
        struct Apply<'a>(&'a Table, Backend, &'a mut Picks);
        impl OpVisitor for Apply<'_> {
            fn visit<O: BackendOp>(&mut self) {
                let Self(table, backend, picks) = self;
                let known = O::variants(*backend).unwrap_or_default();
                for row in table.rows.iter().filter(|row| row.op == O::NAME) {
                    if let Ok(spec) = spec::text::read::<O::Spec>(&row.spec)
                        && known.contains(&row.variant.as_str())
                    {
                        picks.tune(O::NAME, &spec, &row.variant);
                    }
                }
            }
        }
        let backend = serde_json::from_value(self.device["backend"].clone()).unwrap_or_default();
        let before = picks.tuned();
        for_each_op(&mut Apply(self, backend, picks));
        picks.tuned() - before
    }
}

/// The directory of what can be made again: `OCELLI_CACHE`, else the user's own for caches; `None` where the system
/// tells neither.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    place(
        path("OCELLI_CACHE"),
        path("XDG_CACHE_HOME"),
        path("HOME"),
        path("LOCALAPPDATA"),
        std::env::consts::OS,
    )
}

fn place(
    own: Option<PathBuf>,
    xdg: Option<PathBuf>,
    home: Option<PathBuf>,
    local: Option<PathBuf>,
    os: &str,
) -> Option<PathBuf> {
    // A relative XDG_CACHE_HOME is to be ignored.
    let xdg = xdg.filter(|path| path.is_absolute());
    own.or_else(|| match os {
        "windows" => local.map(|folder| folder.join("ocelli").join("cache")),
        "macos" => home.map(|home| home.join("Library").join("Caches").join("ocelli")),
        _ => xdg.or_else(|| home.map(|home| home.join(".cache"))).map(|folder| folder.join("ocelli")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocelli_kernels::CpuOp;
    use ocelli_kernels::ops::{Matmul, MatmulSpec};

    fn caps() -> Caps {
        Caps { device: "A (Fast) CPU @ 3 GHz".into(), units: 2, ..Caps::default() }
    }

    fn choice(spec: &str, variant: &str) -> Choice {
        Choice {
            op: "matmul".into(),
            spec: spec.into(),
            variant: variant.into(),
            us: 1.0,
            estimated: "gemm-f32".into(),
            estimated_us: 2.0,
            candidates: 2,
        }
    }

    /// A folder of one test, removed at the end.
    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("ocelli-tune-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn tables_round_trip_and_merge() {
        let temp = Temp::new("round");
        let path = Table::path(&temp.0, &caps());
        assert!(path.ends_with("tune/cpu-a-fast-cpu-3-ghz.json"), "{path:?}");
        assert_eq!(Table::load(&path, &caps()), Loaded::Absent);
        let mut table = Table::new(&caps());
        table.merge(&[choice("m=1 n=64 k=64", "a"), choice("m=2 n=64 k=64", "b")]);
        table.merge(&[choice("m=1 n=64 k=64", "c")]);
        assert_eq!(table.rows.len(), 2);
        table.save(&path).unwrap();
        table.save(&path).unwrap();
        assert_eq!(Table::load(&path, &caps()), Loaded::Fits(table));
        let files = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "temporary files are left");
        assert!(Table::new(&caps()).save(Path::new("/dev/null/no/table.json")).is_err());
    }

    #[test]
    fn tables_of_something_else_are_stale() {
        let temp = Temp::new("stale");
        let path = Table::path(&temp.0, &caps());
        let stale = |change: fn(&mut Table)| {
            let mut table = Table::new(&caps());
            change(&mut table);
            table.save(&path).unwrap();
            match Table::load(&path, &caps()) {
                Loaded::Stale(why) => why,
                other => panic!("{other:?}"),
            }
        };
        assert!(stale(|table| table.digest = "0".into()).contains("digest"));
        assert!(stale(|table| table.version = "0.0.1".into()).contains("version"));
        assert!(stale(|table| table.schema = "ocelli.tune.v0".into()).contains("schema"));
        assert!(stale(|table| table.device["threads"] = 3.into()).contains("device"));
        let gpu = |driver: &str| Caps { backend: Backend::Wgpu, driver: driver.into(), ..caps() };
        Table::new(&gpu("1.0")).save(&path).unwrap();
        assert!(matches!(Table::load(&path, &gpu("1.0")), Loaded::Fits(_)));
        assert!(matches!(Table::load(&path, &gpu("1.1")), Loaded::Stale(_)));
    }

    #[test]
    fn broken_tables_are_corrupt() {
        let temp = Temp::new("corrupt");
        let path = temp.0.join("table.json");
        let whole = {
            let mut table = Table::new(&caps());
            table.merge(&[choice("m=1", "a")]);
            serde_json::to_string(&table).unwrap()
        };
        let cut = &whole[..whole.len() / 2];
        let untyped = whole.replace("\"us\":1.0", "\"us\":\"fast\"");
        for text in ["", "{}", "[1]", cut, &untyped, "\u{0}"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Table::load(&path, &caps()), Loaded::Corrupt(_)), "{text}");
        }
        assert!(matches!(Table::load(&temp.0, &caps()), Loaded::Corrupt(_)), "a folder");
    }

    #[test]
    fn choices_come_before_estimates() {
        let spec: MatmulSpec = spec::text::read("m=1 n=64 k=64 w=bf16").unwrap();
        let rows = Matmul::cpu_variants();
        let runs: Vec<&str> =
            rows.iter().filter(|row| (row.reject)(&spec, &caps()).is_none()).map(|row| row.name).collect();
        assert!(runs.len() > 1, "{runs:?}");
        for name in runs {
            let mut table = Table::new(&caps());
            table.merge(&[
                // Other orders of fields and fields at their default are the same spec.
                choice("k=64 n=64 w=bf16 m=1 x=f32", name),
                choice("m=3 n=64 k=64", "no such variant"),
                choice("m=3 q=1", name),
            ]);
            let mut picks = Picks::default();
            assert_eq!(table.apply(&mut picks), 1);
            assert_eq!(picks.choose("matmul", Ok(rows), &spec, &caps()).unwrap().name, name);
            let mut explained = ocelli_kernels::explain(rows, &spec, &caps());
            let before = explained.iter().find(|row| row.picked).unwrap().variant;
            assert_eq!(picks.mark("matmul", &spec, &mut explained), before != name);
            assert_eq!(explained.iter().find(|row| row.picked).unwrap().variant, name);
        }
    }

    #[test]
    fn the_cache_lies_where_the_system_has_caches() {
        let path = |text: &str| Some(PathBuf::from(text));
        let on = |own: Option<PathBuf>, xdg: Option<PathBuf>, os: &str| {
            place(own, xdg, path("/h"), path("/local"), os).unwrap()
        };
        assert_eq!(on(path("/own"), path("/xdg"), "linux"), Path::new("/own"));
        assert_eq!(on(None, path("/xdg"), "linux"), Path::new("/xdg/ocelli"));
        assert_eq!(on(None, path("relative"), "linux"), Path::new("/h/.cache/ocelli"));
        assert_eq!(on(None, None, "macos"), Path::new("/h/Library/Caches/ocelli"));
        assert_eq!(on(None, None, "windows"), Path::new("/local/ocelli/cache"));
        assert_eq!(place(None, None, None, None, "linux"), None);
    }
}
