//! What `kernels/README.md` says of the ops is what the list has.

use std::fmt::Write;

use ocelli_kernels::{Backend, BackendOp, OpVisitor, for_each_op};

/// Rewrites the table instead of comparing it.
const UPDATE: &str = "OCELLI_UPDATE_README";
const BEGIN: &str = "<!-- ops: made from ops/list.rs -->\n";
const END: &str = "<!-- end of ops -->";

/// The table of ops and backends.
struct Table(String);

impl OpVisitor for Table {
    fn visit<O: BackendOp>(&mut self) {
        let cell =
            |backend| O::variants(backend).map_or_else(|why| format!("none: {why}"), |_| "yes".to_owned());
        let cells = Backend::ALL.map(cell);
        let _ = writeln!(self.0, "| [`{0}`](src/ops/{0}) | {1} |", O::NAME, cells.join(" | "));
    }
}

#[test]
fn the_table_of_ops_is_that_of_the_list() {
    let names = Backend::ALL.map(|backend| backend.name().to_owned());
    let mut table = Table(format!("| op | {} |\n|{}\n", names.join(" | "), " --- |".repeat(names.len() + 1)));
    for_each_op(&mut table);
    let path = ocelli_tests::root().join("kernels/README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("no line `{}`", BEGIN.trim_end()));
    let (found, after) = rest.split_once(END).unwrap_or_else(|| panic!("no line `{END}`"));
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, [before, BEGIN, &table.0, END, after].concat()).unwrap();
        return;
    }
    assert_eq!(found, table.0, "{}: run this test with {UPDATE}=1 to write the table anew", path.display());
}
