//! What `kernels/README.md` says of the ops is what the list has.

use std::fmt::Write;

use ocelli_kernels::{Backend, BackendOp, OP_NAMES, OpVisitor, for_each_op};

/// The folder of an op: that of a gradient lies in the folder of its forward op, if it has one.
fn folder(op: &str) -> String {
    match op.strip_suffix("_grad") {
        Some(forward) if OP_NAMES.contains(&forward) => format!("{forward}/grad"),
        _ => op.to_owned(),
    }
}

/// The table of ops and backends.
struct Table(String);

impl OpVisitor for Table {
    fn visit<O: BackendOp>(&mut self) {
        let cell =
            |backend| O::variants(backend).map_or_else(|why| format!("none: {why}"), |_| "yes".to_owned());
        let cells = Backend::ALL.map(cell);
        let _ = writeln!(self.0, "| [`{}`](src/ops/{}) | {} |", O::NAME, folder(O::NAME), cells.join(" | "));
    }
}

#[test]
fn the_table_of_ops_is_that_of_the_list() {
    let names = Backend::ALL.map(|backend| backend.name().to_owned());
    let mut table = Table(format!("| op | {} |\n|{}\n", names.join(" | "), " --- |".repeat(names.len() + 1)));
    for_each_op(&mut table);
    let (begin, end) = ("<!-- ops: made from ops/list.rs -->", "<!-- end of ops -->");
    ocelli_tests::holds_table("kernels/README.md", begin, end, &table.0);
}
