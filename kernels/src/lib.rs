//! Ops, storage formats and backends.
