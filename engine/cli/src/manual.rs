//! `ocelli completions` and `ocelli man`: what shells and manuals want to know of the command line.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::Cli;
use crate::fail::{Failure, Outcome, print};

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ocelli", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the page of `ocelli`, or writes one for it and for each command, all levels deep.
pub fn man(out: Option<&Path>) -> Outcome {
    let mut root = Cli::command();
    root.build();
    let Some(dir) = out else {
        let mut page = Vec::new();
        Man::new(root).render(&mut page)?;
        print(&String::from_utf8_lossy(&page))?;
        return Ok(ExitCode::SUCCESS);
    };
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    pages(&root, "ocelli", dir).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

fn pages(command: &clap::Command, name: &str, dir: &Path) -> std::io::Result<()> {
    let mut page = Vec::new();
    Man::new(command.clone().display_name(name.to_owned())).title(name).render(&mut page)?;
    std::fs::write(dir.join(format!("{name}.1")), page)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        pages(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}
