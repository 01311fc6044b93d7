//! Learning from a teacher: its probabilities, or what its tower makes of pictures.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use ocelli_engine::image::PreparedImage;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Ctx, Error, Features, Pipeline, Processor, Result, Tensor, Vlm};
use ocelli_kernels::DType;
use ocelli_kernels::ops::{CrossEntropy, DistillLoss, ScatterRows, SquaredError};

use crate::augment::{Augment, prepared};
use crate::data::TrainRow;
use crate::exact::exact;
use crate::examples::{Batcher, Example};
use crate::learner::{Checked, Draw, Learner, Loss};
use crate::parameters::{Parameters, download};
use crate::stored::{Logits, Stored};
use crate::trainer::{Criterion, Part, Trainer};

/// A row as student and teacher see it.
pub struct Pair {
    /// What the student learns.
    pub own: Example,
    /// Where the teacher's logits come from; `None` of rows for validation.
    pub teacher: Option<OfTeacher>,
}

/// Where the teacher's logits of a row come from.
pub enum OfTeacher {
    /// The teacher, which sees the row so.
    Seen(Box<Example>),
    /// The file of logits, by the row's line.
    Line(usize),
}

/// Makes pairs of rows.
pub struct Pairs<'a> {
    /// The student's processor, tokenizer and template.
    pub student: Batcher<'a>,
    /// Those of the teacher, if there is one here.
    pub teacher: Option<Batcher<'a>>,
    /// Lines that there are stored logits of.
    pub stored: HashSet<usize>,
    /// How pictures are changed, the same for both.
    pub augment: Augment,
}

impl Pairs<'_> {
    /// A row.
    ///
    /// # Errors
    /// If it cannot be laid out, or the teacher's answer has other tokens than the student's.
    pub fn read(&self, row: &TrainRow, draw: Option<Draw>) -> Result<Pair> {
        let images = self.augment.pictures(row, draw)?;
        let own =
            self.student.example(&row.messages, prepared(&*self.student.pipeline.processor, &images)?)?;
        let own = self.student.asking(own, row, draw)?;
        if draw.is_none() {
            return Ok(Pair { own, teacher: None });
        }
        let Some(teacher) = &self.teacher else {
            if !self.stored.contains(&row.line) {
                return Err(Error::Train("the file of logits has none of this row".into()));
            }
            return Ok(Pair { own, teacher: Some(OfTeacher::Line(row.line)) });
        };
        let seen = teacher.example(&row.messages, prepared(&*teacher.pipeline.processor, &images)?)?;
        if !seen.right_tokens().eq(own.right_tokens()) {
            return Err(Error::Train(format!(
                "the teacher's template writes the answer in other tokens ({}) than the student's ({})",
                seen.learnt(),
                own.learnt()
            )));
        }
        Ok(Pair { own, teacher: Some(OfTeacher::Seen(Box::new(seen))) })
    }
}

/// Errors unless two tokenizers have the same tokens by the same numbers.
///
/// # Errors
/// The first token that differs.
pub fn one_vocabulary(student: &Pipeline, teacher: &Pipeline) -> Result<()> {
    let sizes = [student, teacher].map(|pipeline| pipeline.model.info().vocab);
    if sizes[0] != sizes[1] {
        return Err(Error::Train(format!(
            "teacher and student are to have one vocabulary: the student gives logits of {} tokens, the teacher of {}",
            sizes[0], sizes[1]
        )));
    }
    let token = |tokenizer: &Tokenizer, id| tokenizer.id_to_token(id).unwrap_or_default();
    let (a, b) = (&student.tokenizer, &teacher.tokenizer);
    let differs = (0..sizes[0] as u32).find(|&id| token(a, id) != token(b, id));
    differs.map_or(Ok(()), |id| {
        Err(Error::Train(format!(
            "teacher and student are to have one vocabulary: token {id} is `{}` of the student and `{}` of the teacher",
            token(a, id),
            token(b, id)
        )))
    })
}

/// A model that is asked and not trained, in a context of its own.
pub struct Teacher<'a> {
    /// Its context.
    pub cx: Ctx,
    /// It.
    pub trainer: Trainer<'a>,
}

