//! A model for tests of the scheduler: each token follows from everything that its sequence may see, through two layers, so that a
//! wrong slot, page, position, mask or feature changes the answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ocelli_kernels::{
    Backend, Caps, DeviceOptions, Exec, Fetch, KernelError, Op, Queue, Storage, Stream as Queued, View,
};

use crate::batch::{Packed, PackedKv, Run, Sees};
use crate::ctx::{Ctx, Precision};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::image::{Normalize, Pixels, PreparedImage, Tile};
use crate::kv::{Keep, KvCache, KvLayout, PAGE};
use crate::prompt::Features;
use crate::scheduler::Picture;
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::vlm::{ModelInfo, PartInfo, Vlm};

/// Tokens that the model gives are below this.
pub const GIVEN: usize = 60;
/// A token after which logits are no numbers.
pub const NAN: u32 = 61;
/// A token that no pass survives.
pub const POISON: u32 = 62;
/// A token that ends the device, and one whose pass finds no memory.
pub const FATAL: u32 = 63;
pub const HUGE: u32 = 60;
/// Rows of features of a picture.
pub const ROWS: usize = 10;

/// Rows of memory of a picture, for models that keep such.
pub fn memory_rows(number: usize) -> usize {
    3 + number % 40
}

/// See the module.
pub struct Fake {
    info: ModelInfo,
    /// What each layer keeps in each slot of each group.
    kept: Mutex<Vec<[Vec<u64>; 2]>>,
    /// Pictures of each call of the tower.
    pub encoded: Mutex<Vec<usize>>,
    pub passes: AtomicUsize,
    /// Three tokens of four follow from the one before alone, so that answers repeat themselves.
    pub habits: AtomicBool,
}

impl Fake {
    pub fn new(kv: KvLayout) -> Arc<Self> {
        let (vocab, max_positions, d_model) = (64, 20_000, 1);
        let info = ModelInfo {
            family: "fake",
            vocab,
            embedded: vocab,
            max_positions,
            d_model,
            layers: 2,
            kv,
            axes: 1,
        };
        let kept = Mutex::new(vec![Default::default(); info.kv.0.len()]);
        Arc::new(Self {
            info,
            kept,
            encoded: Mutex::default(),
            passes: AtomicUsize::new(0),
            habits: AtomicBool::new(false),
        })
    }
}

/// A picture with `patches` patches; number 99 cannot be encoded.
pub fn picture(number: usize, patches: usize) -> Arc<Picture> {
    let tile = Tile { height: 16, width: 16 * patches, pixels: Pixels::Rgb8(Vec::new()) };
    let image = PreparedImage {
        tiles: vec![tile],
        rows: 1,
        cols: number,
        normalize: Normalize::IDENTITY,
        assembly: None,
    };
    Arc::new(image.into())
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 31)
}

