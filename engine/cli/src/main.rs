//! The `ocelli` command.

mod args;
mod devices;
mod fail;
mod kernels;
mod open;
mod progress;
mod run;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return fail::usage(&error),
    };
    fail::logging(cli.verbose);
    let done = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Devices(args) => devices::devices(&args),
        Command::Kernels(args) => kernels::kernels(&args),
    };
    match done {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
