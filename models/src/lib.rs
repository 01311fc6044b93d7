//! Vision language model families.
