//! Quantization of small models.
