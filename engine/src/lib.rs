//! Tensors, weights, preprocessing, generation and scheduling.