impl Vlm for Fake {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        Vec::new()
    }

    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        if images.iter().any(|image| image.cols == 99) {
            return Err(Error::Request("picture 99".into()));
        }
        self.encoded.lock().unwrap().push(images.len());
        let mut all = Vec::new();
        for image in images {
            let mut numbers = |rows: usize, first: usize| -> Result<Tensor> {
                let out = cx.alloc_owned(&[rows, 1], ocelli_kernels::DType::F32)?;
                let values: Vec<f32> = (first..first + rows).map(|value| value as f32).collect();
                cx.stream().write(out.view(), bytemuck::cast_slice(&values))?;
                Ok(out)
            };
            let mut features = Features::of_rows(numbers(ROWS, 1000 * image.cols)?);
            if self.info.kv.0.iter().any(|group| group.keep == Keep::Memory) {
                features.memory = Some(numbers(memory_rows(image.cols), 1000 * image.cols + 500)?);
            }
            all.push(features);
        }
        Ok(all)
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, _: &KvCache) -> Result<Tensor> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let ids = cx.download_ids(&batch.ids)?;
        let positions = cx.download_ids(&batch.positions)?;
        let has = |token: u32| ids.contains(&(token as i32));
        let device = || "a planted device".to_owned();
        if has(FATAL) {
            let (what, doing) = ("an illegal address".to_owned(), "a test".to_owned());
            return Err(KernelError::Lost { device: device(), what, doing }.into());
        }
        if has(HUGE) {
            return Err(KernelError::OutOfMemory { bytes: 1 << 40, device: device() }.into());
        }
        if let Some(id) = ids.iter().find(|&&id| id == POISON as i32 || !(0..64).contains(&id)) {
            return Err(Error::Request(format!("token {id}")));
        }
        let mut values: Vec<u64> =
            ids.iter().zip(&positions).map(|(&id, &at)| mix(id as u64, at as u64)).collect();
        for (features, rows) in &batch.features {
            let (features, rows) = (cx.download(features)?, cx.download_ids(rows)?);
            for (value, row) in features.iter().zip(rows) {
                values[row as usize] = mix(7, u64::from(value.to_bits()));
            }
        }
        let mut remembered = Vec::new();
        for memory in &batch.memory {
            remembered.extend(cx.download(memory)?.iter().map(|value| mix(5, u64::from(value.to_bits()))));
        }
        let mut kept = self.kept.lock().unwrap();
        for layer in 0..2 {
            let mut next = values.clone();
            for (group, kept) in kept.iter_mut().enumerate() {
                let (keep, kept, placed) =
                    (self.info.kv.0[group].keep, &mut kept[layer], Place::of(cx, &batch.kv[group])?);
                let new = match keep {
                    Keep::Memory => &remembered,
                    _ => &values,
                };
                if keep != Keep::State {
                    assert_eq!(new.len(), placed.slots.len());
                    for (&slot, &value) in placed.slots.iter().zip(new).filter(|&(&slot, _)| slot >= 0) {
                        kept.resize(kept.len().max(slot as usize + 1), 0);
                        kept[slot as usize] = value;
                    }
                }
                for run in &batch.runs {
                    match keep {
                        Keep::State => advance(cx, run, &placed, kept, &values, &mut next)?,
                        _ => attend(cx, run, group, &placed, kept, &mut next)?,
                    }
                }
            }
            values = next;
        }
        let rows: Vec<usize> = match &batch.wanted {
            None => (0..batch.tokens).collect(),
            Some(wanted) => cx.download_ids(wanted)?.into_iter().map(|row| row as usize).collect(),
        };
        let mut logits = vec![0f32; rows.len() * 64];
        for (out, row) in logits.chunks_exact_mut(64).zip(rows) {
            if ids[row] == NAN as i32 {
                out.fill(f32::NAN);
            }
            let mut state = values[row];
            for logit in &mut out[..GIVEN] {
                state = mix(state, 11);
                *logit += (state % 4096) as f32 / 512.0;
            }
            if self.habits.load(Ordering::Relaxed) && positions[row] % 4 != 0 {
                out[(ids[row] as usize * 5 + 1) % GIVEN] += 100.0;
            }
        }
        cx.upload(&[batch.rows_wanted, 64], &logits)
    }
}

/// [`PackedKv`] on the host.
struct Place {
    slots: Vec<i32>,
    lens: Vec<i32>,
    table: Vec<i32>,
    width: usize,
}

impl Place {
    fn of(cx: &mut Ctx, kv: &PackedKv) -> Result<Self> {
        Ok(Self {
            slots: cx.download_ids(&kv.slots)?,
            lens: cx.download_ids(&kv.kv_lens)?,
            table: cx.download_ids(&kv.block_table)?,
            width: kv.block_table.size(1),
        })
    }
}

