//! The `ocelli` command.

mod args;
mod batch;
mod bench;
mod calibrate;
mod chat;
mod classify;
mod compare;
mod compile;
mod devices;
mod embed;
mod fail;
mod form;
mod frames;
mod imagine;
mod inspect;
mod interrupt;
mod kernels;
mod manual;
mod open;
#[cfg_attr(not(feature = "otlp"), path = "otlp_absent.rs")]
mod otlp;
mod progress;
mod quantize;
mod run;
mod search;
mod serve;
mod train;
mod tune;
mod units;
mod vectors;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    fail::catch_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return fail::usage(&error),
    };
    let export = cli.command.otlp().map(|url| otlp::Export::to(url, cli.verbose > 0)).transpose();
    let export = match export {
        Ok(export) => export,
        Err(failure) => return failure.report(),
    };
    fail::logging(cli.verbose, cli.quiet, export.as_ref());
    match interrupt::install().and_then(|()| execute(&cli.command)) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn execute(command: &Command) -> fail::Outcome {
    match command {
        Command::Run(args) => run::run(args),
        Command::Batch(args) => batch::batch(args),
        Command::Imagine(args) => imagine::imagine(args),
        Command::Serve(args) => serve::serve(args),
        Command::Embed(args) => embed::embed(args),
        Command::Index(args) => search::index(args),
        Command::Search(args) => search::search(args),
        Command::Classify(args) => classify::classify(args),
        Command::Compare(args) => compare::compare(args),
        Command::Verify(args) => verify::verify(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Bench(args) => bench::bench(args),
        Command::Quantize(args) => quantize::quantize(args),
        Command::Train(args) => train::train(args),
        Command::Devices(args) => devices::devices(args),
        Command::Kernels(args) => kernels::kernels(args),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { out } => manual::man(out.as_deref()),
    }
}