/// Logits of what examples learn, by a model that is not trained.
///
/// # Errors
/// If it cannot run one.
pub fn logits_of(trainer: &mut Trainer<'_>, cx: &mut Ctx, examples: &[&Example]) -> Result<Vec<Logits>> {
    let mut found = Collect::default();
    let loss = trainer.passes(cx, examples, None, &mut found)?;
    let vocab = found.values.len() / loss.tokens.max(1);
    let mut values = found.values.into_iter();
    let one = |example: &&Example| Logits {
        labels: example.right_tokens().collect(),
        values: values.by_ref().take(example.learnt() * vocab).collect(),
    };
    Ok(examples.iter().map(one).collect())
}

/// Takes the logits of learnt tokens as they are.
#[derive(Default)]
struct Collect {
    values: Vec<f32>,
}

impl Criterion for Collect {
    fn loss(&mut self, cx: &mut Ctx, part: &Part<'_>) -> Result<f64> {
        let values = download(cx, &part.logits)?;
        let rows = values.chunks_exact(part.logits.size(1)).zip(part.labels);
        rows.filter(|(_, label)| **label >= 0).for_each(|(row, _)| self.values.extend_from_slice(row));
        Ok(0.0)
    }
}

/// Where a student's teacher is.
pub enum Source<'a> {
    /// Here.
    Model(Box<Teacher<'a>>),
    /// In a file.
    Stored(Stored),
}

/// Learns `T^2 KL(teacher || student)` at a temperature `T`, and with a weight the right tokens.
pub struct Distiller<'a> {
    /// The student.
    pub student: Trainer<'a>,
    /// The teacher.
    pub source: Source<'a>,
    /// The temperature.
    pub temperature: f32,
    /// Weight of the right tokens' loss.
    pub hard: f32,
    /// Answers questions of rows for validation.
    pub asks: Option<&'a Pipeline>,
}

/// The loss of some pairs.
struct Soft<'a, 'b> {
    pairs: &'a [Pair],
    source: &'a mut Source<'b>,
    temperature: f32,
    hard: f32,
    /// The teacher's logits of the learnt tokens of a pass that have not come yet, the last ones first.
    rest: Vec<Vec<f32>>,
}

impl Soft<'_, '_> {
    /// The teacher's logits of the learnt tokens of some pairs.
    fn of_teacher(&mut self, range: Range<usize>) -> Result<Vec<Logits>> {
        let pairs = &self.pairs[range];
        match self.source {
            Source::Model(teacher) => {
                let seen = pairs.iter().filter_map(|pair| match &pair.teacher {
                    Some(OfTeacher::Seen(seen)) => Some(&**seen),
                    _ => None,
                });
                let Teacher { cx, trainer } = &mut **teacher;
                logits_of(trainer, cx, &seen.collect::<Vec<_>>())
            }
            Source::Stored(file) => {
                let one = |pair: &Pair| match pair.teacher {
                    Some(OfTeacher::Line(line)) => {
                        file.row(line, &pair.own.right_tokens().collect::<Vec<_>>())
                    }
                    _ => Err(Error::Train("a row without a teacher".into())),
                };
                pairs.iter().map(one).collect()
            }
        }
    }

    /// The teacher's logits of the rows of a part: zeros in those without a loss.
    fn rows(&mut self, part: &Part<'_>) -> Result<Vec<f32>> {
        let vocab = part.logits.size(1);
        if part.first == 0 {
            let all = self.of_teacher(part.examples.clone())?;
            let rows = all.iter().flat_map(|logits| logits.values.chunks_exact(vocab)).map(<[f32]>::to_vec);
            self.rest = rows.collect();
            self.rest.reverse();
        }
        let mut values = vec![0.0; part.logits.len()];
        for (to, _) in values.chunks_exact_mut(vocab).zip(part.labels).filter(|(_, label)| **label >= 0) {
            let from = self.rest.pop();
            to.copy_from_slice(&from.ok_or_else(|| Error::Train("the teacher gave too few logits".into()))?);
        }
        Ok(values)
    }
}

