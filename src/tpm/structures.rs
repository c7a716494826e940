//! Pure parsers of TPM structures.