/// Mixes what is kept of the keys that each row sees into the row.
fn attend(
    cx: &mut Ctx,
    run: &Run,
    group: usize,
    placed: &Place,
    kept: &[u64],
    next: &mut [u64],
) -> Result<()> {
    let (seqs, starts) = match &run.keys[group].cut {
        Some(cut) => (cut.parts.clone(), cx.download_ids(&cut.q_starts)?),
        None => (run.seqs.clone(), cx.download_ids(&run.q_starts)?),
    };
    let ranges = match &run.keys[group].sees {
        Sees::All | Sees::Causal { .. } => None,
        Sees::Ranges { from, to } => Some((cx.download_ids(from)?, cx.download_ids(to)?)),
    };
    for (seq, rows) in seqs.zip(starts.windows(2)) {
        let (len, new) = (placed.lens[seq] as usize, (rows[1] - rows[0]) as usize);
        if len > run.keys[group].most {
            return Err(Error::Request(format!("{len} keys of at most {}", run.keys[group].most)));
        }
        for (i, row) in (rows[0] as usize..rows[1] as usize).enumerate() {
            let here = (len + i + 1).saturating_sub(new);
            let keys = match (&run.keys[group].sees, &ranges) {
                (_, Some((from, to))) => from[row] as usize..to[row] as usize,
                (Sees::All, _) => 0..len,
                (Sees::Causal { window }, _) if *window > 0 => here.saturating_sub(*window)..here,
                _ => 0..here,
            };
            // Rows of padding have no keys.
            if keys.is_empty() || len == 0 {
                continue;
            }
            if keys.end > len {
                return Err(Error::Request(format!("keys {keys:?} of {len}")));
            }
            let at = |key: usize| placed.table[seq * placed.width + key / PAGE] as usize * PAGE + key % PAGE;
            let seen = keys.fold(3, |sum, key| mix(sum, kept[at(key)]));
            let row = run.rows.start + row;
            next[row] = mix(next[row], seen);
        }
    }
    Ok(())
}

/// Mixes the rows of each sequence into its state, and each state into the row.
fn advance(
    cx: &mut Ctx,
    run: &Run,
    placed: &Place,
    kept: &mut Vec<u64>,
    values: &[u64],
    next: &mut [u64],
) -> Result<()> {
    let starts = cx.download_ids(&run.q_starts)?;
    for (seq, rows) in run.seqs.clone().zip(starts.windows(2)) {
        let Ok(slot) = usize::try_from(placed.slots[seq]) else { continue };
        kept.resize(kept.len().max(slot + 1), 0);
        let begins = placed.lens[seq] == rows[1] - rows[0];
        let mut state = if begins { 13 } else { kept[slot] };
        for row in run.rows.start + rows[0] as usize..run.rows.start + rows[1] as usize {
            state = mix(state, values[row]);
            next[row] = mix(next[row], state);
        }
        kept[slot] = state;
    }
    Ok(())
}

pub fn files() -> ModelFiles {
    ModelFiles::dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/smolvlm"))
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::load(&files()).unwrap()
}

fn cpu() -> Box<dyn Queued> {
    ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).unwrap().stream().unwrap()
}

pub fn context() -> Ctx {
    Ctx::on(cpu(), Precision::default())
}

/// A context whose device works beside the host and records steps, and the switch that makes its next fetch fail.
pub fn beside() -> (Ctx, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    (Ctx::on(Box::new(Beside { stream: cpu(), fails: fails.clone() }), Precision::default()), fails)
}

struct Beside {
    stream: Box<dyn Queued>,
    fails: Arc<AtomicBool>,
}

struct Failed;

impl Fetch for Failed {
    fn wait(self: Box<Self>) -> Result<Vec<u8>, KernelError> {
        Err(KernelError::Device("the pass came to nothing".into()))
    }
}

impl Queue for Beside {
    fn caps(&self) -> &Caps {
        self.stream.caps()
    }

    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        self.stream.alloc(bytes)
    }

    fn write(&mut self, to: &View, bytes: &[u8]) -> Result<(), KernelError> {
        self.stream.write(to, bytes)
    }

    fn read(&mut self, from: &View, bytes: &mut [u8]) -> Result<(), KernelError> {
        self.stream.read(from, bytes)
    }

    fn fetch(&mut self, from: &View) -> Result<Box<dyn Fetch>, KernelError> {
        if self.fails.swap(false, Ordering::Relaxed) {
            return Ok(Box::new(Failed));
        }
        self.stream.fetch(from)
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn host_time(&self) -> Duration {
        Duration::ZERO
    }

    fn records(&self) -> bool {
        true
    }
}

impl<O: Op> Exec<O> for Beside
where
    dyn Queued: Exec<O>,
{
    fn exec(&mut self, op: &O) -> Result<(), KernelError> {
        Exec::<O>::exec(&mut *self.stream, op)
    }

    fn accepts(&self, op: &O) -> bool {
        Exec::<O>::accepts(&*self.stream, op)
    }
}