impl Criterion for Soft<'_, '_> {
    fn loss(&mut self, cx: &mut Ctx, part: &Part<'_>) -> Result<f64> {
        let teacher = self.rows(part)?;
        let shape = part.logits.shape();
        let teacher = cx.upload(shape, &teacher)?;
        let scale = part.gradient.as_ref().map_or(1.0, |(scale, _)| *scale);
        let dx = part.gradient.as_ref().map(|(_, dx)| dx.clone());
        let losses = [cx.alloc(&shape[..1], DType::F32)?, cx.alloc(&shape[..1], DType::F32)?];
        let [soft, hard] = [cx.view(&losses[0])?, cx.view(&losses[1])?];
        let (x, labels) = (part.logits.clone(), part.right.clone());
        // The gradient of the right tokens is written, and that of the teacher's probabilities added to it.
        let of_hard = CrossEntropy {
            x: x.clone(),
            labels: labels.clone(),
            scale: scale * self.hard,
            loss: hard.clone(),
            dx: dx.clone(),
        };
        cx.exec("loss of right tokens", &of_hard)?;
        let of_soft = DistillLoss {
            x,
            teacher: cx.view(&teacher)?,
            labels,
            temperature: self.temperature,
            scale,
            loss: soft.clone(),
            add: dx.is_some(),
            dx,
        };
        cx.exec("loss by the teacher", &of_soft)?;
        let sum = |values: Vec<f32>| values.into_iter().map(f64::from).sum::<f64>();
        Ok(sum(download(cx, &soft)?) + f64::from(self.hard) * sum(download(cx, &hard)?))
    }
}

impl Learner<Pair> for Distiller<'_> {
    fn gradient(&mut self, cx: &mut Ctx, pairs: &[Pair]) -> Result<Loss> {
        let own: Vec<&Example> = pairs.iter().map(|pair| &pair.own).collect();
        let learnt: usize = own.iter().map(|example| example.learnt()).sum();
        let Self { student, source, temperature, hard, .. } = self;
        let (temperature, hard) = (*temperature, *hard);
        let mut soft = Soft { pairs, source, temperature, hard, rest: Vec::new() };
        student.passes(cx, &own, Some(1.0 / learnt.max(1) as f32), &mut soft)
    }

    /// The loss of right tokens: that of the student as a model of its own.
    fn check(&mut self, cx: &mut Ctx, pairs: &[Pair]) -> Result<Checked> {
        let own: Vec<Example> = pairs.iter().map(|pair| pair.own.clone()).collect();
        let loss = self.student.loss(cx, &own)?.mean();
        let exact = self.asks.map_or(Ok(None), |pipeline| exact(cx, pipeline, &own))?;
        Ok(Checked { loss, exact })
    }

    fn guess(&self) -> f64 {
        self.student.guess()
    }
}

/// Pictures as student and teacher see them.
pub struct Seen {
    own: Vec<Arc<PreparedImage>>,
    teacher: Vec<Arc<PreparedImage>>,
}

impl Seen {
    /// The pictures of a row.
    ///
    /// # Errors
    /// If it has none, or one cannot be read.
    pub fn read(
        row: &TrainRow,
        draw: Option<Draw>,
        augment: &Augment,
        [own, teacher]: [&dyn Processor; 2],
    ) -> Result<Self> {
        let images = augment.pictures(row, draw)?;
        if images.is_empty() {
            return Err(Error::Train("expected a picture, found none".into()));
        }
        Ok(Self { own: prepared(own, &images)?, teacher: prepared(teacher, &images)? })
    }
}

/// Learns the features that a teacher makes of pictures: the mean of squared distances of all numbers.
pub struct FeatureDistiller<'a> {
    /// The student.
    pub student: &'a dyn Vlm,
    /// What of it is trained.
    pub parameters: &'a Parameters,
    /// The teacher.
    pub teacher: &'a dyn Vlm,
    /// The teacher's context.
    pub teacher_cx: Ctx,
}

/// Features of pictures: those that stand for tokens, else those that tokens attend to.
fn rows(features: Vec<Features>) -> Result<Vec<Tensor>> {
    let one = |features: Features| features.rows.or(features.memory);
    let all: Option<Vec<Tensor>> = features.into_iter().map(one).collect();
    all.ok_or_else(|| Error::Train("the model makes no features of pictures".into()))
}

