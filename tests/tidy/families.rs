//! What the READMEs say of families is what the registry has.

use ocelli_models::{FAMILIES, Family};

const END: &str = "<!-- end of families -->";

/// Rows of the registry as those of a table with this head, in order of their texts: a new one lies somewhere among them.
fn table(head: &str, row: impl Fn(&Family, String) -> String) -> String {
    let types = |family: &Family| {
        let types: Vec<String> = family.model_types.iter().map(|kind| format!("`{kind}`")).collect();
        types.join(", ")
    };
    let columns = head.matches(" | ").count() + 1;
    let mut rows: Vec<String> = FAMILIES.iter().map(|family| row(family, types(family)) + "\n").collect();
    rows.sort_by_key(|row| row.to_lowercase());
    format!("{head}\n|{}\n", " --- |".repeat(columns)) + &rows.concat()
}

#[test]
fn the_front_page_lists_the_families_of_the_registry() {
    let table = table("| models | `model_type` in config.json |", |family, types| {
        format!("| {} | {types} |", family.models)
    });
    ocelli_tests::holds_table(
        "README.md",
        "<!-- families: made from models/src/registry.rs -->",
        END,
        &table,
    );
}

#[test]
fn the_table_of_families_is_that_of_the_registry() {
    let table = table("| family | models | `model_type` | pictures |", |family, types| {
        let file = family.file.strip_prefix("models/").unwrap_or(family.file);
        format!("| [`{}`]({file}) | {} | {types} | {} |", family.name, family.models, family.pictures)
    });
    ocelli_tests::holds_table(
        "models/README.md",
        "<!-- families: made from src/registry.rs -->",
        END,
        &table,
    );
}