impl FeatureDistiller<'_> {
    fn passes(&mut self, cx: &mut Ctx, examples: &[Seen], learn: bool) -> Result<Loss> {
        let mut known = Vec::with_capacity(examples.len());
        for example in examples {
            let pictures: Vec<&PreparedImage> = example.teacher.iter().map(|picture| &**picture).collect();
            let (teacher, cx) = (self.teacher, &mut self.teacher_cx);
            known.push(cx.scope(|cx| {
                let features = rows(teacher.encode(cx, &pictures)?)?;
                features
                    .iter()
                    .map(|rows| Ok((rows.shape().to_vec(), cx.download(rows)?)))
                    .collect::<Result<Vec<_>>>()
            })?);
        }
        let total: usize = known.iter().flatten().map(|(shape, _)| shape[0]).sum();
        let scale = learn.then(|| 1.0 / total.max(1) as f32);
        let mut loss = Loss::default();
        for (example, known) in examples.iter().zip(&known) {
            let pictures: Vec<&PreparedImage> = example.own.iter().map(|picture| &**picture).collect();
            let rows = known.iter().map(|(shape, _)| shape[0]).sum();
            let nats = cx.scope(|cx| {
                if learn {
                    cx.record(&[self.parameters.trained()]);
                }
                let ran = self.pass(cx, &pictures, known, scale);
                if let Some(tape) = cx.recorded() {
                    cx.forget(tape);
                }
                ran
            })?;
            loss.add(Loss { nats, tokens: rows, read: rows });
        }
        Ok(loss)
    }

    fn pass(
        &self,
        cx: &mut Ctx,
        pictures: &[&PreparedImage],
        known: &[(Vec<usize>, Vec<f32>)],
        scale: Option<f32>,
    ) -> Result<f64> {
        let features = rows(self.student.encode(cx, pictures)?)?;
        for (found, (expected, _)) in features.iter().zip(known) {
            if found.shape() != expected {
                return Err(Error::Train(format!(
                    "features of a picture are {:?} of the student and {expected:?} of the teacher (rows, numbers): they are to be alike",
                    found.shape()
                )));
            }
        }
        let d = known.first().map_or(0, |(shape, _)| shape[1]);
        let count = known.iter().map(|(shape, _)| shape[0]).sum();
        let x = cx.alloc(&[count, d], DType::F32)?;
        let mut at = 0;
        for rows in &features {
            let places: Vec<i32> = (at..at + rows.size(0)).map(|row| row as i32).collect();
            at += rows.size(0);
            let places = cx.upload(&[places.len()], &places)?;
            let op = ScatterRows { src: cx.view(rows)?, rows: cx.view(&places)?, out: cx.view(&x)? };
            cx.exec("features", &op)?;
        }
        let tape = cx.recorded();
        let target: Vec<f32> = known.iter().flat_map(|(_, values)| values.iter().copied()).collect();
        let target = cx.upload(&[count, d], &target)?;
        squared_error(cx, (&x, &target), scale, tape)
    }
}

/// The sum over rows of the mean squared distance, after which the tape goes back from it with its gradient.
pub(crate) fn squared_error(
    cx: &mut Ctx,
    (x, target): (&Tensor, &Tensor),
    scale: Option<f32>,
    tape: Option<ocelli_engine::tape::Tape>,
) -> Result<f64> {
    let loss = cx.alloc(&[x.size(0)], DType::F32)?;
    let dx = scale.map(|_| cx.alloc(x.shape(), DType::F32)).transpose()?;
    let op = SquaredError {
        x: cx.view(x)?,
        target: cx.view(target)?,
        weights: None,
        scale: scale.unwrap_or(1.0),
        loss: cx.view(&loss)?,
        dx: dx.map(|dx| cx.view(&dx)).transpose()?,
    };
    let ran = cx.exec("loss", &op).and_then(|()| download(cx, &op.loss));
    let sum = ran.map(|values| values.into_iter().map(f64::from).sum::<f64>());
    let Some(mut tape) = tape else { return sum };
    let went = match (&op.dx, sum) {
        (Some(dx), Ok(sum)) => tape.backward(cx, x, dx).map(|()| sum),
        (_, sum) => sum,
    };
    cx.forget(tape);
    went
}

impl Learner<Seen> for FeatureDistiller<'_> {
    fn gradient(&mut self, cx: &mut Ctx, examples: &[Seen]) -> Result<Loss> {
        self.passes(cx, examples, true)
    }

    fn check(&mut self, cx: &mut Ctx, examples: &[Seen]) -> Result<Checked> {
        Ok(Checked { loss: self.passes(cx, examples, false)?.mean(), exact: None })
    }

    /// Features have no scale of their own; those that norms give have about this one.
    fn guess(&self) -> f64 {
        1.0
    }
}
